"""CART: the average plus the leading singular components of what each specialist is beyond it.

Choi et al., "Revisiting Weight Averaging for Model Merging", https://arxiv.org/abs/2412.12153.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh

from r2m_jax.errors import InputError
from r2m_jax.merging.engine import Coefficients, check_ranks, run
from r2m_jax.merging.ranks import NumberSetting, Rank, RankSetting, setting_at
from r2m_jax.merging.selection import Select, Unit, attention_and_mlp
from r2m_jax.merging.spectral import Kernel
from r2m_jax.merging.statistics import Entry, Statistics
from r2m_jax.merging.task_arithmetic import shares

Tree = Any


@dataclass(frozen=True)
class Cart:
    """θ_avg - λ Σ tailᵢ: the kept parts of centred task vectors add up to minus their discarded tails."""

    rank: RankSetting = 0.3
    scale: NumberSetting = 1.0
    reduce: Literal["sum", "mean"] = "sum"
    given: tuple[float, ...] | None = None
    measures = False

    def __post_init__(self) -> None:
        check_ranks(self.rank)
        if self.reduce not in ("sum", "mean"):
            raise InputError(f"reduce={self.reduce!r} is unknown; CART reduces by 'sum' or 'mean'.")

    def weights(self, count: int) -> np.ndarray:
        """Of the specialists in the average; times their number in the sum of their residuals."""
        return shares(self.given, count)

    def rank_at(self, unit: Unit) -> Rank | None:
        """As set, for matrices."""
        found: Rank | None = setting_at(self.rank, unit.paths[0]) if unit.matrix else None
        return found

    def resolve(self, statistics: Statistics, where: Sequence[Entry]) -> tuple[Coefficients, None]:
        """The average, and λ on every tail."""
        rows, count = statistics.kept.shape
        weights = self.weights(count)
        scale = np.asarray([setting_at(self.scale, entry.name) for entry in where])
        each = weights * (count if self.reduce == "sum" else 1)
        return Coefficients(np.tile(weights, (rows, 1)), scale[:, None] * each), None


def cart(
    theta0: Tree,
    thetas: Sequence[Tree] | Tree,
    *,
    rank: RankSetting = 0.3,
    scale: NumberSetting = 1.0,
    reduce: Literal["sum", "mean"] = "sum",
    weights: Sequence[float] | None = None,
    fused_qkv: bool = False,
    kernel: Kernel = "auto",
    mesh: Mesh | None = None,
    select: Select = attention_and_mlp,
) -> Tree:
    """Add truncated centred task vectors to the average of the specialists: θ_avg + λ Σᵢ SVD_r(θᵢ - θ_avg).

    At full rank CART is weight averaging, whatever λ, and leaves that are not truncated are plain averages: the
    centred task vectors add up to zero.

    Args:
        theta0: gives the result its structure and dtypes, and nothing else.
        thetas: N specialists of the same structure, or their leaves stacked.
        rank: singular components a matrix keeps: a ratio as float, a count as int, or
            :class:`~r2m_jax.merging.ranks.Energy`; CART's best are ratios of 0.08 to 0.16.
        scale: λ; 1 to 2 in CART, 0.5 and 1 in R²M.
        reduce: ``"sum"`` as CART, ``"mean"`` as R²M's text can be read.
        weights: one number ≥ 0 per specialist; uniform when omitted.
        fused_qkv: truncate query, key and value together, as CART's code does on open_clip's weights.
        kernel: how matrices are factorised (:mod:`r2m_jax.merging.spectral`).
        mesh: devices to spread the matrices over.
        select: which leaves are truncated.

    Raises:
        InputError: no specialist, differing trees, or a setting out of range.
    """
    method = Cart(rank, scale, reduce, None if weights is None else tuple(weights))
    return run(method, theta0, thetas, select=select, fused_qkv=fused_qkv, kernel=kernel, mesh=mesh)[0]
