"""The networks of a defence, as reports name them: what each is for, where it comes from, the digest of its weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from rdc.contracts import Component, Defence, NetworkUse
from rdc.provenance.run import weights_digest
from rdc.storage.json_records import JsonObject

__all__ = ["described", "described_networks", "doubt_of", "doubtful_null_labels", "notable_networks"]


def described_networks(defence: Defence | nn.Module) -> list[JsonObject]:
    """Every known network of a defence.

    Args:
        defence: anything; of a stranger's own kind nothing is known.

    Returns:
        ``role``; ``name`` (None: it was not loaded by one); ``kind``; ``parameters``; ``weights``, a digest; ``null_label``: "trained",
        "never trained" or "unknown", None where it is asked for classes alone; ``why``, where that comes from.
    """
    return [described(use) for use in _uses(defence)]


def notable_networks(defence: Defence | nn.Module) -> list[JsonObject]:
    """The networks, where a report has to name them: one that moves the input and another that classifies, or a null label in doubt."""
    several = {"lm_network", "parts"} & set(defence.describe()) if isinstance(defence, Component) else set()
    return described_networks(defence) if several or doubtful_null_labels(defence) else []


def doubtful_null_labels(defence: Defence | nn.Module) -> list[str]:
    """A line for each network that is asked without a label and was never trained so, or of which nobody knows."""
    return [line for use in _uses(defence) if (line := doubt_of(use))]


def doubt_of(use: NetworkUse) -> str | None:
    """That line for one use of a network; None where all is well."""
    null: Any = getattr(use.module, "null_training", None) if use.label_free else None
    if null is None or null.trained:
        return None
    name = _word(use.module, "source") or _word(use.module, "head") or "the network"
    if null.trained is None:
        return f"{use.role}: nobody knows if the null label of {name} was trained ({null.why})"
    return f"{use.role}: the null label of {name} was never trained ({null.why})"


def _uses(defence: Defence | nn.Module) -> tuple[NetworkUse, ...]:
    return defence.networks() if isinstance(defence, Component) else ()


def described(use: NetworkUse, name: str | None = None) -> JsonObject:
    """One use of a network, as :func:`described_networks` has it.

    Args:
        use: which network, and what for.
        name: that it was loaded by, where it does not say so itself.
    """
    null: Any = getattr(use.module, "null_training", None) if use.label_free else None
    return {
        "role": use.role,
        "name": _word(use.module, "source") or name,
        "kind": _word(use.module, "head") or type(use.module).__name__,
        "parameters": sum(parameter.numel() for parameter in use.module.parameters()),
        "weights": weights_digest(use.module),
        "null_label": None if null is None else null.word,
        "why": None if null is None else null.why,
    }


def _word(module: nn.Module, name: str) -> str | None:
    """An attribute that is a text: a stranger's network may have a layer of that name."""
    found = getattr(module, name, None)
    return found if isinstance(found, str) else None
