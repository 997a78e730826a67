"""Training loop: EDM loss, EMA, warm-up, atomic checkpoints, exact resume, data parallelism.

Everything random is a function of (seed, step): which images, which noise levels, which noise. A run that was killed
and resumed from its checkpoint therefore continues exactly as if it had not been.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

from rdc.data import Dataset
from rdc.errors import CheckpointError, ConfigError
from rdc.files import atomic_write, write_json
from rdc.preconditioning import Preconditioning

__all__ = ["ConditionalObjective", "NoiseDistribution", "TrainConfig", "Trainer"]

#: objective(net, x0 [B,C,H,W] in [-1,1], labels [B], generator) -> (loss to minimise, {name: value for the log})
Objective = Callable[[nn.Module, Tensor, Tensor, torch.Generator], tuple[Tensor, dict[str, Tensor]]]


@dataclasses.dataclass(frozen=True)
class NoiseDistribution:
    """Log-normal noise levels for training: ln(sigma) ~ N(mean, std^2), cut to [low, high] (EDM, section 5)."""

    mean: float = -1.2
    std: float = 1.2
    low: float = 0.002
    high: float = 80.0

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw sigma [count], stratified so that each batch covers the distribution evenly."""
        strata = torch.arange(count) + torch.rand(count, generator=generator)
        strata = (strata / count)[torch.randperm(count, generator=generator)].clamp(1e-6, 1 - 1e-6)
        sigma = (self.mean + self.std * torch.special.ndtri(strata)).exp()
        return sigma.clamp(self.low, self.high)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, how fast, from which seed.

    Args:
        images: training images to process in all (each epoch counts again).
        batch_size: images a step, over all processes.
        learning_rate: peak of Adam; warm-up over ``warmup_images``, then cosine decay to zero.
        ema_images: half-life of the weight average, in images.
        clip: largest gradient norm.
        precision: "float32" or "bfloat16" (autocast; weights stay float32).
        flip: mirror half of the images left to right.
        checkpoint_seconds: time between checkpoints.
    """

    images: int
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup_images: int = 10_000
    ema_images: int = 15_000
    clip: float = 1.0
    seed: int = 0
    precision: str = "float32"
    flip: bool = False
    compile: bool = False
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.images < self.batch_size or self.batch_size < 1:
            raise ConfigError(f"images: expected at least batch_size ({self.batch_size}) >= 1; got {self.images}")
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(f"precision: expected float32 or bfloat16; got {self.precision!r}")

    @property
    def steps(self) -> int:
        return self.images // self.batch_size

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, cosine decay."""
        done = step * self.batch_size
        warm = min(1.0, (done + self.batch_size) / max(1, self.warmup_images))
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))


