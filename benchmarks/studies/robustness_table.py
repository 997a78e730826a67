"""The table of defences and threats: run what is missing, then write it as markdown.

    python -m benchmarks.studies.robustness_table --list
    python -m benchmarks.studies.robustness_table --rows DC,TRADES --threats linf-8,l2-0.5 --threads 1
    python -m benchmarks.studies.robustness_table --write docs

The missing cells of a row are run by one `rdc evaluate --threats` where that gives the same cells: no norm twice (a larger
radius would begin with the images of the smaller one), the same steps and sanity checks. --single runs every cell by an
`rdc evaluate` of its own. The command is in the report; a run is resumable at any moment: the same command goes on, with
the same --single and the same cells missing. Finished reports are kept in benchmarks/results/table/; a cell that is there
is not run again. --write runs nothing: the table goes into robustness.md, every attack of every cell into robustness_attacks.md.

Where a cell's images were attacked further (FURTHER), the table has what both left, with a mark.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import textwrap
from pathlib import Path
from typing import Any

from benchmarks.starting import start
from rdc.cli import main as rdc_main
from rdc.errors import DataError
from rdc.evaluation.threats import Threat
from rdc.statistics import wilson_interval
from rdc.storage.files import atomic_write
from rdc.storage.json_files import read_json

RESULTS = Path(__file__).resolve().parents[1] / "results" / "table"
FURTHER = {("RDC", "linf-25"): RESULTS.parent / "rdc-linf-0.1-further.json"}  # a lower number replaces the cell's
FRESH = RESULTS.parent / "rdc-fresh-noise.json"  # what the marks of the fresh-noise table are worth (fresh_noise.py)
DATA = "fashion-mnist-sample"
WIDTH = 150  # of a line in the document

BEGIN = "<!-- table: written by benchmarks/studies/robustness_table.py -->"
END = "<!-- end of table -->"

THREATS = {
    "linf-8": ("linf", "8/255", "l_inf 8/255"),
    "linf-25": ("linf", "0.1", "l_inf 0.1"),
    "l2-0.5": ("l2", "0.5", "l_2 0.5"),
    "l2-1.5": ("l2", "1.5", "l_2 1.5"),
    "stadv": ("flow", "0.05", "StAdv 0.05"),
}

# TRADES and standard at l_inf 8/255 bear the whole of AutoAttack, 100 steps (--whole); it left what this shorter list leaves.
# A gradient of a diffusion classifier costs T' times a network's, and it is so nearly linear in a ball that steps add little
# (docs/levels.md): its targeted attacks take fewer. Through a purifier gradients are dearer and mislead; there, transfer, BPDA,
# restarts from every earlier endpoint and the Lagrangian are added.
_PLAIN = ("apgd-ce", "apgd-t:targets=9", "fab-t:targets=4", "square:queries=1000")
_DIFFUSION = ("apgd-ce", "apgd-t:targets=3:steps=25", "fab-t:targets=3:steps=15", "square:queries=500")
_SEVERAL = _DIFFUSION[:2]  # FAB and Square had found nothing more in any cell of DC
_PURIFIED = (
    "transfer:surrogate=plain", "apgd-ce:gradient=bpda:steps=30", "apgd-ce", "apgd-t:targets=3:steps=20",
    "endpoints-dlr:steps=20", "square:queries=200",
)  # fmt: skip
_OPTIMISES = (*_PURIFIED[:-1], "lagrange:surrogate=plain:steps=20", _PURIFIED[-1])  # it has an objective to attack
_OPTIMISES_ALL = (  # the same in front of four levels: dearer, fewer steps
    "transfer:surrogate=plain", "apgd-ce:gradient=bpda:steps=20", "apgd-ce:steps=20", "endpoints-dlr:steps=10",
    "lagrange:surrogate=plain:steps=10", "square:queries=100",
)  # fmt: skip
_SAMPLED = (  # forty passes in a row for one gradient
    "transfer:surrogate=plain", "apgd-ce:gradient=bpda:steps=20", "apgd-ce:steps=20", "apgd-t:targets=2:steps=10",
    "square:queries=50",
)  # fmt: skip
# Sixty passes with a vector-Jacobian product for one prediction, and second derivatives for its gradient. What three steps
# break need not be attacked by ten.
_INTEGRATED = ("apgd-ce:steps=3", "apgd-ce:steps=10", "apgd-t:targets=2:steps=5", "square:queries=20")
_WARP = ("stadv",)


@dataclasses.dataclass(frozen=True)
class Row:
    """A defence: its name for rdc evaluate, its attacks in a ball, their steps, its options, images of sanity checks (l_inf 8/255)."""

    model: str
    attacks: tuple[str, ...]
    steps: int
    options: tuple[str, ...] = ()
    sanity: int = 8


ROWS = {
    "DC": Row("fashion-mnist", _DIFFUSION, 50),
    "DC-several": Row("fashion-mnist-several", _SEVERAL, 50),
    "RDC": Row("fashion-mnist", _OPTIMISES_ALL, 50, ("--lm", "paper-v2")),
    "LM+ResNet": Row("fashion-mnist-lm-resnet", _OPTIMISES, 50),
    "DiffPure": Row("fashion-mnist-diffpure", _SAMPLED, 50),
    "PGD-AT": Row("fashion-mnist-pgd-at", _PLAIN, 50),
    "TRADES": Row("fashion-mnist-trades", _PLAIN, 50),
    "MART": Row("fashion-mnist-mart", _PLAIN, 50),
    "PGD-AT-several": Row("fashion-mnist-pgd-at-several", _PLAIN, 50),
    "Wong-Kolter": Row(
        "examples.wong_kolter:load", _PLAIN, 50
    ),  # WONG_KOLTER names the file; from the repository's folder
    "standard": Row("fashion-mnist-standard", _PLAIN, 50),
    "JEM": Row("fashion-mnist-jem", _PLAIN, 50),
    "HybViT": Row("fashion-mnist-hybvit", _PLAIN, 50),
}
#: Rows that --rows runs when asked, of fewer images; not in the table while a cell is missing: a step costs seconds an image
#: (docs/likelihood.md).
OPEN = {"SBGC": Row("sbgc:fashion-mnist-teacher", _INTEGRATED, 10, ("--resubmissions", "3"), 0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help="defences (default: all)")
    parser.add_argument("--threats", default=",".join(THREATS), help="threats (default: all)")
    parser.add_argument("--n", type=int, default=128, help="first images of the test set (default: 128)")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("out/table"), help="folders of the runs")
    parser.add_argument("--whole", action="store_true", help="AutoAttack as it is, 100 steps, whatever the row says")
    parser.add_argument(
        "--single", action="store_true", help="every cell by itself, none together with others of its row"
    )
    parser.add_argument("--list", action="store_true", help="show what is there and what is missing")
    parser.add_argument(
        "--write",
        type=Path,
        help="folder of robustness.md and robustness_attacks.md, whose figures are written; runs nothing",
    )
    args = parser.parse_args()
    rows, threats = _chosen(parser, "rows", args.rows, ROWS | OPEN), _chosen(parser, "threats", args.threats, THREATS)
    if args.write:
        for name, made in PAGES.items():
            put(args.write / name, made())
        return
    for row in rows:
        for threat in threats:
            print(_line(row, threat), flush=True)
        missing = [] if args.list else [threat for threat in threats if not _kept(row, threat).exists()]
        for together in runs_of(row, missing, args.whole, args.single):
            _run(row, together, args)
            for threat in together:
                print(_line(row, threat), flush=True)


def _chosen(parser: argparse.ArgumentParser, option: str, text: str, known: dict[str, Any]) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in known]:
        parser.error(f"--{option}: expected names of {', '.join(known)}; got {unknown[0]!r}")
    return names


def _kept(row: str, threat: str) -> Path:
    return RESULTS / f"{row.lower()}-{threat}.json"


def evaluation_command(
    name: str, threat: str, attacks: tuple[str, ...], n: int, batch: int, threads: int, steps: int | None = None
) -> list[str]:
    """Words of the `rdc evaluate` of a cell, without its folder; ``steps``: other than the row's."""
    norm, eps, _ = THREATS[threat]
    return _command(name, ["--norm", norm, "--eps", eps], attacks, n, batch, threads, steps)


