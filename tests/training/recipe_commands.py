"""The training commands of docs/reproduce.md, and the recipes that command lines say."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

from rdc.cli import _parser
from rdc.training import Recipe

ROOT = Path(__file__).resolve().parents[2]


def recipe_of_words(words: list[str]) -> tuple[Recipe, Path]:
    """What ``rdc WORDS`` would do, and its --out."""
    module = importlib.import_module(f"rdc.cli.{words[0]}")
    parser, _ = _parser(words[0], module)
    args = parser.parse_args(words)
    return module.recipe(args), args.out


def documented() -> dict[str, list[str]]:
    """--out -> words of each training command of docs/reproduce.md, the shell's variables put in."""
    text = (ROOT / "docs" / "reproduce.md").read_text().replace("\\\n", " ")
    variables: dict[str, str] = {}
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        line = line.strip()
        for name, value in re.findall(r'(?<!\S)([A-Z])="([^"]*)"', line):
            variables[name] = _expanded(value, variables)
        if line.startswith(("rdc train ", "rdc distill ")):
            words = shlex.split(_expanded(line, variables), comments=True)[1:]
            found[words[words.index("--out") + 1]] = words
    return found


def _expanded(text: str, variables: dict[str, str]) -> str:
    text = re.sub(r"\$\{(\w)/([^/]*)/\}", lambda found: variables[found[1]].replace(found[2], "", 1), text)
    return re.sub(r"\$([A-Z])\b", lambda found: variables[found[1]], text)
