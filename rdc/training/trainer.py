"""Training loop: EDM loss, EMA, warm-up, atomic checkpoints, exact resume, data parallelism.

Everything random is a function of (seed, step) and of an image's place in the batch: which images, which noise levels,
which noise. A run that was killed and resumed from its checkpoint continues exactly as if it had not been, and two
processes see the batch that one would.
"""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from rdc.data import Dataset
from rdc.errors import CheckpointError, ConfigError, one_line
from rdc.networks.blocks import allow_backward_again, half_norms
from rdc.terminal.progress import bar, say_begin
from rdc.training.batches import Batches, Extra
from rdc.training.config import TrainConfig, optimizer_of
from rdc.training.cuda_graph import GraphedStep
from rdc.training.objective import ConditionalObjective, NoiseDistribution, Objective, noisy
from rdc.training.recovery import Recovery, Runaway
from rdc.training.selection import Selector
from rdc.training.state import RunFolder, State, StopRequest, TrainingStopped, stop_on_signals
from rdc.training.weight_perturbation import moved_weights, same_perturbations

__all__ = [
    "ConditionalObjective",
    "NoiseDistribution",
    "TrainConfig",
    "Trainer",
    "TrainingStopped",
    "noisy",
]

#: export(network with the averaged weights, {"step", "images", "seconds", "processes"}), called after every checkpoint
Export = Callable[[nn.Module, dict[str, Any]], None]


