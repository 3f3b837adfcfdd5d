"""The loop around the step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from r2m_jax.errors import InputError
from r2m_jax.parallel import replicate, shard_batch
from r2m_jax.training.step import Metrics, TrainState


def fit(
    step: Callable[[TrainState, Any], tuple[TrainState, Metrics]],
    state: TrainState,
    batches: Iterable[Any],
    *,
    mesh: Mesh,
    on_step: Callable[[int, Metrics], None] | None = None,
    check_every: int = 20,
) -> TrainState:
    """Run ``step`` over all batches, data parallel over ``mesh``.

    Args:
        step: of :func:`r2m_jax.training.step.train_step`; it may be jitted already, with donated state, to share one
            compilation between runs.
        state: where to start.
        batches: dicts of NumPy arrays with a common leading axis.
        mesh: devices to split batches over.
        on_step: called after every batch with its number and metrics (device arrays, not awaited).
        check_every: how often, in steps, the loss is awaited and checked.

    Raises:
        InputError: the loss became NaN or infinite, or a batch does not divide over the devices.
    """
    state = replicate(mesh, state)
    number, metrics = 0, None
    for number, batch in enumerate(batches, start=1):
        state, metrics = step(state, shard_batch(mesh, batch))
        if on_step:
            on_step(number, metrics)
        if number % check_every == 0:
            _refuse_nan(number, metrics)
    if metrics is not None:
        _refuse_nan(number, metrics)
    return jax.block_until_ready(state)


def _refuse_nan(number: int, metrics: Metrics) -> None:
    loss = float(metrics.loss)
    if not np.isfinite(loss):
        raise InputError(f"the loss is {loss} at step {number}; try a lower learning rate or a longer warm-up.")
