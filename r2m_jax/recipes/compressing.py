"""The recipe of ``r2m compress``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from r2m_jax.errors import InputError
from r2m_jax.merging.engine import check_ranks
from r2m_jax.merging.ranks import parse_rank
from r2m_jax.recipes.merging import Section

MethodName = Literal["prune", "channels", "heads", "layers", "int8", "int4", "low-rank", "task-vector"]

_TAKES: dict[str, tuple[str, ...]] = {
    "prune": ("rate", "scope", "sparse", "only", "skip"),
    "channels": ("rate", "keep"),
    "heads": ("rate", "keep"),
    "layers": ("rate", "keep"),
    "int8": ("granularity", "only", "skip"),
    "int4": ("granularity", "only", "skip"),
    "low-rank": ("rank", "only", "skip"),
    "task-vector": ("base", "bits", "granularity", "only", "skip"),
}
"""What each method takes."""


class MeasureSection(Section):
    """What is timed.

    Attributes:
        batches: batch sizes.
        runs: timed calls of each, whose median counts.
        warm_up: calls before those.
    """

    batches: tuple[int, ...] = Field((1, 8), min_length=1)
    runs: int = Field(50, ge=1)
    warm_up: int = Field(5, ge=1)


class CompressRecipe(Section):
    """Everything that decides a compression.

    Attributes:
        model: model directory.
        method: ``prune`` single weights, remove MLP ``channels``, attention ``heads`` or ``layers``, store integers
            (``int8``, ``int4``), factors (``low-rank``) or the quantised difference to a base (``task-vector``).
        rate: share removed: of weights (prune), or of each layer's channels or heads, or of the layers.
        keep: how many channels or heads of each layer, or layers, are kept, instead of a rate.
        scope: prune: least magnitudes by ``tensor`` or of all together (``global``).
        sparse: prune: store places and values of what is left instead of zeros.
        granularity: integers: a scale for each output ``channel`` or for each ``tensor``.
        rank: low-rank: a ratio (0.25), a count (64) or energy:0.9.
        base: task-vector: model directory the model was fine-tuned from.
        bits: task-vector: 2…8.
        only: regular expressions; names as stored (``encoder.layers.3.mlp.fc1.weight``) that hold one are compressed
            instead of the method's own choice.
        skip: names that hold one are left as they are.
        measure: time and memory of the model and what it becomes; left out when None.
        out: model directory to make.
    """

    model: Path
    method: MethodName
    rate: float | None = Field(None, gt=0, lt=1)
    keep: int | None = Field(None, ge=1)
    scope: Literal["tensor", "global"] | None = None
    sparse: bool | None = None
    granularity: Literal["channel", "tensor"] | None = None
    rank: int | float | str | None = None
    base: Path | None = None
    bits: int | None = Field(None, ge=2, le=8)
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    measure: MeasureSection | None = None
    out: Path

    @field_validator("rank")
    @classmethod
    def _is_a_rank(cls, value: int | float | str | None) -> int | float | str | None:
        if value is not None:
            try:
                check_ranks(parse_rank(value))
            except InputError as error:
                raise ValueError(str(error).rstrip(".")) from None
        return value

    @field_validator("only", "skip")
    @classmethod
    def _compile(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            try:
                re.compile(each)
            except re.error as error:
                raise ValueError(f"{each!r} is no regular expression ({error})") from None
        return value

    @model_validator(mode="after")
    def _fits_the_method(self) -> CompressRecipe:
        taken = _TAKES[self.method]
        for name in ("rate", "keep", "scope", "sparse", "granularity", "rank", "base", "bits", "only", "skip"):
            if getattr(self, name) not in (None, ()) and name not in taken:
                raise ValueError(f"{self.method} takes no {name}; it takes {', '.join(taken)}")
        if "keep" in taken and (self.rate is None) == (self.keep is None):
            raise ValueError(f"{self.method} needs either rate, the share to remove, or keep, how many are kept")
        for method, name in (("prune", "rate"), ("low-rank", "rank"), ("task-vector", "base")):
            if self.method == method and getattr(self, name) is None:
                raise ValueError(f"{method} needs {name}")
        return self
