"""Losses on logits."""

import optax
from jaxtyping import Array, Float, Int


def cross_entropy(logits: Float[Array, "b 2"], labels: Int[Array, "b"]) -> Float[Array, ""]:
    """Mean softmax cross-entropy without class weights, as DF40 trains its CLIP detector."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
