"""What benchmarks/studies/ablations.py can run: defences, attacks, and the experiments that put them beside each other."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rdc.errors import DataError
from rdc.storage.json_files import read_json

__all__ = [
    "ATTACKS",
    "ATTACK_WORDS",
    "EXPERIMENTS",
    "GRIDS",
    "RESULTS",
    "STEPS",
    "Defence",
    "Experiment",
    "N",
    "defences",
    "minutes",
    "optimizer_lm",
    "path_of",
    "tuned_steps",
]

RESULTS = Path(__file__).resolve().parents[1] / "results" / "ablations"
N, STEPS = 128, 10  # images, APGD steps

#: name -> what rdc evaluate is told
ATTACKS = {
    "exact": f"apgd-ce:steps={STEPS}",
    "bpda": f"apgd-ce:gradient=bpda:steps={STEPS}",
    "transfer": f"transfer:surrogate=plain:steps={STEPS}",
    "lagrange": f"lagrange:surrogate=plain:steps={STEPS}:searches=2",
}
ATTACK_WORDS = {
    "exact": "exact gradient",
    "bpda": "BPDA",
    "transfer": "transfer",
    "lagrange": "Lagrange",
}


@dataclasses.dataclass(frozen=True)
class Defence:
    """A row: which model, set how.

    Args:
        words: what tables call it.
        lm, levels: options of rdc evaluate; None: the model's own (no likelihood maximisation).
        model: for ``--model``.
        rows: network rows of the class losses of one image, with their gradient.
        steps: of likelihood maximisation.
    """

    words: str
    lm: str | None = None
    levels: str | None = None
    model: str = "fashion-mnist"
    rows: int = 4
    steps: int = 0

    @property
    def options(self) -> list[str]:
        """As rdc evaluate takes it."""
        found = ["--model", self.model]
        for name, value in (("--levels", self.levels), ("--lm", self.lm)):
            found += [] if value is None else [name, value]
        return found


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Rows beside each other.

    Args:
        title: heading on the page.
        default: name of the row that the others are compared with.
        rows: names of defences.
        attacks: keys of ATTACKS, each run alone on every row.
        redraws: whether clean accuracy over draws of the noise is measured as well.
    """

    title: str
    default: str
    rows: tuple[str, ...]
    attacks: tuple[str, ...] = ("exact",)
    redraws: bool = False


_BUDGETS, _COUNTS, _LEVELS = (2, 4, 16, 32), (1, 2, 10, 20), (1, 2, 8, 16, 32, 64, 125)
#: optimiser -> (what of paper-v2 changes, words, step sizes in units of 1/255 that are tried)
GRIDS: dict[str, tuple[str, str, tuple[float, ...]]] = {
    "momentum": ("", "momentum (paper-v2's)", (1.6, 4, 12.75)),
    "momentum-sign": ("sign=true,", "momentum, sign (paper-v1's)", (0.8, 1.6, 3.2)),
    "adam": ("optimizer=adam,normalize=none,", "Adam", (0.8, 1.6, 3.2)),
    "rmsprop": ("optimizer=rmsprop,normalize=none,", "RMSprop", (0.2, 0.4, 1.6)),
    "sgd": ("optimizer=sgd,sign=false,", "SGD", (1.6, 4, 12.75)),
    "lion": ("optimizer=lion,", "Lion", (0.8, 1.6, 3.2)),
}
_DRAWS = "log:4:0.08:0.7:eps"  # the shipped levels
_VARIANCE = {
    "draws-2": (f"{_DRAWS}:draws=2", "two draws of each level", 8),
    "antithetic-2": (f"{_DRAWS}:draws=2:noise=antithetic", "two draws of opposite sign", 8),
    "draws-4": (f"{_DRAWS}:draws=4", "four draws of each level", 16),
    "shared": (f"{_DRAWS}:noise=shared", "one draw for all levels", 4),
    "antithetic": (f"{_DRAWS}:noise=antithetic", "opposite signs in neighbouring levels", 4),
    "midpoint": ("midpoint:4:0.08:0.7:eps", "even in sigma, mid-points", 4),
    "systematic": ("systematic:4:0.08:0.7:eps", "even in sigma, left ends (systematic)", 4),
    "vp": ("vp:4:0.08:0.7:eps", "even in the time of a VP process", 4),
    "uniform-1": ("uniform:4:0.08:0.7:eps:seed=1", "uniform draws, first", 4),
    "uniform-2": ("uniform:4:0.08:0.7:eps:seed=2", "uniform draws, second", 4),
    "importance-1": ("importance:4:0.08:0.7:eps:seed=1", "importance-sampled, first", 4),
    "importance-2": ("importance:4:0.08:0.7:eps:seed=2", "importance-sampled, second", 4),
}

