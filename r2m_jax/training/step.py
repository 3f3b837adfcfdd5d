"""The training step: a pure function of state and batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from r2m_jax.data.device import normalise, random_flip
from r2m_jax.models import Params
from r2m_jax.training.objectives import cross_entropy
from r2m_jax.training.sam import Sharpness, sharpness_aware
from r2m_jax.training.trainable import Trainable, everything, join, split


class TrainState(NamedTuple):
    """Everything a run needs to go on.

    Attributes:
        step: batches seen.
        params: ``{"backbone", "head"}``, float32.
        optimizer: optax state.
        key: root of all random choices; a step uses ``fold_in(key, step)``.
    """

    step: Int[Array, ""]
    params: Params
    optimizer: Any
    key: Key[Array, ""]


class Metrics(NamedTuple):
    """What a step reports: loss and accuracy of its batch, and the gradient's global norm."""

    loss: Float[Array, ""]
    accuracy: Float[Array, ""]
    gradient_norm: Float[Array, ""]


def init_state(
    params: Params, optimizer: optax.GradientTransformation, seed: int, trainable: Trainable = everything
) -> TrainState:
    """The state before the first step; parameters are copied, so the caller's survive donation.

    Args:
        params: to start from.
        optimizer: keeps moments for what is trainable, and for nothing else.
        seed: of the run.
        trainable: which leaves, by path.
    """
    params = jax.tree.map(jnp.array, params)
    moving, _ = split(params, trainable)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(moving), jax.random.key(seed))


def train_step(
    logits: Callable[[Params, Float[Array, "b h w 3"]], Float[Array, "b 2"]],
    optimizer: optax.GradientTransformation,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    trainable: Trainable = everything,
    sharpness: Sharpness | None = None,
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """Build ``step(state, batch) -> (state, metrics)``.

    Args:
        logits: the detector, ``logits(params, normalised images)``.
        optimizer: optax transformation over the trainable leaves, a dict from path to leaf.
        mean, std: the model's normalisation of 0…1 RGB.
        trainable: which leaves are trained, the same as in :func:`init_state`; gradients of others are not computed.
        sharpness: SAM in place of the plain gradient; its norm is over the trainable leaves.

    Returns:
        A pure function for ``jax.jit(step, donate_argnums=0)``; ``batch`` holds ``image`` uint8 [b, h, w, 3] and
        ``label`` [b]. Images are mirrored at random on the device.
    """

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        moving, still = split(state.params, trainable)

        def loss_fn(moving: Params, batch: Any, key: Key[Array, ""]) -> tuple[Array, Array]:
            images = random_flip(key, batch["image"])
            predicted = logits(join(moving, still), normalise(images, mean, std))
            return cross_entropy(predicted, batch["label"]), (predicted.argmax(-1) == batch["label"]).mean()

        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        if sharpness is not None:
            gradient = sharpness_aware(gradient, sharpness)
        (loss, accuracy), grads = gradient(moving, batch, jax.random.fold_in(state.key, state.step))
        updates, optimizer_state = optimizer.update(grads, state.optimizer, moving)
        params = join(optax.apply_updates(moving, updates), still)
        metrics = Metrics(loss, accuracy, optax.tree.norm(grads))
        return TrainState(state.step + 1, params, optimizer_state, state.key), metrics

    return step
