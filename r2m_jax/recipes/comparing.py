"""The recipe of ``r2m compare``: specialists, and images to measure the theory of R²M on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from r2m_jax.merging.engine import check_ranks
from r2m_jax.merging.interference import DENSITY
from r2m_jax.merging.ranks import parse_rank
from r2m_jax.recipes.merging import MergeRecipe, ModelEntry, Section
from r2m_jax.recipes.sweeping import ScoringData


class ComparingData(ScoringData):
    """Images the theory is measured on.

    Attributes:
        index, split: as in a sweep.
        limit: at most about so many images, as many of each family as real ones; each costs a dozen passes of every
            model.
    """

    limit: int | None = Field(48, ge=2)


class CompareRecipe(Section):
    """Everything that decides a comparison.

    Attributes:
        base, models: as of a merge; weights must be left out.
        rank: what the readings of R²M keep of a residual matrix, as of a merge, one for all.
        density: share of its largest entries a specialist keeps before signs are compared.
        data: images for R1, R3 and Proposition 1, which are left out without.
        batch_size: images at a time.
        out: directory for the results.
    """

    base: Path
    models: dict[str, ModelEntry] = Field(min_length=1)
    rank: int | float | str = 0.7
    density: float = Field(DENSITY, gt=0, le=1)
    data: ComparingData | None = None
    batch_size: int = Field(8, ge=1)
    out: Path

    @field_validator("models", mode="before")
    @classmethod
    def _bare_paths(cls, value: Any) -> Any:
        return MergeRecipe.bare_paths(value)

    @field_validator("models")
    @classmethod
    def _no_weights(cls, value: dict[str, ModelEntry]) -> dict[str, ModelEntry]:
        if any(entry.weight != 1 for entry in value.values()):
            raise ValueError("a comparison takes no weights; leave them out")
        return value

    @field_validator("rank")
    @classmethod
    def _is_a_rank(cls, value: int | float | str) -> int | float | str:
        check_ranks(parse_rank(value))
        return value
