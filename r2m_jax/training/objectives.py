"""What is minimised: losses on what a model gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import optax
from jaxtyping import Array, Float, Int


class Output(NamedTuple):
    """What a model may give in place of logits alone.

    Attributes:
        logits: class 1 is fake.
        features: what its last layer reads; None where no loss asks.
        changed: leaves of its parameters that a step changes without a gradient, by path: the running statistics of
            batch normalisation.
    """

    logits: Float[Array, "b 2"]
    features: Float[Array, "b d"] | None = None
    changed: dict[str, Array] = {}  # noqa: RUF012  (read only: a NamedTuple's default)


Loss: TypeAlias = Callable[[Output, Any, Int[Array, " b"]], Float[Array, ""]]
"""``loss(output, inputs, labels)``, a mean over the batch; ``inputs`` is what the model was given."""


def cross_entropy(logits: Float[Array, "b 2"], labels: Int[Array, " b"]) -> Float[Array, ""]:
    """Mean softmax cross-entropy without class weights, as DF40 trains its CLIP detector."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def supervised(output: Output, inputs: Any, labels: Int[Array, " b"]) -> Float[Array, ""]:
    """:func:`cross_entropy` as a loss of a training step."""
    return cross_entropy(output.logits, labels)
