"""What the settings of an evaluation, an audit, a gradient analysis, of likelihoods and of a certification are unless told otherwise.

Plain values in a room without torch: the settings themselves (``rdc.evaluation.EvaluationSettings``, ``rdc.audits.AuditSettings``,
``rdc.gradient_analysis.GradientSettings``, ``rdc.certification.CertificationSettings``) take their defaults from here, and so do
the options of the command line and their help, which must not wait for torch.
"""

from __future__ import annotations

import dataclasses

__all__ = ["AuditDefaults", "CertificationDefaults", "EvaluationDefaults", "GradientDefaults", "LikelihoodDefaults"]


@dataclasses.dataclass(frozen=True)
class EvaluationDefaults:
    """Of ``rdc.evaluation.EvaluationSettings``, which says what each is."""

    n: int = 256
    split: str = "test"
    start: int = 0
    attacks: tuple[str, ...] = ("apgd-ce", "apgd-dlr")
    norm: str = "linf"
    eps: str = "8/255"
    steps: int = 50
    restarts: int = 1
    gradient: str = "exact"
    noise: str = "known"
    eot: int = 20  # against fresh noise; known noise gives the same answer in every call
    resubmissions: int = 10
    sanity: int = 8
    seed: int = 0
    batch: int = 32
    batch_on_a_gpu: int = 256  # what the command line takes there


@dataclasses.dataclass(frozen=True)
class AuditDefaults:
    """Of ``rdc.audits.AuditSettings``, which says what each is."""

    n: int = 32
    split: str = "test"
    start: int = 0
    norm: str = "linf"
    eps: str = "8/255"
    sanity: int = 4
    steps: int = 10
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class GradientDefaults:
    """Of ``rdc.gradient_analysis.GradientSettings``, which says what each is."""

    n: int = 16
    split: str = "test"
    start: int = 0
    draws: int = 10
    norm: str = "linf"
    eps: str = "8/255"
    eps_l2: str = "0.5"
    samples: int = 16
    ascent_steps: int = 5
    steps: int = 10
    slices: int = 4
    grid: int = 11
    logit_scale: str = "auto"
    seed: int = 0
    batch: int = 16


@dataclasses.dataclass(frozen=True)
class LikelihoodDefaults:
    """Of ``rdc.method.likelihood.LikelihoodSettings`` and ``rdc.evaluation.likelihoods.likelihoods``, which say what each is."""

    n: int = 16
    split: str = "test"
    start: int = 0
    steps: int = 6
    solver: str = "rk4"
    probes: int | str = 1
    sigma_min: float = 0.01
    sigma_max: float = 80.0
    rho: float = 3.0
    elbo_levels: int = 12
    seed: int = 0
    batch: int = 4


@dataclasses.dataclass(frozen=True)
class CertificationDefaults:
    """Of ``rdc.certification.CertificationSettings``, which says what each is."""

    n_images: int = 100
    split: str = "test"
    start: int = 0
    method: str = "epndc"
    sigma: float = 0.25
    n0: int = 100
    n: int = 10_000
    alpha: float = 0.001
    noised_levels: int = 4
    noise: str = "fresh"
    seed: int = 0
    batch: int = 100
    attack_steps: int = 20
    attack_draws: int = 16
    attack_votes: int = 200
