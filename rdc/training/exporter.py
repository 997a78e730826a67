"""What follows from a training state: the model, the curve of its losses, and samples."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from torch import nn

from rdc.data import Dataset
from rdc.errors import DataError
from rdc.method.denoiser import make_denoiser
from rdc.method.sampling import sample_classes
from rdc.models.checkpoints import save_model
from rdc.models.null_labels import null_label_of
from rdc.networks.presets import DISCRIMINATIVE

__all__ = ["SAMPLE_PASSES", "Exporter"]

_PER_CLASS = 8  # samples
SAMPLE_PASSES = _PER_CLASS * 35  #: network passes for the samples of a class: 18 levels, two at each but the last


class Exporter:
    """Writes into the folder of a run.

    Args:
        out: folder.
        config: description of the network.
        data: what it is trained on.
        settings: to record with the model.
        command: for titles, such as ``"rdc train"``.
        levels: noise levels to be asked at, recorded as the model's own; "": nothing is recorded.
    """

    def __init__(
        self, out: Path, config: dict[str, Any], data: Dataset, settings: dict[str, Any], command: str, levels: str = ""
    ) -> None:
        self.out, self.config, self.data, self.settings, self.levels = out, config, data, settings, levels
        self.title = f"{command}, {data.name}"

    def __call__(self, network: nn.Module, info: dict[str, Any]) -> None:
        """After every checkpoint: the averaged weights, and the loss curve so far."""
        from rdc.plots.figures import plot_losses

        about = {"dataset": self.data.name, "class_names": list(self.data.class_names), **self.settings, **info}
        if self.levels:
            about["classifier"] = {"levels": self.levels}
        if self.config["kind"] not in DISCRIMINATIVE:
            about["null_label"] = null_label_of(self.config, about, str(self.out)).to_json()
        save_model(self.out / "model", network, self.config, about)
        log = self.out / "log.jsonl"
        if not log.exists() or not log.stat().st_size:
            return
        try:
            plot_losses(log, self.out / "loss.png", self.title)
        except DataError as error:  # a damaged row is no reason to stop training
            print(f"{error}; loss.png is not drawn", file=sys.stderr)

    def samples(self, network: nn.Module, progress: bool) -> None:
        """At the end: ``samples.png``."""
        from rdc.plots.figures import plot_samples

        images = sample_classes(make_denoiser(network, self.config), _PER_CLASS, progress=progress)
        plot_samples(images, self.data.class_names, self.out / "samples.png", self.title)
