"""Forged images in the three families of face forgery, made from real ones.

>>> from r2m_jax.data.forge import FAMILIES, forge_images
>>> forge_images("poisson_swap", images, donors=images, generator_images=images, seed=0)   # doctest: +SKIP
"""

from r2m_jax.data.forge.method import Face, Method, State
from r2m_jax.data.forge.registry import (
    FAMILIES,
    FAMILY_NAMES,
    METHODS,
    find_method,
    fit_method,
    forge_faces,
    forge_images,
)

__all__ = [
    "FAMILIES",
    "FAMILY_NAMES",
    "METHODS",
    "Face",
    "Method",
    "State",
    "find_method",
    "fit_method",
    "forge_faces",
    "forge_images",
]
