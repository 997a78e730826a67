"""Bars where there is no stderr, a closed one, one on a full disk, and one that knows ASCII only."""

import io
import sys
from pathlib import Path

import pytest

from rdc.evaluation.progress import ProgressBars, sanity_line
from rdc.terminal.progress import bar, on_terminal, say_begin


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
    bars.end(4, 2, 4)
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


# --- without a terminal -------------------------------------------------------------------------------------------
def lines_of(monkeypatch, work):
    """What ``work`` writes on a stderr that is a file."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    work()
    text = stream.getvalue()
    assert not set(text) & {"\r", "\x1b", "|"} and "\n\n" not in text and text in ("", text.strip() + "\n")
    return text.splitlines()


def test_a_log_gets_one_line_when_all_is_done(monkeypatch):
    (line,) = lines_of(monkeypatch, lambda: list(bar(range(5), desc="levels")))
    assert line.startswith("levels: 100% 5/5 [")


def test_a_log_gets_no_line_where_nothing_is_done(monkeypatch):
    def work():
        with bar(total=5, initial=2), bar(total=1, leave=False) as inner:
            inner.update(0)

    assert lines_of(monkeypatch, work) == []


def test_a_log_gets_lines_now_and_then(monkeypatch):
    clock = [0.0]

    monkeypatch.setattr("rdc.terminal.progress._now", lambda: clock[0])

    def work():
        with bar(total=10, desc="images") as line:
            for _ in range(10):
                clock[0] += 6.0
                line.set_postfix_str(f"at {clock[0]:.0f} s")
                line.update()

    found = lines_of(monkeypatch, work)
    assert [line.split()[2] for line in found] == ["2/10", "5/10", "8/10", "10/10"]  # 15 s apart, and the end


def test_evaluations_in_a_log(monkeypatch):
    def work():
        with sanity_line(2, enabled=True) as step:
            step({"attack": "apgd-ce", "step": 1, "steps": 2})
        bars = ProgressBars(4, 2, 1, ("apgd-ce",))
        bars.begin(2)
        bars.step({"attack": "apgd-ce", "step": 1, "steps": 2, "restart": 0, "restarts": 1, "robust": 3, "total": 4})
        bars.end(2, 1, 4)
        bars.close()

    (line,) = lines_of(monkeypatch, work)
    assert line.startswith("evaluate 100% 4/4 images [") and line.endswith("robust 50.0 %]")


def test_where_a_run_begins(monkeypatch):
    def said(done, **options):
        return lines_of(monkeypatch, lambda: say_begin(Path("runs/a\nb"), done, 1000, "images", **options))

    assert said(0) == [] == said(20, enabled=False)
    assert said(20) == ["rdc: runs/a\\nb: resuming at 20 of 1,000 images"]
    (line,) = said(1000)
    assert line == "rdc: runs/a\\nb: already complete, 1,000 of 1,000 images; nothing is computed again"
