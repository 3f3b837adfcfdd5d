"""Weight averaging (model soups, Wortsman et al. 2022, https://arxiv.org/abs/2203.05482)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from r2m_jax.errors import InputError
from r2m_jax.merging.engine import Coefficients, run
from r2m_jax.merging.ranks import Rank
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
class WeightAveraging:
    """θ₀ + Σ wᵢ τᵢ."""

    given: tuple[float, ...] | None = None
    measures = False

    def weights(self, count: int) -> np.ndarray:
        """As given, or equal."""
        return shares(self.given, count)

    def rank_at(self, unit: Unit) -> Rank | None:
        """Nothing is truncated."""
        return None

    def resolve(self, statistics: Statistics, where: Sequence[Entry]) -> tuple[Coefficients, None]:
        """The weights, everywhere."""
        rows, count = statistics.kept.shape
        return Coefficients(np.tile(self.weights(count), (rows, 1)), np.zeros((rows, count))), None


def weight_averaging(
    theta0: Tree,
    thetas: Sequence[Tree] | Tree,
    *,
    weights: Sequence[float] | None = None,
    select: Select = attention_and_mlp,
) -> Tree:
    """Average the specialists: θ₀ + Σ wᵢ τᵢ with wᵢ summing to 1, which is Σ wᵢ θᵢ.

    Args:
        theta0: the pretrained origin; gives the result its dtypes.
        thetas: N specialists of the same structure, or their leaves stacked.
        weights: one number ≥ 0 per specialist, normalised here; uniform when omitted.
        select: unused, averaging treats all leaves alike; taken because all methods take it.

    Raises:
        InputError: no specialist, differing trees, or weights of a wrong count, sign or sum.
    """
    return run(WeightAveraging(None if weights is None else tuple(weights)), theta0, thetas, select=select)[0]