def _command(
    name: str, where: list[str], attacks: tuple[str, ...], n: int, batch: int, threads: int, steps: int | None
) -> list[str]:
    row = (ROWS | OPEN)[name]
    words = ["evaluate", "--model", row.model, "--data", DATA, "--n", str(n), *row.options]
    words += [*where, "--attacks", ",".join(attacks), "--steps", str(steps or row.steps)]
    return [*words, "--noise", "known", "--batch", str(batch), "--threads", str(threads)]


@dataclasses.dataclass(frozen=True)
class Cell:
    """How one cell is attacked; a list for balls is no list for flows, where --threats takes StAdv by itself."""

    attacks: tuple[str, ...]
    steps: int
    sanity: int

    @classmethod
    def of(cls, name: str, threat: str, whole: bool) -> Cell:
        """The cell of a row; ``whole``: AutoAttack as it is in balls."""
        row, sanity = (ROWS | OPEN)[name], (ROWS | OPEN)[name].sanity if threat == "linf-8" else 0
        if THREATS[threat][0] == "flow":
            return cls(_WARP, row.steps, sanity)
        return cls(("autoattack",), 100, sanity) if whole else cls(row.attacks, row.steps, sanity)


def runs_of(name: str, threats: list[str], whole: bool = False, single: bool = False) -> list[list[str]]:
    """The cells of a row that one `rdc evaluate` gives as one of its own each would: no norm twice, the same steps and sanity checks."""
    found: list[list[str]] = []
    for threat in threats:
        cell, norm = Cell.of(name, threat, whole), THREATS[threat][0]
        for run in [] if single else found:
            first = Cell.of(name, run[0], whole)
            if norm not in {THREATS[other][0] for other in run} and (first.steps, first.sanity) == (
                cell.steps,
                cell.sanity,
            ):
                run.append(threat)
                break
        else:
            found.append([threat])
    return found


