"""What flows into a training run: batches to learn from, and how val is measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from r2m_jax.checkpoints import provenance
from r2m_jax.data.augment.host import augment
from r2m_jax.data.device import normalise
from r2m_jax.data.pipeline import Decoding, FeatureBatches, RecordSource, batches, evaluation_batches
from r2m_jax.evaluation.inference import score_batches
from r2m_jax.jobs.corit import given, pairs_for, without_landmarks
from r2m_jax.jobs.features import default_cache, features_of
from r2m_jax.jobs.training_data import TrainingData
from r2m_jax.jobs.training_lessons import TaughtBatches, answers_keep, answers_to
from r2m_jax.jobs.training_model import policy
from r2m_jax.jobs.training_start import Start
from r2m_jax.models import Detector, Params
from r2m_jax.progress import Reporter
from r2m_jax.recipes import TrainRecipe
from r2m_jax.training import by_policy, feature_inputs, image_inputs, lesson_inputs, pair_inputs, unchanged
from r2m_jax.training.inputs import Inputs


class Stream(Protocol):
    """Batches that can be left and taken up again."""

    unreadable: dict[str, str]

    def __len__(self) -> int: ...
    def __next__(self) -> Any: ...
    def get_state(self) -> dict[str, Any]:
        """Where it stands, as JSON values."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Go there."""

    def close(self) -> None:
        """Stop what runs in the background."""


@dataclass(frozen=True)
class Streams:
    """Everything a run takes from its data.

    Attributes:
        train: batches, of all passes.
        inputs: what the model sees of a batch.
        validate: fake-minus-real logit of every val record under some parameters; None without val.
        asks: whether the teacher is asked in every step, of what ``inputs`` keeps for it.
    """

    train: Stream
    inputs: Inputs
    validate: Callable[[Params], Float[np.ndarray, " n"]] | None
    asks: bool = False


def streams(recipe: TrainRecipe, data: TrainingData, begin: Start, mesh: Mesh, reporter: Reporter) -> Streams:
    """Batches of images, or of features computed once, as the recipe wants them.

    Raises:
        InputError: the batch does not fit the data or the devices, or an image cannot be read.
    """
    epochs = recipe.passes if not recipe.steps else math.ceil(recipe.steps * recipe.batch_size / len(data.train))
    order: dict[str, Any] = {
        "batch_size": recipe.batch_size, "seed": recipe.seed, "epochs": epochs, "sampling": recipe.data.sampling,
        "shard": (jax.process_index(), jax.process_count()),
    }  # fmt: skip
    decoding = Decoding(
        begin.size, recipe.data.workers, exact=recipe.data.exact, on_corrupt=recipe.data.on_corrupt,
        timeout=recipe.data.timeout,
    )  # fmt: skip
    if begin.corit is not None:
        assert isinstance(begin.base, Detector)
        decoding = replace(decoding, prepare=pairs_for(begin.corit, begin.size, begin.base.config.patch_size))
        if said := without_landmarks(begin.corit, [*data.train, *data.val]):
            reporter.say(said)
    if recipe.model.cache_features:
        known = _features(recipe, data, begin, decoding, mesh, reporter)
        validate = _on_features(begin, known["val"]) if data.val else None
        return Streams(FeatureBatches(data.train, known["train"], **order), feature_inputs, validate)
    chosen, on_host = policy(recipe.data), recipe.data.augment_on == "host"
    asks = begin.teacher is not None and not answers_keep(recipe)
    if begin.corit is not None:
        assert isinstance(begin.base, Detector)
        prepare = pairs_for(begin.corit, begin.size, begin.base.config.patch_size, chosen)
        varied, inputs = replace(decoding, prepare=prepare), pair_inputs(begin.mean, begin.std)
    else:
        varied = replace(decoding, transform=partial(augment, policy=chosen)) if on_host else decoding
        varying = unchanged if on_host else by_policy(chosen)
        inputs = (
            image_inputs(begin.mean, begin.std, varying)
            if begin.learning is None
            else lesson_inputs(begin.mean, begin.std, varying, pixels=asks)
        )
    train: Stream = batches(RecordSource(data.train), decoding=varied, **order)
    if begin.teacher is not None and not asks:
        train = TaughtBatches(train, answers_to(data.train, begin.teacher, recipe, reporter))
    return Streams(train, inputs, _on_images(recipe, data, begin, decoding, mesh) if data.val else None, asks)


def _on_images(
    recipe: TrainRecipe, data: TrainingData, begin: Start, decoding: Decoding, mesh: Mesh
) -> Callable[[Params], np.ndarray]:
    paired = begin.corit is not None

    @jax.jit
    def margins(params: Params, seen: Any) -> Any:
        images, rest = (seen[0], seen[1:]) if paired else (seen, ())
        images = normalise(images, begin.mean, begin.std)
        both = begin.score(params, (images, *rest) if paired else images)
        return both[:, 1] - both[:, 0]

    size = recipe.validation.batch_size or recipe.batch_size
    shard = (jax.process_index(), jax.process_count())

    def measure(params: Params) -> np.ndarray:
        with evaluation_batches(RecordSource(data.val), batch_size=size, shard=shard, decoding=decoding) as stream:
            seen = given if paired else itemgetter("image")
            return score_batches(margins, params, stream, len(data.val), mesh=mesh, given=seen)[0]

    return measure


def _on_features(begin: Start, features: Float[np.ndarray, "n d"]) -> Callable[[Params], np.ndarray]:
    def measure(params: Params) -> np.ndarray:
        both = np.asarray(begin.logits(params, features))
        return both[:, 1] - both[:, 0]

    return measure


def _features(
    recipe: TrainRecipe, data: TrainingData, begin: Start, decoding: Decoding, mesh: Mesh, reporter: Reporter
) -> dict[str, np.ndarray]:
    assert isinstance(begin.base, Detector)
    weights = "+".join(provenance.sha256(path) for path in begin.files)
    return {
        split: features_of(
            records, begin.base.params["backbone"], begin.base.config, options=begin.base.options, mean=begin.mean,
            std=begin.std, decoding=decoding, batch_size=recipe.validation.batch_size or recipe.batch_size,
            mesh=mesh, weights=weights, cache=default_cache(), reporter=reporter, what=split, corit=begin.corit,
        )
        for split, records in (("train", data.train), ("val", data.val))
        if records
    }  # fmt: skip
