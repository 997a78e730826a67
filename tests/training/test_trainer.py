"""Training: exact resume, several processes, stops and failures, numerics of one step.

Run as a script, this file is the process that gets killed, or one of two under torchrun.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rdc.data import Dataset
from rdc.errors import CheckpointError, ConfigError
from rdc.execution.processes import start_processes
from rdc.networks.presets import build_network
from rdc.training.batches import Batches, BatchGenerator, integers, normal, uniform
from rdc.training.objective import ConditionalObjective, NoiseDistribution
from rdc.training.state import RunFolder, State
from rdc.training.trainer import TrainConfig, Trainer, TrainingStopped
from tests.tolerances import (
    BFLOAT16_TRAINING,
    DROPPED,
    FLOAT32_NETWORK,
    FLOAT32_SUM,
    FLOAT32_ULP,
    FLOAT32_WEIGHT_ULP,
    HUNDREDS_SPREAD,
    TRAINED_ALIKE,
    WEIGHTS_ALIKE,
)

ROOT = Path(__file__).resolve().parents[2]
CONFIG = TrainConfig(images=240, batch_size=12, learning_rate=2e-3, warmup_images=60, ema_images=40, seed=3, flip=True)
WITH_AWP = dataclasses.replace(CONFIG, images=60, awp=0.05)
STEPS = 20


def network(dropout: float = 0.0) -> nn.Module:
    """About 10,000 weights, for images [1, 8, 8] of 3 classes."""
    unet = {"architecture": "SongUNet", "model_channels": 8, "channel_mult": [1], "num_blocks": 1}
    unet |= {"attn_resolutions": [], "middle_attention": False, "dropout": dropout, "embedding_type": "fourier"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return build_network(
            {"kind": "conditional", "image_shape": [1, 8, 8], "patch_size": 2, "num_classes": 3, "unet": unet}
        )


@functools.cache
def images() -> Dataset:
    """50 images: 20 steps of 12 run through four epochs and into a fifth, with epochs ending inside steps."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (50, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 3, (50,), generator=generator)
    return Dataset(pixels, labels, ("a", "b", "c"), "noise", "train")


def trainer(out: Path, config: TrainConfig = CONFIG, *, dropout: float = 0.1, objective=None, **settings) -> Trainer:
    objective = objective or ConditionalObjective(3, NoiseDistribution())
    return Trainer(network(dropout), objective, images(), config, out, {"dropout": dropout}, progress=False, **settings)


class Hook:
    """The usual objective; calls ``act(step)`` first."""

    def __init__(self, act) -> None:
        self.objective, self.act, self.step = ConditionalObjective(3, NoiseDistribution()), act, 0

    def __call__(self, *arguments):
        self.act(self.step)
        self.step += 1
        return self.objective(*arguments)


def saving_every(run: Trainer, steps: int) -> Trainer:
    """Checkpoints by steps instead of by the clock, so that a test knows where they are."""
    save = run.save
    run.save = lambda: save() if run.step % steps == 0 or run.step == run.config.steps else None
    return run


def eager(config: TrainConfig = CONFIG) -> TrainConfig:
    """Offer a checkpoint after every step."""
    return TrainConfig(**{**vars(config), "checkpoint_seconds": 0.0})


