"""One way to open a model of any kind, for all that score, explain, describe or export models.

A kind is a module with :class:`~r2m_jax.jobs.kinds.described.Kind`'s names and an entry in :data:`KINDS`.
"""

from __future__ import annotations

from pathlib import Path

from r2m_jax.errors import InputError
from r2m_jax.jobs.kinds import convolutional, corit, plain
from r2m_jax.jobs.kinds.described import Described, Inputs, Kind, Ready, Source, forward, square_input
from r2m_jax.models import TowerOptions

KINDS: tuple[Kind, ...] = (corit, convolutional, plain)
"""Asked in this order whether a model is theirs; ``plain`` takes any directory, so it is the last."""


def describe(
    source: Source,
    options: TowerOptions | None = None,
    *,
    dtype: str | None = "float32",
    name: str | None = None,
) -> Described:
    """What a model is, without reading its parameters.

    Args:
        source: a model directory, or a detector in memory.
        options: how towers compute; None for float32, or what a detector in memory brings.
        dtype: of the parameters of a directory once loaded; None keeps what is stored.
        name: what messages call it; the source itself when None.

    Raises:
        InputError: it is no model directory, damaged, or prepares images in a way that no loop here does.
    """
    if isinstance(source, str | Path):
        source = Path(source)
        if not source.is_dir():
            called = f"{name}={source}" if name else str(source)
            raise InputError(f"the model {called} is no directory; give one that has a config.json.")
    kind = next(kind for kind in KINDS if kind.holds(source))
    return kind.describe(source, options, dtype, name or str(source))


__all__ = ["KINDS", "Described", "Inputs", "Kind", "Ready", "Source", "describe", "forward", "square_input"]
