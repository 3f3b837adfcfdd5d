"""The recipe of ``r2m study compression…``: images, networks, how they are trained, compressed and transferred."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from r2m_jax.models.convolutional import Plan
from r2m_jax.models.convolutional.plan import Place
from r2m_jax.recipes.evaluating import Intervals
from r2m_jax.recipes.merging import Section
from r2m_jax.recipes.studying import StudyData


class CompressionStudyData(StudyData):
    """Images; as of the other studies but for these.

    Attributes:
        unseen: methods no network learns; every second one of an index by name when None.
        limit: at most so many forgeries of each split, evenly chosen; as many real images come with them.
        image_size: sides of the networks' input in pixels, to which images are resized.
        source: index of real and fake images that transferred networks learn first.
        source_methods: methods of ``index`` that they learn first where there is no ``source``; no other network learns
            these, nor is tested on them.
        forged_source: the same where images are forged.
    """

    image_size: int = Field(64, ge=8)
    source: Path | None = None
    source_methods: tuple[str, ...] = ()
    forged_source: tuple[str, ...] = ()

    @property
    def first(self) -> tuple[str, ...]:
        """Methods that transferred networks learn first."""
        return self.forged_source if self.index is None else self.source_methods


class NetworkTraining(Section):
    """How networks are trained, with Adam, a warm-up over a tenth of the steps and a cosine to zero.

    Attributes:
        passes: over the images, for a network from nothing.
        tuning_passes: for one that was pruned.
        transfer_passes: for last layers and adapters on the new images.
        batch_size: images a step.
        learning_rate, tuning_rate, transfer_rate: peaks of the same.
        temperature, soft, hard: of distillation.
    """

    passes: int = Field(ge=1)
    tuning_passes: int = Field(ge=1)
    transfer_passes: int = Field(ge=1)
    batch_size: int = Field(16, ge=2)
    learning_rate: float = Field(1e-3, gt=0)
    tuning_rate: float = Field(3e-4, gt=0)
    transfer_rate: float = Field(1e-3, gt=0)
    temperature: float = Field(2.0, gt=0)
    soft: float = Field(0.25, ge=0)
    hard: float = Field(0.75, ge=0)


class Adapting(Section):
    """Where adapters are put.

    Attributes:
        deep, student: place in the baseline and in students; the paper's best.
        places: that are compared, at the middle one of the rates.
        residual: see :class:`~r2m_jax.models.convolutional.Adapter`; the authors' are not.
    """

    deep: Place = "middle"
    student: Place = "last"
    places: tuple[Place, ...] = ("first", "middle", "last")
    residual: bool = False


class Timing(Section):
    """What is timed.

    Attributes:
        batches: images at a time.
        runs: timed calls of each, whose median counts.
    """

    batches: tuple[int, ...] = Field((1, 8), min_length=1)
    runs: int = Field(10, ge=1)


class Student(Section):
    """A student beside the pruning rate it is compared with.

    Attributes:
        rate: of pruning to about its size.
        name: it is shown under.
        network: name of a plan, or a plan.
    """

    rate: float = Field(gt=0, lt=1)
    name: str
    network: str | Plan


class CompressionStudyRecipe(Section):
    """Everything that decides the studies of compression.

    Attributes:
        studies: names of :data:`r2m_jax.studies.compression.STUDIES`; all when empty.
        seed: of patches, forgeries and the first of the networks.
        seeds: starts and orders of the images of every network.
        data: images.
        baseline: network that is compressed and teaches; name of a plan, or a plan.
        students: of one rate each.
        alone: train students without a teacher too.
        training, adapters, timing: see there.
        intervals: bootstrap by clip.
        batch_size: images scored at a time.
        scores: format of the score tables.
        workers: processes that forge and threads that decode; one per core when None.
        out: directory for everything.
    """

    studies: tuple[str, ...] = ()
    seed: int = Field(0, ge=0)
    seeds: int = Field(3, ge=1)
    data: CompressionStudyData
    baseline: str | Plan = "vgg-4.5m"
    students: tuple[Student, ...] = Field(min_length=1)
    alone: bool = True
    training: NetworkTraining
    adapters: Adapting = Adapting()
    timing: Timing = Timing()
    intervals: Intervals = Intervals()
    batch_size: int = Field(32, ge=1)
    scores: Literal["csv", "parquet"] = "csv"
    workers: int | None = Field(None, ge=1)
    out: Path

    @property
    def rates(self) -> tuple[float, ...]:
        """Pruning rates, ascending."""
        return tuple(sorted(student.rate for student in self.students))

    @model_validator(mode="after")
    def _fits_together(self) -> CompressionStudyRecipe:
        if len({student.rate for student in self.students}) < len(self.students):
            raise ValueError("every student has a rate of its own")
        if self.data.source is not None and self.data.index is None:
            raise ValueError("data.source goes with an index of its kind of images; give data.index too")
        if self.data.source_methods and (self.data.index is None or self.data.source is not None):
            raise ValueError("data.source_methods are of data.index, and in place of data.source")
        return self
