"""What README, docs/ and docstrings name is there: files, modules, functions, links."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("rdc/assets/*.md"), *ROOT.glob("examples/**/*.md")]
)
CODE = sorted(path for room in ("rdc", "benchmarks") for path in ROOT.glob(f"{room}/**/*.py"))
FILE = re.compile(
    r"(?<![\w/.-])((?:rdc|docs|benchmarks|tests|csrc|examples)/[\w./+-]*\w\.(?:py|md|json|png|svg|h|cpp|cu|toml|yml|jsonl))\b"
)
NAME = re.compile(r"(?<![\w./-])((?:rdc|benchmarks)(?:\.[A-Za-z_]\w*)+)(?![\w/*<{])")
MODULE = re.compile(r"python -m ((?:benchmarks|tests)[\w.]*)")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
OLD = "CHANGELOG.md"  # names what is no more, and where it went
WRITTEN = {  # files that a command named beside them writes
    "benchmarks/results/gpu.json",
    "benchmarks/results/level-weights.json",
    "benchmarks/results/resident-memory.json",
    "rdc/cli/x.py",
}
KEYS = {
    "rdc.gradients",
    "benchmarks.studies.NAME",
}  # a report's schema; metadata of ONNX files are in rdc/export/metadata.py


def _texts():
    """(where, text): pages, and the docstrings of every module, class and function."""
    for page in PAGES:
        if page.name != OLD:
            yield page.relative_to(ROOT).as_posix(), page.read_text(encoding="utf-8")
    for path in CODE:
        where = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                yield f"{where}:{getattr(node, 'lineno', 1)}", text


def _is_there(dotted: str) -> bool:
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError as error:
            if error.name and dotted.startswith(error.name):
                continue
            return True  # it needs a package that is not installed
        for part in parts[length:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def test_every_file_that_is_named_is_there():
    wrong = [
        f"{where}: {name}"
        for where, text in _texts()
        for name in FILE.findall(text)
        if name not in WRITTEN and not (ROOT / name).exists()
    ]
    assert not wrong


def test_every_module_and_function_that_is_named_is_there():
    named = {}
    for where, text in _texts():
        if where.startswith("rdc/export/metadata.py"):
            continue
        for name in [*NAME.findall(text), *MODULE.findall(text)]:
            if name not in KEYS and not name.endswith((".py", ".md", ".onnx", ".json")):
                named.setdefault(name.rstrip("."), where)
    assert len(named) > 50
    assert not [f"{where}: {name}" for name, where in sorted(named.items()) if not _is_there(name)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [target for target in LINK.findall(text) if not target.startswith(("http", "mailto:"))]
    assert not [target for target in targets if not (page.parent / target).exists()]


def test_no_name_of_before_the_rooms():
    """Scripts of benchmarks/ are modules, and nobody is sent to files that are not in the repository."""
    old = re.compile(r"python (?:benchmarks/|ship\.py)|_study\.py|Sources?: .*\bmethod\.md\b|\b[Rr]ule \d")
    assert not [f"{where}: {found[0]}" for where, text in _texts() if (found := old.search(text))]


def test_tests_lie_in_folders_named_like_the_rooms():
    rooms = {path.name for path in (ROOT / "rdc").iterdir() if path.is_dir()}
    folders = {path.parent.relative_to(ROOT / "tests").parts[0] for path in (ROOT / "tests").glob("*/**/test_*.py")}
    assert folders - rooms == {"benchmarks", "fuzz"}


def test_mypy_is_strict_and_leaves_no_module_out():
    """A module may be excused from one rule, with the reason beside it; never from all."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("\n[tool.mypy]\n")[2]
    assert "\nstrict = true\n" in text and not re.search(
        r"^(?:ignore_errors|exclude|follow_imports)\b", text, re.MULTILINE
    )
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "rdc").glob("**/*.py"))
    assert not re.findall(r"# type: ignore(?!\[)|# mypy: .*", code)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_line_is_over_160_characters(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    assert not [f"{number}: {len(line)}" for number, line in enumerate(lines, 1) if len(line) > 160]
    assert page != ROOT / "README.md" or len(lines) <= 130


def test_the_site_has_every_page_and_a_reference_for_every_room():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = re.findall(r"([\w/.-]+\.md)$", nav, re.MULTILINE)
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").glob("**/*.md")}
    assert sorted(listed) == sorted(pages)
    rooms = {path.parent.name for path in (ROOT / "rdc").glob("*/__init__.py")} - {"cli"}
    missing = sorted(room for room in rooms if f"reference/{room}.md" not in pages)
    assert not missing, (
        f"copy docs/reference/method.md for {missing}, and name it in mkdocs.yml and docs/reference/index.md"
    )
