"""One abstraction for every linear and spectral merge: measure, resolve, apply.

Weight averaging, task arithmetic, CART and R²M all give

    θ* = θ₀ + Σᵢ aᵢ τᵢ - Σᵢ bᵢ tailᵢ,      tailᵢ = δᵢ - SVD_r(δᵢ),

layer by layer, and differ in how the numbers aᵢ and bᵢ follow from the statistics of
:mod:`r2m_jax.merging.statistics`. A method is therefore a rank and a function from statistics to coefficients;
how leaves are brought to it (all in memory, streamed from files, spread over devices) is no concern of its.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from r2m_jax.errors import InputError
from r2m_jax.merging.diagnostics import MergeDiagnostics
from r2m_jax.merging.ranks import Rank, every_value, kept_rank
from r2m_jax.merging.selection import Select, Unit, path_of, units
from r2m_jax.merging.spectral import Kernel, keeps_basis, one_by_one, wide, wide_arithmetic
from r2m_jax.merging.statistics import (
    Entry,
    Statistics,
    bases_of,
    bases_of_layer,
    concatenate,
    entries,
    mean_vector,
    measure_matrices,
    measure_plain,
    residual,
    tails_of,
)
from r2m_jax.trees import same_structure

Tree = Any


class Coefficients(NamedTuple):
    """What a merge adds, per entry of the statistics: Σᵢ task[i] τᵢ - Σᵢ tail[i] tailᵢ."""

    task: Float[Array, "e n"] | Float[np.ndarray, "e n"]
    tail: Float[Array, "e n"] | Float[np.ndarray, "e n"]


class Method(Protocol):
    """A linear or spectral merge: hyperparameters, and how statistics become coefficients."""

    @property
    def measures(self) -> bool:
        """Whether the coefficients depend on statistics at all."""

    def weights(self, count: int) -> np.ndarray:
        """Weights of N specialists in their mean, adding up to 1."""

    def rank_at(self, unit: Unit) -> Rank | None:
        """What a unit's matrices keep; None if the method does not truncate them."""

    def resolve(self, statistics: Statistics, where: Sequence[Entry]) -> tuple[Coefficients, MergeDiagnostics | None]:
        """Coefficients of all entries, and what the merge says about itself. Pure, in the dtype of the statistics."""


class MergeResult(NamedTuple):
    """Merged parameters (structure and dtypes of ``theta0``) and what the merge says about itself."""

    params: Tree
    diagnostics: MergeDiagnostics


def check_count(method: Method, count: int) -> np.ndarray:
    """The weights of so many specialists.

    Raises:
        InputError: there is none.
    """
    if not count:
        raise InputError("there is nothing to merge: give at least one specialist.")
    return method.weights(count)


def measure(
    weights: Float[Array, " n"],
    rank: Rank | None,
    theta0: Float[Array, " l *shape"],
    thetas: Float[Array, " l n *shape"],
    *,
    kernel: Kernel = "auto",
    mesh: Mesh | None = None,
) -> tuple[Statistics, Float[Array, "l n s j"] | None]:
    """Statistics of one unit, and the bases of its tails if it is truncated; inside ``wide_arithmetic``."""
    if rank is None:
        return measure_plain(theta0, thetas, weights), None
    return measure_matrices(theta0, thetas, weights, rank, kernel, mesh)


def apply(
    weights: Float[Array, " n"],
    rank: Rank | None,
    theta0: Float[Array, " l *shape"],
    thetas: Float[Array, " l n *shape"],
    bases: Float[Array, "l n s j"] | None,
    coefficients: Coefficients,
    *,
    kernel: Kernel = "auto",
    mesh: Mesh | None = None,
) -> Float[Array, " l *shape"]:
    """θ* of one unit in the widest float; inside ``wide_arithmetic``. Without ``bases`` they are computed here."""
    count = thetas.shape[1]
    if rank is None:
        start = theta0.astype(wide())
        return start + _weighted(coefficients.task, [thetas[:, i].astype(wide()) - start for i in range(count)])
    if bases is None and mesh is not None and theta0.shape[0] < mesh.size:
        bases = bases_of(theta0, thetas, weights, rank, kernel, mesh)
    keeps = keeps_basis(rank, *theta0.shape[-2:])

    def one(start: Array, stack: Array, found: Array | None, task: Array, tail: Array) -> Array:
        mean = mean_vector(start, list(stack), weights)
        if found is None:
            found = bases_of_layer(start, stack, mean, rank, kernel)
        tails = tails_of([residual(start, theta, mean).astype(jnp.float32) for theta in stack], found, keeps)
        vectors = [theta.astype(wide()) - start.astype(wide()) for theta in stack]
        return start.astype(wide()) + _weighted(task, vectors) - _weighted(tail, tails)

    moved: Array = one_by_one(one, theta0, thetas, bases, *map(jnp.asarray, coefficients), mesh=mesh)
    return moved


def run(
    method: Method,
    theta0: Tree,
    thetas: Sequence[Tree] | Tree,
    *,
    select: Select,
    fused_qkv: bool = False,
    kernel: Kernel = "auto",
    mesh: Mesh | None = None,
) -> tuple[Tree, MergeDiagnostics | None]:
    """Merge trees in memory; pure and jit-able.

    Args:
        method: what to do.
        theta0: the pretrained origin; gives the result its structure and dtypes.
        thetas: N specialists of the same structure, or one tree of their leaves stacked on a leading axis.
        select: which leaves are truncated.
        fused_qkv: see :func:`~r2m_jax.merging.selection.units`.
        kernel: how (:mod:`r2m_jax.merging.spectral`).
        mesh: devices to spread the matrices over; leaves stay on the devices they are on.

    Raises:
        InputError: no specialist, differing trees, or a setting out of range.
    """
    return _run(method, theta0, thetas, select, fused_qkv, kernel, mesh)


