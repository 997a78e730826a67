"""docs/paper.md and docs/reproduce_paper.md: no empty verdict, a command for every claim, and commands that their programs understand."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

from rdc.cli import main as rdc_main

ROOT = Path(__file__).resolve().parents[2]
PAPER, REPRODUCE = ((ROOT / f"docs/{name}.md").read_text(encoding="utf-8") for name in ("paper", "reproduce_paper"))


def block_lines(text: str) -> list[str]:
    """Lines of indented blocks, continued ones joined."""
    return [line.strip() for line in text.replace("\\\n", "").splitlines() if line.startswith("    ")]


def commands(text: str, *, inline: bool = True) -> list[list[str]]:
    """Words of every `rdc` and `python -m benchmarks` on a page, with what its shell variables stand for; or of its blocks alone."""
    spans = [] if not inline else re.findall(r"`((?:rdc |python -m benchmarks)[^`]*)`", text.replace("\n", " "))
    variables: dict[str, str] = {}
    found = []
    for line in [*spans, *block_lines(text)]:
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        if assigned := re.fullmatch(r'([A-Z]+)="?([^"]*)"?', line):
            variables[assigned[1]] = assigned[2]
        elif line.startswith(("rdc ", "python -m benchmarks")):
            found.append(shlex.split(line, comments=True))
    return found


class Understood(BaseException):
    """The command line was parsed; nothing is run."""


@pytest.fixture
def parsing(monkeypatch):
    """Programs stop behind the parsing of their command line."""
    parse = argparse.ArgumentParser.parse_known_args

    def parsed(self, *arguments, **options):
        _, rest = parse(self, *arguments, **options)
        raise SystemExit(f"not understood: {rest}") if rest else Understood

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parsed)


ALL = [*commands(PAPER), *commands(REPRODUCE)]


def test_there_are_commands():
    assert len(commands(PAPER)) > 12 and len(commands(REPRODUCE)) >= 8


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_command_is_understood(words, parsing, monkeypatch):
    monkeypatch.setattr("sys.argv", words[2:] if words[0] == "python" else words)
    with pytest.raises(Understood):
        if words[0] == "rdc":
            rdc_main(words[1:])
        else:
            importlib.import_module(words[2]).main()


def test_every_claim_has_a_verdict_what_was_measured_and_a_command():
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in PAPER.splitlines() if re.match(r"\| \d+ \|", line)
    ]
    assert [row[0] for row in rows] == [str(number) for number in range(1, len(rows) + 1)] and len(rows) >= 14
    assert all(len(row) == 3 and all(row) for row in rows)
    sections = re.split(r"\n\*\*(\d+)\. ", PAPER.partition("## The paper's open questions")[0])
    texts = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert list(texts) == [row[0] for row in rows]
    for number, text in texts.items():
        assert re.search(r"\d", text), number
        assert commands(text) or "The same command" in text, number
        assert "](" in text or "The same command" in text or "ablations" in text, number


def test_every_open_question_has_an_answer_and_a_command():
    _, _, rest = PAPER.partition("## The paper's open questions")
    bullets = re.split(r"\n- \*\*", rest.partition("\n## ")[0])[1:]
    assert len(bullets) >= 5
    for text in bullets:
        assert commands(text), text
        assert len(re.sub(r"`[^`]*`", "", text.partition("**")[2]).split()) > 8, text
