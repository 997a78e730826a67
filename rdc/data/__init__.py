"""Labelled image sets: ``load_dataset(name)`` gives uint8 images and labels in memory, checked."""

from rdc.data.dataset import Dataset, first_balanced, train_holdout
from rdc.data.fashion_mnist import download_fashion_mnist
from rdc.data.load import DATASET_NAMES, load_dataset
from rdc.data.npz import load_npz, save_npz

__all__ = [
    "DATASET_NAMES",
    "Dataset",
    "download_fashion_mnist",
    "first_balanced",
    "load_dataset",
    "load_npz",
    "save_npz",
    "train_holdout",
]
