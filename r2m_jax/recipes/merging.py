"""The recipe of ``r2m merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Method = Literal["weight_averaging", "task_arithmetic", "ties", "cart", "r2m"]

_PARAMETERS: dict[str, tuple[str, ...]] = {
    "weight_averaging": (),
    "task_arithmetic": ("alpha", "reduce"),
    "ties": ("density", "scale", "variant"),
    "cart": ("rank", "scale", "reduce"),
    "r2m": ("rank", "alpha", "k", "centering", "origin", "eta"),
}
"""What each method takes; ``weights`` of the models go to weight averaging alone."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


class ModelEntry(_Section):
    """A specialist.

    Attributes:
        path: model directory.
        weight: of weight averaging.
    """

    path: Path
    weight: float = Field(1.0, ge=0)


class MergeParameters(_Section):
    """Settings of the methods; None leaves a method its own default. Meanings: :mod:`r2m_jax.merging`."""

    rank: int | float | None = None
    alpha: float | None = None
    k: int | None = Field(None, ge=1)
    centering: Literal["centered", "uncentered"] | None = None
    origin: Literal["theta0", "theta_avg"] | None = None
    eta: Literal["eff", "eq6"] | None = None
    density: float | None = None
    scale: float | None = None
    reduce: Literal["sum", "mean"] | None = None
    variant: Literal["original", "paper"] | None = None


class MergeRecipe(_Section):
    """Everything that decides a merge.

    Attributes:
        base: model directory of the common pretrained origin.
        models: specialists by name: a path, or ``{path, weight}``.
        method: how they are merged.
        parameters: of the method.
        head: ``average``, or the name of the specialist whose head is taken.
        dtype: of the stored parameters; None for the base's.
        out: model directory to make.
    """

    base: Path
    models: dict[str, ModelEntry] = Field(min_length=1)
    method: Method = "r2m"
    parameters: MergeParameters = MergeParameters()
    head: str = "average"
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    out: Path

    @field_validator("models", mode="before")
    @classmethod
    def _bare_paths(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: {"path": entry} if isinstance(entry, str | Path) else entry for name, entry in value.items()}

    @model_validator(mode="after")
    def _fits_together(self) -> MergeRecipe:
        given = [name for name, value in self.parameters if value is not None]
        taken = _PARAMETERS[self.method]
        foreign = [name for name in given if name not in taken]
        if foreign:
            raise ValueError(f"{self.method} takes no {foreign[0]}; it takes {', '.join(taken) or 'no parameters'}")
        if self.head != "average" and self.head not in self.models:
            raise ValueError(f"head={self.head!r} is neither average nor one of {', '.join(self.models)}")
        if self.method != "weight_averaging" and any(entry.weight != 1 for entry in self.models.values()):
            raise ValueError("weights are taken by weight_averaging alone; leave them out")
        return self

    def settings(self) -> dict[str, Any]:
        """Keyword arguments of the method."""
        chosen = {name: value for name, value in self.parameters if value is not None}
        if self.method == "weight_averaging":
            chosen["weights"] = tuple(entry.weight for entry in self.models.values())
        return chosen