class Trainer:
    """Runs an objective over a data set.

    Args:
        net: the network to train (already on its device).
        objective: see :data:`Objective`.
        data: training images.
        config: how long and how fast.
        out: folder for ``state.safetensors`` (resume), ``log.jsonl`` and ``config.json``.
        description: JSON description of the run; a state written under another description is refused.
        progress: draw a bar on stderr.
        export: see :data:`Export`.
        recipe: text of ``recipe.toml``, for readers; "": none.
        extra: more images, which take a share of every batch.

    Attributes:
        deadline: on ``time.monotonic``'s clock; no step begins later. The state is saved and ``run`` returns with
            ``step < config.steps``; one process only.
        selector: scores the averaged weights now and then and keeps the best; None: the last ones are kept.

    Processes: under ``torchrun`` each process takes its share of every batch and gradients are averaged; process 0
    writes the files.
    """

    def __init__(
        self,
        net: nn.Module,
        objective: Objective,
        data: Dataset,
        config: TrainConfig,
        out: Path,
        description: dict[str, Any],
        progress: bool = True,
        export: Export | None = None,
        recipe: str = "",
        extra: Extra | None = None,
    ) -> None:
        self.net, self.objective, self.config, self.export = net, objective, config, export
        self.folder = RunFolder(out, {**description, "train": config.describe()}, recipe)
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.device = next(net.parameters()).device
        on_gpu = self.device.type == "cuda"
        if on_gpu and config.memory_format == "channels_last":
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if on_gpu and config.precision == "bfloat16" and not getattr(objective, "differentiates_twice", False):
            half_norms(net)
        if config.cuda_graph and not (on_gpu and self.world == 1):
            found = f"{self.world} processes" if on_gpu else f"a network on {self.device}"
            raise ConfigError(f"cuda_graph: expected a GPU and one process; got {found}. Leave --cuda-graph out")
        self.progress = progress and self.rank == 0
        self.parameters = dict(net.named_parameters())
        self.optimizer = optimizer_of(net, config)
        self.ema = {name: value.detach().clone() for name, value in self.parameters.items()}
        processes = self.rank, self.world
        self.batches = Batches(data, config.batch_size, config.seed, self.device, config.flip, *processes, extra)
        if config.compile:
            allow_backward_again()
        self.forward = cast(nn.Module, torch.compile(net)) if config.compile else net
        self.graphed = None
        if config.cuda_graph:
            self.graphed = GraphedStep(self._gradients, net.parameters(), torch.Generator(self.device))
        self.step, self.seconds = 0, 0.0
        self.window: list[dict[str, float]] = []
        self.stop, self.deadline = StopRequest(), math.inf
        self.recovery = Recovery(objective) if isinstance(objective, Runaway) else None
        self.selector: Selector | None = None

    # --- one step -------------------------------------------------------------------------------------------------
    def train_step(self) -> dict[str, float]:
        """One optimiser step; returns the values to log.

        Raises:
            ConfigError: the loss or its gradient is not finite; nothing was changed. An objective that can run away goes back
                instead, and raises when it did so too often.
        """
        config = self.config
        x0, labels = self.batches(self.step)
        rate = config.rate(self.step)
        if self.recovery is not None:
            self.recovery.keep(self.step, self._weights)
            rate *= self.recovery.factor
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        on_gpu = self.device.type == "cuda"
        with torch.random.fork_rng([self.device] if on_gpu else []):  # the global generators, for dropout alone
            self._seed_dropout()
            if self.graphed is None:
                self.optimizer.zero_grad(set_to_none=True)
                numbers, names = self._gradients(x0, labels, self.batches.generator(self.step))
            else:
                self.batches.seed_for(self.step, self.graphed.generator)
                numbers, names = self.graphed(x0, labels)
        *logged, norm_value = numbers.tolist()
        values = {"lr": rate, "grad_norm": norm_value, **dict(zip(names, logged[1:], strict=True))}
        if self.recovery is not None:
            if self.recovery.objective.diverged(values):
                self.recovery.go_back(self, values)
                self.step += 1
                return {**values, "returns": self.recovery.returns}
            values["returns"] = self.recovery.returns
        elif not (math.isfinite(norm_value) and math.isfinite(logged[0])):
            raise ConfigError(
                f"step {self.step}: the loss ({logged[0]}) or its gradient (norm {norm_value}) is not finite. This "
                f"step was dropped and the last checkpoint stays in {self.folder.path}, but the same settings would "
                "lead here again: use another --out with a lower --lr, more --warmup-images or --precision float32"
            )
        self.optimizer.step()
        self._average_weights()
        self.step += 1
        return values

    def _seed_dropout(self) -> None:
        generator = torch.cuda if self.device.type == "cuda" else torch.default_generator
        generator.manual_seed((self.config.seed * 1_000_003 + self.step) * 4099 + self.rank)

    def _gradients(self, x0: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """Clipped gradients into the parameters; [loss, values of the log, norm before clipping] and the values' names."""
        with same_perturbations(self.objective if self.config.awp else None):
            numbers, names = self._backward(x0, labels, generator)
            if self.config.awp:
                with moved_weights(self.net, self.config.awp):
                    self._seed_dropout()
                    self._backward(x0, labels, self.batches.generator(self.step))
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), self.config.clip)
        return torch.cat([numbers, norm[None].float()]), names

    def _backward(self, x0: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """Gradients into the parameters, of all processes; [loss, values of the log] and the values' names."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            loss, values = self.objective(self.forward, x0, labels, generator)
        loss.backward()
        numbers = torch.stack([value.detach().to(loss.device, torch.float32) for value in (loss, *values.values())])
        return self._average_over_processes(numbers), list(values)

    def _average_over_processes(self, numbers: Tensor) -> Tensor:
        """Average gradients and ``numbers`` [M]; a signal that one process got reaches all."""
        if self.world == 1:
            return numbers
        parameters = list(self.net.parameters())
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        stop = numbers.new_tensor([float(self.stop.number)])
        flat = torch.cat([*(grad.reshape(-1) for grad in grads), numbers, stop])
        dist.all_reduce(flat)
        flat /= self.world
        *parts, numbers, stop = flat.split([*(p.numel() for p in parameters), len(numbers), 1])
        for p, part in zip(parameters, parts, strict=True):
            p.grad = torch.empty_like(p).copy_(part.reshape(p.shape))
        if float(stop) and not self.stop.number:
            self.stop.number = max(2, round(float(stop)))
        return numbers

    def _average_weights(self) -> None:
        """Exponential moving average, with a shorter memory early on (EDM's ramp-up)."""
        done = (self.step + 1) * self.config.batch_size
        half_life = min(self.config.ema_images, 0.1 * done)
        decay = 0.5 ** (self.config.batch_size / max(half_life, 1e-9))
        old = [self.ema[name] for name in self.parameters]
        torch._foreach_lerp_(old, [p.detach() for p in self.parameters.values()], 1 - decay)

    # --- the loop -------------------------------------------------------------------------------------------------
    def run(self) -> dict[str, Tensor]:
        """Train to the end (resuming if a state is there) and return the averaged weights.

        Raises:
            CheckpointError: the state in ``out`` is corrupt, belongs to another run, or cannot be written.
            ConfigError: ``out`` is in use or is no run's, the loss is not finite, ``compile`` does not work here.
            TrainingStopped: SIGINT or SIGTERM came; the state was saved first.
        """
        if self.rank:
            return self._run()
        with self.folder.locked():
            return self._run()

    def _run(self) -> dict[str, Tensor]:
        self.resume()
        batch = self.config.batch_size
        places = (self.step * batch, self.config.steps * batch)
        say_begin(self.folder.path, *places, "images", enabled=self.progress)
        config, first, saved = self.config, self.step, time.monotonic()
        with stop_on_signals(alone=self.world == 1) as self.stop, self._bar() as line:
            since, before = time.monotonic(), len(self.window)
            while self.step < config.steps:
                tick = time.monotonic()
                self.window.append(self.first_step() if self.step == first else self.train_step())
                self.seconds += time.monotonic() - tick
                line.update(config.batch_size)
                last = self.step == config.steps
                self._select(line, last)
                if self.step % config.log_steps == 0 or last:
                    speed = (len(self.window) - before) * config.batch_size / (time.monotonic() - since)
                    line.set_postfix(loss=f"{self._log(speed)['loss']:.4g}", refresh=False)
                    since, before = time.monotonic(), 0
                late = time.monotonic() > self.deadline
                if last or late or self.stop.number or time.monotonic() - saved > config.checkpoint_seconds:
                    self.save()
                    saved = time.monotonic()
                if self.stop.number and not last:
                    raise TrainingStopped(self.stop.number, self.step, self.rank == 0)
                if late:
                    break
        if first == config.steps:
            self._export()  # finished before; make sure that what follows from the state is there
        return self.ema

    def _select(self, line: tqdm, last: bool) -> None:
        """Score the averaged weights, where it is time."""
        selector, batch = self.selector, self.config.batch_size
        if selector is None or not selector.due(self.step, batch, last):
            return
        with self.folder.writing("the selected weights"):
            row = selector(self.step, batch, self._network_of(self.ema), self.ema)
        if self.progress:
            said = f"{row['images']:,} images: {100 * row['score']:.1f} % of the held-out images stand"
            kept = selector.best_row or row
            line.write(said if kept is row else f"{said}; kept: {100 * kept['score']:.1f} %", file=sys.stderr)

    def first_step(self) -> dict[str, float]:
        """:meth:`train_step`, the first of this process, where ``torch.compile`` does its work and may fail."""
        if not self.config.compile:
            return self.train_step()
        from torch._dynamo.exc import TorchDynamoException  # slow to import

        try:
            return self.train_step()
        except TorchDynamoException as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"--compile: torch.compile failed ({type(error).__name__}: {reason}); it needs a C++ compiler on "
                "CPU and Triton on CUDA. Run again without --compile: the run continues, slower"
            ) from error

    def _bar(self) -> tqdm:
        done, total = (steps * self.config.batch_size for steps in (self.step, self.config.steps))
        enabled = self.progress and done < total
        return bar(total=total, initial=done, enabled=enabled, unit=" images", dynamic_ncols=True)

    def _log(self, speed: float) -> dict[str, float]:
        """Write the means of the window as a row and empty it."""
        row = {key: float(np.mean([entry[key] for entry in self.window])) for key in self.window[0]}
        self.window = []
        place = {"step": self.step, "images": self.step * self.config.batch_size}
        if self.rank == 0:
            self.folder.log({**place, **row, "images_per_s": speed, "seconds": self.seconds})
        return {"loss": math.nan, **row}

    # --- checkpoints ----------------------------------------------------------------------------------------------
    def save(self) -> None:
        """Write weights, averages, optimiser and position to ``out/state.safetensors``, atomically, and export."""
        if self.rank:
            return
        tensors = {f"buffer.{name}": buffer for name, buffer in self.net.named_buffers()} | self._weights()
        if self.recovery is not None:
            tensors |= self.recovery.state()
        self.folder.save(State(self.step, tensors, self.seconds, self.window))
        self._export()

    def _weights(self) -> dict[str, Tensor]:
        """Weights, averages and the optimiser's moments: all that a step changes."""
        tensors = {}
        for name, p in self.parameters.items():
            state = self.optimizer.state.get(p, {})
            tensors[f"net.{name}"], tensors[f"ema.{name}"] = p.detach(), self.ema[name]
            tensors[f"m.{name}"] = state.get("exp_avg", torch.zeros_like(p))
            tensors[f"v.{name}"] = state.get("exp_avg_sq", torch.zeros_like(p))
        return tensors

    def averaged_network(self) -> nn.Module:
        """A copy of the network with the averaged weights, the selected ones where there are any, in evaluation mode."""
        selected = self.selector.best if self.selector is not None else None
        return self._network_of(self.ema if selected is None else selected)

    def _network_of(self, weights: dict[str, Tensor]) -> nn.Module:
        network = copy.deepcopy(self.net).eval().requires_grad_(False)
        for name, p in network.named_parameters():
            p.copy_(weights[name])
        return network

    def _export(self) -> None:
        if self.export is not None and self.rank == 0:
            images = self.step * self.config.batch_size
            info: dict[str, Any] = {
                "step": self.step,
                "images": images,
                "seconds": round(self.seconds, 1),
                "processes": self.world,
            }
            if self.selector is not None and self.selector.best_row is not None:
                info["selected"] = self.selector.best_row
            with self.folder.writing("the exported model"):
                self.export(self.averaged_network(), info)

    def resume(self) -> None:
        """Continue from ``out/state.safetensors`` if it is there; else begin and record the configuration."""
        state = self.folder.load()
        if state is not None:
            self._restore(state)
        if self.world > 1:
            steps = [torch.zeros(1, device=self.device) for _ in range(self.world)]
            dist.all_gather(steps, torch.full((1,), float(self.step), device=self.device))
            if len({int(step) for step in steps}) > 1:
                raise ConfigError(f"{self.folder.path}: expected a folder that all processes see; their states differ")
        if self.rank:
            return
        if self.selector is not None:
            self.selector.resume(self.step)
        if state is None:
            self.folder.begin()
        else:
            self.folder.sweep()
            self.folder.trim_log(self.step)
        self.folder.write_recipe()

    def _restore(self, state: State) -> None:
        tensors, targets = state.tensors, self._weights()
        buffers = {f"buffer.{name}": buffer for name, buffer in self.net.named_buffers()}
        targets |= {name: buffer for name, buffer in buffers.items() if name in tensors}
        wrong = [name for name, value in targets.items() if name not in tensors or tensors[name].shape != value.shape]
        if wrong:
            raise CheckpointError(
                f"{self.folder.path}: the state lacks {wrong[0]} in the network's shape ({len(wrong)} such); "
                "it was written by another version of rdc. Start afresh in another --out"
            )
        for name, buffer in buffers.items():
            if name in tensors:
                buffer.copy_(tensors[name])
        self.set_weights(tensors, state.step)
        if self.recovery is not None:
            try:
                self.recovery.load(tensors, self._weights())
            except (KeyError, ValueError) as error:
                raise CheckpointError(
                    f"{self.folder.path}: the state lacks what this method keeps ({one_line(error)}). Start afresh in another --out"
                ) from error
        self.step, self.seconds, self.window = state.step, state.seconds, state.window

    def set_weights(self, tensors: dict[str, Tensor], step: int) -> None:
        """Put in weights, averages and moments, by the names of the training state; nothing of ``tensors`` is kept.

        Args:
            tensors: ``net.*``, ``ema.*``, ``m.*``, ``v.*`` in the network's shapes.
            step: steps that the optimiser is to count as done.
        """
        on_device = self.device if self.device.type == "cuda" else None
        for name, p in self.parameters.items():
            moments = {"exp_avg": torch.empty_like(p.detach()), "exp_avg_sq": torch.empty_like(p.detach())}
            self.optimizer.state[p] = {"step": torch.tensor(float(step), device=on_device), **moments}
            targets = {"net": p.detach(), "ema": self.ema[name], "m": moments["exp_avg"], "v": moments["exp_avg_sq"]}
            for kind, value in targets.items():
                value.copy_(tensors[f"{kind}.{name}"])
