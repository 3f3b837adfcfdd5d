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
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from r2m_jax.errors import InputError
from r2m_jax.merging.diagnostics import MergeDiagnostics
from r2m_jax.merging.engine import Coefficients, MergeResult, check_ranks, run
from r2m_jax.merging.ranks import NumberSetting, Rank, RankSetting, setting_at
from r2m_jax.merging.selection import Select, Unit, attention_and_mlp
from r2m_jax.merging.spectral import Kernel
from r2m_jax.merging.statistics import Entry, Statistics
from r2m_jax.merging.task_arithmetic import shares

Tree = Any
Scope = Literal["global", "leaf", "block"]

_TINY = 1e-12  # the ε of eq. 4
# Below this share of the residuals' own norm their merge is the rounding noise of float32 parameters, which eta="eff"
# would scale up to a fixed size; a real cancellation at full rank leaves 1e-4 and more.
_NOISE = 1e-5
# Squared singular values below this share of the largest (singular values below 1e-6 of it) count as zero.
_NULL = 1e-12
_PAPER = {"k": 1, "centering": "centered", "origin": "theta0", "eta": "eff", "scope": "global",
          "norm_matching": "global"}  # fmt: skip


@dataclass(frozen=True)
class R2M:
    """R²M with every switch of its ambiguities; meanings under :func:`r2m`."""

    rank: RankSetting = 0.7
    alpha: NumberSetting = 0.5
    k: int = 1
    centering: Literal["centered", "uncentered"] = "centered"
    origin: Literal["theta0", "theta_avg"] = "theta0"
    eta: Literal["eff", "eq6"] = "eff"
    scope: Scope = "global"
    norm_matching: Literal["global", "leaf"] = "global"
    variant: Literal["paper"] | None = None
    given: tuple[float, ...] | None = None
    measures = True

    def __post_init__(self) -> None:
        check_ranks(self.rank)
        for name, choices in (
            ("centering", ("centered", "uncentered")),
            ("origin", ("theta0", "theta_avg")),
            ("eta", ("eff", "eq6")),
            ("scope", ("global", "leaf", "block")),
            ("norm_matching", ("global", "leaf")),
            ("variant", (None, "paper")),
        ):
            if getattr(self, name) not in choices:
                known = " or ".join(str(choice) for choice in choices if choice)
                raise InputError(f"{name}={getattr(self, name)!r} is unknown; R²M takes {known}.")
        for name, value in _PAPER.items() if self.variant == "paper" else ():
            if getattr(self, name) != value:
                raise InputError(
                    f"variant='paper' has {name}={value!r}, not {getattr(self, name)!r}; leave one of the two out."
                )

    def weights(self, count: int) -> np.ndarray:
        """Of the specialists in τ̄ and in the merged residual; checks that k core directions exist."""
        most = max(1, count - 1 if self.centering == "centered" else count)
        if not 1 <= self.k <= most:
            raise InputError(
                f"k={self.k} is out of range: {count} {self.centering} specialists span {most} core directions."
            )
        return shares(self.given, count)

    def rank_at(self, unit: Unit) -> Rank | None:
        """As set, for matrices."""
        found: Rank | None = setting_at(self.rank, unit.paths[0]) if unit.matrix else None
        return found

    def resolve(self, statistics: Statistics, where: Sequence[Entry]) -> tuple[Coefficients, MergeDiagnostics]:
        """Core, norm matching and η by N × N algebra on the sums over each group of entries."""
        count = statistics.kept.shape[1]
        weights = jnp.asarray(self.weights(count), statistics.kept.dtype)
        group = jnp.asarray(_groups(where, self.scope))
        number = int(np.max(_groups(where, self.scope))) + 1

        def summed(rows: Array) -> Array:
            return jax.ops.segment_sum(rows, group, number)

        core = jax.vmap(lambda gram: self._core(gram, weights))(summed(jnp.asarray(statistics.gram)))
        own = _matched(jnp.asarray(statistics.kept), summed, group, weights, per_leaf=self.norm_matching == "leaf")
        on_tails = weights * own.factor
        on_vectors = weights * (own.factor - (own.factor * weights).sum(-1, keepdims=True))
        squared = _squared_residual(statistics, on_vectors, on_tails)
        length = jnp.sqrt(jnp.maximum(summed(squared), 0.0))
        is_noise = length <= _NOISE * own.target
        scale = core.norm / jnp.maximum(length, _TINY) if self.eta == "eff" else core.norm
        scale = jnp.where(is_noise | core.no_difference, 0.0, scale)
        alpha = jnp.asarray([setting_at(self.alpha, entry.name) for entry in where], weights.dtype)
        eta = (alpha * scale[group])[:, None]
        start = jnp.where(core.no_difference[:, None] | (self.origin == "theta_avg"), weights, core.coefficients)
        coefficients = Coefficients(start[group] + eta * on_vectors, eta * on_tails)
        return coefficients, self._diagnostics(statistics, coefficients, core, own, length, eta[:, 0], is_noise, group)

    def _core(self, gram: Float[Array, "n+1 n+1"], weights: Float[Array, n]) -> _Core:
        """The core's coefficients on the task vectors, from the products of δ₁ … δ_N and τ̄."""
        count = len(weights)
        of_delta, with_mean, of_mean = gram[:count, :count], gram[:count, count], gram[count, count]
        scales = jnp.sqrt(count * weights)  # weighted rows, so that a specialist of weight 2 counts as two equal ones
        if self.centering == "centered":
            products, projected = of_delta, with_mean
        else:
            products = of_delta + with_mean[:, None] + with_mean[None, :] + of_mean
            projected = with_mean + of_mean
        rows, spectrum = _project(scales[:, None] * products * scales, scales * projected, self.k)
        rows = scales * rows
        found = rows - weights * rows.sum() if self.centering == "centered" else rows
        spread = jnp.sqrt(jnp.maximum((weights * jnp.diagonal(of_delta)).sum(), 0.0))
        no_difference = spread <= _NOISE * jnp.sqrt(jnp.maximum(of_mean, 0.0))
        found = jnp.where(no_difference, weights, found)
        return _Core(found, jnp.sqrt(_norm2(gram, found)), spectrum, no_difference)

    def _diagnostics(
        self,
        statistics: Statistics,
        coefficients: Coefficients,
        core: _Core,
        own: _Matched,
        length: Float[Array, g],
        eta: Float[Array, e],
        is_noise: Bool[Array, g],
        group: Array,
    ) -> MergeDiagnostics:
        gram = jnp.asarray(statistics.gram).sum(axis=0)
        count = gram.shape[0] - 1
        products = gram[:count, :count] + gram[:count, count:] + gram[count:, :count] + gram[count, count]
        norms = jnp.sqrt(jnp.maximum(jnp.diagonal(products), 0.0))
        mean_norm = jnp.sqrt(jnp.maximum(gram[count, count], 0.0))
        importance = jnp.square(core.norm) + _TINY  # several groups (scope) are told of by their weighted mean
        importance = importance / importance.sum()
        in_core = jax.vmap(_norm2)(jnp.asarray(statistics.gram), core.coefficients[group]).sum()
        target = jnp.sqrt(jnp.square(own.target).sum())
        moved = jnp.sqrt(jnp.maximum(_squared_update(statistics, coefficients).sum(), 0.0))
        no_difference = core.no_difference.all()
        residual = jnp.where(no_difference, 0.0, jnp.sqrt(jnp.square(length).sum()))
        return MergeDiagnostics(
            task_norms=norms,
            cosines=products / jnp.maximum(norms[:, None] * norms[None, :], _TINY),
            singular_values=self._core(gram, jnp.asarray(self.weights(count), gram.dtype)).singular_values,
            core_coefficients=importance @ core.coefficients,
            core_ratio=jnp.sqrt(jnp.maximum(in_core, 0.0)) / jnp.maximum(mean_norm, _TINY),
            residual_ratio=residual / jnp.maximum(target, _TINY),
            eta=importance @ (jax.ops.segment_sum(eta, group, len(length)) / jnp.bincount(group, length=len(length))),
            update_ratio=moved / jnp.maximum(mean_norm, _TINY),
            residual_is_noise=is_noise.all(),
            no_difference=no_difference,
        )


