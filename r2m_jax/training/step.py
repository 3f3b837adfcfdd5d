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


def init_state(params: Params, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first step; parameters are copied, so the caller's survive donation."""
    params = jax.tree.map(jnp.array, params)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), jax.random.key(seed))


def train_step(
    logits: Callable[[Params, Float[Array, "b h w 3"]], Float[Array, "b 2"]],
    optimizer: optax.GradientTransformation,
    mean: Sequence[float],
    std: Sequence[float],
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """Build ``step(state, batch) -> (state, metrics)``.

    Args:
        logits: the detector, ``logits(params, normalised images)``.
        optimizer: optax transformation over all parameters.
        mean, std: the model's normalisation of 0…1 RGB.

    Returns:
        A pure function for ``jax.jit(step, donate_argnums=0)``; ``batch`` holds ``image`` uint8 [b, h, w, 3] and
        ``label`` [b]. Images are mirrored at random on the device.
    """

    def loss_fn(params: Params, images: Array, labels: Array) -> tuple[Array, Array]:
        predicted = logits(params, normalise(images, mean, std))
        return cross_entropy(predicted, labels), (predicted.argmax(-1) == labels).mean()

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        images = random_flip(jax.random.fold_in(state.key, state.step), batch["image"])
        (loss, accuracy), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, images, batch["label"])
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = Metrics(loss, accuracy, optax.tree.norm(grads))
        return TrainState(state.step + 1, params, optimizer_state, state.key), metrics

    return step
