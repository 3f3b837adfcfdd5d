"""What a command that factorises matrices on the CPU asks of the process it owns."""

from __future__ import annotations

import contextlib
import ctypes
import os

import jax

# Options of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def one_device_per_core() -> None:
    """Make every core this process may use a CPU device of JAX, before JAX looks for devices.

    Factorising one matrix with two threads takes no less time than with one; two matrices on two devices take half.
    Without effect on other platforms, and where ``JAX_NUM_CPU_DEVICES`` or ``XLA_FLAGS`` already says how many.
    """
    if "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jax.config.update("jax_num_cpu_devices", cores)


def keep_freed_memory() -> None:
    """Let glibc hand freed memory out again instead of giving it back to the system; elsewhere, nothing happens.

    Every run of a compiled program takes its workspace anew, some hundred megabytes, and fresh pages cost more than the
    arithmetic on them: 55 s of system time in the merge of three ViT-L/14, 28 s with this. Only for processes that do
    one thing and end: the peak stays as it is, but it stays.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1)):
            mallopt(option, value)
