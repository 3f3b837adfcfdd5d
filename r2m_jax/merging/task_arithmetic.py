"""Task arithmetic (Ilharco et al. 2022, https://arxiv.org/abs/2212.04089)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from r2m_jax.errors import InputError
from r2m_jax.merging.engine import Coefficients, run
from r2m_jax.merging.ranks import NumberSetting, Rank, setting_at
from r2m_jax.merging.selection import Select, Unit, attention_and_mlp
from r2m_jax.merging.statistics import Entry, Statistics

Tree = Any


def shares(weights: Sequence[float] | None, count: int) -> np.ndarray:
    """Weights of ``count`` specialists, adding up to 1; equal ones when none are given.

    Raises:
        InputError: a wrong number of them, a negative one, or all zero.
    """
    given = [1.0] * count if weights is None else [float(weight) for weight in weights]
    if len(given) != count or not all(weight >= 0 for weight in given) or not 0 < sum(given) < np.inf:
        raise InputError(f"weights {given} do not fit: give one number ≥ 0 for each of the {count} specialists.")
    return np.asarray(given) / sum(given)


@dataclass(frozen=True)
class TaskArithmetic:
    """θ₀ + α Σ τᵢ, or α times their mean."""

    alpha: NumberSetting = 1.0
    reduce: Literal["mean", "sum"] = "mean"
    given: tuple[float, ...] | None = None
    measures = False

    def __post_init__(self) -> None:
        if self.reduce not in ("sum", "mean"):
            raise InputError(f"reduce={self.reduce!r} is unknown; task arithmetic reduces by 'mean' or 'sum'.")

    def weights(self, count: int) -> np.ndarray:
        """Of the specialists in a mean; times their number in a sum."""
        return shares(self.given, count)

    def rank_at(self, unit: Unit) -> Rank | None:
        """Nothing is truncated."""
        return None

    def resolve(self, statistics: Statistics, where: Sequence[Entry]) -> tuple[Coefficients, None]:
        """α of every entry, shared out."""
        rows, count = statistics.kept.shape
        each = self.weights(count) * (count if self.reduce == "sum" else 1)
        alpha = np.asarray([setting_at(self.alpha, entry.name) for entry in where])
        return Coefficients(alpha[:, None] * each, np.zeros((rows, count))), None


def task_arithmetic(
    theta0: Tree,
    thetas: Sequence[Tree] | Tree,
    *,
    alpha: NumberSetting = 1.0,
    reduce: Literal["mean", "sum"] = "mean",
    variant: Literal["original", "paper"] | None = None,
    weights: Sequence[float] | None = None,
    select: Select = attention_and_mlp,
) -> Tree:
    """Add scaled task vectors to the origin.

    ``reduce="sum"`` is the original θ₀ + α Σ τᵢ. ``"mean"`` is what the R²M paper's text says, θ₀ + α mean τᵢ,
    which at α = 1 is weight averaging; the paper's tables differ from weight averaging all the same, which fits
    the sum.

    Args:
        theta0: the pretrained origin; gives the result its dtypes.
        thetas: N specialists of the same structure, or their leaves stacked.
        alpha: scale; the paper sweeps 0.5 and 1.
        reduce: ``"mean"`` or ``"sum"``.
        variant: ``"original"`` or ``"paper"``, instead of ``reduce``.
        weights: one number ≥ 0 per specialist; they are scaled to a mean of 1.
        select: unused, all leaves are treated alike; taken because all methods take it.

    Raises:
        InputError: no specialist, differing trees, or a setting that is unknown or out of range.
    """
    if variant is not None:
        if variant not in _VARIANTS:
            raise InputError(f"variant={variant!r} is unknown; task arithmetic knows 'original' and 'paper'.")
        reduce = _VARIANTS[variant]
    method = TaskArithmetic(alpha, reduce, None if weights is None else tuple(weights))
    return run(method, theta0, thetas, select=select)[0]


_VARIANTS: dict[str, Literal["mean", "sum"]] = {"original": "sum", "paper": "mean"}
