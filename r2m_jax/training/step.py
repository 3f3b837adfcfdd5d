"""The training step: a pure function of state and batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from r2m_jax.models import Params
from r2m_jax.training.inputs import Inputs, feature_inputs
from r2m_jax.training.objectives import cross_entropy
from r2m_jax.training.sam import Sharpness, sharpness_aware
from r2m_jax.training.trainable import Trainable, everything, join, split
from r2m_jax.trees import flatten, unflatten


class TrainState(NamedTuple):
    """Everything a run needs to go on.

    Attributes:
        step: batches seen.
        params: ``{"backbone", "head"}``, float32.
        optimizer: optax state.
        key: root of all random choices; a step uses ``fold_in(key, step)``.
        average: exponential moving average of the trained leaves by path; empty when none is kept.
    """

    step: Int[Array, ""]
    params: Params
    optimizer: Any
    key: Key[Array, ""]
    average: dict[str, Array]

    def averaged(self) -> Params:
        """Parameters with the moving average in place of the trained leaves, where one is kept."""
        return unflatten({**flatten(self.params), **self.average})


class Metrics(NamedTuple):
    """What a step reports.

    Attributes:
        loss, accuracy: of the batch.
        gradient_norm: global, over the trained leaves.
        margin: fake-minus-real logit of every row.
    """

    loss: Float[Array, ""]
    accuracy: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    margin: Float[Array, " b"]


def init_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    seed: int,
    trainable: Trainable = everything,
    *,
    average: bool = False,
) -> TrainState:
    """The state before the first step; parameters are copied, so the caller's survive donation.

    Args:
        params: to start from.
        optimizer: keeps moments for what is trainable, and for nothing else.
        seed: of the run.
        trainable: which leaves, by path.
        average: keep a moving average of them, see :func:`train_step`.
    """
    params = jax.tree.map(jnp.array, params)
    moving, _ = split(params, trainable)
    kept = jax.tree.map(jnp.array, moving) if average else {}
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(moving), jax.random.key(seed), kept)


def train_step(
    logits: Callable[[Params, Any], Float[Array, "b 2"]],
    optimizer: optax.GradientTransformation,
    inputs: Inputs,
    *,
    trainable: Trainable = everything,
    sharpness: Sharpness | None = None,
    average: float | None = None,
    frozen: Callable[[Params, Any], Array] | None = None,
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """Build ``step(state, batch) -> (state, metrics)``.

    Args:
        logits: the detector, ``logits(params, inputs)``.
        optimizer: optax transformation over the trainable leaves, a dict from path to leaf.
        inputs: what the detector is given of a batch, e.g. :func:`r2m_jax.training.inputs.image_inputs`.
        trainable: which leaves are trained, the same as in :func:`init_state`; gradients of others are not computed.
        sharpness: SAM in place of the plain gradient; its norm is over the trainable leaves.
        average: decay d of the moving average ``a ← d a + (1 - d) θ`` after every step, for a state made with one. The
            average starts at the first parameters, and d at ``(1 + step) / (10 + step)``, so that the start is soon
            forgotten (TensorFlow's ``ExponentialMovingAverage(num_updates=…)``).
        frozen: what comes before ``logits`` and is not trained, ``frozen(params, inputs)``; ``logits`` is given its
            result in place of the inputs. It is computed once a step, though SAM asks for logits twice.

    Returns:
        A pure function for ``jax.jit(step, donate_argnums=0)``; ``batch`` is a dict with ``label`` [b].
    """

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        moving, still = split(state.params, trainable)
        key = jax.random.fold_in(state.key, state.step)
        given = inputs
        if frozen is not None:
            batch = {"feature": frozen(state.params, inputs(key, batch)), "label": batch["label"]}
            given = feature_inputs

        def loss_fn(moving: Params, batch: Any, key: Key[Array, ""]) -> tuple[Array, Array]:
            predicted = logits(join(moving, still), given(key, batch))
            return cross_entropy(predicted, batch["label"]), predicted[:, 1] - predicted[:, 0]

        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        if sharpness is not None:
            gradient = sharpness_aware(gradient, sharpness)
        (loss, margin), grads = gradient(moving, batch, key)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, moving)
        moving = optax.apply_updates(moving, updates)
        kept = state.average
        if average is not None:
            decay = jnp.minimum(average, (1 + state.step) / (10 + state.step))
            kept = optax.incremental_update(moving, kept, 1 - decay)
        accuracy = ((margin > 0) == batch["label"]).mean()
        metrics = Metrics(loss, accuracy, optax.tree.norm(grads), margin)
        return TrainState(state.step + 1, join(moving, still), optimizer_state, state.key, kept), metrics

    return step
