"""Anytime decisions for clean inference: noise levels are looked at one after another until the decision is settled.

A full decision looks at all T levels, and, without a multi-head, at all K classes. Most images are settled long before. An
:class:`AnytimeClassifier` stops each image by a sequential test whose boundary was calibrated on held-out images
(:func:`calibrate_anytime`) so that its decision differs from the full one in at most a stated share of images.

It is made for images that nobody has tampered with. An attacker can push an image to where it stops early and wrong; an evaluation
of it raises the flag ``anytime-decisions``.
"""

from __future__ import annotations

from rdc.decisions.anytime.calibration import AnytimeCalibration, calibrate_anytime
from rdc.decisions.anytime.classifier import AnytimeClassifier, AnytimeResult

__all__ = ["AnytimeCalibration", "AnytimeClassifier", "AnytimeResult", "calibrate_anytime"]
