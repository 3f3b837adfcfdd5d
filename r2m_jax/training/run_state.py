"""What a run needs to go on after it was stopped: training state, place in the data, notes; kept by Orbax."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from r2m_jax.checkpoints.sharded import quiet, save_sharded
from r2m_jax.errors import InputError
from r2m_jax.parallel import shardings
from r2m_jax.training.step import TrainState
from r2m_jax.trees import flatten


class RunStates:
    """The last states of a run, in one folder; a save happens in the background and is seen whole or not at all.

    Use as a context manager: leaving it waits for the save under way. In a computation of several processes every one
    of them calls every method, and the folder is one that all see.

    Args:
        folder: made when the first state is saved.
        keep: how many of the last states to keep.
    """

    def __init__(self, folder: Path, keep: int):
        policy = ocp.training.preservation_policies.LatestN(keep)
        self._folder = Path(folder).absolute()
        try:
            self._checkpointer = ocp.training.Checkpointer(
                self._folder, preservation_policy=policy, cleanup_tmp_directories=True
            )
        except OSError as error:
            raise InputError(f"{folder} cannot be written ({error.strerror}); choose another output.") from None
        self._pending: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and jax.process_count() > 1:
            return  # the others may never come to where a save waits for them
        try:
            self.wait()
        except InputError:
            if kind is None:
                raise
        finally:
            with contextlib.suppress(OSError, ValueError):  # a failed save's error once more
                self._checkpointer.close()

    @property
    def latest(self) -> int | None:
        """Step of the last state, None where there is none."""
        return self._checkpointer.latest.step if self._checkpointer.latest else None

    def save(self, state: TrainState, notes: dict[str, Any]) -> None:
        """Start to save; the state may be donated to the next step at once.

        Args:
            state: its ``step`` is the name it is kept under; a step that is there already is left.
            notes: JSON values, e.g. the place of the data iterator.

        Raises:
            InputError: this or the save before could not be written.
        """
        self.wait()
        step = int(state.step)
        if step == self.latest:
            return
        try:
            with quiet():
                self._pending = self._checkpointer.save_async(step, _storable(state), custom_metadata=notes, force=True)
        except OSError as error:
            raise self._unwritable(error) from None

    def wait(self) -> None:
        """Wait for the save under way.

        Raises:
            InputError: it could not be written.
        """
        pending, self._pending = self._pending, None
        try:
            if pending is not None:
                pending.result()
        except (OSError, ValueError) as error:  # tensorstore tells a full disk as a ValueError
            raise self._unwritable(error) from None

    def load(self, like: TrainState, mesh: Mesh) -> tuple[TrainState, dict[str, Any]]:
        """The last state and its notes, placed on ``mesh``, which need not be the one it was saved from.

        Args:
            like: a state of the same structure, arrays or shapes.
            mesh: of :func:`r2m_jax.parallel.data_mesh`.

        Raises:
            InputError: there is none, or it is of another model, optimiser or choice of trained leaves.
        """
        found = self._checkpointer.latest
        if found is None:
            raise InputError(f"{self._folder} holds no saved state.")
        wanted = jax.eval_shape(_storable, like)
        with quiet():
            described = self._checkpointer.metadata(found.step)
        # Orbax would read leaves of another shape as far as they go.
        stored_shapes, shapes = (
            {path: tuple(leaf.shape) for path, leaf in flatten(tree).items()} for tree in (described.metadata, wanted)
        )
        for path in sorted(shapes.keys() | stored_shapes.keys()):
            if shapes.get(path) != stored_shapes.get(path):
                raise InputError(
                    f"the state at step {found.step} in {self._folder} is of another model or optimiser: {path} is "
                    f"{_words(stored_shapes.get(path))} there and {_words(shapes.get(path))} in this recipe; use the "
                    "recipe it was saved with, or start anew."
                )
        target = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            wanted,
            shardings(mesh, wanted),
        )
        with quiet():
            stored = self._checkpointer.load(found.step, target)
        return _restored(stored, like), dict(described.custom_metadata or {})

    def _unwritable(self, error: Exception) -> InputError:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0][:200]
        kept = f"the state of step {self.latest} is whole" if self.latest is not None else "no state was saved before"
        return InputError(f"the state of the run could not be saved in {self._folder} ({reason}); {kept}.")


def _words(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))


def _storable(state: TrainState) -> dict[str, Any]:
    """Plain arrays in dicts: random keys by their data; optax's tuples by their leaves, whose order is fixed."""
    return {
        "step": state.step,
        "params": state.params,
        "optimizer": {str(number): leaf for number, leaf in enumerate(jax.tree.leaves(state.optimizer))},
        "key": jax.random.key_data(state.key),
        "average": state.average,
    }


def _restored(stored: dict[str, Any], like: TrainState) -> TrainState:
    leaves = [stored["optimizer"][str(number)] for number in range(len(stored["optimizer"]))]
    optimizer = jax.tree.unflatten(jax.tree.structure(like.optimizer), leaves)
    key = jax.random.wrap_key_data(stored["key"], impl=jax.random.key_impl(like.key))
    return TrainState(stored["step"], stored["params"], optimizer, key, stored["average"])


def save_params(folder: Path, params: Any) -> None:
    """Keep parameters (the best of a run so far) in place of those kept before."""
    save_sharded(folder, params, overwrite=True)


def load_params(folder: Path, like: Any) -> Any:
    """What :func:`save_params` kept, as NumPy arrays."""
    target = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
    with quiet():
        return ocp.load(Path(folder).absolute(), target)
