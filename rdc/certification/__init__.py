"""Certificates: l_2 radii within which no attack can change a decision (docs/certificates.md).

:func:`certify` runs Cohen et al.'s randomised smoothing over a data set, of a noised diffusion classifier (EPNDC, APNDC) or of any
classifier; :mod:`rdc.certification.lipschitz` bounds the margin of the optimal diffusion classifier without any noise.
"""

from __future__ import annotations

from rdc.certification.attack import SmoothedClassifier
from rdc.certification.noised import METHODS, NoisedDiffusion, SmoothedPlain, base_classifier
from rdc.certification.records import CertifiedImage
from rdc.certification.run import Certification, certify
from rdc.certification.settings import CertificationSettings
from rdc.certification.smoothing import Certificate, NoisyVotes, certify_image, radius_of

__all__ = [
    "METHODS",
    "Certificate",
    "Certification",
    "CertificationSettings",
    "CertifiedImage",
    "NoisedDiffusion",
    "NoisyVotes",
    "SmoothedClassifier",
    "SmoothedPlain",
    "base_classifier",
    "certify",
    "certify_image",
    "radius_of",
]
