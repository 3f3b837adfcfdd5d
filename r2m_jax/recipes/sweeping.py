"""The recipe of ``r2m sweep``: a merge, a grid of settings, and the images that decide between them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from r2m_jax.recipes.merging import MergeRecipe, MethodName, ModelEntry, Section


class GridEntry(Section):
    """One method with every combination of its settings.

    Attributes:
        method: as in a merge.
        parameters: as in a merge, but each a value or a list of values to try.
    """

    method: MethodName
    parameters: dict[str, Any] = Field(default_factory=dict)


class ScoringData(Section):
    """Images the candidates are scored on.

    Attributes:
        index: file or directory of an index.
        split: of the index; validation, so that tests stay tests.
        limit: score at most so many images, evenly chosen; None for all.
    """

    index: Path
    split: str = "val"
    limit: int | None = Field(None, ge=2)


class SweepRecipe(Section):
    """Everything that decides a sweep.

    Attributes:
        base, models, head: as of a merge.
        grid: what is tried.
        data: what it is scored on.
        batch_size: images scored at a time.
        out: directory for the results.
    """

    base: Path
    models: dict[str, ModelEntry] = Field(min_length=1)
    head: str = "average"
    grid: list[GridEntry] = Field(min_length=1)
    data: ScoringData
    batch_size: int = Field(32, ge=1)
    out: Path

    @field_validator("models", mode="before")
    @classmethod
    def _bare_paths(cls, value: Any) -> Any:
        return MergeRecipe.bare_paths(value)

    @model_validator(mode="after")
    def _every_candidate_fits(self) -> SweepRecipe:
        self.candidates()
        return self

    def candidates(self) -> dict[str, MergeRecipe]:
        """Every combination by a name that tells it.

        Raises:
            ValueError: one is no valid merge.
        """
        found: dict[str, MergeRecipe] = {}
        for entry in self.grid:
            lists = {key: value if isinstance(value, list) else [value] for key, value in entry.parameters.items()}
            for values in itertools.product(*lists.values()):
                chosen = dict(zip(lists, values, strict=True))
                name = " ".join([entry.method, *(f"{key}={value}" for key, value in chosen.items())])
                try:
                    found[name] = MergeRecipe(
                        base=self.base, models=self.models, method=entry.method, parameters=chosen, head=self.head,
                        out=self.out / "best",
                    )  # fmt: skip
                except ValidationError as error:
                    first = error.errors()[0]
                    where = ".".join(str(part) for part in first["loc"])
                    raise ValueError(f"{name}: {where} {first['msg'].removeprefix('Value error, ')}") from None
                if _changes_with_depth(found[name].parameters.rank):
                    raise ValueError(f"{name}: a sweep takes one rank for all layers, merge with this one by itself")
        return found


def _changes_with_depth(rank: Any) -> bool:
    """Whether a rank of a recipe is a list of numbers, for all leaves or for some."""
    return isinstance(rank, list) and any(
        isinstance(each, float) or isinstance(getattr(each, "value", None), list) for each in rank
    )
