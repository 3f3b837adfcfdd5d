"""Signal and noise of a gradient: per-sample gradients, their moments, GSNR, and the phases of its trajectory.

CoRIT (https://arxiv.org/abs/2603.24057), equations 4 and 15 and §III-F; GSNR is of Liu et al., ICLR 2020,
https://arxiv.org/abs/2001.07384, there per parameter and here over all parameters at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from r2m_jax.errors import InputError
from r2m_jax.models import Params

SampleLoss: TypeAlias = Callable[[Any, Any], Array]
"""``(params, example) -> loss``, a scalar, of one example without a batch axis."""


class Moments(NamedTuple):
    """Of the gradients of n samples.

    Attributes:
        squared_mean: ‖ḡ‖², of the mean gradient.
        variance: tr Σ, with 1/n.
        samples: n.
    """

    squared_mean: Float[Array, "*points"]
    variance: Float[Array, "*points"]
    samples: int


class Gsnr(NamedTuple):
    """Gradient signal-to-noise ratios.

    Attributes:
        plug_in: ‖ḡ‖² / tr Σ with Σ of 1/(n - 1). Its numerator is too large by tr Σ / n on average, so that of pure
            noise is 1/n.
        unbiased: the same with max(0, ‖ḡ‖² - tr Σ / n) above.
    """

    plug_in: Float[Array, "*points"]
    unbiased: Float[Array, "*points"]


def per_sample_gradients(loss: SampleLoss, params: Any, batch: Any) -> Float[Array, "n p"]:
    """The gradient of every sample by itself, all parameters in one row.

    Args:
        loss: of one sample.
        params: any tree.
        batch: tree of arrays with the samples on their first axis.
    """
    flat, unravel = ravel_pytree(params)
    gradient = jax.grad(lambda vector, example: loss(unravel(vector), example))
    return jax.vmap(gradient, in_axes=(None, 0))(flat, batch)


def moments(gradients: Float[Array, "n p"]) -> Moments:
    """Squared mean and total variance of per-sample gradients.

    Raises:
        InputError: there are fewer than two samples, which have no variance.
    """
    _enough(len(gradients))
    mean = gradients.mean(axis=0)
    centred = gradients - mean
    return Moments((mean**2).sum(), (centred**2).sum(axis=1).mean(), len(gradients))


def linear_moments(head: Params, features: Float[Array, "n d"], labels: Int[Array, " n"]) -> Moments:
    """:func:`moments` of the cross entropy of a linear head, without per-sample gradients.

    The gradient of a sample is (p - y) ⊗ [x, 1], hence ‖g‖² = ‖p - y‖² (‖x‖² + 1).

    Args:
        head: ``{"kernel" [d, k], "bias" [k]}``.
        features: inputs of the head.
        labels: from 0 to k - 1.

    Raises:
        InputError: there are fewer than two samples.
    """
    _enough(len(features))
    wrong = probabilities(head, features) - jax.nn.one_hot(labels, head["bias"].shape[0], dtype=features.dtype)
    second = ((wrong**2).sum(axis=1) * ((features**2).sum(axis=1) + 1)).mean()
    kernel = jnp.matmul(features.T, wrong, precision="highest") / len(features)
    squared = (kernel**2).sum() + (wrong.mean(axis=0) ** 2).sum()
    return Moments(squared, jnp.maximum(second - squared, 0), len(features))


def probabilities(head: Params, features: Float[Array, "n d"]) -> Float[Array, "n k"]:
    """Softmax of a linear head, in the features' precision."""
    return jax.nn.softmax(jnp.matmul(features, head["kernel"], precision="highest") + head["bias"])


def gsnr(found: Moments) -> Gsnr:
    """Equation 4, plug-in and unbiased.

    Where no sample has a gradient left (a head that fits every sample to the last bit) there is no signal: 0.
    """
    noise = found.variance * (found.samples / (found.samples - 1))
    signal = jnp.maximum(found.squared_mean - noise / found.samples, 0)
    return Gsnr(_over(found.squared_mean, noise), _over(signal, noise))


def _over(signal: Array, noise: Array) -> Array:
    return jnp.where(signal > 0, signal / jnp.where(signal > 0, noise, 1), 0)


def _enough(count: int) -> None:
    if count < 2:
        raise InputError(f"a gradient's noise needs two samples or more, not {count}.")


class Phases(NamedTuple):
    """The three phases of a GSNR trajectory.

    Attributes:
        number: 1 (pre-optimisation), 2 (optimisation) or 3 (convergence) at every evaluation.
        start: GSNR that the rise is measured against.
        left_first: evaluation with which phase 2 begins; None if the first is never left.
    """

    number: Int[np.ndarray, " points"]
    start: float
    left_first: int | None


def phases(
    trajectory: Float[np.ndarray, " points"], *, factor: float = 2.0, window: int = 3, initial: int = 5
) -> Phases:
    """Split a trajectory of GSNR as the paper's Fig. 3 is described.

    The paper says low, sharply rising, decaying, and gives no rule. Here phase 2 begins where GSNR exceeds ``factor``
    times the median of its first ``initial`` values and stays above it for ``window`` evaluations; phase 3 begins after
    the highest value from there on.

    Args:
        trajectory: GSNR at every evaluation.
        factor, window, initial: of the rule.

    Raises:
        InputError: the trajectory is empty, or a value is NaN or negative.
    """
    values = np.asarray(trajectory, np.float64)
    if not values.size or not (values >= 0).all():
        raise InputError("a trajectory of GSNR needs one number of 0 or more for every evaluation.")
    start = float(np.median(values[:initial]))
    above = values > factor * start
    held = [step for step in range(len(values) - window + 1) if above[step : step + window].all()]
    number = np.ones(len(values), np.int64)
    if not held:
        return Phases(number, start, None)
    number[held[0] :] = 2
    number[held[0] + int(values[held[0] :].argmax()) + 1 :] = 3
    return Phases(number, start, held[0])