@partial(jax.jit, static_argnums=(0, 3, 4, 5, 6))
def _run(
    method: Method,
    theta0: Tree,
    thetas: Sequence[Tree] | Tree,
    select: Select,
    fused_qkv: bool,
    kernel: Kernel,
    mesh: Mesh | None,
) -> tuple[Tree, MergeDiagnostics | None]:
    origin, structure = leaves_by_path(theta0)
    each = leaves_of_specialists(theta0, thetas)
    count = len(each)
    check_count(method, count)
    parts = units(origin, select, fused_qkv)
    with wide_arithmetic():
        weights = jnp.asarray(method.weights(count), wide())
        joined = [(join(unit, origin), jnp.stack([join(unit, leaves) for leaves in each], axis=1)) for unit in parts]
        ranks = [method.rank_at(unit) for unit in parts]
        statistics, diagnostics = empty_statistics(sum(unit.layers for unit in parts), count), None
        bases: list[Array | None] = [None] * len(parts)
        if method.measures:
            measured = [
                measure(weights, rank, *arrays, kernel=kernel, mesh=mesh)
                for rank, arrays in zip(ranks, joined, strict=True)
            ]
            statistics, bases = concatenate([m for m, _ in measured]), [found for _, found in measured]
        coefficients, diagnostics = method.resolve(statistics, entries(parts))
        merged: dict[str, Array] = {}
        row = 0
        for unit, rank, arrays, found in zip(parts, ranks, joined, bases, strict=True):
            rows = jax.tree.map(lambda x, at=row, n=unit.layers: x[at : at + n], coefficients)
            row += unit.layers
            out = apply(weights, rank, *arrays, found, rows, kernel=kernel, mesh=mesh)
            for path, part in split(unit, out, {path: origin[path].shape for path in unit.paths}).items():
                merged[path] = part.astype(origin[path].dtype)
        # Outside, float64 may be switched off, where an array of it could not be worked with.
        diagnostics = jax.tree.map(_narrow, diagnostics)
    return jax.tree.unflatten(structure, [merged[path] for path in origin]), diagnostics


def leaves_of_specialists(theta0: Tree, thetas: Sequence[Tree] | Tree) -> list[dict[str, Array]]:
    """Leaves of every specialist by path.

    Raises:
        InputError: there is no specialist, or one differs from ``theta0`` in its leaves or shapes.
    """
    if isinstance(thetas, Mapping):
        count = jax.tree.leaves(thetas)[0].shape[0]
        thetas = [jax.tree.map(lambda leaf, i=i: leaf[i], thetas) for i in range(count)]
    if not thetas:
        raise InputError("there is nothing to merge: give at least one specialist.")
    for index, theta in enumerate(thetas):
        same_structure(theta0, theta, f"specialist {index}")
    return [leaves_by_path(theta)[0] for theta in thetas]


def join(unit: Unit, leaves: Mapping[str, Array]) -> Float[Array, " l *shape"]:
    """The leaves of a unit side by side, behind the layers' axis."""
    arrays = [jnp.asarray(leaves[path]) for path in unit.paths]
    whole = arrays[0] if unit.axis is None else jnp.concatenate(arrays, axis=unit.axis)
    return whole.reshape(unit.layers, *unit.shape)


def split(unit: Unit, whole: Array, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """The inverse of :func:`join`."""
    if unit.axis is None:
        return {unit.paths[0]: whole.reshape(shapes[unit.paths[0]])}
    widths = np.cumsum([shapes[path][unit.axis] for path in unit.paths])[:-1]
    parts = jnp.split(whole, widths, axis=unit.axis)
    return {path: part.reshape(shapes[path]) for path, part in zip(unit.paths, parts, strict=True)}


def empty_statistics(rows: int, count: int) -> Statistics:
    """Zeros, for methods that only need to know how many entries there are."""
    return Statistics(
        np.zeros((rows, count + 1, count + 1)),
        np.zeros((rows, count, count)),
        np.zeros((rows, count + 1, count)),
        np.zeros((rows, count)),
    )


def check_ranks(rank: Any) -> None:
    """Raise what :func:`~r2m_jax.merging.ranks.kept_rank` finds wrong with a rank before anything is computed."""
    for each in every_value(rank):
        kept_rank(each, 1, 1)


def _narrow(leaf: Array) -> Array:
    return leaf.astype(jnp.float32) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _weighted(coefficients: Array | np.ndarray, parts: Sequence[Float[Array, " *shape"]]) -> Float[Array, " *shape"]:
    """Σ cᵢ·partᵢ, in the widest float; coefficients ``[n]``, or ``[l, n]`` for parts that are stacks of l."""
    own = jnp.asarray(coefficients, wide())
    each = [own[..., i].reshape(*own.shape[:-1], *(1,) * (part.ndim - own.ndim + 1)) for i, part in enumerate(parts)]
    terms = [c * part.astype(wide()) for c, part in zip(each, parts, strict=True)]
    return sum(terms[1:], start=terms[0])


def leaves_by_path(tree: Tree) -> tuple[dict[str, Any], Any]:
    """The leaves of any pytree by path, and its structure."""
    flat, structure = jax.tree_util.tree_flatten_with_path(tree)
    return {path_of(keys): leaf for keys, leaf in flat}, structure
