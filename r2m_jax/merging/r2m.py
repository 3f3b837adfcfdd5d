"""Real-aware Residual Model Merging (R²M, arXiv 2509.24367 §3.1).

With τ̄ the mean task vector and δᵢ = τᵢ - τ̄:

1. *core*: projection of τ̄ onto the leading right singular vectors of the task matrix (eqs. 2-3);
2. *residual*: every δᵢ truncated to its leading singular components layer by layer, brought to one norm, and
   averaged (eqs. 4-5);
3. θ* = θ₀ + core + η·residual (eq. 6).

The singular vectors live in parameter space, but only N×N products are ever formed: with G the Gram matrix of
the rows and G u = σ² u, the projector's effect on τ̄ is Σ aᵢ·rowᵢ with a = Σ_k u_k (u_kᵀ M τ̄) / σ_k².
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from r2m_jax.errors import InputError
from r2m_jax.merging.diagnostics import MergeDiagnostics
from r2m_jax.merging.selection import Select, attention_and_mlp, path_of
from r2m_jax.merging.spectral import discarded_tail, kept_rank
from r2m_jax.merging.task_vectors import add_to, combine, gram, squared_norm, task_vectors

Tree = Any
_TINY = 1e-12  # the ε of eq. 4
# Below this share of the residuals' own norm their merge is float32 rounding noise (about 1e-7 per addition),
# which eta="eff" would scale up to a fixed size; a real cancellation at full rank leaves 1e-4 and more.
_NOISE = 1e-5
# Squared singular values below this share of the largest are rounding noise of a float32 Gram matrix.
_NULL = 1e-6


class MergeResult(NamedTuple):
    """Merged parameters (structure and dtypes of ``theta0``) and what the merge says about itself."""

    params: Tree
    diagnostics: MergeDiagnostics


def r2m(
    theta0: Tree,
    thetas: Sequence[Tree],
    *,
    rank: float | int = 0.7,
    alpha: float = 0.5,
    k: int = 1,
    centering: Literal["centered", "uncentered"] = "centered",
    origin: Literal["theta0", "theta_avg"] = "theta0",
    eta: Literal["eff", "eq6"] = "eff",
    select: Select = attention_and_mlp,
) -> MergeResult:
    """Merge specialists by R²M. Pure and jit-able; everything but the trees is static.

    Args:
        theta0: the pretrained origin.
        thetas: N specialists of the same structure.
        rank: singular components a residual matrix keeps: a float is a ratio, an int a count
            (:func:`~r2m_jax.merging.spectral.kept_rank`).
        alpha: size of the residual relative to the core.
        k: number of core directions, at most N-1 when centred, N when not.
        centering: ``"centered"`` takes the core from the centred task matrix, as eq. 2 does; its leading direction
            is where specialists differ most. ``"uncentered"`` takes it from the task vectors themselves, where it
            is what they share.
        origin: ``"theta0"`` adds the core to θ₀ (eq. 6); ``"theta_avg"`` adds the residual to the average of the
            specialists (appendix C.4 speaks of the "averaged origin"), the core then only sets η.
        eta: ``"eff"`` makes ‖η·residual‖ = α‖core‖ (§4, tuning protocol); ``"eq6"`` is η = α‖core‖ as printed,
            which multiplies by a length twice.
        select: which leaves are truncated; the others' residuals are kept whole.

    Returns:
        Parameters in the dtypes of ``theta0``, and the diagnostics. One specialist, or equal ones, give the
        weight average; two give a residual of zero (it cancels exactly). Neither is NaN;
        :func:`~r2m_jax.merging.explain` says which happened.

    Raises:
        InputError: no specialist, differing trees, or a setting out of range.
    """
    count = len(thetas)
    _check(count, k, centering, origin, eta)
    vectors = task_vectors(theta0, thetas)
    mean = combine(vectors, jnp.full(count, 1 / count, jnp.float32))
    residuals = jax.tree.map(lambda stack, centre: stack - centre, vectors, mean)

    # Core: coefficients on the rows of the task matrix, then on the task vectors themselves.
    rows = residuals if centering == "centered" else vectors
    mean_row = jax.tree.map(lambda leaf: leaf[None], mean)
    row_coefficients, spectrum = _core_coefficients(gram(rows), gram(rows, mean_row)[:, 0], k)
    mean_norm = jnp.sqrt(squared_norm(mean))
    spread = jnp.sqrt(jnp.maximum(squared_norm(residuals) / count, 0.0))
    no_difference = spread <= _NOISE * mean_norm
    core_coefficients = row_coefficients - row_coefficients.mean() if centering == "centered" else row_coefficients
    core_coefficients = jnp.where(no_difference, 1 / count, core_coefficients)
    core = combine(vectors, core_coefficients)
    core_norm = jnp.sqrt(squared_norm(core))

    # Residual: from the discarded tails, because the kept parts sum to minus them.
    tails, kept_norms = _truncate(residuals, rank, select)
    target = kept_norms.mean()
    matched = target / (kept_norms + _TINY)
    from_imbalance = combine(residuals, (matched - matched.mean()) / count)
    residual = jax.tree.map(lambda a, b: a - b, from_imbalance, combine(tails, matched / count))
    residual_norm = jnp.sqrt(squared_norm(residual))
    is_noise = residual_norm <= _NOISE * target
    scale = alpha * core_norm / jnp.maximum(residual_norm, _TINY) if eta == "eff" else alpha * core_norm
    scale = jnp.where(is_noise | no_difference, 0.0, scale)

    start = core if origin == "theta0" else mean
    start = jax.tree.map(lambda at_core, at_mean: jnp.where(no_difference, at_mean, at_core), start, mean)
    update = jax.tree.map(lambda at, leaf: at + scale * leaf, start, residual)

    products = gram(vectors)
    norms = jnp.sqrt(jnp.diagonal(products))
    diagnostics = MergeDiagnostics(
        task_norms=norms,
        cosines=products / jnp.maximum(norms[:, None] * norms[None, :], _TINY),
        singular_values=spectrum,
        core_coefficients=core_coefficients,
        core_ratio=core_norm / jnp.maximum(mean_norm, _TINY),
        residual_ratio=jnp.where(no_difference, 0.0, residual_norm / jnp.maximum(target, _TINY)),
        eta=scale,
        update_ratio=jnp.sqrt(squared_norm(update)) / jnp.maximum(mean_norm, _TINY),
        residual_is_noise=is_noise,
        no_difference=no_difference,
    )
    return MergeResult(add_to(theta0, update), diagnostics)


def _check(count: int, k: int, centering: str, origin: str, eta: str) -> None:
    for name, value, choices in (
        ("centering", centering, ("centered", "uncentered")),
        ("origin", origin, ("theta0", "theta_avg")),
        ("eta", eta, ("eff", "eq6")),
    ):
        if value not in choices:
            raise InputError(f"{name}={value!r} is unknown; R²M takes {' or '.join(choices)}.")
    most = max(1, count - 1 if centering == "centered" else count)
    if not 1 <= k <= most:
        raise InputError(f"k={k} is out of range: {count} {centering} specialists span {most} core directions.")


def _core_coefficients(
    products: Float[Array, "n n"], with_mean: Float[Array, n], k: int
) -> tuple[Float[Array, n], Float[Array, n]]:
    """Coefficients of the projected mean on the rows, and the singular values of the row matrix."""
    values, vectors = jnp.linalg.eigh(products)
    values, vectors = values[::-1], vectors[:, ::-1]
    usable = (values > _NULL * values[0]) & (jnp.arange(len(values)) < k)
    inverse = jnp.where(usable, 1 / jnp.where(usable, values, 1.0), 0.0)
    coefficients = vectors @ (inverse * (vectors.T @ with_mean))
    return coefficients, jnp.sqrt(jnp.maximum(values, 0.0))


def _truncate(residuals: Tree, rank: float | int, select: Select) -> tuple[Tree, Float[Array, n]]:
    """Discarded tails (zero on leaves that are not truncated) and the norms of what is kept, over all leaves."""

    def one(keys: tuple[Any, ...], leaf: Float[Array, n * shape]) -> tuple[Array, Array]:
        # The specialists' axis is the first; a leaf's own axes decide whether it is a matrix.
        if not select(path_of(keys), leaf[0]):
            return jnp.zeros_like(leaf), jnp.square(leaf).sum(axis=tuple(range(1, leaf.ndim)))
        kept = kept_rank(rank, *leaf.shape[-2:])
        tail, spectrum = discarded_tail(leaf, kept)
        energy = jnp.square(spectrum[..., :kept])
        return tail, energy.sum(axis=tuple(range(1, energy.ndim)))

    flat, structure = jax.tree_util.tree_flatten_with_path(residuals)
    parts = [one(keys, leaf) for keys, leaf in flat]
    energy = sum((part[1] for part in parts), start=jnp.zeros(()))
    return jax.tree.unflatten(structure, [part[0] for part in parts]), jnp.sqrt(energy)
