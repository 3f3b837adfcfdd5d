"""The recipe of ``r2m study``: data, training, mergers, and what each study varies."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from r2m_jax.data.forge import METHODS
from r2m_jax.data.forge.camera import CAMERAS
from r2m_jax.evaluation.robustness import PAPER, Kind
from r2m_jax.recipes.evaluating import Intervals
from r2m_jax.recipes.merging import MergeParameters, MergeRecipe, MethodName, Section


class Forging(Section):
    """The data made where no index is given.

    Attributes:
        train_patches, test_patches: real patches cut from photographs to learn from and from others held out.
        held_out_share: share of a user's photographs no model sees; the embedded ones have a fixed list.
        methods: that forge, by family.
        unseen: those of them that no specialist learns.
        per_image: methods of each family that forge an image.
        cameras: that record every image; the first is the domain models are trained in, others are other domains.
        size: sides of the patches in pixels; the base's when None.
        effort: share of the training budget of methods that learn.
    """

    train_patches: int = Field(ge=16)
    test_patches: int = Field(ge=8)
    held_out_share: float = Field(0.3, gt=0, lt=1)
    methods: dict[Literal["FS", "FR", "EFS"], tuple[str, ...]] = Field(min_length=1)
    unseen: tuple[str, ...] = ()
    per_image: int = Field(1, ge=0)
    cameras: tuple[str, ...] = Field(("still",), min_length=1)
    size: int | None = Field(None, ge=32)
    effort: float = Field(1.0, gt=0, le=10)

    @model_validator(mode="after")
    def _known(self) -> Forging:
        for family, methods in self.methods.items():
            wrong = [name for name in methods if name not in METHODS or METHODS[name].family != family]
            if wrong or not methods:
                raise ValueError(f"methods.{family} needs forging methods of that family, not {wrong or 'none'}")
            if set(methods) <= set(self.unseen):
                raise ValueError(f"every method of {family} is unseen; leave one to be learnt")
        strangers = [name for name in self.unseen if not any(name in each for each in self.methods.values())]
        if strangers:
            raise ValueError(f"unseen names {strangers[0]!r}, which is not among the methods")
        strangers = [name for name in self.cameras if name not in CAMERAS]
        if strangers:
            raise ValueError(f"there is no camera {strangers[0]!r}; there are {', '.join(CAMERAS)}")
        return self


class StudyData(Section):
    """Images.

    Attributes:
        index: of real and fake images, with the splits ``train`` (unless all models are given) and ``test``.
        images: folder of photographs to forge from; the embedded ones when there is no index either.
        forging: how; not for an index.
        domain: models are trained in; the most frequent of the training images when None.
        unseen: methods of an index that no specialist learns. When None: those of the test images without training
            images, or, where the index has none to train on, R²M's eight sets.
        limit: use at most so many images of each split of an index, evenly chosen.
    """

    index: Path | None = None
    images: Path | None = None
    forging: Forging
    domain: str | None = None
    unseen: tuple[str, ...] | None = None
    limit: int | None = Field(None, ge=16)

    @model_validator(mode="after")
    def _one_source(self) -> StudyData:
        if self.index is not None and self.images is not None:
            raise ValueError("give index or images, not both")
        return self


class StudyTraining(Section):
    """How specialists are trained where they are not given.

    Attributes:
        passes: over a model's training images.
        batch_size: images per step.
        learning_rate: peak of a warm-up and cosine schedule.
        weight_decay: L2 in the gradient (coupled), DF40's 5e-4.
    """

    passes: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(0.0, ge=0)


class Merger(Section):
    """A way to merge; ``parameters`` as in ``r2m merge``."""

    method: MethodName
    parameters: MergeParameters = MergeParameters()

    def recipe(self, names: tuple[str, ...], **changes: Any) -> MergeRecipe:
        """The merge of specialists of these names, with some parameters changed.

        Raises:
            ValueError: a parameter is out of range or foreign to the method.
        """
        given = self.parameters.model_dump(exclude_none=True) | changes
        models: Any = {name: name for name in names}
        return MergeRecipe(base=Path("base"), models=models, method=self.method, parameters=given, out=Path("out"))


class Integration(Section):
    """The forgeries that arrive after deployment (R²M §4.3): one near to what specialists know and one far from it.

    Attributes:
        near, far: methods no specialist learns; one without images is left out, and so is None.
    """

    near: str | None = None
    far: str | None = None


class Grid(Section):
    """R²M's α and r (R²M appendix C.4).

    Attributes:
        alpha, rank: every combination is tried.
        readings: what else is set, by name.
    """

    alpha: tuple[float, ...] = Field((0.4, 0.5, 0.6), min_length=1)
    rank: tuple[float, ...] = Field((0.1, 0.3, 0.5, 0.7), min_length=1)
    readings: dict[str, MergeParameters] = Field(default={"as printed": MergeParameters()}, min_length=1)


class Robustness(Section):
    """Perturbed test images (CoRIT, arXiv 2603.24057, eq. 26).

    Attributes:
        kinds: of :data:`r2m_jax.evaluation.robustness.KINDS`.
        levels: of 1 to 5.
        images: at most so many test images, evenly chosen.
    """

    kinds: tuple[Kind, ...] = Field(PAPER, min_length=1)
    levels: tuple[Literal[1, 2, 3, 4, 5], ...] = Field((1, 2, 3, 4, 5), min_length=1)
    images: int = Field(200, ge=16)


class Compression(Section):
    """What ``merge-compress`` compares for every way to merge.

    Attributes:
        mergers: by the name they are shown under.
        rates: shares of every kernel's entries that are pruned after merging.
        team_rates: the same of specialists before merging.
        bits: of a merge's kernels.
        task_vector_bits: of what specialists differ in from the base.
    """

    mergers: dict[str, Merger] = Field(
        default={
            "Weight averaging": Merger(method="weight_averaging"),
            "R²M, uncentred core": Merger(
                method="r2m", parameters=MergeParameters(rank=0.7, alpha=0.5, centering="uncentered")
            ),
        },
        min_length=1,
    )
    rates: tuple[float, ...] = (0.6, 0.75, 0.9)
    team_rates: tuple[float, ...] = (0.6, 0.75, 0.9)
    bits: tuple[int, ...] = (8, 4)
    task_vector_bits: tuple[int, ...] = (8, 4, 3, 2)

    @model_validator(mode="after")
    def _in_range(self) -> Compression:
        if any(not 0 < rate < 1 for rate in (*self.rates, *self.team_rates)):
            raise ValueError("rates and team_rates are shares between 0 and 1")
        if any(not 2 <= bits <= 8 for bits in (*self.bits, *self.task_vector_bits)):
            raise ValueError("bits and task_vector_bits are 2 to 8")
        return self


class StudyRecipe(Section):
    """Everything that decides the studies.

    Attributes:
        studies: names of :data:`r2m_jax.studies.STUDIES`; all when empty.
        base: model directory of the pretrained origin; the one that ships when None.
        specialists: trained models by the name of their family, instead of training.
        all_in_one: the jointly trained model that belongs to them.
        train: whether models that are not given are trained; when None, only where no specialist is given.
        seed: of photographs' patches, forgeries, the heads' start, sample order and mirroring.
        data, training: see there.
        mergers: by the name they are shown under.
        integration, grid, robustness, compression: see there.
        intervals: bootstrap by clip.
        batch_size: images scored at a time.
        scores: format of the score tables.
        workers: processes that forge and threads that decode; one per core when None.
        out: directory for everything.
    """

    studies: tuple[str, ...] = ()
    base: Path | None = None
    specialists: dict[str, Path] = Field(default_factory=dict)
    all_in_one: Path | None = None
    train: bool | None = None
    seed: int = Field(0, ge=0)
    data: StudyData
    training: StudyTraining
    mergers: dict[str, Merger] = Field(min_length=1)
    integration: Integration = Integration()
    grid: Grid = Grid()
    robustness: Robustness = Robustness()
    compression: Compression = Compression()
    intervals: Intervals = Intervals()
    batch_size: int = Field(64, ge=1)
    scores: Literal["csv", "parquet"] = "csv"
    workers: int | None = Field(None, ge=1)
    out: Path

    @property
    def may_train(self) -> bool:
        """Whether models that are not given are trained."""
        return not self.specialists if self.train is None else self.train

    @model_validator(mode="after")
    def _fits_together(self) -> StudyRecipe:
        if len(self.specialists) == 1:
            raise ValueError("one specialist cannot be merged; name at least two as specialists.NAME=DIR")
        if self.specialists and (self.base is None or self.data.index is None):
            raise ValueError("specialists need their base (base=DIR) and images of their kind (data.index=INDEX)")
        if self.all_in_one is not None and not self.specialists:
            raise ValueError("all_in_one goes with specialists.NAME=DIR; without them it is trained")
        names = tuple(self.specialists) or ("FS", "FR", "EFS")
        for shown, merger in self.mergers.items():
            _checked(f"mergers.{shown}", merger, names, {})
        for shown, merger in self.compression.mergers.items():
            _checked(f"compression.mergers.{shown}", merger, names, {})
        for shown, parameters in self.grid.readings.items():
            changes = {"alpha": self.grid.alpha[0], "rank": self.grid.rank[0]}
            _checked(f"grid.readings.{shown}", Merger(method="r2m", parameters=parameters), names, changes)
        return self


def _checked(where: str, merger: Merger, names: tuple[str, ...], changes: dict[str, Any]) -> None:
    try:
        merger.recipe(names, **changes)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ValueError(f"{where}: {reason}") from None
