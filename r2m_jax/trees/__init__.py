"""Parameter trees: nested dicts of arrays, addressed by path."""

from r2m_jax.trees.paths import count_parameters, flatten, refuse_non_finite, same_structure, unflatten

__all__ = ["count_parameters", "flatten", "refuse_non_finite", "same_structure", "unflatten"]
