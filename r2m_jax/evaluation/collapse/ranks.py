"""Do critical radius and signal-to-noise rank layers and families alike? Spearman's ρ with a bootstrap interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from r2m_jax.errors import InputError
from r2m_jax.evaluation.resampling import interval


@dataclass(frozen=True)
class RankAgreement:
    """A mean rank correlation.

    Attributes:
        value: mean of the groups' Spearman's ρ; NaN where no group has two values of each kind.
        low, high: percentile interval.
        groups: that counted.
    """

    value: float
    low: float
    high: float
    groups: int


def spearman(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Spearman's ρ, ties by their mean rank; infinite values are the highest. NaN where one side is constant.

    Raises:
        InputError: the lengths differ, or a value is NaN.
    """
    if a.shape != b.shape or np.isnan(a).any() or np.isnan(b).any():
        raise InputError(f"ranks of {a.shape} and {b.shape} values, none of them NaN, are compared one by one.")
    x, y = _ranks(a), _ranks(b)
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    # SciPy's rankdata without SciPy, which only scikit-learn brings; mean ranks of ties.
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    means: np.ndarray = (last - (count - 1) / 2)[place]
    return means


def agreement(
    a: Float[np.ndarray, "groups n"],
    b: Float[np.ndarray, "groups n"],
    *,
    draw: Literal["groups", "members"],
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> RankAgreement:
    """Mean Spearman's ρ over groups, with a percentile interval.

    Draws in which every ρ is undefined are left out. With a handful of values the interval is wide, as it should be.

    Args:
        a, b: what is ranked within each row (a family with its layers, or a layer with its families).
        draw: what is drawn with replacement: whole groups, or members, the same ones of every group.
        resamples: draws.
        seed: of them.
        level: of the interval.

    Raises:
        InputError: the shapes differ, or a value is NaN.
    """
    if a.shape != b.shape or a.ndim != 2:
        raise InputError(f"values of shapes {a.shape} and {b.shape} are no groups of pairs.")
    rng = np.random.default_rng(seed)
    own = _by_group(a, b)
    defined = own[~np.isnan(own)]
    if not defined.size:
        return RankAgreement(float("nan"), float("nan"), float("nan"), 0)
    if draw == "groups":
        drawn = defined[rng.integers(len(defined), size=(resamples, len(defined)))].mean(axis=1)
    else:
        picks = rng.integers(a.shape[1], size=(resamples, a.shape[1]))
        each = np.stack([_by_group(a[:, pick], b[:, pick]) for pick in picks])
        each = each[~np.isnan(each).all(axis=1)]
        drawn = np.nanmean(each, axis=1) if len(each) else np.empty(0)
    low, high = interval(drawn, level) if drawn.size else (np.nan, np.nan)
    return RankAgreement(float(defined.mean()), float(low), float(high), len(defined))


def _by_group(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray([spearman(x, y) for x, y in zip(a, b, strict=True)])
