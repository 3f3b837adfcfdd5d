"""Linear probes trained with SAM on features in memory, many radii and seeds at a time.

The optimiser is SGD with momentum on batches of 20, the paper's size, whose learning rate is lost. SBI
(https://github.com/mapooon/SelfBlendedImages) and DeepfakeBench combine SAM with 1e-3 and 0.9; a probe that starts anew
on a few hundred images is still untrained after 600 such steps, so 1e-2 is the default. The perturbation is that of
:mod:`r2m_jax.training.sam`, whose radius there is a setting and here an array.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from r2m_jax.errors import InputError
from r2m_jax.models import Params, init_head
from r2m_jax.training.sam import Sharpness, perturbation

_UNIT = Sharpness(rho=1.0)


@dataclass(frozen=True)
class ProbeTraining:
    """How a probe is trained.

    Attributes:
        steps: of the optimiser.
        batch_size: samples a step; all of them where there are fewer.
        learning_rate, momentum: of SGD.
    """

    steps: int = 600
    batch_size: int = 20
    learning_rate: float = 1e-2
    momentum: float = 0.9

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or not self.learning_rate > 0 or not 0 <= self.momentum < 1:
            raise InputError(
                f"a probe needs a step, a sample a batch, a learning rate above 0 and a momentum in [0, 1), not {self}."
            )


@dataclass(frozen=True)
class ProbeData:
    """Features of one layer with their labels, to train on and to test on.

    Attributes:
        features, labels: trained on; labels are 0 real, 1 fake.
        test_features, test_labels: tested on.

    Raises:
        InputError: a shape does not fit, a class is absent, or a feature is NaN or infinite.
    """

    features: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, " n"]
    test_features: Float[np.ndarray, "m d"]
    test_labels: Int[np.ndarray, " m"]

    def __post_init__(self) -> None:
        for features, labels, what in (
            (self.features, self.labels, "train on"),
            (self.test_features, self.test_labels, "test on"),
        ):
            if len(features) != len(labels) or not np.isin(labels, (0, 1)).all():
                raise InputError(
                    f"{len(features)} features to {what} have {len(labels)} labels; give one, 0 or 1, each."
                )
            if not (labels == 0).any() or not (labels == 1).any():
                raise InputError(f"the {len(labels)} samples to {what} have one class only; a probe needs both.")
            if not np.isfinite(features).all():
                raise InputError(f"features to {what} are NaN or infinite; the tower is broken.")


def cross_entropy(head: Params, features: Float[Array, "n d"], labels: Int[Array, " n"]) -> Float[Array, ""]:
    """Mean cross entropy of a linear head."""
    logits = jnp.matmul(features, head["kernel"], precision="highest") + head["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def margins(head: Params, features: Float[Array, "n d"]) -> Float[Array, " n"]:
    """Fake-minus-real logits."""
    logits = jnp.matmul(features, head["kernel"], precision="highest") + head["bias"]
    return logits[:, 1] - logits[:, 0]


def batches(count: int, training: ProbeTraining, seed: int) -> Int[np.ndarray, "steps batch"]:
    """Which samples every step sees: whole passes in random order, one after another."""
    size = min(training.batch_size, count)
    rng = np.random.default_rng(seed)
    passes = -(-training.steps * size // count)
    order = np.concatenate([rng.permutation(count) for _ in range(passes)])
    return order[: training.steps * size].reshape(training.steps, size)


def heads(width: int, seeds: int) -> Params:
    """One head per seed, as a fine-tuning starts: stacked on the first axis."""
    keys: Key[Array, " seeds"] = jnp.stack([jax.random.key(seed) for seed in range(seeds)])
    return jax.vmap(lambda key: init_head(width, key))(keys)


def sam_train(
    head: Params,
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
    order: Int[Array, "points every batch"],
    rho: Float[Array, ""],
    training: ProbeTraining,
    record: Callable[[Params], Any] = lambda _: None,
    loss: Callable[[Params, Array, Array], Array] = cross_entropy,
) -> tuple[Params, Any]:
    """Train one head with SAM; pure, for ``vmap`` and ``jit``.

    Args:
        head: start.
        features, labels: all samples.
        order: numbers of the samples of each step, in as many stretches as there are to be recorded.
        rho: radius; 0 is SGD to the last bit.
        training: settings (``steps`` and ``batch_size`` are those of ``order``).
        record: of the head, before every stretch.
        loss: ``(head, features, labels)``, of heads of any kind.

    Returns:
        The trained head, and what was recorded, stacked.
    """
    optimizer = optax.sgd(training.learning_rate, momentum=training.momentum or None)
    gradient = jax.grad(loss)

    def step(state: tuple[Params, Any], chosen: Array) -> tuple[tuple[Params, Any], None]:
        head, inner = state
        x, y = features[chosen], labels[chosen]
        ascent = optax.tree.scale(rho, perturbation(head, gradient(head, x, y), _UNIT))
        updates, inner = optimizer.update(gradient(optax.tree.add(head, ascent), x, y), inner)
        return (optax.apply_updates(head, updates), inner), None

    def stretch(state: tuple[Params, Any], chosen: Array) -> tuple[tuple[Params, Any], Any]:
        kept = record(state[0])
        return jax.lax.scan(step, state, chosen)[0], kept

    (head, _), kept = jax.lax.scan(stretch, (head, optimizer.init(head)), order)
    return head, kept


def rank_auc(scores: Float[Array, " n"], real: Int[Array, " r"], fake: Int[Array, " f"]) -> Float[Array, ""]:
    """AUC of scores, ties counted half; pure, for ``vmap`` and ``jit``.

    Args:
        scores: higher for fake; a NaN counts as the highest, so check them elsewhere.
        real, fake: places of the two classes.
    """
    ordered = jnp.sort(scores[real])
    below = jnp.searchsorted(ordered, scores[fake], side="left") + jnp.searchsorted(ordered, scores[fake], side="right")
    return below.astype(scores.dtype).sum() / (2 * len(real) * len(fake))
