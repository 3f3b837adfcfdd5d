"""One training of a linear probe, looked at on the way: GSNR and its phases, Theorem 1, the stability bound."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from r2m_jax.errors import InputError
from r2m_jax.evaluation.collapse.gradients import Gsnr, Moments, Phases, gsnr, phases
from r2m_jax.evaluation.collapse.probes import (
    ProbeData,
    ProbeTraining,
    batches,
    cross_entropy,
    heads,
    margins,
    rank_auc,
    sam_train,
)
from r2m_jax.evaluation.collapse.theorem import Critical, Decomposition, critical, decompose_linear
from r2m_jax.models import Params


@dataclass(frozen=True)
class Trajectory:
    """A training, evaluated on all training samples before every stretch of it; float64.

    Attributes:
        steps: taken before each evaluation.
        decomposition: of Theorem 1 at each.
        gsnr: at each.
        loss: training loss at each.
        auc: on test samples at each.
        phases: of the plug-in GSNR.
        critical: radius and bottleneck in phase 1, where the paper has them.
        everywhere: the same over the whole training.
        head: at the end.
    """

    steps: Int[np.ndarray, " points"]
    decomposition: Decomposition
    gsnr: Gsnr
    loss: Float[np.ndarray, " points"]
    auc: Float[np.ndarray, " points"]
    phases: Phases
    critical: Critical
    everywhere: Critical
    head: Params

    @property
    def gap(self) -> float:
        """Largest relative difference of the two sides of Theorem 1, where there is a bound."""
        with jax.enable_x64(True):
            left, right = np.asarray(self.decomposition.left), np.asarray(self.decomposition.right)
        sound = np.isfinite(left) & (left > 0)
        return float(np.max(np.abs(right[sound] / left[sound] - 1), initial=0.0))


def trajectory(
    data: ProbeData, *, rho: float = 0.05, seed: int = 0, points: int = 40, training: ProbeTraining | None = None
) -> Trajectory:
    """Train one probe with SAM and evaluate it ``points`` times, evenly spaced.

    Args:
        data: to train and test on.
        rho: radius; bounds it exceeds are flagged in ``critical.unstable``.
        seed: of the start and the order of the samples.
        points: evaluations; the steps of the training are cut to a multiple.
        training: settings.

    Raises:
        InputError: there are more evaluations than steps, the radius is negative, or the training diverged.
    """
    training = training or ProbeTraining()
    if not 1 <= points <= training.steps or not rho >= 0:
        raise InputError(f"{points} evaluations of {training.steps} steps at radius {rho} do not fit.")
    every = training.steps // points
    order = batches(len(data.labels), training, seed)[: points * every].reshape(points, every, -1)
    start = jax.tree.map(lambda leaf: leaf[-1], heads(data.features.shape[1], seed + 1))
    head, kept = _train(
        jnp.asarray(data.features, jnp.float32), jnp.asarray(data.labels, jnp.int32), jnp.asarray(order, jnp.int32),
        start, jnp.float32(rho), training,
    )  # fmt: skip
    kept, head = jax.device_get((kept, head))
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept)):
        raise InputError(f"a probe diverged to NaN or infinity at a learning rate of {training.learning_rate:g}.")
    with jax.enable_x64(True):
        places = [jnp.asarray(np.flatnonzero(data.test_labels == kind)) for kind in (0, 1)]
        found = _look(
            jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), kept),
            jnp.asarray(data.features, jnp.float64), jnp.asarray(data.labels),
            jnp.asarray(data.test_features, jnp.float64), *places,
        )  # fmt: skip
        decomposition, loss, auc = jax.device_get(found)
        ratios = jax.device_get(gsnr(Moments(decomposition.squared_gradient, decomposition.variance, len(data.labels))))
    phased = phases(ratios.plug_in)
    norms = np.sqrt(decomposition.squared_gradient)
    return Trajectory(
        steps=np.arange(points) * every,
        decomposition=decomposition,
        gsnr=ratios,
        loss=loss,
        auc=auc,
        phases=phased,
        critical=critical(norms, decomposition.top, rho=rho, counts=phased.number == 1),
        everywhere=critical(norms, decomposition.top, rho=rho),
        head=head,
    )


@partial(jax.jit, static_argnums=5)
def _train(
    features: Array, labels: Array, order: Array, start: Params, rho: Array, training: ProbeTraining
) -> tuple[Params, Any]:
    return sam_train(start, features, labels, order, rho, training, record=lambda head: head)


@jax.jit
def _look(
    kept: Params, features: Array, labels: Array, test_features: Array, real: Array, fake: Array
) -> tuple[Decomposition, Array, Array]:
    def one(head: Params) -> tuple[Decomposition, Array, Array]:
        return (
            decompose_linear(head, features, labels),
            cross_entropy(head, features, labels),
            rank_auc(margins(head, test_features), real, fake),
        )

    # One at a time: the Gram matrices of all evaluations together would be the largest arrays of the run.
    return jax.lax.map(one, kept)