def rows(out: Path) -> list[dict]:
    """The log without the clock's columns and the checksum over them."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key not in ("images_per_s", "seconds", "crc")} for line in lines
    ]


def main() -> None:
    """``test_training.py MODE OUT``: see the tests that start it."""
    mode, out = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    if mode in ("two", "two-awp"):
        start_processes()
        trainer(out, WITH_AWP if mode == "two-awp" else CONFIG, dropout=0.0).run()
        torch.distributed.destroy_process_group()
        threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
        left = [name for name in threads if "gloo" in name]
        sys.exit(f"threads that outlive the process group can abort the process as it ends: {left}" if left else 0)

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def act(step: int) -> None:
        if step == 13 and mode == "while-saving":
            os.fsync = die
        if step == 13 and mode == "between":
            die()

    saving_every(trainer(out, eager(), objective=Hook(act)), 5 if mode == "between" else 7).run()


if __name__ == "__main__":
    main()
    sys.exit()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("finished")
    trainer(out).run()
    torch.set_num_threads(before)
    return out


def start(*command: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=120)


def expect_same_state(one: Path, other: Path) -> None:
    """Weights, averages, moments and buffers, bit for bit."""
    left, right = (load_file(out / "state.safetensors") for out in (one, other))
    assert left.keys() == right.keys()
    assert {key.split(".")[0] for key in left} == {"net", "ema", "m", "v", "buffer"}
    different = [key for key in left if not torch.equal(left[key], right[key])]
    assert not different


def test_weight_decay_is_adamw_of_matrices_alone(tmp_path: Path) -> None:
    decayed = trainer(tmp_path / "a", TrainConfig(**{**vars(CONFIG), "weight_decay": 0.5}), dropout=0.0)
    plain = trainer(tmp_path / "b", dropout=0.0)
    before = {name: p.detach().clone() for name, p in plain.parameters.items()}
    rate = plain.train_step()["lr"]
    decayed.train_step()
    for name, p in decayed.parameters.items():
        expected = plain.parameters[name] - (0.5 * rate * before[name] if p.ndim >= 2 else 0)
        torch.testing.assert_close(p, expected, rtol=FLOAT32_SUM, atol=FLOAT32_WEIGHT_ULP)


def test_settings_that_are_off_are_not_described() -> None:
    """A run that began before they existed goes on."""
    assert "weight_decay" not in CONFIG.describe() and CONFIG.describe()["images"] == 240
    assert TrainConfig(**{**vars(CONFIG), "weight_decay": 0.5}).describe()["weight_decay"] == 0.5


# --- resume -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("mode", "last"), [("between", 10), ("while-saving", 7)])
def test_a_killed_run_continues_as_if_it_had_not_been(mode: str, last: int, finished: Path, tmp_path: Path) -> None:
    result = start(__file__, mode, str(tmp_path))
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert rows(tmp_path)[-1]["step"] == {"between": 13, "while-saving": 14}[mode]  # later than the last checkpoint
    run = trainer(tmp_path)
    assert run.folder.load().step == last
    assert len(list(tmp_path.glob(".*.tmp"))) == (mode == "while-saving")
    run.run()
    expect_same_state(tmp_path, finished)
    assert rows(tmp_path) == rows(finished)
    assert not list(tmp_path.glob(".*.tmp"))


def test_resume_starts_at_the_last_checkpoint(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.resume()
    for _ in range(3):
        run.train_step()
    run.save()
    run.train_step()
    again = trainer(tmp_path)
    again.resume()
    assert again.step == 3 and again.folder.load().tensors.keys() == load_file(tmp_path / "state.safetensors").keys()


def test_a_log_row_cut_by_a_checkpoint_is_the_mean_over_all_its_steps(tmp_path: Path) -> None:
    config = TrainConfig(images=1200, batch_size=12)  # 100 steps, a row for every second
    assert config.log_steps == 2
    one, other = (saving_every(trainer(tmp_path / name, eager(config)), 1) for name in ("one", "other"))
    stop_after(one, 5)
    stop_after(other, 4)
    with pytest.raises(StopIteration):
        one.run()
    with pytest.raises(StopIteration):
        other.run()
    again = trainer(tmp_path / "one", config)
    stop_after(again, 6)
    last = trainer(tmp_path / "other", config)
    stop_after(last, 6)
    for run in (again, last):
        with pytest.raises(StopIteration):
            run.run()
    assert rows(tmp_path / "one") == rows(tmp_path / "other")
    assert [row["step"] for row in rows(tmp_path / "one")] == [2, 4, 6]


def stop_after(run: Trainer, steps: int) -> None:
    """Make ``run`` raise StopIteration in front of this step."""
    step = run.train_step

    def limited() -> dict:
        if run.step == steps:
            raise StopIteration
        return step()

    run.train_step = limited


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"learning_rate": 1e-4}, "train.learning_rate: 0.002 there, 0.0001 here"),
        ({"seed": 4}, "train.seed: 3 there, 4 here"),
        ({"images": 480}, "cannot be made longer or shorter.*cosine"),
    ],
)
def test_other_settings_are_refused_by_name(change: dict, expected: str, finished: Path) -> None:
    before = (finished / "state.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match=expected):
        trainer(finished, TrainConfig(**{**vars(CONFIG), **change})).run()
    with pytest.raises(CheckpointError, match="dropout: 0.1 there, 0.0 here"):
        trainer(finished, dropout=0.0).run()
    assert (finished / "state.safetensors").read_bytes() == before


def test_settings_that_change_no_result_may_differ(finished: Path) -> None:
    trainer(finished, TrainConfig(**{**vars(CONFIG), "checkpoint_seconds": 5.0})).run()


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "foreign"])
def test_a_damaged_state_is_refused_and_kept(damage: str, finished: Path, tmp_path: Path) -> None:
    whole = (finished / "state.safetensors").read_bytes()
    content = {"cut": whole[: len(whole) // 2], "garbage": b"\x80" * 1000, "empty": b""}.get(damage)
    path = tmp_path / "state.safetensors"
    if content is None:
        from safetensors.torch import save_file

        save_file({"weight": torch.zeros(2)}, path)
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="not a training state of rdc, or truncated"):
        trainer(tmp_path).run()
    assert path.read_bytes() == before


def stored(path: Path, change: dict[str, str | None]) -> None:
    """Rewrite a state's metadata: values, or None to leave a key out."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, "pt") as file:
        metadata = {key: value for key, value in {**file.metadata(), **change}.items() if value is not None}
    save_file(load_file(path), path, metadata)


