"""The critical optimisation radius in theory: the stability bound, Theorem 1 and its corollary.

CoRIT (https://arxiv.org/abs/2603.24057), equations 5 to 16 and 42 to 49. SAM's step still descends where its radius is
below ‖∇L‖ / λ_max (8); the critical radius is the least such bound of a training (11), and Theorem 1 (13) writes it as
flatness times misspecification times signal-to-noise:

    ρ = √(r / λ_max) · √(1 + tr R / tr H) · √(GSNR / (1 + GSNR)),   r = tr H / λ_max,

with Σ of 1/n throughout. It is an identity, not a bound: tr H + tr R is the mean of ‖g‖².
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from r2m_jax.errors import InputError
from r2m_jax.evaluation.collapse.curvature import (
    exact_trace,
    hessian_product,
    lanczos,
    linear_top,
    linear_trace,
    stable_rank,
)
from r2m_jax.evaluation.collapse.gradients import (
    Moments,
    SampleLoss,
    linear_moments,
    moments,
    per_sample_gradients,
    probabilities,
)
from r2m_jax.models import Params


class Decomposition(NamedTuple):
    """Both sides of Theorem 1 at one point of a training, and what they are made of.

    Attributes:
        squared_gradient: ‖∇L‖².
        variance: tr Σ, with 1/n.
        trace: tr H.
        residual: tr R, the misspecification, positive or negative.
        top: λ_max.
    """

    squared_gradient: Float[Array, "*points"]
    variance: Float[Array, "*points"]
    trace: Float[Array, "*points"]
    residual: Float[Array, "*points"]
    top: Float[Array, "*points"]

    @property
    def left(self) -> Float[Array, "*points"]:
        """‖∇L‖ / λ_max, the bound of (8); infinite where there is no curvature."""
        return _ratio(jnp.sqrt(self.squared_gradient), self.top)

    @property
    def right(self) -> Float[Array, "*points"]:
        """The product of the three factors."""
        return radius(self.gsnr, self.geometric, self.misspecification)

    @property
    def gsnr(self) -> Float[Array, "*points"]:
        """‖∇L‖² / tr Σ with Σ of 1/n, as the identity needs it."""
        return _ratio(self.squared_gradient, self.variance)

    @property
    def geometric(self) -> Float[Array, "*points"]:
        """√(r / λ_max): flatness."""
        return jnp.sqrt(_ratio(stable_rank(self.trace, self.top), self.top))

    @property
    def misspecification(self) -> Float[Array, "*points"]:
        """√(1 + tr R / tr H); Lemma 2: what is under the root is never negative."""
        part = jnp.where(self.trace > 0, self.residual / jnp.where(self.trace > 0, self.trace, 1), 0)
        return jnp.sqrt(jnp.maximum(1 + part, 0))

    @property
    def trace_by_14(self) -> Float[Array, "*points"]:
        """tr H of equation 14: tr Σ + ‖∇L‖² - tr R."""
        return self.variance + self.squared_gradient - self.residual

    @property
    def variance_by_15(self) -> Float[Array, "*points"]:
        """tr Σ of equation 15: (tr H + tr R) / (1 + GSNR)."""
        return (self.trace + self.residual) / (1 + self.gsnr)


def radius(
    gsnr: Float[Array, "*points"], geometric: Float[Array, "*points"], misspecification: Float[Array, "*points"]
) -> Float[Array, "*points"]:
    """Theorem 1 (13) and Corollary 1 (47): rises with GSNR, as √GSNR where that is small."""
    share = jnp.where(jnp.isinf(gsnr), 1, gsnr / (1 + jnp.where(jnp.isinf(gsnr), 0, gsnr)))
    return geometric * misspecification * jnp.sqrt(share)


def _ratio(a: Array, b: Array) -> Array:
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), jnp.inf)


def decompose_linear(head: Params, features: Float[Array, "n d"], labels: Int[Array, " n"]) -> Decomposition:
    """Theorem 1 for the cross entropy of a linear head with two classes, in closed form.

    tr R is computed by itself, from R = E ∇²p / p = mean((p - y)(p - y)ᵀ - diag(p) + ppᵀ) ⊗ [x, 1][x, 1]ᵀ, so that
    the two sides do not share it.

    Raises:
        InputError: there are fewer than two samples, or the head has not two classes.
    """
    found = linear_moments(head, features, labels)
    p = probabilities(head, features)
    wrong = p - jax.nn.one_hot(labels, p.shape[1], dtype=p.dtype)
    lengths = (features**2).sum(axis=1) + 1
    residual = (((wrong**2).sum(axis=1) - (p * (1 - p)).sum(axis=1)) * lengths).mean()
    return Decomposition(
        found.squared_mean, found.variance, linear_trace(head, features), residual, linear_top(head, features)
    )


def decompose(loss: SampleLoss, params: Any, batch: Any, key: Key[Array, ""], *, steps: int = 100) -> Decomposition:
    """Theorem 1 for any small model, with exact traces (one product per parameter).

    R is the Hessian of mean exp(l(θ₀) - l(θ)) at θ₀: the negative log-likelihood being l, that is E p(θ) / p(θ₀).

    Args:
        loss: negative log-likelihood of one sample.
        params: any tree.
        batch: tree of arrays with the samples on their first axis.
        key: of the Lanczos iteration for λ_max.
        steps: of that iteration.

    Raises:
        InputError: there are fewer than two samples.
    """
    found: Moments = moments(per_sample_gradients(loss, params, batch))

    def losses(at: Any) -> Array:
        return jax.vmap(loss, in_axes=(None, 0))(at, batch)

    here = jax.lax.stop_gradient(losses(params))
    product, size = hessian_product(lambda at: losses(at).mean(), params)
    residual, _ = hessian_product(lambda at: jnp.exp(here - losses(at)).mean(), params)
    top = lanczos(product, size, key, steps=steps)[-1]
    return Decomposition(
        found.squared_mean, found.variance, exact_trace(product, size), exact_trace(residual, size), top
    )


class Critical(NamedTuple):
    """The critical radius of a training.

    Attributes:
        radius: the least bound among the steps that count; infinite if none has curvature.
        step: where it is attained, the bottleneck t* of (12).
        bounds: (8) at every evaluation.
        unstable: where the radius trained with exceeds the bound.
    """

    radius: float
    step: int
    bounds: Float[np.ndarray, " points"]
    unstable: Bool[np.ndarray, " points"]


def critical(
    gradient_norms: Float[np.ndarray, " points"],
    tops: Float[np.ndarray, " points"],
    *,
    rho: float = 0.0,
    counts: Bool[np.ndarray, " points"] | None = None,
) -> Critical:
    """Bounds (8) along a training and the least of them, (11) and (12).

    Args:
        gradient_norms: ‖∇L‖ over all the data at every evaluation.
        tops: λ_max there.
        rho: radius of the training.
        counts: steps that may be the bottleneck. Over a whole training the least bound is that of the last steps, where
            the gradient vanishes, and says nothing about collapse; the paper's bottleneck is in phase 1.

    Raises:
        InputError: the lengths differ, a number is NaN or negative, or no step counts.
    """
    norms, curvatures = np.asarray(gradient_norms, np.float64), np.asarray(tops, np.float64)
    chosen = np.ones(norms.shape, np.bool_) if counts is None else np.asarray(counts)
    if norms.ndim != 1 or norms.shape != curvatures.shape or norms.shape != chosen.shape or not chosen.any():
        raise InputError(f"{norms.shape} gradients, {curvatures.shape} curvatures and {chosen.shape} steps do not fit.")
    if not ((norms >= 0).all() and (curvatures >= 0).all()):
        raise InputError("a gradient's norm or a curvature is NaN or negative; the training has diverged.")
    bounds = np.divide(norms, curvatures, out=np.full(norms.shape, np.inf), where=curvatures > 0)
    step = int(np.where(chosen, bounds, np.inf).argmin()) if np.isfinite(bounds[chosen]).any() else int(chosen.argmax())
    return Critical(float(bounds[step]), step, bounds, rho > bounds)
