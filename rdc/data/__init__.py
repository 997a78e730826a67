"""Labelled image sets: ``load_dataset(name)`` gives uint8 images and labels in memory, checked; ``as_dataset`` takes what you have."""

from rdc.data.dataset import DataNotice, Dataset, first_balanced, train_holdout
from rdc.data.fashion_mnist import download_fashion_mnist
from rdc.data.foreign import as_dataset
from rdc.data.load import DATASET_NAMES, load_dataset
from rdc.data.npz import load_npz, save_npz, save_splits

__all__ = [
    "DATASET_NAMES",
    "DataNotice",
    "Dataset",
    "as_dataset",
    "download_fashion_mnist",
    "first_balanced",
    "load_dataset",
    "load_npz",
    "save_npz",
    "save_splits",
    "train_holdout",
]
