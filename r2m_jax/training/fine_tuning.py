"""Short runs on images in memory: any number of detectors from one start, with one compiled step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8

from r2m_jax.data.pipeline import training_batches
from r2m_jax.models import Detector, Params, apply_detector
from r2m_jax.training.inputs import image_inputs
from r2m_jax.training.loop import Window, fit
from r2m_jax.training.step import init_state, train_step


@dataclass(frozen=True)
class FineTuning:
    """Settings of a short run.

    Attributes:
        passes: over the images.
        batch_size: images per step.
        learning_rate: peak of a warm-up (a tenth of the steps) and a cosine to zero.
        weight_decay: L2 in the gradient (coupled).
        seed: of sample order and mirroring.
    """

    passes: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    seed: int


class FineTuner:
    """Trains every parameter of a detector, mirroring images at random.

    Args:
        begin: where every run starts, with its head.
        settings: of every run.
        mesh: devices to split batches over.
    """

    def __init__(self, begin: Detector, settings: FineTuning, mesh: Mesh):
        self._begin, self._settings, self._mesh = begin, settings, mesh
        logits = apply_detector(begin.config, begin.options)
        inputs = image_inputs(begin.processor.image_mean, begin.processor.image_std)
        # The length of a run is in its optimiser's state, so the step compiled for the first run serves the others.
        self._step = jax.jit(train_step(logits, self._optimizer(1), inputs), donate_argnums=0)

    def steps(self, images: int) -> int:
        """Steps of a run over so many images."""
        return images * self._settings.passes // self._settings.batch_size

    def run(
        self,
        images: UInt8[Any, "n h w 3"],
        labels: Sequence[int],
        on_window: Callable[[Window], None] | None = None,
    ) -> Params:
        """Parameters after the run; they depend on the start, the settings and the images alone.

        Args:
            images: uint8.
            labels: 0 real, 1 fake.
            on_window: told of every window of steps.

        Raises:
            InputError: a class is absent, the images do not fill a batch, or the loss becomes NaN.
        """
        chosen = self._settings
        batches, steps = training_batches(
            images, labels, batch_size=chosen.batch_size, passes=chosen.passes, seed=chosen.seed
        )
        state = init_state(self._begin.params, self._optimizer(steps), chosen.seed)
        return fit(self._step, state, batches, mesh=self._mesh, on_window=on_window).params

    def _optimizer(self, steps: int) -> optax.GradientTransformation:
        chosen = self._settings
        return optax.chain(
            optax.add_decayed_weights(chosen.weight_decay),
            optax.scale_by_adam(),
            clocked_cosine(chosen.learning_rate, steps),
        )


class _Clock(NamedTuple):
    done: Int[Array, ""]
    warmup: Int[Array, ""]
    total: Int[Array, ""]
    peak: Float[Array, ""]


def clocked_cosine(peak: float, steps: int, warmup_share: float = 0.1) -> optax.GradientTransformation:
    """:func:`r2m_jax.training.warmup_cosine` as a transformation that keeps its peak and steps in its state.

    A step compiled with one serves for any other.
    """
    warmup = max(1, round(steps * warmup_share))

    def init(params: Any) -> _Clock:
        return _Clock(jnp.int32(0), jnp.int32(warmup), jnp.int32(max(steps, warmup + 1)), jnp.float32(peak))

    def update(updates: Any, clock: _Clock, params: Any = None) -> tuple[Any, _Clock]:
        rate = _rate(clock)
        return jax.tree.map(lambda leaf: -rate * leaf, updates), clock._replace(done=clock.done + 1)

    return optax.GradientTransformation(init, update)


def _rate(clock: _Clock) -> Float[Array, ""]:
    rising = clock.done / clock.warmup
    share = jnp.clip((clock.done - clock.warmup) / (clock.total - clock.warmup), 0.0, 1.0)
    return clock.peak * jnp.where(clock.done < clock.warmup, rising, 0.5 * (1.0 + jnp.cos(jnp.pi * share)))
