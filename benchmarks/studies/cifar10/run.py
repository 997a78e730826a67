"""What the parts of cifar10.py share: time left, commands that are watched and stopped, what goes back and survives a kill."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import about
from benchmarks.studies.cifar10.shards import read_shards, shard_files, write_shards
from benchmarks.studies.cifar10.training import parsed, train
from rdc.cli import main as rdc_main
from rdc.errors import ConfigError
from rdc.models.checkpoints import save_model
from rdc.models.zoo import MODELS
from rdc.storage.files import atomic_write
from rdc.storage.json_files import write_json
from rdc.training.preparation import open_model
from rdc.training.recipe_files import to_toml
from rdc.training.recipe_settings import recipe_from, settings_of

__all__ = ["Run", "last_row"]

ROOT = Path(__file__).resolve().parents[3]
_SMALL = ("*.log", "*/log.jsonl", "*/loss.png", "*/samples.png", "*/config.json", "*/recipe.toml", "levels.json")
_SMALL += tuple(f"evaluate/*/{name}" for name in ("report.json", "report.md", "results.jsonl", "sanity.json"))
_TRAINING = "benchmarks.studies.cifar10.training"
_GRACE = 20.0  # seconds that a stopped command gets to save


class Run:
    """One call of cifar10.py.

    Args:
        args: its options.
        boxes: minutes of each part.
        words: further options of each part's command.
    """

    def __init__(self, args: argparse.Namespace, boxes: dict[str, float], words: dict[str, list[str]]) -> None:
        self.args, self.boxes, self.words, self.dry = args, boxes, words, args.dry_run
        self.begun = time.monotonic()
        self.work, self.out = args.work, args.out
        self.device = torch.device("cpu" if self.dry else "cuda")
        label = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU here: pack and unpack need none"
        label = "dry run on a CPU: NOT YET RUN ON A GPU" if self.dry else label
        self.result: dict[str, Any] = {"label": label, "about": about(), "parts": {}}
        if args.resume:
            self._resume(args.resume)

    # --- time -----------------------------------------------------------------------------------------------------
    def left(self) -> float:
        """Seconds until --minutes end."""
        return self.begun + 60 * self.args.minutes - time.monotonic()

    def seconds(self, part: str) -> float:
        """What a part may take: its box, or what is left."""
        return min(60 * self.boxes[part], self.left())

    # --- models ---------------------------------------------------------------------------------------------------
    def model(self, *names: str) -> Path | None:
        """The first of these that has been made, here or in the run that is resumed."""
        for name in names:
            for path in (self.work / name, self.work / "resumed" / name):
                if (path / "model.json").exists():
                    return path
        return None

    def _resume(self, folder: Path) -> None:
        names = [name for name in ("teacher", "student") if shard_files(folder, name)]
        if str(folder) in MODELS and not names:
            network, config, info = open_model(str(folder))
            if config["kind"] != "multihead":
                raise ConfigError(f"--resume {folder}: expected a student; that model is of kind {config['kind']}")
            save_model(self.work / "resumed" / "student" / "model", network, config, info)
            self.result["resumed"] = {"student": info.get("history", [])}
            return
        if not names:
            raise ConfigError(
                f"--resume {folder}: expected the --out folder of an earlier run, with teacher-1-of-... or student-1-of-..., or "
                "the name of a shipped student; got neither"
            )
        for name in names:
            info = read_shards(folder, name, self.work / "resumed" / name / "model")
            self.result.setdefault("resumed", {})[name] = info.get("history", [])

    # --- commands -------------------------------------------------------------------------------------------------
    def command(
        self, name: str, words: list[str], seconds: float, watch: Callable[[], Any] | None = None
    ) -> dict[str, Any]:
        """Run ``rdc WORDS`` for at most ``seconds``: then it is asked to stop, saves, and is killed if it does not.

        Args:
            name: of the log file.
            watch: called every few seconds meanwhile.
        """
        words = [str(word) for word in words]
        found = self._watched(name, lambda: rdc_main(words), ["rdc", *words], seconds, watch)
        return {"command": "rdc " + " ".join(words), **found}

    def train(
        self, name: str, settings: dict[str, Any], words: list[str], seconds: float, watch: Callable[[], Any]
    ) -> dict[str, Any]:
        """Train a recipe for at most ``seconds``, stopped like :meth:`command`; on a GPU in a process of its own.

        Args:
            name: of the log file and of the recipe's.
            settings: nested, of the recipe.
            words: options of ``rdc train`` or ``rdc distill`` beside it.
            watch: called every few seconds meanwhile.

        Raises:
            ConfigError: a setting or an option is wrong.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        file = self.work / f"{name}.toml"
        file.write_text(to_toml(recipe_from(settings)), encoding="utf-8")
        words = ["--config", str(file), *(str(word) for word in words)]
        args, recipe = parsed(words)
        begun = time.monotonic()
        found = self._watched(name, lambda: train(words, begun), [_TRAINING, *words], seconds, watch)
        return {"command": " ".join(["rdc", args.command, *words]), "recipe": settings_of(recipe), **found}

    def _watched(
        self, name: str, here: Callable[[], int], module: list[str], seconds: float, watch: Any
    ) -> dict[str, Any]:
        """Do ``here``, or ``python -m MODULE`` where a box and its end need a process."""
        begun = time.monotonic()
        self.work.mkdir(parents=True, exist_ok=True)
        log = self.work / f"{name}.log"
        if self.dry and not self.args.processes:
            status, text = self._here(log, here)
        else:
            status, text = self._process(log, module, seconds, watch)
        return {
            "status": status, "seconds": round(time.monotonic() - begun, 1),
            "last_lines": [line for line in text.replace("\r", "\n").strip().splitlines() if line.strip()][-6:],
        }  # fmt: skip

    def _here(self, log: Path, function: Callable[[], int]) -> tuple[int | str, str]:
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            status = function()
        log.write_text(text.getvalue())
        return status, text.getvalue()

    def _process(self, log: Path, module: list[str], seconds: float, watch: Any) -> tuple[int | str, str]:
        end, late = time.monotonic() + seconds, False
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        with log.open("w") as file:
            child = subprocess.Popen(
                [sys.executable, "-m", *module], cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
            )
            try:
                while child.poll() is None:
                    if not late and time.monotonic() > end:
                        late = True
                        child.send_signal(signal.SIGINT)
                    if late and time.monotonic() > end + _GRACE:
                        child.kill()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        child.wait(1.0 if late else min(3.0, max(0.1, end - time.monotonic())))
                    if watch is not None:
                        watch()
            finally:
                if child.poll() is None:  # this process was interrupted: let the command save
                    child.send_signal(signal.SIGINT)
                    try:
                        child.wait(_GRACE / 2)
                    except subprocess.TimeoutExpired:
                        child.kill()
        status = "out of time" if late else child.returncode
        return status, log.read_text(errors="replace")

    # --- what goes back -------------------------------------------------------------------------------------------
    def keep(self, name: str, model: Path, **more: Any) -> None:
        """Put a checkpoint into --out as NAME-i-of-n.safetensors, with how long it was trained so far, and the logs."""
        if self.out is None or not (model / "model.json").exists():
            return
        part = {"part": model.name, "device": str(self.result["label"]), **(last_row(model) or {})}
        history = [*self.result.get("resumed", {}).get(name, []), *self.result.get("trained", {}).get(name, []), part]
        write_shards(model / "model", self.out, name, history=history, **more)
        self.keep_small()

    def keep_small(self) -> None:
        """All logs, pictures and reports in one file: few files go back."""
        if self.out is None:
            return
        paths = sorted({path for pattern in _SMALL for path in self.work.glob(pattern) if path.is_file()})
        with (
            atomic_write(self.out / "files.zip") as file,
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            for path in paths:
                archive.write(path, path.relative_to(self.work))

    def save(self) -> None:
        """Write cifar10.json."""
        if self.out is not None:
            write_json(self.out / "cifar10.json", self.result)
            self.keep_small()

    # --- parts ----------------------------------------------------------------------------------------------------
    def part(self, name: str, function: Callable[[Run], dict[str, Any]]) -> None:
        """Do one part; an error is kept and the others go on."""
        begun = time.monotonic()
        if self.left() < 5:
            found: dict[str, Any] = {"line": "left out: no time left"}
        else:
            print(f"{name} ...", flush=True)
            try:
                found = function(self)
            except Exception as error:
                found = {"line": f"FAILED: {type(error).__name__}: {error}"[:400], "traceback": traceback.format_exc()}
        self.result["parts"][name] = {**found, "seconds_of_part": round(time.monotonic() - begun, 1)}
        self.save()

    def table(self) -> str:
        """A row for every part."""
        rows = [
            f"  {name:9s} {found['seconds_of_part']:6.1f} s   {found['line']}"
            for name, found in self.result["parts"].items()
        ]
        return "\n".join([self.result["label"], *rows])


def last_row(folder: Path) -> dict[str, Any] | None:
    """Images, seconds and losses of the last row of a run's log."""
    log = folder / "log.jsonl"
    for line in reversed(log.read_text().splitlines() if log.exists() else []):
        with contextlib.suppress(ValueError):
            return json.loads(line)
    return None
