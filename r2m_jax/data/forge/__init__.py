"""Forged images in the three families of face forgery, made from real ones without a neural network.

>>> from r2m_jax.data.forge import FAMILIES, forge_images
>>> forge_images("poisson_swap", images, donors=images, generator_images=images, seed=0)   # doctest: +SKIP
"""

from r2m_jax.data.forge.method import Forger, Method
from r2m_jax.data.forge.registry import FAMILIES, FAMILY_NAMES, METHODS, forge_images

__all__ = ["FAMILIES", "FAMILY_NAMES", "METHODS", "Forger", "Method", "forge_images"]
