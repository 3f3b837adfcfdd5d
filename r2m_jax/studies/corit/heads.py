"""Many heads on one set of features: lessons and seeds in one compiled program, each trained with SAM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Float32, Int

from r2m_jax.errors import InputError
from r2m_jax.evaluation.collapse import ProbeTraining, sam_train
from r2m_jax.evaluation.collapse.probes import batches
from r2m_jax.models import Params
from r2m_jax.models.corit import CoritSettings, apply_corit_head, init_corit_head


def loss(head: Params, features: Float[Array, "n f"], labels: Int[Array, " n"]) -> Float[Array, ""]:
    """Mean cross entropy of a head of any fusion."""
    return optax.softmax_cross_entropy_with_integer_labels(apply_corit_head(head, features), labels).mean()


def train_heads(
    config: Any,
    settings: CoritSettings,
    features: Float32[np.ndarray, "n f"],
    labels: Int[np.ndarray, " n"],
    lessons: Mapping[str, Bool[np.ndarray, " n"]],
    *,
    seeds: int,
    rho: float,
    training: ProbeTraining,
) -> Params:
    """Train a head for every lesson and seed.

    Heads of one seed start alike, whatever they learn; a lesson is told by the samples its batches are drawn from, so
    that all of them share the features.

    Args:
        config: of the tower.
        settings: switches, which decide the head's form.
        features: z of the training images.
        labels: 0 real, 1 fake.
        lessons: which images each learns from, by name.
        seeds: starts and orders of the samples.
        rho: SAM's radius.
        training: steps and rate.

    Returns:
        Heads stacked as [lessons, seeds, …].

    Raises:
        InputError: a lesson lacks a class, or a training diverged.
    """
    orders = []
    for name, mask in lessons.items():
        places = np.flatnonzero(mask)
        if set(labels[places]) != {0, 1}:
            raise InputError(f"the lesson {name} has images of one class only; heads need both.")
        orders.append([places[batches(len(places), training, seed)] for seed in range(seeds)])
    width = min(order.shape[1] for lesson in orders for order in lesson)
    order = np.stack([[each[:, :width] for each in lesson] for lesson in orders])
    heads: Params = _train(
        _starts(config, settings, seeds),
        jnp.asarray(features), jnp.asarray(labels, jnp.int32), jnp.asarray(order[:, :, None], jnp.int32),
        jnp.float32(rho), training,
    )  # fmt: skip
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(heads)):
        raise InputError(f"a head diverged to NaN or infinity at a learning rate of {training.learning_rate:g}.")
    return heads


def margins(heads: Params, features: Float32[np.ndarray, "m f"]) -> Float32[np.ndarray, "lessons seeds m"]:
    """Fake-minus-real logits of every head of :func:`train_heads`."""
    return np.asarray(_margins(heads, jnp.asarray(features)))


def _starts(config: Any, settings: CoritSettings, seeds: int) -> Params:
    heads: Sequence[Params] = [init_corit_head(config, settings, jax.random.key(seed)) for seed in range(seeds)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *heads)


@partial(jax.jit, static_argnums=5)
def _train(starts: Any, features: Any, labels: Any, orders: Any, rho: Any, training: ProbeTraining) -> Any:
    def one(start: Params, order: Array) -> Params:
        return sam_train(start, features, labels, order, rho, training, loss=loss)[0]

    return jax.vmap(jax.vmap(one), in_axes=(None, 0))(starts, orders)


@jax.jit
def _margins(heads: Any, features: Any) -> Any:
    def one(head: Params) -> Array:
        both = apply_corit_head(head, features)
        return both[:, 1] - both[:, 0]

    return jax.vmap(jax.vmap(one))(heads)
