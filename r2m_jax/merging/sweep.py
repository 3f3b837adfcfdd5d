"""Many merges of the same specialists from one factorisation.

The singular bases of every residual are computed once, whole; a rank is then a mask on their columns, so that all
ranks go through one compiled program, and everything that costs N × N operations (α, k, centering, origin, η …) costs
nothing but writing the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from r2m_jax.errors import InputError
from r2m_jax.merging.diagnostics import MergeDiagnostics
from r2m_jax.merging.engine import (
    Coefficients,
    Method,
    apply,
    check_count,
    empty_statistics,
    join,
    leaves_by_path,
    leaves_of_specialists,
    split,
)
from r2m_jax.merging.ranks import Energy, kept_rank
from r2m_jax.merging.selection import Select, Unit, attention_and_mlp, units
from r2m_jax.merging.spectral import Kernel, wide_arithmetic
from r2m_jax.merging.statistics import Statistics, bases_of, concatenate, entries, measure_matrices, measure_plain

Tree = Any
_WHOLE = Energy(1.0)


class Sweep:
    """Specialists, factorised; :meth:`merge` makes one candidate of them.

    Args:
        theta0: the pretrained origin.
        thetas: N specialists of the same structure.
        weights: of the specialists; all methods of a sweep share them.
        select, fused_qkv, kernel, mesh: as of :func:`r2m_jax.merging.r2m`.

    Raises:
        InputError: no specialist, or differing trees.
    """

    def __init__(
        self,
        theta0: Tree,
        thetas: Sequence[Tree],
        *,
        weights: np.ndarray | None = None,
        select: Select = attention_and_mlp,
        fused_qkv: bool = False,
        kernel: Kernel = "auto",
        mesh: Mesh | None = None,
    ):
        self._origin, self._structure = leaves_by_path(theta0)
        each = leaves_of_specialists(theta0, thetas)
        self._count = len(each)
        self._weights = np.full(self._count, 1 / self._count) if weights is None else weights
        self._units = units(self._origin, select, fused_qkv)
        self._mesh = mesh
        self._arrays = [
            (join(unit, self._origin), jnp.stack([join(unit, leaves) for leaves in each], axis=1))
            for unit in self._units
        ]
        self._bases: list[Array | None] = []
        self._measured: dict[tuple[int, ...], Statistics] = {}
        with wide_arithmetic():
            for unit, arrays in zip(self._units, self._arrays, strict=True):
                self._bases.append(_factor(*arrays, self._weights, kernel, mesh) if unit.matrix else None)

    def merge(self, method: Method) -> tuple[Tree, MergeDiagnostics | None]:
        """θ* and what it says about itself, as :func:`r2m_jax.merging.engine.run` computes them.

        Raises:
            InputError: a setting is out of range, or the method has other weights than the sweep.
        """
        given = check_count(method, self._count)
        assert np.allclose(given, self._weights), "the methods of a sweep share their weights"
        kept = tuple(self._kept(method, unit) for unit in self._units)
        where = entries(self._units)
        with wide_arithmetic():
            statistics = self._statistics(kept) if method.measures else empty_statistics(len(where), self._count)
            # Not compiled: a program for every candidate takes longer than its few operations, compiled once for all.
            coefficients, diagnostics = method.resolve(statistics, where)
            merged: dict[str, Array] = {}
            row = 0
            for index, unit in enumerate(self._units):
                rows = Coefficients(*(jnp.asarray(x[row : row + unit.layers]) for x in coefficients))
                row += unit.layers
                truncates = method.rank_at(unit) is not None
                out = _apply(
                    self._weights, *self._arrays[index], self._bases[index] if truncates else None, kept[index], rows,
                    self._mesh,
                )  # fmt: skip
                shapes = {path: self._origin[path].shape for path in unit.paths}
                merged |= {p: v.astype(self._origin[p].dtype) for p, v in split(unit, out, shapes).items()}
            diagnostics = jax.tree.map(np.asarray, diagnostics)
        return jax.tree.unflatten(self._structure, [merged[path] for path in self._origin]), diagnostics

    def _kept(self, method: Method, unit: Unit) -> int:
        rank = method.rank_at(unit)
        if rank is None:
            return 0
        if isinstance(rank, Energy):
            raise InputError(f"a sweep takes ranks as ratios or counts, not {rank}.")
        return kept_rank(rank, *unit.shape)

    def _statistics(self, kept: tuple[int, ...]) -> Statistics:
        if kept not in self._measured:
            self._measured[kept] = concatenate(
                [
                    _measure(self._weights, *arrays, bases, many, self._mesh)
                    for arrays, bases, many in zip(self._arrays, self._bases, kept, strict=True)
                ]
            )
        return self._measured[kept]


@partial(jax.jit, static_argnums=(3, 4))
def _factor(theta0: Array, thetas: Array, weights: Array, kernel: Kernel, mesh: Mesh | None) -> Array:
    return bases_of(theta0, thetas, weights, _WHOLE, kernel, mesh)


@partial(jax.jit, static_argnums=5)
def _measure(
    weights: Array, theta0: Array, thetas: Array, bases: Array | None, kept: Array, mesh: Mesh | None
) -> Statistics:
    if bases is None:
        return measure_plain(theta0, thetas, weights)
    return measure_matrices(theta0, thetas, weights, _WHOLE, mesh=mesh, bases=_masked(bases, kept))[0]


@partial(jax.jit, static_argnums=6)
def _apply(
    weights: Array,
    theta0: Array,
    thetas: Array,
    bases: Array | None,
    kept: Array,
    coefficients: Coefficients,
    mesh: Mesh | None,
) -> Array:
    if bases is None:
        return apply(weights, None, theta0, thetas, None, coefficients)
    return apply(weights, _WHOLE, theta0, thetas, _masked(bases, kept), coefficients, mesh=mesh)


def _masked(bases: Array, kept: Array) -> Array:
    return bases * (jnp.arange(bases.shape[-1]) < kept)
