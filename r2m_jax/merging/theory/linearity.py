"""R1, local linearity: how far a step in weights acts on features as its linear part does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from r2m_jax.errors import InputError
from r2m_jax.merging.pieces import ratio

Tree = Any
Features = Callable[[Tree, Any], Array]
Vector = Float[np.ndarray, " d"]
Labels = Int[np.ndarray, " _"]  # batches may differ in size


@dataclass(frozen=True)
class Remainder:
    """How far a step in weights is from acting linearly (R1, eq. 10); lengths are in the units of the features.

    Attributes:
        step: ‖Δθ‖₂.
        change: size of f(θ₀ + Δθ) - f(θ₀).
        linear: size of J Δθ.
        remainder: size of their difference R(Δθ).
    """

    step: float
    change: float
    linear: float
    remainder: float

    @property
    def relative(self) -> float:
        """Remainder over change: 0 is linear, 1 means that the linear model explains nothing. NaN without change."""
        return ratio(self.remainder, self.change)

    @property
    def constant(self) -> float:
        """The C that this step needs in ‖R(Δθ)‖ ≤ C‖Δθ‖² (eq. 10): a lower bound of the paper's C."""
        return ratio(self.remainder, self.step**2)


@dataclass(frozen=True)
class Expansion:
    """Features of n images at θ₀, and what a step in weights does to them.

    Attributes:
        step: ‖Δθ‖₂.
        base: f(θ₀).
        change: f(θ₀ + Δθ) - f(θ₀).
        linear: J Δθ.
    """

    step: float
    base: Float[np.ndarray, "n d"]
    change: Float[np.ndarray, "n d"]
    linear: Float[np.ndarray, "n d"]

    def of_images(self) -> Remainder:
        """Image by image, root mean square."""
        sizes = [np.sqrt(np.mean(np.sum(x**2, axis=1))) for x in (self.change, self.linear, self.change - self.linear)]
        return Remainder(self.step, *map(float, sizes))

    def of_separation(self, labels: Labels) -> Remainder:
        """Of the separation vector of these labels."""
        weights = class_weights(labels)
        change, linear = weights @ self.change, weights @ self.linear
        return Remainder(self.step, *(float(np.linalg.norm(x)) for x in (change, linear, change - linear)))

    def where(self, chosen: Bool[np.ndarray, " n"]) -> Expansion:
        """The same of some of the images."""
        return Expansion(self.step, self.base[chosen], self.change[chosen], self.linear[chosen])


def expansion(
    features: Features,
    theta0: Tree,
    theta: Tree,
    batches: Sequence[Any],
    *,
    advance: Callable[[int], None] = lambda done: None,
) -> Expansion:
    """One pass over the images that everything R1 and R3 say of the step θ - θ₀ follows from.

    Args:
        features, batches: see the package.
        theta0, theta: parameters.
        advance: told how many images are done.
    """
    base = _float32(theta0)
    step = _step(base, theta)
    parts = []
    for batch in batches:
        parts.append([np.asarray(x, np.float64) for x in _expand(features, base, step, batch)])
        advance(len(parts[-1][0]))
    return Expansion(_length(step), *(np.concatenate(each) for each in zip(*parts, strict=True)))


def local_linearity(
    features: Features, theta0: Tree, thetas: Mapping[str, Tree], batches: Sequence[Any]
) -> dict[str, Remainder]:
    """R1 image by image: f(θ) against f(θ₀) + J(θ - θ₀), for each of ``thetas``; root mean square over images.

    A merged model is one more entry of ``thetas``. J is linear, so for θ = θ₀ + Στᵢ this compares f(θ₀ + Στᵢ)
    with f(θ₀) + ΣJτᵢ. :func:`separation_linearity` is the statement as the paper makes it, of class means; this one
    is stronger, because remainders of single images may cancel in a mean.
    """
    return {name: expansion(features, theta0, theta, batches).of_images() for name, theta in thetas.items()}


def separation_linearity(
    features: Features, theta0: Tree, thetas: Mapping[str, Tree], batches: Sequence[Any], labels: Sequence[Labels]
) -> dict[str, Remainder]:
    """R1 as stated (eqs. 9 and 10): Δ^RF(θ) against Δ^RF(θ₀) + H(θ - θ₀), norms in feature space.

    The task i of Δᵢ^RF and Hᵢ is that of the images given: call this once per task.
    """
    together = np.concatenate([np.asarray(part) for part in labels])
    return {name: expansion(features, theta0, theta, batches).of_separation(together) for name, theta in thetas.items()}