EXPERIMENTS: dict[str, Experiment] = {
    "budget": Experiment(
        "Budget eta (N = 5)",
        "rdc",
        ("dc", *(f"eta-{eta}" for eta in (2, 4)), "rdc", *(f"eta-{eta}" for eta in (16, 32))),
    ),
    "budget-1": Experiment(
        "Budget eta (N = 1)", "n-1", ("dc", "n1-eta-2", "n1-eta-4", "n-1", "n1-eta-16", "n1-eta-32")
    ),
    "steps": Experiment("Steps N (eta = 8/255)", "rdc", ("dc", "n-1", "n-2", "rdc", "n-10", "n-20")),
    "optimizers": Experiment("Optimisers (N = 5, eta = 8/255)", "rdc", ("rdc", *(f"opt-{name}" for name in GRIDS))),
    "levels": Experiment(
        "Number of levels T'",
        "dc",
        (
            *(f"ours-{count}" if count != 4 else "dc" for count in (1, 2, 4, 8, 16, 32, 64, 125)),
            *(f"paper-{count}" for count in (1, 2, 4, 8, 16, 32, 64, 125)),
        ),
    ),
    "attacks": Experiment(
        "Attacks alone and together", "rdc", ("n-1", "rdc"), ("bpda", "lagrange", "exact", "transfer")
    ),
    "variance": Experiment("Noise and placement of levels", "dc", ("dc", *_VARIANCE, "per-class"), redraws=True),
    "models": Experiment("Other networks", "dc", ("dc", "second", "teacher", "rdc", "second-rdc")),
}


def defences() -> dict[str, Defence]:
    """Name of every row -> what it is; optimisers with the step sizes that were tuned, where they were."""
    found = {
        "dc": Defence("DC: 4 levels, no likelihood maximisation"),
        "rdc": Defence("RDC: N = 5, eta 8/255 (paper-v2)", "paper-v2", steps=5),
        "per-class": Defence("noise of its own for every class", model="per-class:fashion-mnist", rows=40),
        "teacher": Defence("the teacher (conditional), DC", model="fashion-mnist-teacher", rows=120),
        "second": Defence("the student without margins, DC", model=SECOND, rows=10),
        "second-rdc": Defence("the student without margins, RDC", "paper-v2", model=SECOND, rows=10, steps=5),
    }
    found |= {
        f"eta-{eta}": Defence(f"RDC: N = 5, eta {eta}/255", f"paper-v2,eta={eta}/255", steps=5) for eta in _BUDGETS
    }
    found |= {
        f"n1-eta-{eta}": Defence(f"RDC: N = 1, eta {eta}/255", f"paper-v2,steps=1,eta={eta}/255", steps=1)
        for eta in _BUDGETS
    }
    found |= {
        f"n-{count}": Defence(f"RDC: N = {count}, eta 8/255", f"paper-v2,steps={count}", steps=count)
        for count in _COUNTS
    }
    for count in _LEVELS:
        words = f"{count} level{'s' * (count > 1)}"
        found[f"ours-{count}"] = Defence(f"{words}, 0.08 to 0.7", levels=f"log:{count}:0.08:0.7:eps", rows=count)
    for count in sorted({*_LEVELS, 4}):
        words = f"{count} level{'s' * (count > 1)}, 1e-4 to 3 (paper)"
        found[f"paper-{count}"] = Defence(words, levels=f"midpoint:{count}:1e-4:3:edm", rows=count)
    found |= {name: Defence(words, levels=levels, rows=rows) for name, (levels, words, rows) in _VARIANCE.items()}
    sizes = tuned_steps()
    for name, (changes, words, grid) in GRIDS.items():
        size = sizes.get(name, grid[1])
        found[f"opt-{name}"] = Defence(f"{words}, step {size:g}/255", optimizer_lm(changes, size), steps=5)
    return found


#: the shipped student before margins were trained, from the repository's history (commit 9bacc19^); docs/ablations.md has the command
SECOND = "out/student-second"


def path_of(row: str, attack: str) -> Path:
    """Where a finished cell is kept."""
    return RESULTS / f"{row}--{attack}.json"


def optimizer_lm(changes: str, size: float) -> str:
    """The text of ``--lm`` for an optimiser's changes and a step size in units of 1/255."""
    return f"paper-v2,{changes}step_size={size:g}/255"


def tuned_steps() -> dict[str, float]:
    """Optimiser -> the step size in units of 1/255 that kept most held-out images, as far as it was looked for."""
    path = RESULTS / "tuned.json"
    if not path.exists():
        return {}
    found = read_json(path)
    if not isinstance(found, dict) or "chosen" not in found:
        raise DataError(f"{path}: expected an object with chosen step sizes. Delete it and tune again")
    return {str(name): float(size) for name, size in found["chosen"].items()}


#: measured seconds, one thread, machine of docs/reproduce.md: a row with its gradient; a step of LM, exact and under BPDA
_ROW, _LM_EXACT, _LM_FORWARD = 0.006, 0.035, 0.011


def minutes(defence: Defence, attack: str, n: int = N) -> float:
    """About how long a cell takes (one thread, nothing beside it)."""
    rows = defence.rows * _ROW
    if attack == "redraws":
        return 10 * n * rows / 3 / 60
    passes = {"exact": STEPS + 1, "bpda": STEPS + 1, "transfer": 2 * STEPS, "lagrange": 4 * STEPS}[attack]
    steps = _LM_EXACT if attack == "exact" else _LM_FORWARD
    return passes * n * (rows + defence.steps * steps) / 60
