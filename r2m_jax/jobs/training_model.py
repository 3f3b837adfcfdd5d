"""What a training recipe trains: the base with its new head, the leaves that move, the function to logits."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from r2m_jax.checkpoints import load_detector, save_corit, save_detector, tiny_base
from r2m_jax.checkpoints.preprocessing import CLIP_MEAN, CLIP_STD, HALF, image_processor
from r2m_jax.data.augment import PRESETS, Policy, preset
from r2m_jax.data.catalogue import nearest
from r2m_jax.errors import InputError
from r2m_jax.models import Detector, Params, apply_detector, init_head
from r2m_jax.models.clip_vision import TowerOptions
from r2m_jax.models.corit import CoritDetector, CoritSettings, apply_corit_head, corit_features, init_corit_head
from r2m_jax.models.detector import apply_head
from r2m_jax.recipes.training import DataRecipe, TrainRecipe
from r2m_jax.training import lora, matching
from r2m_jax.training.trainable import Trainable


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        base: the detector trained from, with the processing the result will have.
        directory: it was read from.
        params: with the new head, and adapters if any.
        trainable: which leaves move.
        logits: ``logits(params, inputs)``; inputs are normalised images, or features when they are cached or
            ``frozen`` computes them.
        size: sides of the input in pixels.
        frozen: what comes before ``logits`` and is not trained, ``frozen(params, inputs)``; None for nothing.
        corit: switches of a CoRIT detector, if it is one.
    """

    base: Detector
    directory: Path
    params: Params
    trainable: Trainable
    logits: Callable[[Params, Any], Any]
    size: int
    frozen: Callable[[Params, Any], Any] | None = None
    corit: CoritSettings | None = None

    def score(self, params: Params, inputs: Any) -> Any:
        """Logits of what a batch becomes, through the frozen part if there is one."""
        return self.logits(params, inputs if self.frozen is None else self.frozen(params, inputs))

    def save(self, params: Params, directory: Path, made: Mapping[str, Any]) -> None:
        """Write the model directory of trained parameters, with its provenance."""
        if self.corit is None:
            save_detector(self.base.replace_params(params), directory, provenance=made)
            return
        base = self.base
        trained = CoritDetector.create(base.config, params, base.processor, self.corit, options=base.options)
        save_corit(trained, directory, provenance=made)

    @property
    def mean(self) -> Sequence[float]:
        """Of the normalisation."""
        return self.base.processor.image_mean

    @property
    def std(self) -> Sequence[float]:
        """Of the normalisation."""
        return self.base.processor.image_std


def start(recipe: TrainRecipe) -> Start:
    """Load the base and prepare it.

    Raises:
        InputError: the base or a pattern of the recipe is unusable.
    """
    wanted = recipe.model
    directory = tiny_base() if wanted.base == "tiny" else Path(wanted.base)
    options = TowerOptions(dtype=jnp.dtype(wanted.dtype), remat=wanted.remat)
    with warnings.catch_warnings():
        if wanted.head == "new":
            warnings.filterwarnings("ignore", message=".*has no head", category=UserWarning)
        base = load_detector(directory, options=options)
    size = recipe.data.image_size or base.processor.crop_size["height"]
    patch = base.config.patch_size
    if size % patch:
        raise InputError(f"data.image_size={size} is no multiple of the base's patches of {patch} pixels.")
    mean, std = _normalisation(recipe.data, base)
    base = replace(base, processor=image_processor(size, mean, std))
    key = jax.random.key(recipe.seed)
    if wanted.corit is not None:
        return _corit(wanted.corit, list(wanted.trainable), base, directory, size, key)
    head = init_head(base.config.hidden_size, key) if wanted.head == "new" else base.params["head"]
    params = {**base.params, "head": head}
    logits = apply_detector(base.config, options)
    patterns = list(wanted.trainable)
    if wanted.cache_features:
        logits = lambda params, features: apply_head(params["head"], features)  # noqa: E731
    if wanted.lora:
        params = lora.attach(params, wanted.lora.targets, wanted.lora.rank, jax.random.fold_in(key, 1))
        logits = lora.adapted(logits, wanted.lora.alpha)
        patterns.append(f"{lora.PREFIX}/.*")
    return Start(base, directory, params, matching(patterns, params), logits, size)


def _corit(
    wanted: CoritSettings, patterns: Sequence[str], base: Detector, directory: Path, size: int, key: Key[Array, ""]
) -> Start:
    settings = wanted.resolved(base.config)
    params = {**base.params, "head": init_corit_head(base.config, settings, key)}
    features = corit_features(base.config, settings, base.options)
    return Start(
        base, directory, params, matching(patterns, params),
        logits=lambda params, features: apply_corit_head(params["head"], features),
        size=size,
        frozen=lambda params, inputs: features(params["backbone"], *inputs),
        corit=settings,
    )  # fmt: skip


def policy(recipe: DataRecipe) -> Policy:
    """The augmentation of a recipe.

    Raises:
        InputError: a name or setting is unknown or out of range.
    """
    if isinstance(recipe.augment, str):
        return preset(recipe.augment)
    settings: Mapping[str, Any] = recipe.augment
    known = [field.name for field in fields(Policy)]
    for key in settings:
        if key not in known:
            raise InputError(f"data.augment has no key {key!r}; {nearest(key, known)}")
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    return replace(PRESETS["none"], **given)


def _normalisation(recipe: DataRecipe, base: Detector) -> tuple[Sequence[float], Sequence[float]]:
    own = tuple(base.processor.image_mean), tuple(base.processor.image_std)
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
