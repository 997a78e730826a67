"""Recipes: in files and back, from options, what they refuse, those of the shipped models, and runs that follow them."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from rdc.cli import main
from rdc.data import Dataset, save_npz
from rdc.errors import ConfigError
from rdc.training import Recipe, from_toml, run, to_toml
from rdc.training.adversarial import ClassifierTerms, InnerAttack
from rdc.training.config import TrainConfig
from rdc.training.distillation import POSTERIOR_SCALE, DistillationTerms, Secant
from rdc.training.objective import DiffusionTerms
from rdc.training.recipe_settings import recipe_from, settings_of
from rdc.training.recipes import GENERATIVE, METHODS, NoiseChoice
from rdc.training.selection import SelectionTerms
from tests.training.recipe_commands import ROOT, documented, recipe_of_words

ASSETS = ROOT / "rdc" / "assets"
SHIPPED = sorted(path.stem for path in (ASSETS / "recipes").glob("*.toml"))
DOCUMENTED = {"fashion-mnist": "runs/student"}  # the others: runs/NAME
ON_A_GPU = {
    "cifar10-teacher": ("cifar10.json", "teacher"),
    "cifar10-first": ("cifar10.json", "robust"),
    "cifar10": ("cifar10-second.json", "robust"),
}
SWITCHES = [field.name for field in dataclasses.fields(TrainConfig) if field.type == "bool"]
STUDENT = {"method": "distill", "teacher": "runs/teacher"}


# --- files ------------------------------------------------------------------------------------------------------------
EXAMPLES = [
    *(Recipe(method) for method in METHODS if method != "distill"),
    Recipe("distill", teacher="runs/teacher"),
    Recipe("distill", teacher='odd "name"\\\t\u00e9\U0001f600', data="\x7f", noise=NoiseChoice(std=0.1 + 0.2)),
    Recipe("diffusion", init="m", augment=0.12, diffusion=DiffusionTerms(posterior_weight=1e-7), minutes=1.5),
    Recipe(
        "distill", init="x", shift=3, wide_channels=8, train=TrainConfig(images=9, batch_size=3, seed=5, compile=True),
        distillation=DistillationTerms(0, 2.0, 1.0, 0.03, secant=Secant(8 / 255, "l2", steps=3), cutmix=0.3),
    ),
    Recipe("mart", attack=InnerAttack(0.5, "l2", 3), classifier=ClassifierTerms(2.0), holdout=20),
    Recipe("trades", attack=InnerAttack(threats="linf:0.1,flow:0.05", choice="worst"), selection=SelectionTerms(500)),
    Recipe(
        "distill",
        init="i",
        levels="log:6:0.8:4:flat",
        distillation=DistillationTerms(
            0, posterior_weight=1.0, secant=Secant(threats="l2:0.5..1.5"), label_smoothing=0.1
        ),
        selection=SelectionTerms(20_000, "linf:0.1,flow:0.05", 200, 5),
    ),
]  # fmt: skip


@pytest.mark.parametrize("recipe", EXAMPLES, ids=lambda recipe: recipe.method)
def test_a_file_says_the_whole_recipe(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(to_toml(recipe), encoding="utf-8")
    assert from_toml(path) == recipe == recipe_from(settings_of(recipe))
    assert ("images" in settings_of(recipe)["train"]) == (recipe.minutes is None)  # else they are planned


def test_a_path_that_is_no_text_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(to_toml(Recipe(data="a\udcff")), encoding="utf-8")
    assert from_toml(tmp_path / "recipe.toml").data == "a\ufffd"


def test_radii_are_read_like_those_of_the_command_line() -> None:
    made = recipe_from({"method": "pgd-at", "attack": {"eps": "8/255", "step_size": "2/255"}})
    assert made == Recipe("pgd-at") and made.attack == InnerAttack(8 / 255, step_size=2 / 255)
    terms = {"classes_per_image": 2, "posterior_weight": 1, "secant": {"eps": "1/255", "high": 1}}
    student = recipe_from({**STUDENT, "distillation": terms}).distillation
    assert student == DistillationTerms(2, posterior_weight=1.0, secant=Secant(1 / 255, high=1.0))
    assert type(student.posterior_weight) is float and type(student.secant.high) is float


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("method = 'free'", "{}: method: expected one of diffusion, standard, .*; got 'free'"),
        ("metod = 'mart'", r"{}: metod: there is no such setting \(did you mean 'method'\?\); expected one of method, network, "),
        (
            "[train]\nlearning_rat = 1e-3",
            r"{}: train.learning_rat: there is no such setting \(did you mean 'learning_rate'\?\); expected one of images, ",
        ),
        ("[distillation.secant]\nradius = 1\n", "{}: distillation.secant.radius: there is no such setting"),
        ("train = 3", r"{}: train: expected a table \[train\]; got 3"),
        ("[train]\nimages = 1.5", "{}: train.images: expected an integer; got 1.5"),
        ("[train]\nimages = true", "{}: train.images: expected an integer; got True"),
        ("[train]\nflip = 1", "{}: train.flip: expected true or false; got 1"),
        ("[train]\nclip = '1'", "{}: train.clip: expected a number; got '1'"),
        ("init = 3", "{}: init: expected a text in quotes; got 3"),
        ("[noise]\nmean = [1]", r"{}: noise.mean: expected a number; got \[1\]"),
        ("method = 'mart'\n[attack]\neps = 'wide'", "{}: attack.eps: expected a budget such as"),
        ("method = 'mart'\n[attack]\neps = 8", r"{} \[attack\]: .*pixel units, got 8.0"),
        ("[train]\nlearning_rate = -1", r"{} \[train\]: learning_rate: expected a positive number; got -1.0"),
        ("[train]\nimages = 3", r"{} \[train\]: images: expected at least batch_size \(64\) >= 1; got 3"),
        ("holdout = -1", "{}: holdout: expected 0 or more images; got -1"),
        ("augment = 1.5", "{}: augment: expected a probability in 0..1; got 1.5"),
        ("minutes = inf", "{}: minutes: expected a positive number; got inf"),
        ("[noise]\nstd = 0", r"{} \[noise\]: noise: expected a finite mean, std > 0"),
        ("[diffusion]\nlabel_dropout = 2", r"{} \[diffusion\]: label_dropout: expected a share in 0..1; got 2.0"),
        ("shift = 1", "{}: shift: has no meaning for method diffusion; it goes with standard, pgd-at, trades, mart"),
        ("[selection]\nimages = 5", r"{} \[selection\]: every: expected 1 or more images"),
        ("method = 'mart'\n[attack]\nthreats = 'l2'", r"{} \[attack\]: threats: expected NORM:RADIUS"),
        ("[attack]\neps = 0.1", "{}: attack.eps: has no meaning for method diffusion; it goes with pgd-at, trades, mart"),
        ("method = 'pgd-at'\n[classifier]\nbeta = 6", "{}: classifier.beta: .*; it goes with trades, mart"),
        ("method = 'distill'", "--teacher: expected a conditional model"),
        ("method = 'distill'\nteacher = 't'\n[distillation.secant]\nlow = 0.1", "{}: distillation.secant.eps: expected"),
        (
            "method = 'distill'\nteacher = 't'\n[distillation]\nposterior_weight = 1\nmargin_eps = 2",
            r"{} \[distillation\]: margin_eps: expected a radius in",
        ),
        ("method = ", r"{}: not a recipe \(TOML\) \(TOMLDecodeError"),
        ("method = 'a\x00'", "{}: not a recipe"),
        ("\x1b[2J = 3", "{}: not a recipe"),
        ('"\\u001b[2J\\n" = 3', r"{}: \\x1b\[2J\\n: there is no such setting"),
    ],
)  # fmt: skip
def test_mistakes_in_a_file_name_file_and_key(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        from_toml(path)
    assert re.search(expected.replace("{}", re.escape(str(path))), str(caught.value)), caught.value
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    for path, expected in ((tmp_path / "none", "no such file; expected a recipe"), (tmp_path, "is a folder")):
        with pytest.raises(ConfigError, match=expected):
            from_toml(path)
    (tmp_path / "large").write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(ConfigError, match="at most 1,048,576 bytes"):
        from_toml(tmp_path / "large")


def test_sections_of_other_methods_are_refused() -> None:
    with pytest.raises(ConfigError, match="attack: has no meaning for method diffusion"):
        Recipe(attack=InnerAttack(0.1))
    with pytest.raises(ConfigError, match="network: has no meaning for method distill"):
        Recipe("distill", network="small-28", teacher="t")


# --- options ----------------------------------------------------------------------------------------------------------
def test_options_override_the_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        "method = 'trades'\nshift = 2\n[train]\nimages = 640\nflip = true\n[attack]\neps = '4/255'\nsteps = 3\n"
    )
    words = ["train", "--out", "x", "--config", str(path)]
    recipe, _ = recipe_of_words(words)
    assert recipe == Recipe(
        "trades", data="fashion-mnist", shift=2, attack=InnerAttack(4 / 255, steps=3),
        train=TrainConfig(images=640, flip=True, learning_rate=5e-3),
    )  # fmt: skip
    recipe, _ = recipe_of_words([*words, "--lr", "1e-4", "--eps", "1/255", "--shift", "0", "--data", "mine.npz"])
    assert recipe == Recipe(
        "trades", data="mine.npz", attack=InnerAttack(1 / 255, steps=3),
        train=TrainConfig(images=640, flip=True, learning_rate=1e-4),
    )  # fmt: skip


@pytest.mark.parametrize("command", ["train", "distill"])
@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_of_the_file_can_be_turned_on_and_off(tmp_path: Path, command: str, switch: str) -> None:
    path, option = tmp_path / "recipe.toml", f"--{switch.replace('_', '-')}"
    words = [command, "--out", "x", "--config", str(path), *(["--teacher", "t"] if command == "distill" else [])]
    for said, options, expected in (
        (True, [], True),
        (True, [option.replace("--", "--no-")], False),
        (False, [option], True),
        (True, [option, option.replace("--", "--no-")], False),  # the last counts
        (None, [], False),
    ):
        path.write_text("" if said is None else f"[train]\n{switch} = {str(said).lower()}\n")
        assert getattr(recipe_of_words([*words, *options])[0].schedule, switch) is expected, (said, options)


@pytest.mark.parametrize("command", ["train", "distill"])
def test_every_switch_of_a_recipe_has_its_opposite_in_the_help(command: str, capsys: pytest.CaptureFixture) -> None:
    assert set(SWITCHES) >= {"flip", "compile", "cuda_graph"}
    with pytest.raises(SystemExit):
        recipe_of_words([command, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for switch in SWITCHES:
        option = switch.replace("_", "-")
        _, sign, about = shown.partition(f"--{option}, --no-{option} ")
        assert sign and "off, whatever the recipe says" in about.partition(" --")[0]


@pytest.mark.parametrize(
    ("command", "text", "options", "expected"),
    [
        ("train", "method = 'distill'", "", "FILE: method: expected diffusion or .* for rdc train; got 'distill'"),
        ("distill", "method = 'mart'", "", "FILE: method: expected distill for rdc distill; got 'mart'"),
        ("train", "[diffusion]\nwrong_classes = 1", "--method mart", "FILE: diffusion.wrong_classes: has no meaning"),
        ("train", "method = 'standard'", "--eps 8/255", "error: --eps: has no meaning for --method standard"),
        ("train", "[train]\nbatch_size = 8", "--images 3", r"--images: expected at least batch_size \(8\)"),
        ("train", "[train]\nclip = 0", "--images 300", r"FILE \[train\]: clip: expected a positive number"),
        ("train", "train = 1", "--images 300", r"FILE: train: expected a table \[train\]; got 1"),
        (
            "distill",
            "[distillation.secant]\nlow = 0.1",
            "--teacher t",
            "FILE: distillation.secant.eps: expected a radius",
        ),
        ("distill", "method = 3", "", "FILE: method: expected distill for rdc distill; got 3"),
    ],
)
def test_mistakes_beside_a_file(command, text, options, expected, tmp_path: Path, capsys) -> None:
    path = tmp_path / "my.toml"
    path.write_text(text)
    assert main([command, "--config", str(path), "--out", str(tmp_path / "no"), *options.split()]) == 2
    error = capsys.readouterr().err
    assert re.search(expected.replace("FILE", re.escape(str(path))), error) and error.count("\n") == 1, error


def test_help_names_the_defaults(capsys) -> None:
    """The texts are written by hand, so that --help needs no torch."""
    student = Recipe("distill", teacher="t")
    terms, secant, schedule = student.distillation, Secant(0.5), student.schedule
    options = {
        "--images": schedule.images, "--batch-size": schedule.batch_size, "--lr": schedule.learning_rate,
        "--warmup-images": schedule.warmup_images, "--ema-images": schedule.ema_images, "--clip": schedule.clip,
        "--memory-format": schedule.memory_format, "--classes-per-image": terms.classes_per_image,
        "--checkpoint-seconds": round(schedule.checkpoint_seconds), "--difference-weight": terms.difference_weight,
        "--posterior-weight": terms.posterior_weight, "--posterior-scale": POSTERIOR_SCALE,
        "--margin-norm": terms.margin_norm, "--secant-norm": secant.norm, "--secant-low": secant.low,
        "--secant-high": secant.high, "--secant-share": secant.share, "--secant-steps": secant.steps,
        "--wide-channels": student.wide_channels, "--shift": student.shift, "--cutmix": round(terms.cutmix),
    }  # fmt: skip
    diffusion, trades, standard = Recipe(), Recipe("trades"), Recipe("standard")
    jem, hybvit = Recipe("jem"), Recipe("hybvit")
    assert trades.attack is not None and trades.attack.eps == 8 / 255
    more = {
        "--label-dropout": diffusion.diffusion.label_dropout, "--wrong-classes": diffusion.diffusion.wrong_classes,
        "--norm": trades.attack.norm, "--inner-steps": trades.attack.steps, "--eps": "8/255; l2: 0.5",
        "--network": f"preset ({diffusion.network}; for classifiers {standard.network}; jem: {jem.network}; hybvit: {hybvit.network}",
        "--lr": f"diffusion: {diffusion.schedule.learning_rate}, others: {standard.schedule.learning_rate}, "
        f"jem and hybvit: {jem.schedule.learning_rate}",
        "--sgld-steps": jem.energy.steps, "--sgld-noise": jem.energy.noise, "--replay-buffer": jem.energy.buffer,
        "--restart": jem.energy.restart, "--input-noise": jem.energy.input_noise, "--energy-weight": round(jem.energy.weight),
        "--largest-gap": round(jem.energy.largest_gap), "--sgld-step-size": round(jem.energy.step_size),
        "--denoising-weight": round(hybvit.hybrid.denoising_weight),
    }  # fmt: skip
    assert hybvit.schedule.learning_rate == jem.schedule.learning_rate
    for command, expected in (("distill", options), ("train", more)):
        assert main([command, "--help"]) == 0
        text = capsys.readouterr().out.replace("1e-3", "0.001").replace("5e-3", "0.005")
        for option, value in expected.items():
            found = re.search(rf"^  {option} (.*?)^ {{0,2}}\S", text, re.MULTILINE | re.DOTALL)
            assert found and re.search(rf"[( ]{re.escape(str(value))}\b", " ".join(found[1].split())), (option, value)


# --- the shipped models' ----------------------------------------------------------------------------------------------
def test_every_shipped_model_has_its_recipe() -> None:
    models = {path.stem for path in ASSETS.glob("*.json")}
    assert models <= set(SHIPPED) and len(SHIPPED) == 24
    for name in SHIPPED:
        assert (ASSETS / "recipes" / f"{name}.toml").read_text().startswith("# "), "a comment says what was really run"


@pytest.mark.parametrize("name", SHIPPED)
def test_recipe_is_that_of_the_documented_command(name: str) -> None:
    """docs/reproduce.md has those of one machine, benchmarks/results/h200 those of the GPU."""
    if name in ON_A_GPU:
        file, part = ON_A_GPU[name]
        parts = json.loads((ROOT / "benchmarks" / "results" / "h200" / file).read_text())["parts"]
        places = {
            "/tmp/rdc-cifar10/teacher": "runs/cifar10-teacher",
            "/tmp/rdc-cifar10/resumed/student": "runs/cifar10-first",
        }
        words = [places.get(word, word) for word in shlex.split(parts[part]["command"])[1:]]
    else:
        words = documented()[DOCUMENTED.get(name, f"runs/{name.removeprefix('fashion-mnist-')}")]
    recipe, _ = recipe_of_words(words)
    assert from_toml(ASSETS / "recipes" / f"{name}.toml") == recipe


@pytest.mark.parametrize("name", sorted(path.stem for path in ASSETS.glob("*.json")))
def test_recipe_is_what_the_shipped_model_records(name: str) -> None:
    recipe, info = (
        from_toml(ASSETS / "recipes" / f"{name}.toml"),
        json.loads((ASSETS / f"{name}.json").read_text())["info"],
    )
    if recipe.noise is not None:
        assert info["noise"] == [recipe.noise.mean, recipe.noise.std]
    if recipe.distillation is not None:
        assert info["distillation"] == recipe.distillation.describe() and info.get("shift", 0) == recipe.shift
    if recipe.attack is not None:
        assert info["attack"] == recipe.attack.describe() and info.get("beta") == recipe.classifier.beta
    if recipe.diffusion is not None and recipe.diffusion.posterior_weight:
        posterior = {key: value for key, value in vars(recipe.diffusion).items() if key != "label_dropout"}
        assert info["posterior"] == posterior and info["label_dropout"] == recipe.diffusion.label_dropout
    if recipe.method in GENERATIVE:
        section = "energy" if recipe.method == "jem" else "hybrid"
        assert info[section] == vars(getattr(recipe, section)) and info["method"] == recipe.method
    assert info["images"] // recipe.schedule.batch_size == info["step"]
    assert recipe.minutes or recipe.schedule.steps == info["step"]


# --- runs -------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Path]:
    make = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (24, 1, 28, 28), generator=make, dtype=torch.uint8)
    made = Dataset(pixels, torch.arange(24) % 2, ("a", "b"), "noise", "train")
    save_npz(made, path := tmp_path_factory.mktemp("data") / "noise.npz")
    return made, path


def test_a_call_an_option_string_and_a_file_train_the_same(data: tuple[Dataset, Path], tmp_path: Path, capsys) -> None:
    """Bit for bit; and the run's own recipe.toml continues it."""
    images, path = data
    threads = ["--threads", str(torch.get_num_threads()), "--device", "cpu", "--quiet"]
    words = ["--data", str(path), "--images", "16", "--batch-size", "4", "--flip", "--holdout", "4", "--seed", "3"]
    command = ["train", *words, "--method", "standard", "--shift", "1", *threads]
    assert main([*command, "--out", str(tmp_path / "options")]) == 0
    recipe = from_toml(tmp_path / "options" / "recipe.toml")
    train = TrainConfig(images=16, batch_size=4, flip=True, seed=3, learning_rate=5e-3)
    assert recipe == Recipe("standard", data=str(path), holdout=4, shift=1, train=train)
    done = run(recipe, images, tmp_path / "call", device="cpu", progress=False)
    assert (done.images, done.planned, done.finished, done.samples, done.first) == (16, 16, True, False, True)
    file = ["--config", str(tmp_path / "options" / "recipe.toml"), *threads]
    assert main(["train", *file, "--out", str(tmp_path / "file")]) == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("options", "call", "file")]
    assert weights[0] == weights[1] == weights[2]
    capsys.readouterr()
    assert main(["train", *file, "--out", str(tmp_path / "options")]) == 0  # finished: the same run
    assert main(["train", *file, "--out", str(tmp_path / "options"), "--seed", "4"]) == 2
    assert "train.seed: 3 there, 4 here" in capsys.readouterr().err


