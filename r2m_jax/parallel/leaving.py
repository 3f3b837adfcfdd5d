"""How a process leaves a computation of several: with the others, or at once where one of them is gone.

JAX alone would not do: a process that waits for one that died gets an error from the transport (Gloo, NCCL) at best,
then waits for minutes to shut down in order; at worst the coordination service's client aborts it. What is promised
here: within :func:`heartbeat` seconds, and a little, every process that is left ends with one sentence.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Any, NoReturn

import jax
from jax._src import distributed

from r2m_jax.errors import InputError

LOST = 75
"""Exit code of a process that lost another; sysexits.h calls it EX_TEMPFAIL: the same command may succeed."""

HEARTBEAT = "R2M_HEARTBEAT_SECONDS"
"""Environment variable: seconds without a sign of life after which a process counts as dead."""

_SENTENCE = (
    "another process of this computation has ended or no longer answers (its own output may say why); start all of "
    "them again with the same command."
)
_MARKS = ("gloo", "nccl", "coordination", "heartbeat", "barrier", "closed by peer", "socket closed", "unavailable")
_GRACE_MS = 5000  # for the others to end for the same reason, e.g. a wrong recipe

_handlers: list[Any] = []


class ProcessLost(Exception):
    """Another process of the computation is gone; nothing that was begun together can be finished."""


def heartbeat() -> int:
    """Seconds after which a silent process counts as dead: ``R2M_HEARTBEAT_SECONDS``, or 60.

    Raises:
        InputError: the variable is no number of seconds.
    """
    text = os.environ.get(HEARTBEAT, "60")
    if not text.isdecimal() or int(text) < 5:
        raise InputError(f"{HEARTBEAT}={text} is no number of seconds; give 5 or more.")
    return int(text)


def leave_after(error: BaseException) -> None:
    """Leave in order if all processes end now; otherwise stay a member, for :func:`leave_now` to end the process.

    Args:
        error: what ended this process's part.

    Raises:
        ProcessLost: that was the loss of another process.
    """
    client = distributed.global_state.client
    if client is None:
        return
    if _is_loss(error):
        raise ProcessLost(_SENTENCE) from None
    try:
        client.wait_at_barrier("r2m/leave", _GRACE_MS)
        jax.distributed.shutdown()
    except RuntimeError:
        return


def leave_now(code: int) -> NoReturn:
    """End a process that may still be part of a computation, without waiting for the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    if "jax" in sys.modules and jax.distributed.is_initialized():
        os._exit(code)
    sys.exit(code)


def speak_when_aborted() -> None:
    """Say the sentence when the coordination service's client aborts this process.

    It does so from a thread of its own, where no Python handler would run. ``missed_heartbeat_callback``, meant for
    this, ends in ``std::bad_cast`` (jaxlib 0.10.2), so the C library is given a function.
    """
    line = f"error: JAX aborted this process (see above), most likely because {_SENTENCE}\n".encode()

    def end(number: int) -> None:
        os.write(2, line)
        os._exit(LOST)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(end)
    _handlers.append(handler)  # the C library holds no reference
    ctypes.CDLL(None).signal(signal.SIGABRT, handler)


def _is_loss(error: BaseException) -> bool:
    """JAX raises its own exception where a result is waited for, and a ValueError where arrays are placed."""
    told = isinstance(error, RuntimeError | ValueError) and not isinstance(error, InputError)
    return told and any(mark in str(error).lower() for mark in _MARKS)
