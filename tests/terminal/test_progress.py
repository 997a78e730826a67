"""Bars where there is no stderr, a closed one, one on a full disk, and one that knows ASCII only."""

import io
import sys

import pytest

from rdc.evaluation.progress import ProgressBars, sanity_line
from rdc.terminal.progress import bar, on_terminal


class Full(io.StringIO):
    encoding = "utf-8"

    def write(self, text=""):
        raise OSError(28, "No space left on device")

    flush = isatty = write


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("make", [lambda: None, closed, Full, lambda: io.TextIOWrapper(io.BytesIO(), "ascii")])
def test_bars_end_nothing(make, monkeypatch):
    monkeypatch.setattr(sys, "stderr", make())
    assert on_terminal() is False
    with bar(range(3), desc="∞", mininterval=0) as line:
        assert list(line) == [0, 1, 2]
    bars = ProgressBars(4, 0, 0, ("apgd-ce",))
    bars.begin(4)
    bars.step({"attack": "apgd-ce", "step": 1, "steps": 2, "restart": 0, "restarts": 1, "robust": 3, "total": 4})
    bars.end(4, 2)
    bars.close()
    with sanity_line(2, enabled=True) as step:
        step({"attack": "apgd-ce", "step": 1, "steps": 2})


def test_bars_draw_on_the_stderr_of_now(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with bar(total=2, desc="levels") as line:
        line.update(2)
    assert "levels" in sys.stderr.getvalue() and "2/2" in sys.stderr.getvalue()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with bar(total=2, enabled=False):
        pass
    assert sys.stderr.getvalue() == ""