def remainder_order(
    features: Features, theta0: Tree, theta: Tree, batches: Sequence[Any], scales: Sequence[float] = (1.0, 0.5, 0.25)
) -> float:
    """The power p in ‖R(t·Δθ)‖ ∝ t^p, fitted over ``scales``.

    R1 says 2 for small steps (A.8). Clearly less means that θ - θ₀ is outside the region where the theory speaks;
    near 1 at small scales it is float32 rounding of the features.
    """
    base = _float32(theta0)
    step = _step(base, theta)
    remainders = []
    for scale in scales:
        moved = jax.tree.map(lambda a, d, s=scale: a + s * d, base, step)
        remainders.append(local_linearity(features, base, {"": moved}, batches)[""].remainder)
    if min(remainders) <= 0:
        return float("nan")
    return float(np.polyfit(np.log(scales), np.log(remainders), 1)[0])


def separation_response(
    features: Features, theta0: Tree, update: Tree, batches: Sequence[Any], labels: Sequence[Labels]
) -> Vector:
    """H·Δθ with H = E[J|fake] - E[J|real] at θ₀ (eq. 9): how the separation vector answers to an update."""
    base, step = _float32(theta0), _float32(update)
    parts = [w @ np.asarray(_push(features, base, step, batch), np.float64) for batch, w in _weighted(batches, labels)]
    return np.sum(parts, axis=0)


def response_norm(
    features: Features, theta0: Tree, batches: Sequence[Any], labels: Sequence[Labels], *, steps: int = 20
) -> float:
    """‖H‖_op (A.15), by power iteration on H Hᵀ, which lives in feature space.

    The iterates grow towards ‖H‖ from below, so a bound built on this is at most slightly too small. Each step costs
    one vector-Jacobian and one Jacobian-vector product over all batches.
    """
    base = _float32(theta0)
    width = jax.eval_shape(features, base, batches[0]).shape[-1]
    y = np.random.default_rng(0).normal(size=width)
    norm = 0.0
    for _ in range(steps):
        y = y / np.linalg.norm(y)
        parts = [
            _pull(features, base, jnp.asarray(np.outer(weight, y), jnp.float32), batch)
            for batch, weight in _weighted(batches, labels)
        ]
        y = separation_response(features, base, jax.tree.map(lambda *x: sum(x), *parts), batches, labels)
        norm = float(np.sqrt(np.linalg.norm(y)))  # ‖H Hᵀ y‖ ≤ ‖H‖² for a unit y
        if norm == 0:
            break
    return norm


def class_weights(labels: Labels) -> Float[np.ndarray, " _"]:
    """Per image +1/(fakes) or -1/(reals), so that the weighted sum of features is the separation vector (eq. 8).

    Raises:
        InputError: a label is neither 0 nor 1, or a class is missing.
    """
    labels = np.asarray(labels)
    fakes, reals = int((labels == 1).sum()), int((labels == 0).sum())
    if not fakes or not reals or fakes + reals != len(labels):
        raise InputError("labels must be 0 (real) or 1 (fake), with both present.")
    return np.where(labels == 1, 1 / fakes, -1 / reals)


# Jitted here, with the function static, so that repeated calls compile once.


@partial(jax.jit, static_argnums=0)
def _expand(features: Features, base: Tree, step: Tree, batch: Any) -> tuple[Array, Array, Array]:
    """f(θ₀), f(θ₀ + Δθ) - f(θ₀) and J Δθ."""
    at_base, linear = jax.jvp(lambda params: features(params, batch), (base,), (step,))
    return at_base, features(jax.tree.map(jnp.add, base, step), batch) - at_base, linear


@partial(jax.jit, static_argnums=0)
def _push(features: Features, base: Tree, step: Tree, batch: Any) -> Array:
    return jax.jvp(lambda params: features(params, batch), (base,), (step,))[1]


@partial(jax.jit, static_argnums=0)
def _pull(features: Features, base: Tree, cotangent: Array, batch: Any) -> Tree:
    return jax.vjp(lambda params: features(params, batch), base)[1](cotangent)[0]


def _float32(tree: Tree) -> Tree:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def _step(theta0: Tree, theta: Tree) -> Tree:
    return jax.tree.map(lambda a, b: a - b, _float32(theta), _float32(theta0))


def _length(tree: Tree) -> float:
    return float(np.sqrt(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(tree))))


def _weighted(batches: Sequence[Any], labels: Sequence[Labels]) -> zip[tuple[Any, Float[np.ndarray, " _"]]]:
    weights = class_weights(np.concatenate([np.asarray(part) for part in labels]))
    return zip(batches, np.split(weights, np.cumsum([len(part) for part in labels])[:-1]), strict=True)
