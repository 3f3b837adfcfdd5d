"""Several processes as one computation (jax's multi-controller runtime)."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from r2m_jax.errors import InputError


def connect(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Join the computation; must come before the first use of a device.

    Args:
        coordinator: HOST:PORT of process 0; with None nothing is done.
        processes, process: how many there are, and which this is; None where the cluster tells (TPU, SLURM, Open MPI).

    Raises:
        InputError: the numbers do not fit, or the others do not answer.
    """
    if coordinator is None:
        if processes is not None or process is not None:
            raise InputError("--processes and --process need --coordinator HOST:PORT.")
        return
    if processes is not None and (process is None or not 0 <= process < processes):
        raise InputError(f"process {process} of {processes} does not exist; they are counted from 0.")
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"no connection to the other processes at {coordinator}: {reason}") from None


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; all must ask at the same step."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def gather_rows(rows: Any) -> Any:
    """Rows of all processes, in the order of processes, as NumPy; every process has equally many."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, rows)
    return jax.tree.map(lambda leaf: np.asarray(multihost_utils.process_allgather(leaf, tiled=True)), rows)


def own_rows(rows: jax.Array) -> np.ndarray:
    """This process's rows of an array split by its first axis, in order."""
    if rows.is_fully_addressable:
        return np.asarray(rows)
    shards = {shard.index[0].start or 0: shard for shard in rows.addressable_shards}
    return np.concatenate([np.asarray(shards[start].data) for start in sorted(shards)])
