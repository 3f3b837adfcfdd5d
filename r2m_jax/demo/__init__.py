"""The first whole path: photographs, forged families, specialists, merges, scores, a report."""

from r2m_jax.demo.recipe import DemoRecipe, load_recipe
from r2m_jax.demo.run import run_demo

__all__ = ["DemoRecipe", "load_recipe", "run_demo"]
