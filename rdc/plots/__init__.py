"""Pictures drawn by matplotlib: figures to look at (each function gives a Figure, or draws into an Axes), and files of a training run."""

from __future__ import annotations

from rdc.plots.adversarial import plot_adversarial
from rdc.plots.class_losses import plot_class_losses
from rdc.plots.likelihood_path import plot_likelihood_path
from rdc.plots.reliability import plot_reliability

__all__ = ["plot_adversarial", "plot_class_losses", "plot_likelihood_path", "plot_reliability"]
