"""Smaller models: pruning, structured pruning, integers, low rank, as pure functions of parameter trees.

Every function takes nested dicts of arrays, kernels ``[in, out]`` or ``[height, width, in, out]``, stacked under
``layers/`` or not, and dicts of stored tensors (``….weight``, ``[out, in, …]``) as well.
"""

from r2m_jax.compression.channels import (
    best,
    channel_importance,
    head_importance,
    keep_channels,
    keep_heads,
    keep_layers,
    layer_importance,
)
from r2m_jax.compression.factorisation import Factors, factorise, factorise_tree, multiply_tree
from r2m_jax.compression.integer import calibrate, integer_conv, integer_dense, integer_detector
from r2m_jax.compression.pruning import apply_masks, magnitude_masks, sparsity, zero_masks
from r2m_jax.compression.quantisation import (
    Quantised,
    dequantise,
    dequantise_tree,
    quantise,
    quantise_activations,
    quantise_tree,
)
from r2m_jax.compression.selection import by_patterns, kernels, weights

__all__ = [
    "Factors",
    "Quantised",
    "apply_masks",
    "best",
    "by_patterns",
    "calibrate",
    "channel_importance",
    "dequantise",
    "dequantise_tree",
    "factorise",
    "factorise_tree",
    "head_importance",
    "integer_conv",
    "integer_dense",
    "integer_detector",
    "keep_channels",
    "keep_heads",
    "keep_layers",
    "kernels",
    "layer_importance",
    "magnitude_masks",
    "multiply_tree",
    "quantise",
    "quantise_activations",
    "quantise_tree",
    "sparsity",
    "weights",
    "zero_masks",
]
