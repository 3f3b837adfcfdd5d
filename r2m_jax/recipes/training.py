"""The recipe of ``r2m train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from r2m_jax.models.convolutional.plan import Place, Plan, parse_plan, plan_named
from r2m_jax.models.corit import CoritSettings
from r2m_jax.training import OptimizerRecipe
from r2m_jax.training.distillation import Likeness


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


class DataRecipe(_Section):
    """What is learnt from. Real images are always kept; the selections below are of forgeries.

    Attributes:
        index: index file, or a folder with one (``r2m data index`` makes it).
        sets: named sets of the papers, e.g. ``[r2m-fs-ff]``; their union. Empty for no such restriction.
        families, methods: of forgeries; empty for all.
        domains, compressions: of all images; empty for all.
        frames: per clip, at most; None for all.
        frame_selection: which of them (``even``, ``bench``, ``df40``).
        image_size: sides of the model's input in pixels; None for the base's own. Positions are interpolated.
        normalisation: ``base`` keeps the base model's; ``clip`` and ``half`` (mean = std = 0.5, DeepfakeBench) differ
            from it perhaps, which is warned of; or ``{mean: [r, g, b], std: [r, g, b]}``.
        sampling: ``natural``, ``balanced`` or ``per_method``.
        augment: ``df40``, ``r2m_text``, ``flip`` or ``none``, or the settings of a policy.
        augment_on: ``host`` in the decoding workers, ``device`` inside the step.
        workers: decoding threads.
        exact: decode large JPEG images in full, instead of shrinking them in the decoder.
        on_corrupt: ``error`` stops at an unreadable image, ``skip`` replaces it and counts.
        timeout: seconds to wait for a batch before the run ends and names what the workers hang at.
    """

    index: Path
    sets: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    compressions: tuple[str, ...] = ()
    frames: int | None = Field(None, ge=1)
    frame_selection: Literal["even", "bench", "df40"] = "even"
    image_size: int | None = Field(None, ge=8)
    normalisation: Literal["base", "clip", "half"] | dict[Literal["mean", "std"], tuple[float, float, float]] = "base"
    sampling: Literal["natural", "balanced", "per_method"] = "natural"
    augment: str | dict[str, Any] = "df40"
    augment_on: Literal["host", "device"] = "host"
    workers: int = Field(2, ge=0)
    exact: bool = True
    on_corrupt: Literal["error", "skip"] = "error"
    timeout: float = Field(600.0, gt=0)

    @field_validator("sets", "families", "methods", "domains", "compressions", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


EVERYTHING = (".*",)
"""Every leaf, as a pattern."""


class LoraRecipe(_Section):
    """Low-rank adapters, see :mod:`r2m_jax.training.lora`.

    Attributes:
        rank: of each adapter.
        alpha: an adapter counts alpha / rank.
        targets: regular expressions of whole leaf paths.
    """

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    targets: tuple[str, ...] = (r"backbone/layers/attn/(q|k|v|out)/kernel",)


class AdapterRecipe(_Section):
    """An adapter put into a trained convolutional network, of which it alone is trained.

    Attributes:
        place: ``first``, ``middle`` or ``last`` block, or the number of the one it follows.
        residual: add what it computes to what comes in, so that nothing changes at first.
        train_head: train the last linear layer too.
    """

    place: Place | Annotated[int, Field(ge=1)] = "last"
    residual: bool = False
    train_head: bool = False


class DistillationRecipe(_Section):
    """A teacher, and how much of what it says is learnt (:func:`r2m_jax.training.distillation.distilling`).

    Attributes:
        teacher: model directory of any kind that reads single images, of any input size.
        temperature: of both softmaxes.
        soft: weight of the teacher's probabilities.
        hard: weight of the labels.
        features: weight of the teacher's features, which the student's are mapped to linearly.
        likeness: of features, ``mse`` or ``cosine``.
    """

    teacher: Path
    temperature: float = Field(2.0, gt=0)
    soft: float = Field(0.25, ge=0)
    hard: float = Field(0.75, ge=0)
    features: float = Field(0.0, ge=0)
    likeness: Likeness = "mse"


def _plan(value: Any) -> Any:
    """One sentence for a plan that is none, in place of what it is not by each of the types it may have."""
    if isinstance(value, str):
        plan_named(value)
    return parse_plan(value, "the plan") if isinstance(value, dict) else value


class ModelRecipe(_Section):
    """What is trained.

    Attributes:
        base: model directory, or ``tiny`` for the one that ships.
        student: a convolutional network to train from nothing, in place of a base: a name of
            :data:`r2m_jax.models.convolutional.PLANS`, or a plan of your own.
        head: ``new`` draws one, ``keep`` goes on with the base's.
        trainable: regular expressions of whole leaf paths, e.g. ``[head/.*, backbone/.*norm.*]``.
        last_blocks: train, in place of what ``trainable`` names, the last so many blocks of a convolutional network,
            its hidden layers and its head.
        adapter: put into a convolutional base and trained alone.
        keep_zeros: kernel entries that are zero in the base stay so: a pruned base is fine-tuned.
        lora: adapters, trained beside what ``trainable`` names.
        corit: switches of a CoRIT detector (:class:`r2m_jax.models.corit.CoritSettings`), of which the head is trained.
        cache_features: compute the tower's output once and train the head on it; for a head alone, without
            augmentation.
        dtype: of activations and matrix products; parameters and their updates are float32 either way.
        remat: what the backward pass computes anew to save memory: ``none``, ``dots`` or ``full``.
    """

    base: str = "tiny"
    student: Annotated[str | Plan | None, BeforeValidator(_plan)] = None
    head: Literal["new", "keep"] = "new"
    trainable: tuple[str, ...] = EVERYTHING
    last_blocks: int | None = Field(None, ge=1)
    adapter: AdapterRecipe | None = None
    keep_zeros: bool = False
    lora: LoraRecipe | None = None
    corit: CoritSettings | None = None
    cache_features: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "dots", "full"] = "none"


class SamRecipe(_Section):
    """Sharpness-aware minimisation, see :class:`r2m_jax.training.Sharpness`."""

    rho: float = Field(0.05, ge=0)
    adaptive: bool = False
    eta: float = Field(0.01, ge=0)
    parts: int = Field(1, ge=1)


class ValidationRecipe(_Section):
    """Measured on the split ``val``, never on ``test``.

    Attributes:
        every: steps between measurements; None after every pass; 0 never.
        select: ``last`` keeps the parameters of the last step, ``val`` those with the best ``metric``.
        metric: AUC of frames or of clips (mean probability).
        patience: measurements without a better one after which the run ends; None never.
        batch_size: rows at a time; None for that of training.
    """

    every: int | None = Field(None, ge=0)
    select: Literal["last", "val"] = "last"
    metric: Literal["frame_auc", "video_auc"] = "frame_auc"
    patience: int | None = Field(None, ge=1)
    batch_size: int | None = Field(None, ge=1)


class StatesRecipe(_Section):
    """States of the run on disk, to resume from.

    Attributes:
        every: steps between them; None only when the run is asked to stop.
        keep: how many of the last.
    """

    every: int | None = Field(200, ge=1)
    keep: int = Field(2, ge=1)


class TrainRecipe(_Section):
    """Everything that decides a training run.

    Attributes:
        kind: what comes out: ``specialist`` of some families or methods, ``all_in_one``, ``linear_probe``, ``corit``,
            ``student``.
        name: of the model.
        out: model directory to make; ``{name}`` is replaced. While the run lasts, its log and states are in a folder
            of this name with ``.run`` at the end.
        seed: of every random choice: head, order of samples, augmentation.
        passes: over the data.
        steps: instead of passes.
        batch_size: rows of a step over all devices and processes.
        average: decay of an exponential moving average of the trained parameters, which is what is validated and kept.
        fsdp: devices over which parameters are split.
        window: steps between log lines.
    """

    kind: Literal["specialist", "all_in_one", "linear_probe", "corit", "student"] = "specialist"
    name: str = Field(min_length=1)
    out: str = "runs/{name}"
    seed: int = Field(1024, ge=0, lt=2**32)
    passes: int = Field(3, ge=1)
    steps: int | None = Field(None, ge=1)
    batch_size: int = Field(16, ge=1)
    data: DataRecipe
    model: ModelRecipe = ModelRecipe()
    optimizer: OptimizerRecipe = OptimizerRecipe()
    sam: SamRecipe | None = None
    distillation: DistillationRecipe | None = None
    average: float | None = Field(None, gt=0, lt=1)
    validation: ValidationRecipe = ValidationRecipe()
    states: StatesRecipe = StatesRecipe()
    fsdp: int = Field(1, ge=1)
    window: int = Field(20, ge=1)

    @model_validator(mode="after")
    def _fits_together(self) -> TrainRecipe:
        alone = self.model.lora is None and all(pattern.startswith("head/") for pattern in self.model.trainable)
        corit = self.model.corit
        if (self.kind == "corit") != (corit is not None):
            raise ValueError("kind=corit and the section model.corit go together: set both (model.corit={}) or none")
        if corit is not None:
            if not alone:
                raise ValueError("CoRIT's tower is frozen: set model.trainable=[head/.*] and no model.lora")
            if self.model.head == "keep":
                raise ValueError("a base has no head for CoRIT: set model.head=new")
            if self.data.augment_on == "device":
                raise ValueError("CoRIT blends augmented images on the host: set data.augment_on=host")
            if self.model.cache_features and corit.refined and corit.cgp == "random":
                raise ValueError("cached features see one self-blended image: set model.corit.cgp=canonical")
        if self.model.cache_features:
            if not alone:
                raise ValueError("cached features train a head alone: set model.trainable=[head/.*] and no model.lora")
            if self.data.augment != "none":
                raise ValueError("cached features cannot be augmented: set data.augment=none")
        self._student_fits()
        if self.validation.every == 0 and (self.validation.select == "val" or self.validation.patience):
            raise ValueError("validation.every=0 leaves nothing to select by; set it, or select=last and no patience")
        return self

    def _student_fits(self) -> None:
        model, taught = self.model, self.distillation
        chosen = model.trainable != EVERYTHING
        if model.student is not None and (model.adapter or model.last_blocks or model.keep_zeros):
            raise ValueError(
                "model.student starts from nothing: give a trained network as model.base for adapter, last_blocks or "
                "keep_zeros"
            )
        if chosen + (model.last_blocks is not None) + (model.adapter is not None) > 1:
            raise ValueError("model.trainable, last_blocks and adapter each say what is trained: set one of them")
        if model.adapter and model.head == "new" and not model.adapter.train_head:
            raise ValueError(
                "an adapter leaves the head as it is: set model.head=keep, or train a new one with "
                "model.adapter.train_head=true"
            )
        if model.keep_zeros and (model.lora or self.sam):
            raise ValueError("model.keep_zeros is lost under LoRA and SAM, which move every weight: set neither")
        if taught is not None:
            if model.corit is not None or model.cache_features:
                raise ValueError("a student learns from images: set neither model.corit nor cache_features")
            if not (taught.soft or taught.hard or taught.features):
                raise ValueError("every weight of the distillation is 0: set soft, hard or features")

    @property
    def directory(self) -> Path:
        """Where the model goes."""
        return Path(self.out.replace("{name}", self.name))
