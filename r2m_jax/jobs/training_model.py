"""What a training recipe trains: the base with its new head, the leaves that move, the function to logits."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from r2m_jax.checkpoints import image_processor, load_detector, tiny_base
from r2m_jax.checkpoints.convolutional import is_convolutional
from r2m_jax.data.augment import PRESETS, Policy, preset
from r2m_jax.data.catalogue import nearest
from r2m_jax.errors import InputError
from r2m_jax.jobs.training_lessons import learning, open_teacher, with_map
from r2m_jax.jobs.training_start import Start, normalisation
from r2m_jax.jobs.training_students import convolutional_start, new_student
from r2m_jax.models import Detector, Params, apply_tower, init_head
from r2m_jax.models.clip_vision import TowerOptions
from r2m_jax.models.corit import CoritSettings, apply_corit_head, corit_features, init_corit_head
from r2m_jax.models.detector import apply_head
from r2m_jax.recipes.training import DataRecipe, TrainRecipe
from r2m_jax.training import Output, lora, matching


def start(recipe: TrainRecipe) -> Start:
    """Load the base and prepare it.

    Raises:
        InputError: the base or a pattern of the recipe is unusable.
    """
    wanted = recipe.model
    if wanted.student is not None:
        return new_student(recipe, wanted.student)
    directory = tiny_base() if wanted.base == "tiny" else Path(wanted.base)
    if is_convolutional(directory):
        return convolutional_start(recipe, directory)
    if wanted.adapter or wanted.last_blocks:
        asked = "adapter" if wanted.adapter else "last_blocks"
        raise InputError(f"model.{asked} is for convolutional networks, which {directory} is not; leave it out.")
    options = TowerOptions(dtype=jnp.dtype(wanted.dtype), remat=wanted.remat)
    with warnings.catch_warnings():
        if wanted.head == "new":
            warnings.filterwarnings("ignore", message=".*has no head", category=UserWarning)
        base = load_detector(directory, options=options)
    size = recipe.data.image_size or base.processor.crop_size["height"]
    patch = base.config.patch_size
    if size % patch:
        raise InputError(f"data.image_size={size} is no multiple of the base's patches of {patch} pixels.")
    mean, std = normalisation(recipe.data, base.processor)
    base = replace(base, processor=image_processor(size, mean, std))
    key = jax.random.key(recipe.seed)
    if wanted.corit is not None:
        return _corit(wanted.corit, list(wanted.trainable), base, directory, size, key)
    head = init_head(base.config.hidden_size, key) if wanted.head == "new" else base.params["head"]
    params = {**base.params, "head": head}
    tower = apply_tower(base.config, options)
    patterns = list(wanted.trainable)

    def plain(params: Params, images: Any) -> Output:
        pooled = tower(params["backbone"], images).pooled
        return Output(apply_head(params["head"], pooled), pooled)

    both: Callable[[Params, Any], Output] = plain
    if wanted.lora:
        params = lora.attach(params, wanted.lora.targets, wanted.lora.rank, jax.random.fold_in(key, 1))
        both = lora.adapted(plain, wanted.lora.alpha)
        patterns.append(f"{lora.PREFIX}/.*")

    def logits(params: Params, seen: Any) -> Float[Array, "b 2"]:
        return apply_head(params["head"], seen) if wanted.cache_features else both(params, seen).logits

    begin = Start(base, directory, params, matching(patterns, params), logits, size)
    if recipe.distillation is None:
        return begin
    teacher = open_teacher(recipe.distillation)
    lessons = learning(lambda params, lesson: both(params, lesson.images), recipe.distillation, teacher)
    return with_map(replace(begin, learning=lessons), base.config.hidden_size, jax.random.fold_in(key, 2))


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
