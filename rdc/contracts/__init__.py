"""What everybody may count on of a defence: its protocol, its modes, and the part that every shipped kind shares."""

from rdc.contracts.base import BaseDefence
from rdc.contracts.defence import Defence
from rdc.contracts.modes import GradientMode, NoisePolicy

__all__ = ["BaseDefence", "Defence", "GradientMode", "NoisePolicy"]
