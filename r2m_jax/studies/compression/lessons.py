"""Networks trained from memory: one compiled step for a network and what is trained of it, whatever it starts from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int, UInt8

from r2m_jax.checkpoints.preprocessing import HALF
from r2m_jax.models import Params, apply_head
from r2m_jax.models.convolutional import Plan, apply_backbone, learning_layers
from r2m_jax.models.convolutional.plan import ADAPTER
from r2m_jax.training.distillation import soft_loss
from r2m_jax.training.fine_tuning import clocked_cosine
from r2m_jax.training.inputs import Lesson, lesson_inputs, unchanged
from r2m_jax.training.loop import Window, compiled, fit
from r2m_jax.training.objectives import Output, cross_entropy
from r2m_jax.training.pruned import keep_zeros
from r2m_jax.training.step import Metrics, TrainState, init_state, train_step
from r2m_jax.training.trainable import Trainable
from r2m_jax.trees import flatten

Trained = Literal["all", "last", "adapter"]
"""Everything; the last block and all linear layers; the adapter alone."""


class Taught(NamedTuple):
    """What a teacher says of a batch, and how much it counts.

    Attributes:
        logits: class 1 is fake; zeros without a teacher.
        soft, hard: weights of its loss and of the labels', the same for every image.
        temperature: of its loss, likewise.
    """

    logits: Float[Array | np.ndarray, "b 2"]
    soft: Float[Array | np.ndarray, " b"]
    hard: Float[Array | np.ndarray, " b"]
    temperature: Float[Array | np.ndarray, " b"]


@dataclass(frozen=True)
class Pictures:
    """Images to learn from.

    Attributes:
        pixels: with their mirror images, uint8 [2, n, h, w, 3].
        labels: 0 real, 1 fake.
    """

    pixels: UInt8[np.ndarray, "2 n h w 3"]
    labels: Int[np.ndarray, " n"]

    @classmethod
    def of(cls, pixels: UInt8[np.ndarray, "n h w 3"], labels: Int[np.ndarray, " n"]) -> Pictures:
        """With mirror images made."""
        return cls(np.stack([pixels, pixels[:, :, ::-1]]), labels)


@dataclass(frozen=True)
class Teaching:
    """A teacher's answers.

    Attributes:
        logits: to images and mirror images, float32 [2, n, 2].
        soft, hard, temperature: see :class:`Taught`.
    """

    logits: Float32[np.ndarray, "2 n 2"]
    soft: float
    hard: float
    temperature: float


class Tuner:
    """Trains networks of a plan.

    Args:
        plan: of the networks.
        trained: what of them.
        batch_size: images a step.
        mesh: devices to split batches over.
    """

    def __init__(self, plan: Plan, trained: Trained, batch_size: int, mesh: Mesh):
        self._trainable = which(plan, trained)
        self._masked, self._batch_size, self._mesh = trained != "adapter", batch_size, mesh
        network, layers = apply_backbone(plan), learning_layers(plan, self._trainable)

        def forward(params: Params, lesson: Lesson) -> Output:
            seen = network(params, lesson.images, key=lesson.key, learning=layers)
            moved = flatten({"statistics": {name: seen.statistics[name] for name in layers}}) if layers else {}
            return Output(apply_head(params["head"], seen.features), None, moved)

        inputs = lesson_inputs(HALF, HALF, unchanged)
        # Masks, rate and length are in the optimiser's state: the step compiled first serves all starts.
        self._plain = train_step(forward, self._optimizer(1.0, 1), inputs, trainable=self._trainable, loss=_loss)
        self._step: Callable[..., tuple[TrainState, Metrics]] | None = None

    def steps(self, images: int, passes: int) -> int:
        """Steps of a run over so many images."""
        return images * passes // self._batch_size

    def run(
        self,
        start: Params,
        pictures: Pictures,
        teaching: Teaching | None,
        *,
        passes: int,
        rate: float,
        seed: int,
        on_window: Callable[[Window], None] | None = None,
    ) -> Params:
        """Parameters after a run; kernels' entries that were zero are zero.

        Args:
            start: parameters.
            pictures: to learn from, mirrored at random.
            teaching: of a teacher; None for labels alone.
            passes: over the images.
            rate: peak of the learning rate.
            seed: of the order, the mirroring and dropout.
            on_window: told of every window of steps.

        Raises:
            InputError: the loss becomes NaN.
        """
        steps = self.steps(len(pictures.labels), passes)
        state = init_state(start, self._optimizer(rate, steps), seed, self._trainable)
        if self._step is None:
            self._step = compiled(self._plain, state, self._mesh)
        batches = _batches(pictures, teaching, passes, self._batch_size, seed)
        params = fit(self._step, state, batches, mesh=self._mesh, on_window=on_window).params
        return jax.tree.map(np.asarray, params)

    def _optimizer(self, rate: float, steps: int) -> optax.GradientTransformation:
        adam = optax.chain(optax.scale_by_adam(), clocked_cosine(rate, steps))
        # An adapter may start from zeros that are to move, and of the rest nothing does.
        return keep_zeros(adam) if self._masked else adam


def which(plan: Plan, trained: Trained) -> Trainable:
    """The leaves that are trained, never running statistics."""
    blocks = [layer.name for layer in plan.layers() if layer.block and layer.name != ADAPTER]
    linear = [f"fc{number}" for number in range(1, len(plan.hidden) + 1)]
    parts = {"all": None, "last": {blocks[-1], *linear}, "adapter": {ADAPTER}}[trained]

    def trainable(path: str) -> bool:
        part, name = path.split("/")[:2]
        if part == "head":
            return trained != "adapter"
        return part == "backbone" and (parts is None or name in parts)

    return trainable


def _loss(output: Output, lesson: Any, labels: Int[Array, " b"]) -> Float[Array, ""]:
    taught = lesson.taught
    soft = soft_loss(output.logits, taught.logits, taught.temperature.mean())
    return taught.hard.mean() * cross_entropy(output.logits, labels) + taught.soft.mean() * soft


def _batches(
    pictures: Pictures, teaching: Teaching | None, passes: int, batch_size: int, seed: int
) -> Iterator[dict[str, Any]]:
    rng, count = np.random.default_rng(seed), len(pictures.labels)
    order = np.concatenate([rng.permutation(count) for _ in range(passes)])
    for first in range(0, len(order) - batch_size + 1, batch_size):
        rows = order[first : first + batch_size]
        mirrored = rng.integers(2, size=batch_size)
        logits = np.zeros((batch_size, 2), np.float32) if teaching is None else teaching.logits[mirrored, rows]
        weights = (0.0, 1.0, 1.0) if teaching is None else (teaching.soft, teaching.hard, teaching.temperature)
        taught = Taught(logits, *(np.full(batch_size, weight, np.float32) for weight in weights))
        yield {
            "image": pictures.pixels[mirrored, rows],
            "label": pictures.labels[rows].astype(np.int32),
            "taught": taught,
        }