def _run(name: str, threats: list[str], args: argparse.Namespace) -> None:
    """These cells of a row: one rdc evaluate in a folder of its own, the report of each kept."""
    cells = [Cell.of(name, threat, args.whole) for threat in threats]
    out = args.work / "-".join([name.lower(), *threats])
    if len(threats) == 1:
        where, attacks, folders = ["--norm", *_threat(threats[0], ("--eps",))], cells[0].attacks, [out]
    else:
        balls = [cell.attacks for threat, cell in zip(threats, cells, strict=True) if THREATS[threat][0] != "flow"]
        where, attacks = ["--threats", ",".join(":".join(_threat(threat)) for threat in threats)], balls[0]
        folders = [out / Threat(*_threat(threat)).folder for threat in threats]
    command = _command(name, where, attacks, args.n, args.batch, args.threads, cells[0].steps)
    command += ["--sanity", str(cells[0].sanity), "--quiet", "--out", str(out)]
    if status := rdc_main(command):
        raise SystemExit(status)
    RESULTS.mkdir(parents=True, exist_ok=True)
    for threat, folder in zip(threats, folders, strict=True):
        shutil.copyfile(folder / "report.json", _kept(name, threat))


def _threat(threat: str, between: tuple[str, ...] = ()) -> list[str]:
    """Norm and radius of a threat, with words between them."""
    norm, eps, _ = THREATS[threat]
    return [norm, *between, eps]


def _line(row: str, threat: str) -> str:
    kept = _kept(row, threat)
    return f"{row:10s} {threat:8s} {_cell(kept) if kept.exists() else 'missing'}"


def _cell(path: Path) -> str:
    report = read_json(path)
    low, high = report["robust"]["ci95"]
    best = _last_to_break(report)
    return (
        f"clean {100 * report['clean']['accuracy']:.1f}  robust {100 * report['robust']['accuracy']:.1f} "
        f"[{100 * low:.1f}, {100 * high:.1f}]  last broken by {best}  {report['seconds'] / report['n']:.1f} s/image"
    )


def _last_to_break(report: dict[str, Any]) -> str:
    broke = [attack["name"] for attack in report["attacks"] if attack["broken"]]
    return broke[-1] if broke else "-"


