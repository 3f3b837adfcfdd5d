"""Several processes as one computation (jax's multi-controller runtime).

Processes tell each other what went wrong: a failed one leaves a sentence with the coordination service, and whoever
waits for it reads that instead of waiting for ever.
"""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import jax
import numpy as np
from jax._src import distributed
from jax._src.clusters import ClusterEnv
from jax.experimental import multihost_utils

from r2m_jax.errors import InputError
from r2m_jax.parallel.leaving import heartbeat, leave_after, speak_when_aborted
from r2m_jax.parallel.roll_call import roll_call

JOIN_S = 300.0
"""Default seconds to wait for all processes to be there."""

SHUTDOWN_S = 60
"""Seconds a process that is done waits for the others to be."""

_POLL_MS = 1000
_FAILED = "r2m/failed/"
_turns = itertools.count()


class FailedElsewhere(InputError):
    """Another process failed; it has said why."""


@contextmanager
def joined(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    multi_process: Literal["auto", "off"] = "off",
    timeout: float = JOIN_S,
    command: str = "",
) -> Iterator[None]:
    """A computation of several processes while the block runs; arguments as of :func:`connect`.

    What the block raises ends the others too, at their next :func:`check`, :func:`meet` or :func:`gather`.
    """
    connect(coordinator, processes, process, multi_process=multi_process, timeout=timeout, command=command)
    try:
        yield
        meet()  # process 0 may still write, for longer than a shutdown waits
    except BaseException as error:
        _tell(error)
        leave_after(error)
        raise
    jax.distributed.shutdown()  # nothing where nothing was joined


def connect(
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    *,
    multi_process: Literal["auto", "off"] = "off",
    timeout: float = JOIN_S,
    command: str = "",
) -> None:
    """Join the computation; must come before the first use of a device.

    Args:
        coordinator: HOST:PORT of process 0; None where the cluster tells.
        processes, process: how many there are, and which this is; None where the cluster tells.
        multi_process: ``auto`` asks the cluster where flags are missing: a TPU pod, SLURM (``srun``), Open MPI,
            Kubernetes (an indexed Job or a JobSet). Where there is none, or one process, nothing is joined.
        timeout: seconds to wait for all.
        command: what this process is to do; the same in all.

    Raises:
        InputError: the numbers do not fit, or processes are missing; the message names them.
    """
    local = None
    if multi_process == "auto" and None in (coordinator, processes, process):
        found = _cluster(timeout, lone=coordinator is None)
        if found is not None:
            there, count, number, local = found
            coordinator, processes = coordinator or there, count if processes is None else processes
            process = number if process is None else process
    if coordinator is None:
        if processes is not None or process is not None:
            raise InputError("--processes and --process need --coordinator HOST:PORT.")
        return
    if processes is None or process is None or not 0 <= process < processes:
        raise InputError(f"process {process} of {processes} does not exist; they are counted from 0.")
    roll_call(coordinator, processes, process, command=command, timeout=timeout)
    # JAX's preemption service would take SIGTERM for itself, and the process would go on.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            local_device_ids=local,
            cluster_detection_method="deactivate",
            initialization_timeout=max(1, int(timeout)),
            heartbeat_timeout_seconds=heartbeat(),
            shutdown_timeout_seconds=SHUTDOWN_S,
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"no connection to the other processes at {coordinator}: {reason}") from None
    speak_when_aborted()


def _cluster(timeout: float, lone: bool) -> tuple[str, int, int, list[int] | None] | None:
    """Coordinator, count, number and local devices as the cluster gives them; None outside of any.

    The order and the rules are JAX's own. Kubernetes is asked only inside an indexed Job: elsewhere JAX would warn of
    a missing package in every notebook that runs in a pod.
    """
    for kind in ClusterEnv._cluster_types:
        if kind.opt_in_only_method or (kind.__name__ == "K8sCluster" and "JOB_COMPLETION_INDEX" not in os.environ):
            continue
        try:
            if not kind.is_env_present():
                continue
            count = kind.get_process_count()
            if lone and count == 1:
                return None
            number, local = kind.get_process_id(), kind.get_local_process_id()
            address = kind.get_coordinator_address(int(timeout), os.environ.get("JAX_COORDINATOR_PORT"))
        except (RuntimeError, ValueError, KeyError, OSError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"{kind.__name__} does not say how many processes there are ({reason}); give --coordinator, "
                "--processes and --process, or --multi-process off."
            ) from None
        return address, count, number, None if local is None else [local]
    return None


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def check() -> None:
    """Ask whether all is well elsewhere; costs a message to process 0.

    Raises:
        FailedElsewhere: another process has failed.
    """
    client = distributed.global_state.client
    if client is None:
        return
    own = jax.process_index()
    for key, sentence in client.key_value_dir_get(_FAILED):
        number = int(key.rpartition("/")[2])
        if number != own:
            raise FailedElsewhere(f"process {number}: {sentence}")


def meet(note: str = "") -> list[str]:
    """Wait until all processes are here, however long that takes; what each of them noted.

    Raises:
        FailedElsewhere: another process has failed.
    """
    client = distributed.global_state.client
    if client is None or jax.process_count() == 1:
        return [note]
    place = f"r2m/meet/{next(_turns)}/"
    client.key_value_set(f"{place}{jax.process_index()}", note)
    notes = []
    for number in range(jax.process_count()):
        while True:
            try:
                notes.append(client.blocking_key_value_get(f"{place}{number}", _POLL_MS))
                break
            except RuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
                check()
    return notes


def gather(mine: bytes) -> list[bytes]:
    """What every process has, in the order of processes; of any lengths.

    Raises:
        FailedElsewhere: another process has failed.
    """
    # Collectives time out within half a minute, and work is seldom shared out so evenly: the wait is meet's.
    lengths = [int(note) for note in meet(str(len(mine)))]
    if len(lengths) == 1:
        return [mine]
    room = np.zeros(1 << max(6, (max(lengths) - 1).bit_length()), np.uint8)  # few sizes, few programs
    room[: len(mine)] = np.frombuffer(mine, np.uint8)
    rows = multihost_utils.process_allgather(room)
    return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]


def gather_arrays(mine: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Arrays of every process by name, whatever their number, shapes and dtypes (JAX would narrow float64).

    Raises:
        FailedElsewhere: another process has failed.
    """
    if jax.process_count() == 1:
        return [dict(mine)]
    packed = io.BytesIO()
    np.savez(packed, np.asarray(list(mine), np.str_), *mine.values(), allow_pickle=False)
    everyones = []
    for theirs in gather(packed.getvalue()):
        with np.load(io.BytesIO(theirs)) as held:
            names, *arrays = held.values()
            everyones.append(dict(zip(names.tolist(), arrays, strict=True)))
    return everyones


def own_part(count: int) -> slice:
    """This process's of ``count`` rows: equal parts, but for one, in the order of processes."""
    processes, process = jax.process_count(), jax.process_index()
    return slice(process * count // processes, (process + 1) * count // processes)


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


def _tell(error: BaseException) -> None:
    """Leave word for the others of why this process fails."""
    client = distributed.global_state.client
    if client is None or isinstance(error, FailedElsewhere):
        return
    what = str(error) if isinstance(error, InputError) else f"{type(error).__name__} {error}".strip()
    try:
        client.key_value_set(f"{_FAILED}{jax.process_index()}", " ".join(what.split())[:2000], allow_overwrite=True)
    except RuntimeError:
        return  # process 0 is gone, and with it whoever could read this
