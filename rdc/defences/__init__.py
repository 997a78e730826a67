"""Defences other than the diffusion classifier: anybody's model, purifiers in front of classifiers, examples."""

from rdc.contracts import BaseDefence, Defence, GradientMode, NoisePolicy
from rdc.defences.factory import as_defence, is_factory, load_factory
from rdc.defences.foreign import ForeignDefence
from rdc.defences.plain import PlainClassifier
from rdc.defences.purified import PurifiedClassifier
from rdc.defences.purifiers import DiffusionPurifier, LikelihoodPurifier, Purifier
from rdc.defences.score_based import ScoreBasedClassifier

__all__ = [
    "BaseDefence",
    "Defence",
    "DiffusionPurifier",
    "ForeignDefence",
    "GradientMode",
    "LikelihoodPurifier",
    "NoisePolicy",
    "PlainClassifier",
    "PurifiedClassifier",
    "Purifier",
    "ScoreBasedClassifier",
    "as_defence",
    "is_factory",
    "load_factory",
]
