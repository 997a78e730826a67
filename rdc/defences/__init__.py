"""Defences other than the diffusion classifier: anybody's model, purifiers in front of classifiers, examples."""

from rdc.defences.base import Defence, PlainClassifier
from rdc.defences.factory import as_defence, is_factory, load_factory
from rdc.defences.purified import ForeignDefence, PurifiedClassifier
from rdc.defences.purifiers import DiffusionPurifier, LikelihoodPurifier, Purifier

__all__ = [
    "Defence",
    "DiffusionPurifier",
    "ForeignDefence",
    "LikelihoodPurifier",
    "PlainClassifier",
    "PurifiedClassifier",
    "Purifier",
    "as_defence",
    "is_factory",
    "load_factory",
]
