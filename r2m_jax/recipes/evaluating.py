"""The recipe of ``r2m eval``: models, images, and how they are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from r2m_jax.data.catalogue import nearest
from r2m_jax.evaluation.protocols import NAMES
from r2m_jax.recipes.merging import Section
from r2m_jax.recipes.sweeping import ScoringData

BEST = "best"
"""As reference: of each column the model with the highest image AUC."""


class EvaluationData(ScoringData):
    """Images the models are compared on.

    Attributes:
        index, limit: as in a sweep.
        split: of the index.
    """

    split: str = "test"


class Intervals(Section):
    """Bootstrap intervals, clips being drawn.

    Attributes:
        resamples: how many.
        level: of confidence.
        seed: of the draws.
    """

    resamples: int = Field(1000, ge=100)
    level: float = Field(0.95, gt=0, lt=1)
    seed: int = Field(0, ge=0)


class Calibrating(Section):
    """A decision threshold per model, stored beside it.

    Attributes:
        fpr: share of real images that may be called fake.
        split: of the index, whose real images decide; not the one the models are compared on.
    """

    fpr: float = Field(gt=0, lt=1)
    split: str = "val"


class EvalRecipe(Section):
    """Everything that decides an evaluation.

    Attributes:
        models: model directories by name.
        data: what they are scored on.
        from_scores: a score table to take instead of models and data.
        protocol: one of :data:`r2m_jax.evaluation.protocols.NAMES`.
        video_key: what a clip is; ``bench`` and ``df40`` as those tools do it.
        intervals: None for no intervals and no tests.
        reference: the model others are tested against, or ``best``: of each column.
        calibrate: store thresholds; None for not.
        scores: format of the score table.
        strict: refuse images that cannot be read, instead of leaving them out.
        dtype: of activations.
        batch_size: images at a time.
        workers: decoding threads; one per core when None.
        memory: budget for parameters kept at a time, MiB.
        out: directory for the results.
    """

    models: dict[str, Path] = Field(default_factory=dict)
    data: EvaluationData | None = None
    from_scores: Path | None = None
    protocol: str = "families"
    video_key: Literal["clip", "bench", "df40"] = "clip"
    intervals: Intervals | None = Intervals()
    reference: str = BEST
    calibrate: Calibrating | None = None
    scores: Literal["csv", "parquet"] = "csv"
    strict: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch_size: int = Field(32, ge=1)
    workers: int | None = Field(None, ge=0)
    memory: int = Field(8192, ge=1)
    out: Path

    @field_validator("intervals", mode="before")
    @classmethod
    def _switch(cls, value: object) -> object:
        """``intervals: true`` and ``false`` stand for the defaults and for none."""
        return ({} if value else None) if isinstance(value, bool) else value

    @field_validator("protocol")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in NAMES:
            raise ValueError(f"there is no such protocol; {nearest(value, NAMES).rstrip('.')}")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> EvalRecipe:
        if self.from_scores is not None:
            if self.models or self.data is not None or self.calibrate is not None:
                raise ValueError("from_scores takes the place of models, data and calibrate; leave those out")
            return self
        if not self.models or self.data is None:
            raise ValueError("name models and data.index, or a score table by from_scores")
        if self.calibrate is not None and self.calibrate.split == self.data.split:
            raise ValueError(
                f"calibrate.split={self.calibrate.split} is the split the models are compared on; a threshold needs "
                "another"
            )
        if self.reference not in (BEST, *self.models):
            raise ValueError(f"reference={self.reference!r} is neither best nor one of {', '.join(self.models)}")
        return self
