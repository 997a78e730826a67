"""What a training run keeps in its folder: the state to resume from, the log, the lock, and how it is stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, NoneType
from typing import Any

from rdc.errors import CheckpointError, ConfigError, one_line
from rdc.storage.files import atomic_write, open_in_place
from rdc.storage.json_files import write_json
from rdc.storage.reading import read_content, reading
from rdc.storage.run_folder import ResumableFolder, as_written, differing_leaves
from rdc.storage.sealed import line_body, seal_line
from rdc.storage.structure import integer, record
from rdc.training.state_file import DELETE, NOT_A_STATE, State, pack_state, read_state

__all__ = ["RunFolder", "State", "StopRequest", "TrainingStopped", "stop_on_signals"]

STATE, LOG, CONFIG, LOCK = "state.safetensors", "log.jsonl", "config.json", "lock"
RECIPE = "recipe.toml"
LARGEST_LOG = 256 * 2**20  # bytes
SELECTED, SCORES = "selected.safetensors", "selection.json"
_OURS = (STATE, LOG, CONFIG, RECIPE, SELECTED, SCORES, "model.safetensors", "model.json", "loss.png", "samples.png")
_ROW = record({"step": integer(0)})
#: settings that do not change what is computed; a run may be continued with others
_FREE = ("compile", "checkpoint_seconds", "memory_format", "cuda_graph")


class TrainingStopped(KeyboardInterrupt):
    """Training was stopped by a signal, after its state was saved.

    Attributes:
        number: the signal (2: SIGINT, 15: SIGTERM).
        step: steps done and saved.
        first: whether this is the first (or only) of several processes.
    """

    def __init__(self, number: int, step: int, first: bool = True) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}; the state is saved")
        self.number, self.step, self.first = number, step, first


class RunFolder(ResumableFolder):
    """The folder of one training run.

    Args:
        path: the folder; made when needed.
        description: JSON description of the run. A folder whose state has another description is refused.
        recipe: text of ``recipe.toml``; "": none is written. It is for readers: nothing is compared with it.
    """

    COMMAND, IDENTITY, LOCK = "rdc train", STATE, LOCK
    WRITTEN = {"": _OURS.__contains__}

    def __init__(self, path: Path, description: dict[str, Any], recipe: str = "") -> None:
        super().__init__(path)
        self.description, self.recipe = as_written(description), recipe

    # --- state ----------------------------------------------------------------------------------------------------
    def load(self) -> State | None:
        """The saved state, or None when there is none.

        Raises:
            CheckpointError: it is damaged or belongs to a run with other settings.
        """
        path = self.path / STATE
        if not path.exists():
            return None
        state, description = read_state(path)
        with reading(path, CheckpointError, NOT_A_STATE, DELETE):
            self.expect_this_run(description)
        return state

    def save(self, state: State) -> None:
        """Write the state, atomically.

        Raises:
            CheckpointError: it cannot be written; the state that was there before is untouched.
        """
        with self.writing(STATE):
            blob = pack_state(state, self.description)
            with atomic_write(self.path / STATE) as file:
                file.write(blob)

    def planned_images(self) -> int | None:
        """``images`` of the run whose state is here, or None when there is none.

        Raises:
            CheckpointError: the state is damaged.
        """
        path = self.path / STATE
        if not path.exists():
            return None
        _, description = read_state(path)
        with reading(path, CheckpointError, NOT_A_STATE, DELETE):
            return int(description["train"]["images"])

    def describe_training(self, settings: dict[str, Any]) -> None:
        """Replace what is recorded of the training settings; before the run begins."""
        self.description["train"] = as_written(settings)

    def begin(self) -> None:
        """Prepare the folder for a new run.

        Raises:
            ConfigError: the folder belongs to something else.
            CheckpointError: the folder cannot be written.
        """
        names = (LOG, "model.safetensors", "model.json")
        others = [name for name in names if (self.path / name).exists() and not (self.path / CONFIG).exists()]
        if others:
            raise ConfigError(
                f"{self.path}: has {others[0]} but neither {CONFIG} nor {STATE}, so it is not a training run of rdc; "
                "expected a new or empty folder. Name another --out"
            )
        self.sweep()
        with self.writing(CONFIG):
            write_json(self.path / CONFIG, self.description)
            with atomic_write(self.path / LOG):
                pass

    def write_recipe(self) -> None:
        """Write ``recipe.toml``, at every start: some settings may change from one to the next.

        Raises:
            CheckpointError: it cannot be written.
        """
        if self.recipe:
            with self.writing(RECIPE), atomic_write(self.path / RECIPE) as file:
                file.write(self.recipe.encode())

    @contextlib.contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Turn the operating system's write errors into one that says what is lost (nothing) and what to do."""
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"{self.path / what}: cannot be written ({error.strerror or error}). What was saved before is intact: "
                "make room (or get write permission), then run the same command again to continue"
            ) from error

    def expect_this_run(self, there: dict[str, Any]) -> None:
        """Refuse what was written under another description.

        Raises:
            CheckpointError: the settings differ; the message says which.
        """
        found = [
            difference
            for difference in differing_leaves(there, self.description)
            if difference.name.removeprefix("train.") not in _FREE
        ]
        if not found:
            return
        listed = "; ".join(
            f"{one_line(name, 80)}: {_said(old)} there, {_said(new)} here"
            for name, old, new in map(dataclasses.astuple, found[:8])
        )
        advice = "use the command it was started with, or another --out"
        if any(difference.name == "train.images" for difference in found):
            advice += ". A run cannot be made longer or shorter: its learning rate is a cosine that ends with --images"
        raise CheckpointError(f"{self.path}: has a run with other settings ({listed}); {advice}")

    def sweep(self) -> None:
        """Remove unfinished files of a killed run. Only for the process that holds the lock."""
        self._sweep()

    # --- log ------------------------------------------------------------------------------------------------------
    def log(self, row: dict[str, float | int]) -> None:
        """Append a row; numbers are kept to six significant digits, those that are not finite become null."""
        short = {key: _short(value) for key, value in row.items()}
        with self.writing(LOG), open_in_place(self.path / LOG, "ab") as file:
            file.write(seal_line(short))

    def trim_log(self, step: int) -> None:
        """Drop rows later than ``step``: a killed run wrote them after its last checkpoint; and rows that are damaged, which is said."""
        path, kept, dropped, sealed = self.path / LOG, [], [], False
        content = read_content(path, CheckpointError, "a training log", LARGEST_LOG) if path.exists() else b""
        lines = content.split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                body, has_crc = line_body(line)
                row = json.loads(body)
                _ROW(row, "row")
                if (sealed or "crc" in row) and not has_crc:
                    raise ValueError("its checksum is missing")
                if any(not isinstance(value, (int, float, NoneType)) for value in row.values()):
                    raise ValueError("a value is no number")
            except (ValueError, RecursionError):  # the last line is cut short, or empty
                dropped += [number] * (number < len(lines))
                continue
            sealed = has_crc
            if row["step"] <= step:
                kept.append(line + b"\n")
        with self.writing(LOG), atomic_write(path) as file:
            file.write(b"".join(kept))
        if dropped:
            first = (
                f"row {dropped[0]} is"
                if len(dropped) == 1
                else f"rows {dropped[0]} to {dropped[-1]}: {len(dropped)} are"
            )
            print(f"{path}: {first} damaged and dropped; the training itself is whole", file=sys.stderr)

    # --- lock -----------------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; a second run in it is refused. The lock goes with its process, however that ends."""
        with self.writing(LOCK):
            self.path.mkdir(parents=True, exist_ok=True)
            self._hold("another process is training into this folder; wait for it or name another --out")
        with self:
            yield


def _short(value: float | int) -> float | int | None:
    if isinstance(value, int):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _said(value: Any) -> str:
    return one_line(repr(value), 120)


@dataclasses.dataclass
class StopRequest:
    """``number`` is the signal that asked to stop, or 0."""

    number: int = 0


@contextlib.contextmanager
def stop_on_signals(alone: bool = True) -> Iterator[StopRequest]:
    """Note the first SIGINT, SIGTERM or SIGHUP instead of dying of it; the second one stops at once.

    Args:
        alone: False under ``torchrun``, which repeats the terminal's SIGINT: then repetitions are ignored.

    Outside the main thread signals cannot be caught: the request then stays 0.
    """
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        if request.number and alone:
            handler = before[signal.Signals(number)]
            if callable(handler):  # the command line's, which remembers the signal
                handler(number, frame)
            raise KeyboardInterrupt
        if not request.number and sys.stderr is not None:
            print("\nstopping after this step (once more: at once)" if alone else "\nstopping", file=sys.stderr)
        request.number = number

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
