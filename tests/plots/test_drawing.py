"""Pictures do not depend on the user's matplotlib: backend, settings file, folder of settings."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib")

from rdc.plots.drawing import drawing, new_figure, shown
from rdc.reports.plots import losses_plot
from rdc.terminal.plain_text import printable

ROOT = Path(__file__).resolve().parents[2]
DRAW = """
import hashlib, io, os, sys
from rdc.plots.drawing import drawing, new_figure
here, backend = os.getcwd(), os.environ.get("MPLBACKEND")
for _ in range(2):
    with drawing():
        figure = new_figure(2, 1, dpi=80, layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [1, 0], label="a")
        axes.set_title("title")
        axes.legend()
        file = io.BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None})
assert "matplotlib.pyplot" not in sys.modules
assert (os.getcwd(), os.environ.get("MPLBACKEND")) == (here, backend)
print(hashlib.sha256(file.getvalue()).hexdigest())
"""


def drawn(folder: Path, **environment: str) -> str:
    settings = {key: value for key, value in os.environ.items() if not key.startswith(("MPL", "MATPLOTLIB"))}
    settings |= {"PYTHONPATH": str(ROOT), "MPLCONFIGDIR": str(folder), **environment}
    done = subprocess.run([sys.executable, "-c", DRAW], cwd=folder, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def plain() -> str:
    """What this process draws."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(DRAW.replace('assert "matplotlib.pyplot"', 'assert "no.pyplot"'), {})
    return printed.getvalue()


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "no such backend"])
def test_any_backend(tmp_path: Path, plain: str, backend: str) -> None:
    assert drawn(tmp_path, MPLBACKEND=backend) == plain


@pytest.mark.parametrize(
    ("place", "content"),
    [
        ("matplotlibrc", b"text.usetex: True\nfont.size: 30\nfigure.facecolor: black\nsavefig.dpi: 17\nbackend: no-such\n"),
        ("settings/matplotlibrc", b"font.size: many\nno.such.setting: 1\n: :\n"),
        ("settings/matplotlibrc", b"\xff\xfe\x00 no text"),
    ],
)  # fmt: skip
def test_any_settings_file(tmp_path: Path, plain: str, place: str, content: bytes) -> None:
    (tmp_path / "settings").mkdir()
    (tmp_path / place).write_bytes(content)
    assert drawn(tmp_path, MPLCONFIGDIR=str(tmp_path / "settings")) == plain


def test_everything_wrong_at_once_and_no_folder_to_write_in(tmp_path: Path, plain: str) -> None:
    (tmp_path / "matplotlibrc").write_bytes(b"\xff")
    assert drawn(tmp_path, MPLBACKEND="nonsense", MPLCONFIGDIR="/proc/none", HOME="/proc/none") == plain


def test_settings_of_a_program_that_draws_too_are_as_before() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 31, "text.usetex": True}):
        with drawing():
            assert matplotlib.rcParams["font.size"] == 10 and not matplotlib.rcParams["text.usetex"]
            figure = new_figure(1, 1)
            figure.text(0.5, 0.5, "x")
            figure.canvas.draw()
        assert matplotlib.rcParams["font.size"] == 31 and matplotlib.rcParams["text.usetex"]
    assert dict(matplotlib.rcParams) == before


NAMES = ["$\\frac{1", "cat $ dog $", "\x1b[31m\n", "\ud800", "<b>|</b>", "猫", "‮abc", "x" * 100_000, "a\\$b$"]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_names_are_drawn_letter_by_letter(name: str, recwarn: pytest.WarningsRecorder) -> None:
    import numpy as np

    losses = np.array([[0.0, 1.0]])
    plot = losses_plot(np.array([1.0]), losses, losses, 0, (0, 1), [name, f"not {name}"])
    again = losses_plot(np.array([1.0]), losses, losses, 0, (0, 1), [name, f"not {name}"])
    assert plot == again
    for content in (plot.wide, plot.narrow):
        words = [text.text or "" for text in ElementTree.fromstring(content).iter("{http://www.w3.org/2000/svg}text")]
        assert any(shown(name, 40).replace("\\$", "$")[:20] in text for text in words)
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
    assert shown(name, 40).isprintable() and len(shown(name, 40)) < 200


def test_printable() -> None:
    assert printable("Ärmel 猫　b c") == "Ärmel 猫　b c"  # spaces of other scripts stay
    assert printable("a\nb\x00\x1b\ud800\u2028\u202e") == "a\\nb\\x00\\x1b\\ud800\\u2028\\u202e"
    assert printable("x" * 50, 10) == "x" * 9 + "…" and printable(7) == "7"
