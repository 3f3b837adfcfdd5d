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
from r2m_jax.training.objectives import Loss, Output, supervised
from r2m_jax.training.sam import Sharpness, sharpness_aware
from r2m_jax.training.trainable import Trainable, everything, join, split
from r2m_jax.trees import flatten, unflatten


class TrainState(NamedTuple):
    """Everything a run needs to go on.

    Attributes:
        step: batches seen.
        params: ``{"backbone", "head"}``, float32, and what else a model has.
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
    logits: Callable[[Params, Any], Float[Array, "b 2"] | Output],
    optimizer: optax.GradientTransformation,
    inputs: Inputs,
    *,
    trainable: Trainable = everything,
    sharpness: Sharpness | None = None,
    average: float | None = None,
    frozen: Callable[[Params, Any], Any] | None = None,
    loss: Loss = supervised,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Build ``step(state, batch) -> (state, metrics)``.

    Args:
        logits: the detector, ``logits(params, inputs)``: logits, or an :class:`~r2m_jax.training.objectives.Output`
            with leaves of the parameters that change without a gradient, which must not be trainable.
        optimizer: optax transformation over the trainable leaves, a dict from path to leaf.
        inputs: what the detector is given of a batch, e.g. :func:`r2m_jax.training.inputs.image_inputs`.
        trainable: which leaves are trained, the same as in :func:`init_state`; gradients of others are not computed.
        sharpness: SAM in place of the plain gradient; its norm is over the trainable leaves.
        average: decay d of the moving average ``a ← d a + (1 - d) θ`` after every step, for a state made with one. The
            average starts at the first parameters, and d at ``(1 + step) / (10 + step)``, so that the start is soon
            forgotten (TensorFlow's ``ExponentialMovingAverage(num_updates=…)``).
        frozen: what comes before ``logits`` and is not trained, ``frozen(params, inputs)``; ``logits`` is given its
            result in place of the inputs. It is computed once a step, though SAM asks for logits twice.
        loss: what is minimised, of the output, what ``logits`` was given, and the labels.

    Returns:
        A pure function for ``jax.jit(step, donate_argnums=0)``; ``batch`` is a dict with ``label`` [b]. A third
        argument is what ``frozen`` is given in place of the state's parameters, such as those of a teacher.
    """

    def step(state: TrainState, batch: Any, beside: Params | None = None) -> tuple[TrainState, Metrics]:
        moving, still = split(state.params, trainable)
        key = jax.random.fold_in(state.key, state.step)
        given = inputs
        if frozen is not None:
            known = state.params if beside is None else beside
            batch = {"feature": frozen(known, inputs(key, batch)), "label": batch["label"]}
            given = feature_inputs

        def loss_fn(moving: Params, batch: Any, key: Key[Array, ""]) -> tuple[Array, tuple[Array, dict[str, Array]]]:
            seen = given(key, batch)
            made = logits(join(moving, still), seen)
            if not isinstance(made, Output):
                made = Output(made)
            return loss(made, seen, batch["label"]), (made.logits[:, 1] - made.logits[:, 0], made.changed)

        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        if sharpness is not None:
            gradient = sharpness_aware(gradient, sharpness)
        (value, (margin, changed)), grads = gradient(moving, batch, key)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, moving)
        moving = optax.apply_updates(moving, updates)
        kept = state.average
        if average is not None:
            decay = jnp.minimum(average, (1 + state.step) / (10 + state.step))
            kept = optax.incremental_update(moving, kept, 1 - decay)
        accuracy = ((margin > 0) == batch["label"]).mean()
        metrics = Metrics(value, accuracy, optax.tree.norm(grads), margin)
        return TrainState(state.step + 1, join(moving, still | changed), optimizer_state, state.key, kept), metrics

    return step
