"""Curvature of a loss: largest eigenvalue and trace of the Hessian without forming it, exactly for linear heads.

Conventions of PyHessian (Yao et al. 2020, https://arxiv.org/abs/1912.07145): relative tolerance 1e-3 and at most 100
products, each of which is the derivative of the gradient along a vector.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, Key

from r2m_jax.errors import InputError
from r2m_jax.evaluation.collapse.gradients import probabilities
from r2m_jax.models import Params

Product: TypeAlias = Callable[[Float[Array, " p"]], Float[Array, " p"]]
"""``v -> H v`` of a symmetric matrix."""

TOLERANCE = 1e-3
MOST = 100
_LEAST_SAMPLES = 10
_TINY = 1e-30


class Eigenvalue(NamedTuple):
    """An eigenvalue found by iteration.

    Attributes:
        value: signed Rayleigh quotient.
        vector: of length 1.
        products: Hessian-vector products it took.
        converged: whether the last step changed the value by no more than the tolerance.
    """

    value: Float[Array, ""]
    vector: Float[Array, " p"]
    products: Int[Array, ""]
    converged: Bool[Array, ""]


class TraceEstimate(NamedTuple):
    """A trace from random vectors.

    Attributes:
        value: mean.
        error: its standard error.
        samples: vectors drawn.
    """

    value: Float[Array, ""]
    error: Float[Array, ""]
    samples: Int[Array, ""]


def hessian_product(loss: Callable[[Any], Array], params: Any) -> tuple[Product, int]:
    """Products with the Hessian of ``loss`` at ``params``, and the number of parameters.

    Args:
        loss: mean over the data, a scalar.
        params: any tree; vectors hold its leaves one after another.
    """
    flat, unravel = ravel_pytree(params)
    gradient = jax.grad(lambda vector: loss(unravel(vector)))

    def product(vector: Array) -> Array:
        return jax.jvp(gradient, (flat,), (vector.astype(flat.dtype),))[1].astype(vector.dtype)

    return product, flat.size


def power_iteration(
    product: Product, size: int, key: Key[Array, ""], *, tolerance: float = TOLERANCE, most: int = MOST
) -> Eigenvalue:
    """The largest eigenvalue, by power iteration.

    Power iteration finds the eigenvalue of the largest magnitude. Where that is negative the matrix is shifted by it,
    and the largest of the shifted matrix, which has no negative ones, is the one looked for.

    Args:
        product: with the matrix.
        size: of its vectors.
        key: of the first vector.
        tolerance: relative change of the Rayleigh quotient that ends the iteration.
        most: products at most, each of the two times.
    """
    first = _iterate(product, _start(key, size), tolerance, most)

    def shifted(_: None) -> Eigenvalue:
        found = _iterate(
            lambda v: product(v) - first.value * v, _start(jax.random.fold_in(key, 1), size), tolerance, most
        )
        return found._replace(value=found.value + first.value, products=found.products + first.products)

    return jax.lax.cond(first.value < 0, shifted, lambda _: first, None)


def _start(key: Key[Array, ""], size: int) -> Array:
    vector = jax.random.normal(key, (size,), jnp.result_type(float))
    return vector / jnp.linalg.norm(vector)


def _iterate(product: Product, vector: Array, tolerance: float, most: int) -> Eigenvalue:
    def again(state: Eigenvalue) -> Array:
        return ~state.converged & (state.products < most)

    def step(state: Eigenvalue) -> Eigenvalue:
        image = product(state.vector)
        value = jnp.vdot(state.vector, image)
        length = jnp.linalg.norm(image)
        vector = jnp.where(length > 0, image / jnp.maximum(length, _TINY), state.vector)
        settled = jnp.abs(value - state.value) <= tolerance * jnp.abs(value)
        return Eigenvalue(value, vector, state.products + 1, settled & (state.products > 0))

    nothing = Eigenvalue(jnp.zeros((), vector.dtype), vector, jnp.zeros((), jnp.int32), jnp.zeros((), bool))
    found = jax.lax.while_loop(again, step, nothing)
    # The vector has moved on since its quotient was taken.
    return found._replace(value=jnp.vdot(found.vector, product(found.vector)), products=found.products + 1)


def lanczos(product: Product, size: int, key: Key[Array, ""], *, steps: int = 30) -> Float[Array, " steps"]:
    """Ritz values of a symmetric matrix, rising; the ends converge to its extreme eigenvalues first.

    Every vector is made orthogonal to all before it. Where the Krylov space is exhausted a fresh direction continues.

    Args:
        product: with the matrix.
        size: of its vectors.
        key: of the random vectors.
        steps: products; cut to ``size``, at which the values are all eigenvalues.
    """
    steps = min(steps, size)
    first = _start(key, size)
    basis = jnp.zeros((steps, size), first.dtype).at[0].set(first)

    def away(vector: Array, basis: Array) -> Array:
        for _ in range(2):  # once leaves rounding errors behind; twice is enough (Parlett)
            vector = vector - jnp.matmul(basis.T, jnp.matmul(basis, vector, precision="highest"), precision="highest")
        return vector

    def step(basis: Array, index: Array) -> tuple[Array, tuple[Array, Array]]:
        image = product(basis[index])
        diagonal = jnp.vdot(basis[index], image)
        rest = away(image, basis)
        length = jnp.linalg.norm(rest)
        broken = length <= 10 * jnp.finfo(rest.dtype).eps * (jnp.linalg.norm(image) + _TINY)
        fresh = away(_start(jax.random.fold_in(key, index + 1), size), basis)
        following = jnp.where(broken, fresh / (jnp.linalg.norm(fresh) + _TINY), rest / jnp.maximum(length, _TINY))
        basis = basis.at[index + 1].set(following, mode="drop")
        return basis, (diagonal, jnp.where(broken, 0, length))

    _, (diagonal, beside) = jax.lax.scan(step, basis, jnp.arange(steps))
    return jnp.linalg.eigvalsh(jnp.diag(diagonal) + jnp.diag(beside[:-1], 1) + jnp.diag(beside[:-1], -1))


def hutchinson(
    product: Product, size: int, key: Key[Array, ""], *, tolerance: float = TOLERANCE, most: int = MOST
) -> TraceEstimate:
    """The trace from random signs z: E zᵀHz = tr H.

    Drawing stops when the mean changes by no more than ``tolerance`` of itself, after ten vectors at least, since
    two may agree by chance.

    Args:
        product: with the matrix.
        size: of its vectors.
        key: of the random vectors.
        tolerance: relative change of the mean.
        most: vectors at most.

    Raises:
        InputError: ``most`` is below 2.
    """
    if most < 2:
        raise InputError(f"{most} random vectors have no standard error; draw two or more.")
    kind = jnp.result_type(float)

    def again(state: tuple[Array, Array, Array, Array]) -> Array:
        count, _, _, change = state
        return (count < most) & ((count < min(_LEAST_SAMPLES, most)) | (change > tolerance))

    def draw(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        count, mean, squares, _ = state
        signs = jax.random.rademacher(jax.random.fold_in(key, count), (size,), kind)
        value = jnp.vdot(signs, product(signs))
        # Welford's running moments.
        moved = mean + (value - mean) / (count + 1)
        squares = squares + (value - mean) * (value - moved)
        return count + 1, moved, squares, jnp.abs(moved - mean) / jnp.maximum(jnp.abs(moved), _TINY)

    zero = jnp.zeros((), kind)
    count, mean, squares, _ = jax.lax.while_loop(again, draw, (jnp.zeros((), jnp.int32), zero, zero, zero + jnp.inf))
    return TraceEstimate(mean, jnp.sqrt(squares / (count - 1) / count), count)


def exact_trace(product: Product, size: int) -> Float[Array, ""]:
    """The trace by one product per parameter, for small models."""
    kind = jnp.result_type(float)
    return jax.lax.map(lambda i: product(jnp.zeros(size, kind).at[i].set(1))[i], jnp.arange(size)).sum()


def linear_trace(head: Params, features: Float[Array, "n d"]) -> Float[Array, ""]:
    """tr H of the mean cross entropy of a linear head: the mean of (1 - ‖p‖²)(‖x‖² + 1)."""
    # 1 - ‖p‖² would lose all digits of a sure prediction.
    p = probabilities(head, features)
    return ((p * (1 - p)).sum(axis=1) * ((features**2).sum(axis=1) + 1)).mean()


def linear_top(head: Params, features: Float[Array, "n d"]) -> Float[Array, ""]:
    """λ_max of the same, for heads of two classes, from the smaller of Gram and moment matrix.

    With two classes H = [[1, -1], [-1, 1]] ⊗ mean(p₀ p₁ [x, 1][x, 1]ᵀ), whose eigenvalues are 0 and twice those of
    the second factor.

    Raises:
        InputError: the head has another number of classes.
    """
    if head["bias"].shape != (2,):
        raise InputError(f"the exact λ_max is of heads with two classes, not of {head['bias'].shape[0]}.")
    p = probabilities(head, features)
    scale = jnp.sqrt(p[:, 0] * p[:, 1] / len(features))[:, None]
    rows = scale * jnp.concatenate([features, jnp.ones_like(features[:, :1])], axis=1)
    smaller = rows if rows.shape[0] <= rows.shape[1] else rows.T
    return 2 * jnp.maximum(jnp.linalg.eigvalsh(jnp.matmul(smaller, smaller.T, precision="highest"))[-1], 0)


def stable_rank(trace: Float[Array, "*points"], top: Float[Array, "*points"]) -> Float[Array, "*points"]:
    """tr H / λ_max; 0 where there is no curvature."""
    return jnp.where(top > 0, trace / jnp.where(top > 0, top, 1), 0)