def r2m(
    theta0: Tree,
    thetas: Sequence[Tree] | Tree,
    *,
    rank: RankSetting = 0.7,
    alpha: NumberSetting = 0.5,
    k: int = 1,
    centering: Literal["centered", "uncentered"] = "centered",
    origin: Literal["theta0", "theta_avg"] = "theta0",
    eta: Literal["eff", "eq6"] = "eff",
    scope: Scope = "global",
    norm_matching: Literal["global", "leaf"] = "global",
    variant: Literal["paper"] | None = None,
    weights: Sequence[float] | None = None,
    fused_qkv: bool = False,
    kernel: Kernel = "auto",
    mesh: Mesh | None = None,
    select: Select = attention_and_mlp,
) -> MergeResult:
    """Merge specialists by R²M. Pure and jit-able; everything but the trees is static.

    Args:
        theta0: the pretrained origin.
        thetas: N specialists of the same structure, or one tree of their leaves stacked on a leading axis.
        rank: singular components a residual matrix keeps: a float is a ratio, an int a count
            (:func:`~r2m_jax.merging.ranks.kept_rank`), :class:`~r2m_jax.merging.ranks.Energy` a share of its energy.
        alpha: size of the residual relative to the core.
        k: number of core directions, at most N-1 when centred, N when not.
        centering: ``"centered"`` takes the core from the centred task matrix, as eq. 2 does; its leading direction
            is where specialists differ most. ``"uncentered"`` takes it from the task vectors themselves, where it
            is what they share.
        origin: ``"theta0"`` adds the core to θ₀ (eq. 6); ``"theta_avg"`` adds the residual to the average of the
            specialists (appendix C.4 speaks of the "averaged origin"), the core then only sets η.
        eta: ``"eff"`` makes ‖η·residual‖ = α‖core‖ (§4, tuning protocol); ``"eq6"`` is η = α‖core‖ as printed,
            which multiplies by a length twice.
        scope: where core and η are worked out: over all parameters (the paper), or anew for every ``"leaf"`` (layer
            by layer) or transformer ``"block"``.
        norm_matching: whether eq. 4 equalises norms over all parameters or in every ``"leaf"`` of every layer.
        variant: ``"paper"`` insists on the paper's reading of every switch but ``rank`` and ``alpha``.
        weights: one number ≥ 0 per specialist, of its share in τ̄ and in the residual; uniform when omitted.
        fused_qkv: truncate query, key and value of a layer as one matrix.
        kernel: how matrices are factorised (:mod:`r2m_jax.merging.spectral`).
        mesh: devices to spread the matrices over.
        select: which leaves are truncated; the others' residuals are kept whole.

    Returns:
        Parameters in the dtypes of ``theta0``, and the diagnostics. One specialist, or equal ones, give the
        weight average; two give a residual of zero (it cancels exactly). Neither is NaN;
        :func:`~r2m_jax.merging.explain` says which happened.

    Raises:
        InputError: no specialist, differing trees, or a setting out of range.
    """
    given = None if weights is None else tuple(weights)
    method = R2M(rank, alpha, k, centering, origin, eta, scope, norm_matching, variant, given)
    params, diagnostics = run(method, theta0, thetas, select=select, fused_qkv=fused_qkv, kernel=kernel, mesh=mesh)
    assert diagnostics is not None
    return MergeResult(params, diagnostics)


