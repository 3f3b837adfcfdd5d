"""Recipes: what users write to say what a job does. YAML, checked, with `key=value` replacements."""

from r2m_jax.recipes.loading import load_recipe, shipped
from r2m_jax.recipes.training import TrainRecipe

__all__ = ["TrainRecipe", "load_recipe", "shipped"]
