"""The loop around the step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from r2m_jax.errors import InputError
from r2m_jax.parallel import any_process, batch_sharding, distribute, meet, own_rows, shard_batch, shardings
from r2m_jax.training.step import Metrics, TrainState


@dataclass(frozen=True)
class Window:
    """Some consecutive steps, fetched from the devices together.

    Attributes:
        first: number of the first step, counted from 1.
        loss, accuracy, gradient_norm: of every step, float32 [w].
        margin: fake-minus-real logit of every row of this process, float32 [w, b].
        label: of these rows, int [w, b].
        index: numbers of the rows' records, int [w, b]; None where batches do not tell.
    """

    first: int
    loss: Float[np.ndarray, " w"]
    accuracy: Float[np.ndarray, " w"]
    gradient_norm: Float[np.ndarray, " w"]
    margin: Float[np.ndarray, "w b"]
    label: Int[np.ndarray, "w b"]
    index: Int[np.ndarray, "w b"] | None

    @property
    def last(self) -> int:
        """Number of the last step."""
        return self.first + len(self.loss) - 1


@dataclass(frozen=True)
class Hook:
    """Something done between two steps, after every ``every`` steps and after the last.

    Attributes:
        every: steps.
        run: given the number of steps done and the state, which it may read until it returns; True ends the run.
    """

    every: int
    run: Callable[[int, TrainState], bool]


class Interrupted(Exception):
    """The run was asked to stop; hooks that save have run.

    Attributes:
        step: steps done.
    """

    def __init__(self, step: int):
        super().__init__(f"stopped after step {step}")
        self.step = step


def fit(
    step: Callable[[TrainState, Any], tuple[TrainState, Metrics]],
    state: TrainState,
    batches: Iterable[Any],
    *,
    mesh: Mesh,
    window: int = 20,
    on_window: Callable[[Window], None] | None = None,
    hooks: Sequence[Hook] = (),
    on_stop: Callable[[int, TrainState], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> TrainState:
    """Run ``step`` over all batches.

    Metrics stay on the devices until their window is full, so that steps follow each other without waiting. A hook
    sees a state whose losses have all been found finite, and every step before it has been in a window.

    Args:
        step: of :func:`r2m_jax.training.step.train_step`; it may be jitted already, with donated state, to share one
            compilation between runs.
        state: where to start.
        batches: dicts of NumPy arrays with a common leading axis, the rows of this process.
        mesh: devices to split batches over, and parameters over its ``fsdp`` axis.
        window: steps after which metrics are fetched and checked.
        on_window: told of each window.
        hooks: run in this order.
        on_stop: called instead of the hooks' next turn when ``stop`` says so.
        stop: asked after every step (every window, where there are several processes, which must agree).

    Raises:
        InputError: the loss became NaN or infinite, or a batch does not divide over the devices.
        Interrupted: ``stop`` said so.
    """
    state = distribute(mesh, state)
    number = int(state.step)
    pending: list[tuple[Metrics, Any]] = []
    alone = jax.process_count() == 1

    def close() -> None:
        if pending:
            fetched = _fetch(number - len(pending) + 1, pending)
            pending.clear()
            _refuse_nan(fetched)
            if on_window:
                on_window(fetched)

    ended = False
    for batch in batches:
        kept = {name: batch[name] for name in ("label", "index") if name in batch}
        fed = {name: leaf for name, leaf in batch.items() if name not in ("index", "valid")}
        state, metrics = step(state, shard_batch(mesh, fed))
        pending.append((metrics, kept))
        number += 1
        full = number % window == 0
        if full:
            close()
        if stop and (alone or full) and any_process(stop()):
            close()
            if on_stop:
                on_stop(number, state)
            raise Interrupted(number)
        due = [hook for hook in hooks if number % hook.every == 0]
        if due:
            close()
            # All of them, also after one that ends the run: what is to be saved is saved.
            ended = any([hook.run(number, state) for hook in due])  # noqa: C419
        if ended:
            break
    close()
    if not ended:
        for hook in hooks:
            if number % hook.every:
                hook.run(number, state)
    return jax.block_until_ready(state)


def compiled(
    step: Callable[..., tuple[TrainState, Metrics]], state: TrainState, mesh: Mesh
) -> Callable[..., tuple[TrainState, Metrics]]:
    """A step compiled for a mesh, with its state donated and kept where :func:`r2m_jax.parallel.shardings` puts it."""
    one = NamedSharding(mesh, PartitionSpec())
    metrics: Any = (one, one, one, batch_sharding(mesh))
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings(mesh, state), Metrics(*metrics)))
    return jitted if jax.process_count() == 1 else _begun_together(jitted)


def _begun_together(jitted: Any) -> Callable[..., tuple[TrainState, Metrics]]:
    """A step of several processes that none of them begins before all have compiled it.

    Collectives on CPUs give up after half a minute, which is less than compile times drift apart on a busy machine.
    """
    programs: list[Any] = []

    def step(*given: Any) -> tuple[TrainState, Metrics]:
        if not programs:
            programs.append(jitted.lower(*given).compile())
            meet()
        made: tuple[TrainState, Metrics] = programs[0](*given)
        return made

    return step


def _fetch(first: int, pending: Sequence[tuple[Metrics, Any]]) -> Window:
    metrics = [metrics for metrics, _ in pending]
    loss, accuracy, norm = (
        np.asarray([np.asarray(getattr(m, name)) for m in metrics]) for name in ("loss", "accuracy", "gradient_norm")
    )
    margin = np.stack([own_rows(m.margin) for m in metrics])
    label = np.stack([kept["label"] for _, kept in pending])
    index = np.stack([kept["index"] for _, kept in pending]) if "index" in pending[0][1] else None
    return Window(first, loss, accuracy, norm, margin, label, index)


def _refuse_nan(window: Window) -> None:
    bad = np.flatnonzero(~np.isfinite(window.loss))
    if not bad.size:
        return
    place = int(bad[0])
    rows = "" if window.index is None else f" (records {', '.join(map(str, window.index[place]))})"
    raise InputError(
        f"the loss is {window.loss[place]} at step {window.first + place}{rows}; try a lower learning rate, a longer "
        "warm-up or clip_norm, and look at these images."
    )