def put(page: Path, text: str, begin: str = BEGIN, end: str = END) -> None:
    """Write ``text`` between two marks of a page; what is written by hand stays.

    Raises:
        DataError: the page has no such marks.
    """
    before, found, rest = page.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise DataError(f"{page}: expected the lines {begin} and {end}, between which the figures go; got none")
    with atomic_write(page) as file:
        file.write(f"{before}{begin}\n\n{text}\n{end}{after}".encode())


def _cells() -> tuple[list[str], dict[tuple[str, str], dict[str, Any]]]:
    """The rows that are shown, and the kept reports."""
    shown = [*ROWS, *(name for name in OPEN if all(_kept(name, threat).exists() for threat in THREATS))]
    every = ((row, threat, _kept(row, threat)) for row in shown for threat in THREATS)
    return shown, {(row, threat): read_json(path) for row, threat, path in every if path.exists()}


def table() -> str:
    """Markdown: accuracy under each threat."""
    shown, cells = _cells()
    lines = ["| defence | clean | mean of the five | " + " | ".join(words for _, _, words in THREATS.values()) + " |"]
    lines.append("|" + "---|" * (3 + len(THREATS)))
    for name in shown:
        mine = {threat: cells[name, threat] for threat in THREATS if (name, threat) in cells}
        if not mine:
            continue
        clean = next(iter(mine.values()))["clean"]["accuracy"]
        numbers = [_number(name, threat, mine[threat]) if threat in mine else "-" for threat in THREATS]
        count = next(iter(mine.values()))["n"]
        few = f" (first {count})" if name in OPEN else ""
        left = [further(name, threat, report)[1] / report["n"] for threat, report in mine.items()]
        mean = f"{100 * sum(left) / len(left):.1f}" if len(left) == len(THREATS) else "-"
        lines.append(f"| {name}{few} | {100 * clean:.1f} | " + " | ".join([mean, *numbers]) + " |")
    return "\n".join([*lines, *_notes(cells)]) + "\n"


def details() -> str:
    """Markdown: the same images under fresh noise, then every attack of every cell."""
    shown, cells = _cells()
    lines = _fresh(cells)
    for threat, (_, _, words) in THREATS.items():
        lines += ["", f"## {words}", ""]
        for name in shown:
            if (report := cells.get((name, threat))) is not None:
                lines += _attacks(name, report)
    return "\n".join(lines) + "\n"


def _attacks(name: str, report: dict[str, Any]) -> list[str]:
    """What each attack left (%), in their order, and what that cost."""
    steps = ", ".join(f"{_named(attack)} {100 * attack['accuracy']:.1f}" for attack in report["attacks"])
    passes, seconds = report["network_evaluations"] / report["n"], report["seconds"] / report["n"]
    text = f"- **{name}** ({passes:,.0f} network passes and {seconds:.1f} s an image): {steps}"
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def further(name: str, threat: str, report: dict[str, Any]) -> tuple[int, int]:
    """Images standing after the cell's attacks, and after further ones, where there were any."""
    standing = round(report["robust"]["accuracy"] * report["n"])
    if (name, threat) not in FURTHER:
        return standing, standing
    found = read_json(FURTHER[name, threat])
    return standing, standing - (found["left_by_the_cell"] - found["left_by_both"])


def _notes(cells: dict[tuple[str, str], dict[str, Any]]) -> list[str]:
    lines = []
    for (name, threat), path in FURTHER.items():
        if (name, threat) in cells:
            before, after = further(name, threat, cells[name, threat])
            found = read_json(path)
            n, which = cells[name, threat]["n"], ", ".join(f"`{attack}`" for attack in found["attacks"])
            on = "On all of them" if found["images"] == n else f"On the first {found['images']}"
            others = "" if found["images"] == n else "; the others were not attacked further"
            text = (
                f"\\* {name}, {THREATS[threat][2]}: the attacks of the cell leave {before} of {n}. {on}, {which} "
                f"broke {before - after} more (`benchmarks/results/{path.name}`){others}."
            )
            lines += ["", *textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)]
    return lines


