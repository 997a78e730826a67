"""Labelled image sets: ``load_dataset(name)`` gives uint8 images and labels in memory, checked."""

from rdc.data.dataset import Dataset, train_holdout
from rdc.data.load import load_dataset

__all__ = ["Dataset", "load_dataset", "train_holdout"]
