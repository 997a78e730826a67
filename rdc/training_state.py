"""What a training run keeps in its folder: the state to resume from, the log, the lock, and how it is stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from rdc.errors import CheckpointError, ConfigError
from rdc.storage.files import atomic_write
from rdc.storage.json_files import write_json

__all__ = ["RunFolder", "State", "StopRequest", "TrainingStopped", "stop_on_signals"]

STATE, LOG, CONFIG, LOCK = "state.safetensors", "log.jsonl", "config.json", "lock"
#: settings that do not change what is computed; a run may be continued with others
_FREE = ("compile", "checkpoint_seconds", "memory_format", "cuda_graph")


class TrainingStopped(KeyboardInterrupt):
    """Training was stopped by a signal, after its state was saved.

    Attributes:
        number: the signal (2: SIGINT, 15: SIGTERM).
        step: steps done and saved.
    """

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}; the state is saved")
        self.number, self.step = number, step


@dataclasses.dataclass
class State:
    """A training run between two steps.

    Args:
        step: steps done.
        tensors: ``net.*`` weights, ``ema.*`` averages, ``m.*`` and ``v.*`` Adam's moments, ``buffer.*``.
        seconds: time trained so far.
        window: log values of the steps since the last log row.
    """

    step: int
    tensors: dict[str, Tensor]
    seconds: float = 0.0
    window: list[dict[str, float]] = dataclasses.field(default_factory=list)


class RunFolder:
    """The folder of one training run.

    Args:
        path: the folder; made when needed.
        description: JSON description of the run. A folder whose state has another description is refused.
    """

    def __init__(self, path: Path, description: dict[str, Any]) -> None:
        self.path, self.description = Path(path), json.loads(json.dumps(description))

    # --- state ----------------------------------------------------------------------------------------------------
    def load(self) -> State | None:
        """The saved state, or None when there is none.

        Raises:
            CheckpointError: it is corrupt or belongs to a run with other settings.
        """
        path = self.path / STATE
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
            description, step = json.loads(metadata["description"]), int(metadata["step"])
            seconds, window = float(metadata.get("seconds", 0)), json.loads(metadata.get("window", "[]"))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise _not_a_state(path, error) from error
        self._expect_same(description)
        return State(step, tensors, seconds, window)

    def save(self, state: State) -> None:
        """Write the state, atomically.

        Raises:
            CheckpointError: it cannot be written; the state that was there before is untouched.
        """
        path = self.path / STATE
        metadata = {
            "step": str(state.step),
            "description": json.dumps(self.description),
            "seconds": repr(state.seconds),
            "window": json.dumps(state.window),
        }
        with self.writing(STATE):
            blob = save({key: value.detach().contiguous().cpu() for key, value in state.tensors.items()}, metadata)
            with atomic_write(path) as file:
                file.write(blob)

    def planned_images(self) -> int | None:
        """``images`` of the run whose state is here, or None when there is none.

        Raises:
            CheckpointError: the state is corrupt.
        """
        path = self.path / STATE
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                return int(json.loads(file.metadata()["description"])["train"]["images"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise _not_a_state(path, error) from error

    def describe_training(self, settings: dict[str, Any]) -> None:
        """Replace what is recorded of the training settings; before the run begins."""
        self.description["train"] = json.loads(json.dumps(settings))

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
        with self.writing(CONFIG):
            write_json(self.path / CONFIG, self.description)
            (self.path / LOG).write_text("")

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

    def _expect_same(self, there: dict[str, Any]) -> None:
        old, new = _flat(there), _flat(self.description)
        keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
        keys = [key for key in keys if key.removeprefix("train.") not in _FREE]
        if not keys:
            return
        listed = "; ".join(f"{key}: {old.get(key)!r} there, {new.get(key)!r} here" for key in keys[:8])
        advice = "use the command it was started with, or another --out"
        if "train.images" in keys:
            advice += ". A run cannot be made longer or shorter: its learning rate is a cosine that ends with --images"
        raise CheckpointError(f"{self.path}: has a run with other settings ({listed}); {advice}")

    def sweep(self) -> None:
        """Remove unfinished files of a killed run. Only for the process that holds the lock."""
        for path in self.path.glob(".*.tmp"):
            with contextlib.suppress(OSError):
                path.unlink()

    # --- log ------------------------------------------------------------------------------------------------------
    def log(self, row: dict[str, float | int]) -> None:
        """Append a row; numbers are kept to six significant digits."""
        short = {key: value if isinstance(value, int) else float(f"{value:.6g}") for key, value in row.items()}
        with self.writing(LOG), open(self.path / LOG, "a", encoding="utf-8") as file:
            file.write(json.dumps(short) + "\n")

    def trim_log(self, step: int) -> None:
        """Drop rows later than ``step``: a killed run wrote them after its last checkpoint."""
        path, kept = self.path / LOG, []
        rows = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        for row in rows:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a row cut short is dropped
                if json.loads(row)["step"] <= step:
                    kept.append(row + "\n")
        with self.writing(LOG), atomic_write(path, "w") as file:
            file.write("".join(kept))

    # --- lock -----------------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; a second run in it is refused. The lock goes with its process, however that ends."""
        with self.writing(LOCK):
            self.path.mkdir(parents=True, exist_ok=True)
            file = open(self.path / LOCK, "w")  # noqa: SIM115 (closed below)
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError(
                    f"{self.path}: another process is training into this folder; wait for it or name another --out"
                ) from error
            except OSError:
                pass  # a file system without locks
            yield


def _not_a_state(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path}: not a training state of rdc, or truncated ({error}); delete it to start afresh")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    rows: dict[str, Any] = {}
    for key, value in tree.items():
        rows |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return rows


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

    def handle(number: int, frame: object) -> None:
        if request.number and alone:
            handler = before[number]
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