class _Core(NamedTuple):
    coefficients: Float[Array, "*g n"]
    norm: Float[Array, "*g"]
    singular_values: Float[Array, "*g n"]
    no_difference: Bool[Array, "*g"]


class _Matched(NamedTuple):
    """Norm matching: the factor of every entry and specialist, and the norm all are brought to, per group."""

    factor: Float[Array, "e n"]
    target: Float[Array, g]


def _groups(where: Sequence[Entry], scope: Scope) -> np.ndarray:
    """A number for every entry: entries of one number share core and η."""
    keys = {"global": lambda e: "", "leaf": lambda e: e.name, "block": lambda e: e.block}[scope]
    numbers: dict[str, int] = {}
    return np.asarray([numbers.setdefault(keys(entry), len(numbers)) for entry in where], np.int32)


def _project(
    products: Float[Array, "n n"], with_mean: Float[Array, n], k: int
) -> tuple[Float[Array, n], Float[Array, n]]:
    """Coefficients of the projected mean on the rows, and the singular values of the row matrix."""
    values, vectors = jnp.linalg.eigh(products)
    values, vectors = values[::-1], vectors[:, ::-1]
    usable = (values > _null(products.dtype) * values[0]) & (jnp.arange(len(values)) < k)
    inverse = jnp.where(usable, 1 / jnp.where(usable, values, 1.0), 0.0)
    return vectors @ (inverse * (vectors.T @ with_mean)), jnp.sqrt(jnp.maximum(values, 0.0))