def test_folders_of_earlier_versions_continue(data: tuple[Dataset, Path], tmp_path: Path) -> None:
    """What tells runs apart is what it was before there were recipes: config.json of a run of 0.1, literally."""
    images, _ = data
    recipe = Recipe("trades", data="noise.npz", shift=1, train=TrainConfig(images=4, batch_size=4, learning_rate=5e-3))
    run(recipe, images, tmp_path, device="cpu", progress=False)
    described = json.loads((tmp_path / "config.json").read_text())
    assert list(described) == [
        "command",
        "method",
        "attack",
        "beta",
        "label_smoothing",
        "shift",
        "network",
        "data",
        "holdout",
        "train",
    ]
    assert described["attack"] == {"eps": 8 / 255, "norm": "linf", "steps": 10, "step_size": 2.5 * (8 / 255) / 10}
    del described["attack"], described["network"]
    assert described == {
        "command": "train", "method": "trades", "beta": 6.0, "label_smoothing": 0.0, "shift": 1,
        "data": {"name": "noise.npz", "images": 24, "crc32": described["data"]["crc32"]}, "holdout": 0,
        "train": {
            "images": 4, "batch_size": 4, "learning_rate": 0.005, "warmup_images": 10000, "ema_images": 15000,
            "clip": 1.0, "seed": 0, "precision": "float32", "flip": False, "compile": False, "checkpoint_seconds": 60.0,
            "memory_format": "channels_last", "cuda_graph": False,
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("terms", "described"),
    [
        (DistillationTerms(), {}),
        (DistillationTerms(posterior_weight=1.0, margin_eps=0.1), {"margin_eps": 0.1, "margin_norm": "linf"}),
        (
            DistillationTerms(posterior_weight=1.0, secant=Secant(0.1), cutmix=0.2),
            {"cutmix": 0.2, "secant": {"eps": 0.1, "norm": "linf", "low": 0.05, "high": 0.3, "share": 1.0}},
        ),
        (
            DistillationTerms(posterior_weight=1.0, secant=Secant(0.1, steps=2)),
            {"secant": {"eps": 0.1, "norm": "linf", "low": 0.05, "high": 0.3, "share": 1.0, "steps": 2}},
        ),
    ],
)
def test_what_is_off_is_not_recorded(terms: DistillationTerms, described: dict) -> None:
    always = {"classes_per_image": 3, "difference_weight": 1.0, "posterior_scale": 2.0}
    found = dataclasses.replace(terms, posterior_scale=2.0).describe()
    assert found == {**always, "posterior_weight": terms.posterior_weight, **described}
