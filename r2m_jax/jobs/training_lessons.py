"""How students learn from a teacher: what it answers, when, and how that reaches the training step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, UInt8

from r2m_jax.data.records import Record
from r2m_jax.errors import InputError
from r2m_jax.jobs.kinds import Ready, describe
from r2m_jax.jobs.scoring import score_models
from r2m_jax.jobs.training_start import Learning, Start, Teacher
from r2m_jax.models import Params
from r2m_jax.progress import Reporter
from r2m_jax.recipes import TrainRecipe
from r2m_jax.recipes.training import DistillationRecipe
from r2m_jax.training import Output
from r2m_jax.training.distillation import PREFIX, Taught, attach_map, distilling, mapped
from r2m_jax.training.inputs import Lesson
from r2m_jax.training.trainable import Trainable


def open_teacher(recipe: DistillationRecipe) -> Teacher:
    """Load the teacher of a recipe.

    Raises:
        InputError: it is no model directory, has no trained head, or does not read single images.
    """
    described = describe(recipe.teacher, name="distillation.teacher")
    if described.inputs != ("image",):
        raise InputError(
            f"distillation.teacher={recipe.teacher} is a {described.kind} model, which reads "
            f"{' and '.join(described.inputs)}; only a model that reads single images can teach."
        )
    ready = described.load()
    if not ready.trained:
        raise InputError(f"distillation.teacher={recipe.teacher} has no trained head, so it has nothing to teach.")
    features = recipe.features > 0
    return Teacher(
        recipe.teacher, ready.detector, ready.params, ready.width, features, _answer(ready, described.size, features)
    )


def _answer(ready: Ready, size: int, features: bool) -> Callable[[Params, UInt8[Array, "b h w 3"]], Taught]:
    def answer(params: Params, images: UInt8[Array, "b h w 3"]) -> Taught:
        if images.shape[1] != size:
            shape = (len(images), size, size, 3)
            resized = jax.image.resize(images.astype(jnp.float32), shape, "cubic")
            images = jnp.clip(jnp.round(resized), 0, 255).astype(jnp.uint8)
        read = ready.encode(params, images)
        return Taught(ready.head(params, read), read.astype(jnp.float32) if features else None)

    return answer


def learning(
    forward: Callable[[Params, Lesson], Output], recipe: DistillationRecipe | None, teacher: Teacher | None
) -> Learning:
    """How a model learns under a recipe.

    Args:
        forward: the model in training; its features are its own.
        recipe: None for labels alone.
        teacher: of the recipe.
    """
    if recipe is None:
        return Learning(forward)
    terms = recipe.model_dump(exclude={"teacher"})

    def taught(params: Params, lesson: Lesson) -> Output:
        made = forward({name: tree for name, tree in params.items() if name != PREFIX}, lesson)
        if not recipe.features:
            return made._replace(features=None)
        assert made.features is not None
        return made._replace(features=mapped(params, made.features))

    return Learning(taught, distilling(**terms), teacher)


def with_map(begin: Start, width: int, key: Key[Array, ""]) -> Start:
    """The start of a run with a map from its features to the teacher's, where those are learnt from.

    Args:
        begin: of a run with a teacher, or without.
        width: of its own features.
        key: of the map's draw.
    """
    teacher = begin.teacher
    if teacher is None or not teacher.features:
        return begin
    params = attach_map(begin.params, width, teacher.width, key)
    return replace(begin, params=params, trainable=_and_map(begin.trainable))


def _and_map(trainable: Trainable) -> Trainable:
    return lambda path: path.startswith(f"{PREFIX}/") or trainable(path)


def ask(params: Params, lesson: Lesson, teacher: Teacher) -> Lesson:
    """The lesson with the teacher's answers in place of the pixels it was shown."""
    return lesson._replace(pixels=None, taught=teacher.answer(params, lesson.pixels))


def answers_keep(recipe: TrainRecipe) -> bool:
    """Whether a teacher sees the same images every time, so that it need be asked but once."""
    return recipe.data.augment == "none" and recipe.data.on_corrupt == "error"


def answers_to(records: list[Record], teacher: Teacher, recipe: TrainRecipe, reporter: Reporter) -> Taught:
    """What a teacher says of every record, from images read at its own size.

    Of logits only the difference matters under a softmax; they come as (0, difference).
    """
    scored = score_models(
        {"teacher": teacher.detector}, records, reporter=reporter, workers=recipe.data.workers,
        batch_size=recipe.validation.batch_size or recipe.batch_size, features=teacher.features, strict=True,
    )  # fmt: skip
    margin = scored.table.logits["teacher"]
    logits = np.stack([np.zeros_like(margin), margin], axis=1)
    return Taught(logits, scored.features["teacher"] if teacher.features else None)


class TaughtBatches:
    """Batches of a stream with what a teacher said of their images, ``taught``.

    Args:
        batches: whose ``index`` numbers records.
        answers: one row per record.
    """

    def __init__(self, batches: Any, answers: Taught):
        self._batches, self._answers = batches, answers
        self.unreadable: dict[str, str] = batches.unreadable

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> TaughtBatches:
        return self

    def __next__(self) -> Any:
        batch = next(self._batches)
        return {**batch, "taught": jax.tree.map(lambda rows: rows[batch["index"]], self._answers)}

    def get_state(self) -> dict[str, Any]:
        """Where it stands, as JSON values."""
        state: dict[str, Any] = self._batches.get_state()
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Go there."""
        self._batches.set_state(state)

    def close(self) -> None:
        """Stop what runs in the background."""
        self._batches.close()
