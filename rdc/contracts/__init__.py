"""What everybody may count on of a defence: its protocol, its modes, and the part that every shipped kind shares."""

from rdc.contracts.base import BaseDefence
from rdc.contracts.component import Component
from rdc.contracts.defence import Defence
from rdc.contracts.modes import GradientMode, NoisePolicy
from rdc.contracts.network_use import NetworkUse
from rdc.contracts.path import PurificationPath

__all__ = ["BaseDefence", "Component", "Defence", "GradientMode", "NetworkUse", "NoisePolicy", "PurificationPath"]
