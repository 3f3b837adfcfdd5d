"""How many singular components a matrix keeps."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from r2m_jax.errors import InputError


@dataclass(frozen=True)
class Energy:
    """The fewest leading components that hold ``share`` of a matrix's squared Frobenius norm."""

    share: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise InputError(f"energy:{self.share} is no share in 0…1.")

    def __str__(self) -> str:
        return f"energy:{self.share:g}"


Rank = float | int | Energy
"""A ratio of the smaller side, a count, or a share of the energy."""


def parse_rank(text: str | float | int) -> Rank:
    """``0.7`` (ratio), ``100`` (count) or ``energy:0.9`` as a user writes it.

    Raises:
        InputError: it is none of these.
    """
    if not isinstance(text, str):
        return text
    kind, colon, value = text.rpartition(":")
    try:
        if colon and kind == "energy":
            return Energy(float(value))
        if not colon:
            return int(text) if text.isdigit() else float(text)
    except ValueError:
        pass
    raise InputError(f"rank {text!r} is no ratio (0.7), count (100) or share of energy (energy:0.9).")


def kept_rank(rank: Rank, m: int, n: int) -> int:
    """How many singular components an ``m × n`` matrix keeps.

    A float is a ratio r of min(m, n), giving max(1, int(r·min(m, n))) as CART's code rounds it; r = 0 keeps
    nothing and r = 1 everything. An int is a count, capped at min(m, n). A share of energy depends on the matrix; what
    is returned for it is min(m, n).

    Raises:
        InputError: a ratio outside 0…1, or a negative count.
    """
    smaller = min(m, n)
    if isinstance(rank, Energy):
        return smaller
    if isinstance(rank, int):
        if rank < 0:
            raise InputError(f"rank={rank} is negative; give a count ≥ 0 or a ratio as a float in 0…1.")
        return min(rank, smaller)
    if not 0.0 <= rank <= 1.0:
        raise InputError(f"rank={rank} is no ratio in 0…1; give an int to mean a count.")
    return 0 if rank == 0 else max(1, int(rank * smaller))


T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class ByPattern(Generic[T_co]):
    """A setting that differs between leaves.

    Attributes:
        default: where no pattern fits.
        patterns: ``(regular expression, value)``; the first that is found in a leaf's path decides.
    """

    default: T_co
    patterns: tuple[tuple[str, T_co], ...]


def setting_at(setting: Any, path: str) -> Any:
    """The value of a setting, plain or :class:`ByPattern`, for one leaf."""
    if not isinstance(setting, ByPattern):
        return setting
    return next((value for pattern, value in setting.patterns if re.search(pattern, path)), setting.default)


def every_value(setting: Any) -> list[Any]:
    """All values a setting can take, to be checked before anything is computed."""
    if not isinstance(setting, ByPattern):
        return [setting]
    return [setting.default, *(value for _, value in setting.patterns)]