class ConditionalObjective:
    """EDM training loss ||F(c_in x_t; c_noise, y) - F*||^2, mean over pixels, with label dropout for the null label."""

    def __init__(
        self, num_classes: int, noise: NoiseDistribution, sigma_data: float = 0.5, label_dropout: float = 0.1
    ) -> None:
        self.num_classes, self.noise, self.label_dropout = num_classes, noise, label_dropout
        self.precondition = Preconditioning(sigma_data)

    def __call__(
        self, net: nn.Module, x0: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        batch, device = len(x0), x0.device
        sigma = self.noise.sample(batch, generator).to(device)
        keep = (torch.rand(batch, generator=generator) >= self.label_dropout).to(device)
        x_t, target = noisy(x0, sigma, generator, self.precondition)
        onehot = F.one_hot(labels, self.num_classes).to(x0.dtype) * keep[:, None]
        c_in = self.precondition.c_in(sigma).reshape(-1, 1, 1, 1)
        loss = (net(c_in * x_t, self.precondition.c_noise(sigma), onehot) - target).square().mean()
        return loss, {"loss": loss.detach()}


def noisy(x0: Tensor, sigma: Tensor, generator: torch.Generator, precondition: Preconditioning) -> tuple[Tensor, Tensor]:
    """Add noise of level sigma [B] to x0 [B,C,H,W]; return x_t and the target F*."""
    sigma = sigma.reshape(-1, 1, 1, 1)
    noise = torch.randn(x0.shape, generator=generator).to(x0.device, x0.dtype)
    x_t = x0 + sigma * noise
    return x_t, precondition.target(x0, x_t, sigma)


class Trainer:
    """Runs an objective over a data set.

    Args:
        net: the network to train (already on its device).
        objective: see :data:`Objective`.
        data: training images.
        config: how long and how fast.
        out: folder for ``state.safetensors`` (resume), ``log.jsonl`` and ``config.json``.
        description: JSON description of the run; a state written under another description is refused.

    Processes: under ``torchrun`` each process takes its share of every batch and gradients are averaged.
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
    ) -> None:
        self.net, self.objective, self.data, self.config = net, objective, data, config
        self.out, self.progress = Path(out), progress
        self.description = {**description, "train": dataclasses.asdict(config)}
        self.device = next(net.parameters()).device
        self.parameters = dict(net.named_parameters())
        self.optimizer = torch.optim.Adam(net.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), eps=1e-8)
        self.ema = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.step = 0
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        if config.batch_size % self.world:
            raise ConfigError(f"batch_size: expected a multiple of {self.world} processes; got {config.batch_size}")
        self.forward = torch.compile(net) if config.compile else net

    # --- data -----------------------------------------------------------------------------------------------------
    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """This process's share of the images of a step: x0 [B,C,H,W] in [-1,1], labels [B]."""
        size, count = self.config.batch_size, len(self.data)
        share = size // self.world
        first = step * size + self.rank * share
        index = np.arange(first, first + share)
        chosen = np.empty(share, dtype=np.int64)
        for epoch in np.unique(index // count):
            order = np.random.Generator(np.random.Philox(key=[self.config.seed, int(epoch)])).permutation(count)
            here = index // count == epoch
            chosen[here] = order[index[here] % count]
        rows = torch.from_numpy(chosen)
        x0 = self.data.pixels(rows).to(self.device) * 2 - 1
        if self.config.flip:
            coin = np.random.Generator(np.random.Philox(key=[self.config.seed + 1, step])).random(size)
            mirror = torch.from_numpy(coin[self.rank * share : (self.rank + 1) * share] < 0.5).to(self.device)
            x0 = torch.where(mirror[:, None, None, None], x0.flip(-1), x0)
        return x0, self.data.labels[rows].to(self.device)

    # --- one step -------------------------------------------------------------------------------------------------
    def train_step(self) -> dict[str, float]:
        """One optimiser step; returns the values to log."""
        config = self.config
        generator = torch.Generator().manual_seed((config.seed * 1_000_003 + self.step) * 4099 + self.rank)
        x0, labels = self.batch(self.step)
        rate = config.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        half = torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bfloat16")
        with torch.random.fork_rng(devices=[]), half:
            torch.manual_seed(config.seed * 1_000_003 + self.step)
            loss, values = self.objective(self.forward, x0, labels, generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._average_gradients()
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), config.clip)
        if not torch.isfinite(norm):
            raise ConfigError(
                f"step {self.step}: the gradient is not finite (loss {float(loss)}); lower --lr or use float32. "
                f"The last checkpoint is in {self.out}"
            )
        self.optimizer.step()
        self._average_weights()
        self.step += 1
        return {"lr": rate, "grad_norm": float(norm), **{name: float(value) for name, value in values.items()}}

    def _average_gradients(self) -> None:
        if self.world == 1:
            return
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.net.parameters()]
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        dist.all_reduce(flat)
        flat /= self.world
        for p, part in zip(self.net.parameters(), flat.split([p.numel() for p in self.net.parameters()]), strict=True):
            p.grad = part.reshape(p.shape).clone()

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
            CheckpointError: the state in ``out`` is corrupt or belongs to another run.
        """
        self.resume()
        config, started, saved = self.config, time.time(), time.time()
        first = self.step
        window: list[dict[str, float]] = []
        bar = tqdm(total=config.steps, initial=self.step, unit="step", disable=not self.progress or self.rank > 0)
        while self.step < config.steps:
            window.append(self.train_step())
            bar.update()
            last = self.step == config.steps
            if self.step % 50 == 0 or last:
                speed = (self.step - first) * config.batch_size / (time.time() - started)
                row = {key: float(np.mean([entry[key] for entry in window])) for key in window[0]}
                self._log({"step": self.step, "images": self.step * config.batch_size, **row, "images_per_s": speed})
                bar.set_postfix(loss=f"{row.get('loss', 0):.4f}", images_per_s=f"{speed:.0f}")
                window = []
            if last or time.time() - saved > config.checkpoint_seconds:
                self.save()
                saved = time.time()
        bar.close()
        return self.ema

    def _log(self, row: dict[str, float]) -> None:
        if self.rank == 0:
            with open(self.out / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({key: round(value, 6) for key, value in row.items()}) + "\n")

    # --- checkpoints ----------------------------------------------------------------------------------------------
    def save(self) -> None:
        """Write weights, averages, optimiser and position to ``out/state.safetensors``, atomically."""
        if self.rank:
            return
        tensors: dict[str, Tensor] = {}
        for name, p in self.parameters.items():
            state = self.optimizer.state.get(p, {})
            tensors[f"net.{name}"], tensors[f"ema.{name}"] = p.detach(), self.ema[name]
            tensors[f"m.{name}"] = state.get("exp_avg", torch.zeros_like(p))
            tensors[f"v.{name}"] = state.get("exp_avg_sq", torch.zeros_like(p))
        metadata = {"step": str(self.step), "description": json.dumps(self.description)}
        blob = save({key: value.contiguous().cpu() for key, value in tensors.items()}, metadata)
        with atomic_write(self.out / "state.safetensors") as file:
            file.write(blob)

    def resume(self) -> None:
        """Continue from ``out/state.safetensors`` if it is there; else begin and record the configuration."""
        path = self.out / "state.safetensors"
        if not path.exists():
            if self.rank == 0:
                self.out.mkdir(parents=True, exist_ok=True)
                write_json(self.out / "config.json", self.description)
                (self.out / "log.jsonl").write_text("")
            return
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
                tensors = {key: file.get_tensor(key) for key in file.keys()}
            description, step = json.loads(metadata["description"]), int(metadata["step"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path}: not a training state of rdc, or truncated ({error}); delete it to start afresh"
            ) from error
        if description != json.loads(json.dumps(self.description)):
            raise CheckpointError(
                f"{path}: belongs to a run with other settings ({_difference(description, self.description)}); "
                "use the same command, or another --out folder"
            )
        for name, p in self.parameters.items():
            p.data.copy_(tensors[f"net.{name}"])
            self.ema[name] = tensors[f"ema.{name}"].to(self.device)
            moments = {"exp_avg": tensors[f"m.{name}"].to(p), "exp_avg_sq": tensors[f"v.{name}"].to(p)}
            moments = {key: value.to(memory_format=torch.preserve_format) for key, value in moments.items()}
            self.optimizer.state[p] = {"step": torch.tensor(float(step)), **moments}
        self.step = step
        if self.rank == 0:
            self._trim_log()

    def _trim_log(self) -> None:
        """Drop log rows that a killed run wrote after its last checkpoint."""
        path = self.out / "log.jsonl"
        rows = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [row for row in rows if row.endswith("}") and json.loads(row)["step"] <= self.step]
        with atomic_write(path, "w") as file:
            file.write("".join(row + "\n" for row in kept))


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    keys = [key for key in sorted({*old, *new}) if old.get(key) != json.loads(json.dumps(new.get(key)))]
    return "; ".join(f"{key}: {old.get(key)!r} there, {new.get(key)!r} here" for key in keys)


def start_processes() -> None:
    """Join the process group when started by ``torchrun``; do nothing otherwise."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
