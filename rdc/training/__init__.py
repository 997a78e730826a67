"""Training: recipes, and :func:`run`, which follows one. The function has its module's name: what else is in the module comes
by ``from rdc.training.run import ...``."""

from __future__ import annotations

from rdc.training.recipe_files import from_toml, to_toml
from rdc.training.recipes import Recipe
from rdc.training.run import Training, run

__all__ = ["Recipe", "Training", "from_toml", "run", "to_toml"]