def _fresh(cells: dict[tuple[str, str], dict[str, Any]]) -> list[str]:
    """The same adversarial images under noise drawn anew, for the rows that draw any."""
    lines = ["## The same images under fresh noise", ""]
    lines += ["Share of right answers over ten draws / majority / right in all ten.", ""]
    lines.append("| defence | " + " | ".join(words for _, _, words in THREATS.values()) + " |")
    lines.append("|" + "---|" * (1 + len(THREATS)))
    marked = []
    for name in ROWS:
        mine = [cells.get((name, threat), {}) for threat in THREATS]
        if any("worst" in report.get("scores", {}) for report in mine):
            lines.append(f"| {name} | " + " | ".join(_scored(report) for report in mine) + " |")
            marked += [report for report in mine if report and shared_a_draw(report)]
    if marked:
        most = 100 * max(map(too_low_at_most, marked))
        text = (
            "‡ Drawn before a fix of 2026-11-30, and not drawn again: the first of the ten draws had the noise of likelihood "
            "maximisation that the attacker knew. That favours the attacker, so the share of right answers is, if anything, too low, "
            f"by at most {most:.1f} points; the worst of ten can be off either way.{_worth()}"
        )
        lines += ["", *textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)]
    return lines


def _worth() -> str:
    """A sentence: the same images drawn by the rule before the fix and by the one after it, in balls."""
    if not FRESH.exists():
        return ""
    from benchmarks.studies.fresh_noise import scores

    told = []
    for threat, row in read_json(FRESH)["rows"].items():
        if threat == "stadv":  # measured whole: its cell is drawn as it should be
            continue
        old, new = scores(row, "old"), scores(row, "new")
        (before, after), (low, high) = (
            [100 * found["average"] for found in (old, new)],
            [100 * found["worst"]["accuracy"] for found in (old, new)],
        )
        told.append(
            f"{THREATS[threat][2]}, {row['n']} images: {before:.1f} before and {after:.1f} after on average, "
            f"{low:.1f} and {high:.1f} in the worst of ten"
        )
    made = "Images that transfer and BPDA alone made, drawn by either rule (`python -m benchmarks.studies.fresh_noise`)"
    return f" {made}: {'; '.join(told)}." if told else ""


def _scored(report: dict[str, Any]) -> str:
    scores = report.get("scores", {})
    return (_scorings(scores) + ("‡" if shared_a_draw(report) else "")) if scores else "-"


def shared_a_draw(report: dict[str, Any]) -> bool:
    """Whether the ten draws began with likelihood maximisation's known one: it drew the same for every seed in a diffusion classifier.

    Reports name their networks since the day that was mended. A purifier in front of a network had draws of its seed all along.
    """
    about = report["classifier"]
    return bool(about.get("lm")) and bool(about.get("levels")) and "networks" not in report


def too_low_at_most(report: dict[str, Any]) -> float:
    """How much lower the share over ten draws may be than over the nine that nobody knew.

    The known draw was right at least on the images that were right in all ten: nine times the others' share is at most ten times the
    mean less that.
    """
    average, worst = (report["scores"][key]["accuracy"] for key in ("average", "worst"))
    return float((average - worst) / 9)


def _scorings(scores: dict[str, Any]) -> str:
    """Average, majority and worst of the draws; bold where that is below the known noise's."""
    average, majority, worst = (100 * scores[key]["accuracy"] for key in ("average", "majority", "worst"))
    lowest = f"**{worst:.1f}**" if scores["worst"]["accuracy"] < scores["known"]["accuracy"] else f"{worst:.1f}"
    return f"{average:.1f} / {majority:.1f} / {lowest}"


def _number(name: str, threat: str, report: dict[str, Any]) -> str:
    rate, mark = report["robust"], ""
    before, after = further(name, threat, report)
    if after < before:
        rate, mark = {"accuracy": after / report["n"], "ci95": wilson_interval(after, report["n"])}, "\\*"
    low, high = rate["ci95"]
    return f"**{100 * rate['accuracy']:.1f}**{mark} [{100 * low:.1f}, {100 * high:.1f}]"


def _named(attack: dict[str, Any]) -> str:
    return attack["name"] + (" (BPDA)" if attack["gradient"] == "bpda" else "")


#: page of docs/ -> what it has between its marks
PAGES = {"robustness.md": table, "robustness_attacks.md": details}


if __name__ == "__main__":
    start(main)
