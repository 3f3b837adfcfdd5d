"""Knowledge distillation: a student learns what a teacher says of the images beside what they are.

Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 2, with the weights of the PyTorch tutorial that the code
of arXiv 2504.21066 follows (temperature 2, soft .25, hard .75). Both sides are log-softmaxes: the logarithm of a
teacher's probability that underflowed to 0 would be infinite.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from r2m_jax.models import Params
from r2m_jax.training.objectives import Loss, Output, cross_entropy

PREFIX = "distillation"
"""Where the map between features is, beside a student's parameters, of which it is no part."""

Likeness = Literal["mse", "cosine"]
Rows: TypeAlias = Array | np.ndarray


class Taught(NamedTuple):
    """What a teacher says of a batch.

    Attributes:
        logits: class 1 is fake.
        features: what its head reads; None where they are not learnt from.
    """

    logits: Float[Rows, "b 2"]
    features: Float[Rows, "b d"] | None = None


def soft_loss(
    student: Float[Array, "b 2"], teacher: Float[Array, "b 2"], temperature: float | Float[Array, ""]
) -> Float[Array, ""]:
    """T² KL(softmax(t/T) ‖ softmax(s/T)), mean over the batch.

    The factor keeps the gradient's size as T grows, where it becomes that of matching centred logits.

    Args:
        student: logits s.
        teacher: logits t, through which no gradient goes.
        temperature: T.
    """
    theirs = jax.nn.log_softmax(jax.lax.stop_gradient(teacher) / temperature)
    mine = jax.nn.log_softmax(student / temperature)
    divergence = (jnp.exp(theirs) * (theirs - mine)).sum(axis=-1)
    return temperature**2 * divergence.mean()


def feature_loss(student: Float[Array, "b t"], teacher: Float[Array, "b t"], likeness: Likeness) -> Float[Array, ""]:
    """How far a student's features, mapped linearly, are from a teacher's.

    Args:
        student: of :func:`mapped`.
        teacher: features, through which no gradient goes.
        likeness: ``mse`` mean squared difference, ``cosine`` one minus the cosine.
    """
    theirs = jax.lax.stop_gradient(teacher).astype(jnp.float32)
    if likeness == "mse":
        return jnp.mean((student - theirs) ** 2)
    tiny = 1e-12  # under the root: a zero vector's length has no gradient
    lengths = jnp.sqrt((student**2).sum(axis=-1) + tiny) * jnp.sqrt((theirs**2).sum(axis=-1) + tiny)
    return 1.0 - ((student * theirs).sum(axis=-1) / lengths).mean()


def attach_map(params: Params, width: int, teacher: int, key: Key[Array, ""]) -> Params:
    """Parameters with a map between features, normal with variance 1 / ``width``.

    Args:
        params: of the student.
        width, teacher: widths of its features and of the teacher's.
        key: of the draw.
    """
    return {**params, PREFIX: {"kernel": jax.random.normal(key, (width, teacher)) * width**-0.5}}


def without_map(params: Params) -> Params:
    """The student's own parameters."""
    return {name: tree for name, tree in params.items() if name != PREFIX}


def mapped(params: Params, features: Float[Array, "b s"]) -> Float[Array, "b t"]:
    """A student's features in the teacher's space; as they are where there is no map."""
    if PREFIX not in params:
        return features
    return jnp.matmul(features.astype(jnp.float32), params[PREFIX]["kernel"], precision="highest")


def distilling(
    *,
    temperature: float = 2.0,
    soft: float = 0.25,
    hard: float = 0.75,
    features: float = 0.0,
    likeness: Likeness = "mse",
) -> Loss:
    """The loss ``soft · soft_loss + hard · cross-entropy + features · feature_loss`` of a lesson.

    A term of weight 0 is not computed.

    Args:
        temperature: of the soft loss.
        soft, hard, features: weights.
        likeness: of features.

    Returns:
        A loss for :func:`r2m_jax.training.train_step`, of outputs whose features are :func:`mapped` and of inputs whose
        ``taught`` is a :class:`Taught`.
    """

    def loss(output: Output, lesson: Any, labels: Int[Array, " b"]) -> Float[Array, ""]:
        taught = lesson.taught
        total = jnp.zeros(())
        if hard:
            total += hard * cross_entropy(output.logits, labels)
        if soft:
            total += soft * soft_loss(output.logits, taught.logits, temperature)
        if features:
            assert output.features is not None
            total += features * feature_loss(output.features, taught.features, likeness)
        return total

    return loss
