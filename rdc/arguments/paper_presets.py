"""The three versions of the paper's protocol by name: which noise levels, likelihood maximisation and noise policy each has.

Plain values, so that the command line's help needs no torch. What the names of levels and of likelihood maximisation stand for is
in ``rdc.method.levels.LEVEL_PRESETS`` and ``rdc.method.likelihood_maximization.LM_PRESETS``; how a classifier differs from a
preset is found by ``rdc.method.deviations``.
"""

from __future__ import annotations

import dataclasses

from rdc.arguments.close_names import did_you_mean
from rdc.arguments.scalars import shown
from rdc.errors import ConfigError

__all__ = ["PAPER_PRESETS", "PaperPreset", "paper_preset"]


@dataclasses.dataclass(frozen=True)
class PaperPreset:
    """Settings of the classifier that stand for one version of arXiv 2305.15241.

    Args:
        name: "paper-v1", "paper-v2" or "released".
        about: which version it is.
        levels: noise levels and their weighting, a key of ``LEVEL_PRESETS``.
        lm: likelihood maximisation, a key of ``LM_PRESETS``.
        noise: "fresh": another draw in every call; "known": one draw for all calls.
    """

    name: str
    about: str
    levels: str
    lm: str
    noise: str

    @property
    def words(self) -> str:
        """What it sets, as options of the command line."""
        return f"--levels {self.levels} --lm {self.lm} --noise {self.noise}"


PAPER_PRESETS: dict[str, PaperPreset] = {
    "paper-v1": PaperPreset("paper-v1", "arXiv version 1, May 2023", "edm", "paper-v1", "fresh"),
    "paper-v2": PaperPreset("paper-v2", "arXiv version 2, ICML 2024", "edm", "paper-v2", "fresh"),
    "released": PaperPreset("released", "the authors' program", "rdc-released", "released", "known"),
}


def paper_preset(name: str) -> PaperPreset:
    """The preset of this name.

    Raises:
        ConfigError: there is none.
    """
    if not isinstance(name, str) or name not in PAPER_PRESETS:
        meant = did_you_mean(name, PAPER_PRESETS)
        raise ConfigError(f"preset: expected one of {', '.join(PAPER_PRESETS)}; got {shown(name)}{meant}")
    return PAPER_PRESETS[name]