@pytest.mark.parametrize(
    "change",
    [
        {"description": "[" * 100_000}, {"description": "[]"}, {"description": None}, {"description": '{"a":' * 800 + "1" + "}" * 800},
        {"step": "-1"}, {"step": "many"}, {"seconds": "nan"}, {"window": '[{"loss": "x"}]'}, {"window": "{}"}, {"window": '[[]]'},
    ],
)  # fmt: skip
def test_odd_metadata_is_one_line(change: dict, finished: Path, tmp_path: Path) -> None:
    """With or without the digest that states have had since they had one."""
    for digest in ({}, {"format": None, "digest": None}):
        path = tmp_path / "state.safetensors"
        path.write_bytes((finished / "state.safetensors").read_bytes())
        stored(path, {**change, **digest})
        with pytest.raises(CheckpointError) as error:
            trainer(tmp_path).run()
        assert "\n" not in str(error.value) and len(str(error.value)) < 3000 and str(tmp_path) in str(error.value)


def test_a_state_without_digest_is_read_and_half_of_one_is_not(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    path.write_bytes((finished / "state.safetensors").read_bytes())
    stored(path, {"format": None, "digest": None})
    assert trainer(tmp_path).folder.load().step == STEPS
    for half in ({"format": "2"}, {"digest": "0" * 64}):
        stored(path, {"format": None, "digest": None, **half})
        with pytest.raises(CheckpointError, match="does not have the digest that it names"):
            trainer(tmp_path).run()


def test_numbers_that_are_not_finite_are_kept_and_are_no_nan_in_json(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.resume()
    run.folder.log({"step": 1, "loss": math.nan, "hits": math.inf})
    assert rows(tmp_path) == [{"step": 1, "loss": None, "hits": None}]
    run.folder.save(State(1, {"net.a": torch.zeros(1)}, window=[{"loss": 0.1, "hits": math.nan}]))
    window = run.folder.load().window
    assert window[0]["loss"] == 0.1 and math.isnan(window[0]["hits"])


def test_a_log_is_trimmed_row_by_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trainer(tmp_path)
    run.resume()
    for step in (1, 2, 3, 4):
        run.folder.log({"step": step, "loss": step / 10})
    path = tmp_path / "log.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    old = [b'{"step": 0, "loss": NaN}\n']  # of the version before checksums
    path.write_bytes(
        b"".join([*old, lines[0], lines[1].replace(b"0.2", b"0.9"), b"[" * 9999 + b"\n", *lines[2:]]) + b'{"st'
    )
    run.folder.trim_log(3)
    assert path.read_bytes() == b"".join([*old, lines[0], lines[2]])
    assert "rows 3 to 4: 2 are damaged and dropped" in capsys.readouterr().err
    run.folder.trim_log(3)
    assert not capsys.readouterr().err


def test_nothing_is_written_through_links_in_the_folder(tmp_path: Path) -> None:
    precious, out = tmp_path / "precious", tmp_path / "out"
    precious.write_text("precious")
    out.mkdir()
    (out / "lock").symlink_to(precious)
    with pytest.raises(ConfigError, match="symbolic link"):
        trainer(out).run()
    (out / "lock").unlink()
    run = trainer(out)
    run.resume()
    (out / "log.jsonl").unlink()
    (out / "log.jsonl").symlink_to(precious)
    with pytest.raises(CheckpointError, match="log.jsonl: cannot be written .is a symbolic link"):
        run.folder.log({"step": 1})
    assert precious.read_text() == "precious"


def test_a_state_of_another_network_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.folder.save(State(3, {"net.weight": torch.zeros(2)}))
    with pytest.raises(CheckpointError, match="lacks net"):
        run.run()


# --- several processes ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("mode", "config"), [("two", CONFIG), ("two-awp", WITH_AWP)])
def test_two_processes_train_what_one_does(mode: str, config: TrainConfig, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__, mode, str(two)]
    result = start(*command)
    assert result.returncode == 0, result.stderr
    first = network(0.0)
    run = trainer(one, config, dropout=0.0)
    run.run()
    left, right = (load_file(out / "state.safetensors") for out in (one, two))
    for name, begin in first.named_parameters():
        moved = float((left[f"net.{name}"] - begin.detach()).abs().max())
        assert float((left[f"net.{name}"] - right[f"net.{name}"]).abs().max()) < WEIGHTS_ALIKE
        assert float((left[f"ema.{name}"] - right[f"ema.{name}"]).abs().max()) < WEIGHTS_ALIKE
        assert moved > 1e-4  # the agreement is not that of weights that never moved
    assert len(rows(one)) == len(rows(two)) == config.steps  # one process logs
    for a, b in zip(rows(one), rows(two), strict=True):
        assert a == pytest.approx(b, rel=TRAINED_ALIKE)


def test_shares_of_a_batch_make_up_the_batch() -> None:
    device = torch.device("cpu")
    whole = Batches(images(), 12, 3, device, flip=True)
    parts = [Batches(images(), 12, 3, device, flip=True, rank=rank, world=3) for rank in range(3)]
    for step in (0, 3, 4, 17):
        x0, labels = whole(step)
        assert x0.shape == (12, 1, 8, 8) and x0.min() >= -1 and x0.max() <= 1
        assert torch.equal(x0, torch.cat([part(step)[0] for part in parts]))
        assert torch.equal(labels, torch.cat([part(step)[1] for part in parts]))


def test_random_numbers_belong_to_the_place_in_the_batch() -> None:
    def draw(rank: int, world: int) -> list[Tensor]:
        generator = BatchGenerator("cpu", 12 // world, rank, world)
        generator.manual_seed(5)
        count = 12 // world
        drawn = [uniform((count,), generator), normal((count, 3), generator), integers(9, (count, 2), generator)]
        return [*drawn, NoiseDistribution().sample(count, generator), normal((2 * count,), generator)]

    whole, parts = draw(0, 1), [draw(rank, 4) for rank in range(4)]
    for index, value in enumerate(whole):
        assert torch.equal(value, torch.cat([part[index] for part in parts]))
    plain = torch.Generator().manual_seed(5)
    assert torch.equal(whole[0], torch.rand(12, generator=plain))
    with pytest.raises(ConfigError, match="expected a multiple of 3 rows; got 4"):
        uniform((4,), BatchGenerator("cpu", 3, 0, 4))


@pytest.mark.parametrize("kind", ["conditional", "posterior", "distillation"])
def test_objectives_do_not_depend_on_the_number_of_processes(kind: str) -> None:
    """The mean over the shares' losses is the batch's loss, for every value logged."""
    net, objective = network().eval(), ConditionalObjective(3, NoiseDistribution())
    if kind == "posterior":
        objective = ConditionalObjective(3, NoiseDistribution(), label_dropout=0.5, posterior_weight=0.5)
    if kind == "distillation":
        from rdc.method.denoiser import ConditionalDenoiser
        from rdc.networks.heads import MultiHeadUNet
        from rdc.training.distillation import DistillationObjective

        teacher = ConditionalDenoiser(net, 3, (1, 8, 8))
        objective = DistillationObjective(teacher, NoiseDistribution(), classes_per_image=2, posterior_weight=0.1)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            net = MultiHeadUNet(network().unet, 2, 1, 3, wide_channels=8).eval()
            net.head_weight += 0.1 * torch.randn(net.head_weight.shape)
    values = []
    for world in (1, 3):
        shares = [Batches(images(), 12, 3, torch.device("cpu"), rank=rank, world=world) for rank in range(world)]
        drawn = [objective(net, *share(2), share.generator(2)) for share in shares]
        assert drawn[0][0].requires_grad
        values.append({name: np.mean([float(log[name]) for _, log in drawn]) for name in drawn[0][1]})
    assert values[0] == pytest.approx(values[1], rel=FLOAT32_SUM)


def test_every_epoch_shows_every_image_once() -> None:
    batches = Batches(images(), 10, 3, torch.device("cpu"))
    epochs = [np.concatenate([batches.positions(5 * epoch + step) for step in range(5)]) for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(50))
    assert not np.array_equal(epochs[0], epochs[1])
    assert np.array_equal(batches.positions(2), Batches(images(), 10, 3, torch.device("cpu")).positions(2))
    assert not np.array_equal(batches.positions(2), Batches(images(), 10, 4, torch.device("cpu")).positions(2))


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of the 5 processes; got 12"):
        Batches(images(), 12, 0, torch.device("cpu"), world=5)
    with pytest.raises(ConfigError, match="at least one image"):
        Batches(images().subset([]), 12, 0, torch.device("cpu"))


# --- stops and failures -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_first_and_the_run_continues_exactly(number: int, finished: Path, tmp_path: Path) -> None:
    handler = signal.getsignal(number)
    objective = Hook(lambda step: os.kill(os.getpid(), number) if step == 6 else None)
    with pytest.raises(TrainingStopped, match="after step 7; the state is saved") as stopped:
        trainer(tmp_path, objective=objective).run()
    assert (stopped.value.number, stopped.value.step) == (number, 7)
    assert signal.getsignal(number) is handler
    assert RunFolder(tmp_path, trainer(tmp_path).folder.description).load().step == 7
    trainer(tmp_path).run()
    expect_same_state(tmp_path, finished)
    assert rows(tmp_path) == rows(finished)


def test_a_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    def twice(step: int) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as stopped:
        trainer(tmp_path, objective=Hook(twice)).run()
    assert not isinstance(stopped.value, TrainingStopped)


def test_training_works_outside_the_main_thread(finished: Path, tmp_path: Path) -> None:
    thread = threading.Thread(target=trainer(tmp_path).run)
    thread.start()
    thread.join()
    expect_same_state(tmp_path, finished)


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The operating system refuses to write files beyond ``size`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_last_state_intact(finished: Path, tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.resume()
    for _ in range(4):
        run.window.append(run.train_step())
        run._log(1.0)
    run.save()
    before = sorted(path.name for path in tmp_path.iterdir())
    run.train_step()
    with largest_file(20_000), pytest.raises(CheckpointError, match="cannot be written.*saved before is intact"):
        run.save()
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    trainer(tmp_path).run()
    expect_same_state(tmp_path, finished)


def test_a_full_disk_while_logging_or_beginning(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.resume()
    with largest_file(10), pytest.raises(CheckpointError, match="log.jsonl: cannot be written"):
        run.folder.log({"step": 1, "loss": 0.5})
    with largest_file(10), pytest.raises(CheckpointError, match="config.json: cannot be written"):
        trainer(tmp_path / "new").run()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        trainer(tmp_path / "file").run()


def test_an_export_that_fails_leaves_the_state(tmp_path: Path) -> None:
    def export(net: nn.Module, info: dict) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left on device.*intact"):
        trainer(tmp_path, export=export).run()
    exported = []
    trainer(tmp_path, export=lambda net, info: exported.append(info)).run()  # finished, but the export is made up for
    assert [info["step"] for info in exported] == [STEPS]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_it_does_harm(value: float, tmp_path: Path) -> None:
    usual = ConditionalObjective(3, NoiseDistribution())

    def objective(*arguments):
        loss, values = usual(*arguments)
        return (loss * value if run.step == 5 else loss), values

    run = saving_every(trainer(tmp_path, eager(), objective=objective), 1)
    with pytest.raises(ConfigError, match="step 5: the loss .* is not finite.*--lr"):
        run.run()
    assert all(torch.isfinite(p).all() for p in run.net.parameters()) and run.step == 5
    state = run.folder.load()
    assert state.step == 5
    assert all(torch.equal(state.tensors[f"net.{name}"], p.detach()) for name, p in run.parameters.items())


def test_a_folder_in_use_or_of_something_else_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    with run.folder.locked(), pytest.raises(ConfigError, match="another process is training"):
        trainer(tmp_path).run()
    other = tmp_path / "other"
    other.mkdir()
    (other / "log.jsonl").write_text("precious\n")
    with pytest.raises(ConfigError, match="has log.jsonl but neither config.json nor state.safetensors"):
        trainer(other).run()
    assert (other / "log.jsonl").read_text() == "precious\n"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"images": 5}, "images: expected at least batch_size"),
        ({"batch_size": 0}, "images: expected at least batch_size"),
        ({"learning_rate": -1.0}, "learning_rate: expected a positive number; got -1.0"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"ema_images": -1}, "ema_images: expected 0 or more"),
        ({"precision": "float16"}, "expected float32 or bfloat16; got 'float16'"),
        ({"seed": -1}, "seed: expected 0"),
        ({"batch_size": 10**9, "images": 10**12}, "batch_size <= 1,048,576"),
        ({"images": 10**18}, "images <= "),
    ],
)
def test_settings_are_checked(change: dict, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        TrainConfig(**{"images": 100, "batch_size": 10, **change})


# --- numerics ---------------------------------------------------------------------------------------------------------
def test_learning_rate_warms_up_and_decays() -> None:
    config = TrainConfig(images=1000, batch_size=10, learning_rate=0.5, warmup_images=100)
    assert config.steps == 100
    assert config.rate(0) == pytest.approx(0.5 * 0.1)
    assert config.rate(4) == pytest.approx(0.5 * 0.5 * 0.5 * (1 + math.cos(math.pi * 0.04)))
    assert config.rate(50) == pytest.approx(0.25)
    assert config.rate(99) == pytest.approx(0.5 * 0.5 * (1 + math.cos(math.pi * 0.99)))


def test_averages_follow_their_definition(tmp_path: Path) -> None:
    run = trainer(tmp_path, dropout=0.0)
    expected = {name: p.detach().double().clone() for name, p in run.parameters.items()}
    for step in range(1, 6):
        run.train_step()
        half_life = min(40, 0.1 * 12 * step)
        for name, p in run.parameters.items():
            expected[name] += (1 - 0.5 ** (12 / half_life)) * (p.detach() - expected[name])
    for name, value in expected.items():
        torch.testing.assert_close(run.ema[name].double(), value, rtol=FLOAT32_SUM, atol=FLOAT32_ULP)
    averaged = run.averaged_network()
    assert not averaged.training and run.net.training
    for name, p in averaged.named_parameters():
        assert torch.equal(p, run.ema[name]) and not p.requires_grad
    assert any(not torch.equal(run.ema[name], p) for name, p in run.parameters.items())


class Recorder(nn.Module):
    """Predicts zero and keeps what it was asked."""

    def forward(self, x: Tensor, noise_labels: Tensor, class_labels: Tensor) -> Tensor:
        self.x, self.noise_labels, self.class_labels = x, noise_labels, class_labels
        return torch.zeros_like(x)


def test_the_loss_is_that_of_edm() -> None:
    """lambda(s) ||D - x0||^2 with D = c_skip x + c_out F, written out in x0-space and float64."""
    net, generator = Recorder(), torch.Generator().manual_seed(1)
    x0 = torch.rand(16, 1, 4, 4, generator=generator) * 2 - 1
    labels = torch.arange(16) % 3
    objective = ConditionalObjective(3, NoiseDistribution(-0.5, 1.1), label_dropout=0.0)
    loss, values = objective(net, x0, labels, generator)
    sigma = (4 * net.noise_labels.double()).exp().reshape(-1, 1, 1, 1)
    x_t = net.x.double() * (sigma**2 + 0.25).sqrt()
    denoised = 0.25 / (sigma**2 + 0.25) * x_t
    weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    expected = (weight * (denoised - x0.double()) ** 2).mean()
    assert float(loss) == pytest.approx(float(expected), rel=FLOAT32_NETWORK) == float(values["loss"])
    assert torch.equal(net.class_labels.argmax(1), labels) and torch.equal(net.class_labels.sum(1), torch.ones(16))
    noise = ((x_t - x0) / sigma).flatten()
    assert abs(float(noise.mean())) < 0.2 and float(noise.std()) == pytest.approx(1, abs=HUNDREDS_SPREAD)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_label_dropout(share: float) -> None:
    net, generator = Recorder(), torch.Generator().manual_seed(1)
    objective = ConditionalObjective(3, NoiseDistribution(), label_dropout=share)
    objective(net, torch.zeros(2000, 1, 1, 1), torch.zeros(2000, dtype=torch.long), generator)
    assert float((net.class_labels.sum(1) == 0).float().mean()) == pytest.approx(share, abs=DROPPED)
    with pytest.raises(ConfigError, match="label_dropout"):
        ConditionalObjective(3, NoiseDistribution(), label_dropout=1.5)


def test_noise_levels_cover_their_distribution_in_every_batch() -> None:
    sigma = NoiseDistribution(-0.4, 0.9).sample(64, torch.Generator().manual_seed(0))
    quantile = torch.special.ndtr((sigma.log() + 0.4) / 0.9)
    assert torch.equal((quantile * 64).floor().sort().values, torch.arange(64.0))  # one in each 64th
    assert not torch.equal(sigma, sigma.sort().values)
    cut = NoiseDistribution(0.0, 3.0, low=0.5, high=2.0).sample(64, torch.Generator().manual_seed(0))
    assert cut.min() == 0.5 and cut.max() == 2.0
    for bad in ({"std": 0.0}, {"mean": math.nan}, {"low": 3.0, "high": 2.0}):
        with pytest.raises(ConfigError, match="noise"):
            NoiseDistribution(**bad)


def test_it_learns(tmp_path: Path) -> None:
    """Images that are constant and told by the label: the loss must fall far below the untrained network's."""
    labels = torch.arange(48) % 3
    flat = (labels * 100).to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    data = Dataset(flat, labels, ("dark", "grey", "bright"), "flat", "train")
    config = TrainConfig(images=2400, batch_size=24, learning_rate=5e-3, warmup_images=100)
    objective = ConditionalObjective(3, NoiseDistribution(), label_dropout=0.0)
    Trainer(network(), objective, data, config, tmp_path, {}, progress=False).run()
    losses = [row["loss"] for row in rows(tmp_path)]
    assert losses[-1] < 0.6 * losses[0]


def test_bfloat16_keeps_float32_weights(tmp_path: Path) -> None:
    half = trainer(tmp_path / "half", TrainConfig(**{**vars(CONFIG), "precision": "bfloat16"}), dropout=0.0)
    full = trainer(tmp_path / "full", dropout=0.0)
    losses = [(half.train_step()["loss"], full.train_step()["loss"]) for _ in range(8)]
    assert all(low == pytest.approx(high, rel=BFLOAT16_TRAINING) for low, high in losses)
    assert losses[-1][0] != losses[-1][1]
    assert all(p.dtype == torch.float32 for p in half.net.parameters())


def test_the_global_generator_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    trainer(tmp_path).train_step()
    assert torch.equal(before, torch.get_rng_state())


def test_compiled_and_plain_runs_share_their_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RDC_DISABLE_NATIVE", "1")  # compiled code runs PyTorch's operators, which round in another way
    finished, out = tmp_path / "finished", tmp_path / "run"
    trainer(finished).run()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    compiled = TrainConfig(**{**vars(CONFIG), "compile": True})
    with pytest.raises(TrainingStopped):
        stop = Hook(lambda step: os.kill(os.getpid(), signal.SIGINT) if step == 3 else None)
        trainer(out, compiled, objective=stop).run()
    trainer(out).run()
    left, right = (load_file(folder / "state.safetensors") for folder in (out, finished))
    assert left.keys() == right.keys()
    assert all(torch.allclose(left[key], right[key], atol=WEIGHTS_ALIKE) for key in left)


def test_a_compiler_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(graph, inputs):
        raise RuntimeError("no g++")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    with pytest.raises(ConfigError, match="--compile: torch.compile failed.*no g[+][+].*without --compile"):
        trainer(tmp_path, TrainConfig(**{**vars(CONFIG), "compile": True})).run()
