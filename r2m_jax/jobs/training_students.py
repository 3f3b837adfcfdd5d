"""Where the training of a convolutional network begins: from nothing, or from one that is trained already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from r2m_jax.checkpoints import image_processor, load_convolutional
from r2m_jax.checkpoints.preprocessing import HALF
from r2m_jax.errors import InputError
from r2m_jax.jobs.training_lessons import learning, open_teacher, with_map
from r2m_jax.jobs.training_start import Start, normalisation
from r2m_jax.models import Params, apply_head
from r2m_jax.models.convolutional import (
    ConvolutionalDetector,
    Plan,
    apply_backbone,
    apply_convolutional,
    init_convolutional,
    learning_layers,
    plan_named,
)
from r2m_jax.models.convolutional.plan import ADAPTER
from r2m_jax.recipes import TrainRecipe
from r2m_jax.training import Output, matching
from r2m_jax.training.inputs import Lesson
from r2m_jax.trees import flatten


def new_student(recipe: TrainRecipe, wanted: str | Plan) -> Start:
    """A network with fresh parameters, for images of the recipe's size and, by default, mean = std = 0.5.

    Raises:
        InputError: there is no plan of that name, the size does not suit it, or the recipe asks what it cannot do.
    """
    plan = plan_named(wanted) if isinstance(wanted, str) else wanted
    plan = replace(plan, image_size=recipe.data.image_size or plan.image_size)
    key = jax.random.key(recipe.seed)
    student = ConvolutionalDetector.create(
        plan, init_convolutional(plan, key), image_processor(plan.image_size, HALF, HALF)
    )
    return _start(recipe, student, None, key)


def convolutional_start(recipe: TrainRecipe, directory: Path) -> Start:
    """A trained network, with a new head or an adapter if wanted.

    Raises:
        InputError: the directory, a pattern or the place of the adapter is wrong, or the recipe asks what such a
            network cannot do.
    """
    base, wanted, key = load_convolutional(directory), recipe.model, jax.random.key(recipe.seed)
    if recipe.data.image_size not in (None, base.config.image_size):
        raise InputError(
            f"data.image_size={recipe.data.image_size}, but the linear layers of {directory} were made for images of "
            f"{base.config.image_size} px; leave it out."
        )
    if wanted.head == "new":
        base = base.replace_params({**base.params, "head": init_convolutional(base.config, key)["head"]})
    if wanted.adapter:
        base = base.with_adapter(wanted.adapter.place, wanted.adapter.residual, jax.random.fold_in(key, 1))
    return _start(recipe, base, directory, key)


def _start(recipe: TrainRecipe, base: ConvolutionalDetector, directory: Path | None, key: Key[Array, ""]) -> Start:
    wanted, plan = recipe.model, base.config
    for name, asked in (
        ("lora", wanted.lora), ("cache_features", wanted.cache_features), ("corit", wanted.corit),
        ("remat", wanted.remat != "none"),
    ):  # fmt: skip
        if asked:
            raise InputError(f"model.{name} is for CLIP towers, not for convolutional networks; leave it out.")
    if recipe.sam and recipe.sam.parts > 1:
        raise InputError(
            f"sam.parts={recipe.sam.parts} cuts the batch whose statistics batch normalisation takes; set it to 1."
        )
    base = replace(base, processor=image_processor(plan.image_size, *normalisation(recipe.data, base.processor)))
    chosen = matching(_patterns(recipe, plan), base.params)
    network = apply_backbone(plan, jnp.dtype(wanted.dtype))

    def trainable(path: str) -> bool:
        return not path.startswith("statistics/") and chosen(path)

    layers = learning_layers(plan, trainable)

    def forward(params: Params, lesson: Lesson) -> Output:
        seen = network(params, lesson.images, key=lesson.key, learning=layers)
        moved = flatten({"statistics": {name: seen.statistics[name] for name in layers}}) if layers else {}
        return Output(apply_head(params["head"], seen.features), seen.features, moved)

    taught = recipe.distillation
    begin = Start(
        base, directory, base.params, trainable, apply_convolutional(plan, jnp.dtype(wanted.dtype)), plan.image_size,
        learning=learning(forward, taught, open_teacher(taught) if taught else None),
    )  # fmt: skip
    return with_map(begin, plan.width, jax.random.fold_in(key, 2))


def _patterns(recipe: TrainRecipe, plan: Plan) -> Sequence[str]:
    """Regular expressions of the leaves to train."""
    wanted: Any = recipe.model
    if wanted.adapter:
        return [f"backbone/{ADAPTER}/.*", *(["head/.*"] if wanted.adapter.train_head else [])]
    if wanted.last_blocks is None:
        return list(wanted.trainable)
    names = [layer.name for layer in plan.layers() if layer.block and layer.name != ADAPTER]
    if wanted.last_blocks > len(names):
        raise InputError(f"model.last_blocks={wanted.last_blocks}, but the network has {len(names)} blocks.")
    last = "|".join([*names[-wanted.last_blocks :], *(["fc\\d+"] if plan.hidden else [])])
    return [f"backbone/({last})/.*", "head/.*"]
