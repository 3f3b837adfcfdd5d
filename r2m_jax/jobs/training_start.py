"""Where a training run begins, whatever is trained."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from r2m_jax.checkpoints import save_convolutional, save_corit, save_detector
from r2m_jax.checkpoints.preprocessing import CLIP_MEAN, CLIP_STD, HALF
from r2m_jax.checkpoints.tensors import safetensors_files
from r2m_jax.errors import InputError
from r2m_jax.models import Detector, Params
from r2m_jax.models.convolutional import ConvolutionalDetector
from r2m_jax.models.corit import CoritDetector, CoritSettings
from r2m_jax.recipes.training import DataRecipe
from r2m_jax.training import Output, supervised
from r2m_jax.training.distillation import Taught, without_map
from r2m_jax.training.inputs import Lesson
from r2m_jax.training.objectives import Loss
from r2m_jax.training.trainable import Trainable


@dataclass(frozen=True)
class Teacher:
    """A model that answers while another learns.

    Attributes:
        directory: of the model.
        detector: it, loaded.
        params: its parameters.
        width: of its features.
        features: whether the student learns from them.
        answer: ``answer(params, images)`` of uint8 images of any size.
    """

    directory: Path
    detector: Any
    params: Params
    width: int
    features: bool
    answer: Callable[[Params, Any], Taught]


@dataclass(frozen=True)
class Learning:
    """How a model learns, where that differs from how it scores.

    Attributes:
        forward: what the step differentiates, ``forward(params, lesson)``.
        loss: what is minimised.
        teacher: None for labels alone.
    """

    forward: Callable[[Params, Lesson], Output]
    loss: Loss = supervised
    teacher: Teacher | None = None


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        base: the detector trained from, with the processing the result will have.
        directory: it was read from; None for one that starts from nothing.
        params: with the new head, and adapters if any.
        trainable: which leaves move.
        logits: ``logits(params, inputs)``; inputs are normalised images, or features when they are cached or
            ``frozen`` computes them.
        size: sides of the input in pixels.
        frozen: what comes before ``logits`` and is not trained, ``frozen(params, inputs)``; None for nothing.
        corit: switches of a CoRIT detector, if it is one.
        learning: how it learns from lessons; None where it learns as it scores.
    """

    base: Detector | ConvolutionalDetector
    directory: Path | None
    params: Params
    trainable: Trainable
    logits: Callable[[Params, Any], Any]
    size: int
    frozen: Callable[[Params, Any], Any] | None = None
    corit: CoritSettings | None = None
    learning: Learning | None = None

    def score(self, params: Params, inputs: Any) -> Any:
        """Logits of what a batch becomes, through the frozen part if there is one."""
        return self.logits(params, inputs if self.frozen is None else self.frozen(params, inputs))

    def save(self, params: Params, directory: Path, made: Mapping[str, Any]) -> None:
        """Write the model directory of trained parameters, with its provenance."""
        base, params = self.base, without_map(params)
        if isinstance(base, ConvolutionalDetector):
            save_convolutional(base.replace_params(params), directory, provenance=made)
        elif self.corit is None:
            save_detector(base.replace_params(params), directory, provenance=made)
        else:
            trained = CoritDetector.create(base.config, params, base.processor, self.corit, options=base.options)
            save_corit(trained, directory, provenance=made)

    @property
    def teacher(self) -> Teacher | None:
        """Whom it learns from beside labels."""
        return self.learning.teacher if self.learning else None

    @property
    def files(self) -> list[Path]:
        """Weights that the run reads."""
        read = [self.directory, self.teacher.directory if self.teacher else None]
        return [file for directory in read if directory for file in safetensors_files(directory)]

    @property
    def mean(self) -> Sequence[float]:
        """Of the normalisation."""
        mean: Sequence[float] = self.base.processor.image_mean
        return mean

    @property
    def std(self) -> Sequence[float]:
        """Of the normalisation."""
        std: Sequence[float] = self.base.processor.image_std
        return std


def normalisation(recipe: DataRecipe, processor: Any) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std that a recipe asks for; a warning where they are not those of the base's ``processor``.

    Raises:
        InputError: they are no three channels of finite width.
    """
    own = tuple(processor.image_mean), tuple(processor.image_std)
    chosen: Any = recipe.normalisation
    if isinstance(chosen, Mapping):
        if set(chosen) != {"mean", "std"} or min(chosen["std"]) <= 0:
            raise InputError("data.normalisation needs mean and std of three channels, std above 0.")
        asked = chosen["mean"], chosen["std"]
    else:
        asked = {"base": own, "clip": (CLIP_MEAN, CLIP_STD), "half": (HALF, HALF)}[chosen]
    if not np.allclose(asked, own, atol=1e-4):
        warnings.warn(
            f"the recipe normalises with mean {_short(asked[0])} and std {_short(asked[1])}, the base was trained with "
            f"{_short(own[0])} and {_short(own[1])}; the recipe's are used and stored with the result",
            stacklevel=2,
        )
    return asked


def _short(values: Sequence[float]) -> str:
    return "/".join(f"{value:g}" for value in values)