def _null(dtype: Any) -> float:
    return max(_NULL, 10 * float(jnp.finfo(dtype).eps))


def _matched(
    kept: Float[Array, "e n"], summed: Any, group: Array, weights: Float[Array, n], *, per_leaf: bool
) -> _Matched:
    norms = jnp.sqrt(kept if per_leaf else summed(kept))
    target = norms @ weights
    factor = target[:, None] / (norms + _TINY)
    if not per_leaf:
        return _Matched(factor[group], target)
    return _Matched(factor, jnp.sqrt(summed(jnp.square(target))))


def _norm2(gram: Float[Array, "n+1 n+1"], coefficients: Float[Array, n]) -> Float[Array, ""]:
    """‖Σ cᵢ τᵢ‖², from the products of δ₁ … δ_N and τ̄."""
    extended = jnp.concatenate([coefficients, coefficients.sum(keepdims=True)])
    return jnp.maximum(extended @ gram @ extended, 0.0)


def _squared_residual(
    statistics: Statistics, on_vectors: Float[Array, "e n"], on_tails: Float[Array, "e n"]
) -> Float[Array, e]:
    """‖Σ dᵢ δᵢ - Σ tᵢ tailᵢ‖² of every entry; the coefficients dᵢ add up to zero under the weights."""
    count = on_tails.shape[1]
    of_delta = jnp.asarray(statistics.gram)[:, :count, :count]
    return (
        jnp.einsum("ei,eij,ej->e", on_vectors, of_delta, on_vectors)
        - 2 * jnp.einsum("ei,eij,ej->e", on_vectors, jnp.asarray(statistics.cross)[:, :count], on_tails)
        + jnp.einsum("ei,eij,ej->e", on_tails, jnp.asarray(statistics.tails), on_tails)
    )


def _squared_update(statistics: Statistics, coefficients: Coefficients) -> Float[Array, e]:
    """‖Σ aᵢ τᵢ - Σ bᵢ tailᵢ‖² of every entry."""
    extended = jnp.concatenate([coefficients.task, coefficients.task.sum(axis=1, keepdims=True)], axis=1)
    return (
        jnp.einsum("ei,eij,ej->e", extended, jnp.asarray(statistics.gram), extended)
        - 2 * jnp.einsum("ei,eij,ej->e", extended, jnp.asarray(statistics.cross), coefficients.tail)
        + jnp.einsum("ei,eij,ej->e", coefficients.tail, jnp.asarray(statistics.tails), coefficients.tail)
    )
