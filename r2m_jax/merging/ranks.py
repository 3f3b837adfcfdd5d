"""How many singular components a matrix keeps, and settings that differ between leaves and layers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import Float

from r2m_jax.errors import InputError
from r2m_jax.merging.selection import is_stack


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


def over_layers(anchors: Sequence[float], layers: int) -> Float[np.ndarray, " layers"]:
    """A value for each layer, linearly between anchors that stand at equal distances from the first layer to the last.

    What mergekit calls a gradient (``evaluate_setting`` in its config.py, ``t`` in its plan.py,
    https://github.com/arcee-ai/mergekit), which gives a single layer the last anchor.

    Example:
        >>> over_layers([0.0, 1.0, 0.0], 5).tolist()
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    depths = np.linspace(0, 1, layers) if layers > 1 else np.ones(1)
    return np.interp(depths, np.linspace(0, 1, len(anchors)), anchors)


# A layer's number in a leaf's path, or behind it where a row of statistics is one layer of a stack.
_LAYER = re.compile(r"\blayers?[/.](\d+)[/.]|\[(\d+)\]$")
_AFTER_LAYERS = re.compile(r"(^|[/.])post_")


@dataclass(frozen=True)
class Gradient:
    """A number that changes with depth (:func:`over_layers`).

    Attributes:
        anchors: from the first layer to the last.
        layers: how many the model has.
    """

    anchors: tuple[float, ...]
    layers: int

    def at(self, path: str) -> float:
        """The number for a leaf; outside of layers that of the nearer end, as in mergekit.

        Raises:
            InputError: the leaf is a stack of layers, or of a layer that the model does not have.
        """
        found = _LAYER.search(path)
        if found is None:
            if is_stack(path):
                raise InputError(
                    f"a setting that changes with depth needs a leaf per layer, which {path} is not: it holds all "
                    "layers; merge from files with r2m merge, or give one value for all layers."
                )
            return float(self.anchors[-1 if _AFTER_LAYERS.search(path) else 0])
        layer = int(found.group(1) or found.group(2))
        if layer >= self.layers:
            raise InputError(f"{path} is of a layer beyond the {self.layers} that the list of values is for.")
        return float(over_layers(self.anchors, self.layers)[layer])


RankSetting = Rank | Gradient | ByPattern[Rank | Gradient]
"""One rank for all matrices, or ranks by leaf and depth."""

NumberSetting = float | Gradient | ByPattern[float | Gradient]
"""One number for all leaves, or numbers by leaf and depth."""


def setting_at(setting: Any, path: str) -> Any:
    """The value of a setting, plain, :class:`Gradient` or :class:`ByPattern`, for one leaf."""
    if isinstance(setting, ByPattern):
        setting = next((value for pattern, value in setting.patterns if re.search(pattern, path)), setting.default)
    return setting.at(path) if isinstance(setting, Gradient) else setting


def every_value(setting: Any) -> list[Any]:
    """All values a setting can take, to be checked before anything is computed."""
    if isinstance(setting, ByPattern):
        return [
            *every_value(setting.default),
            *(found for _, value in setting.patterns for found in every_value(value)),
        ]
    return list(setting.anchors) if isinstance(setting, Gradient) else [setting]
