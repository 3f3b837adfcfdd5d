"""CPU cores as devices, for work that one LAPACK call cannot spread over them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import jax


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def one_device_per_core() -> None:
    """Make every core this process may use a CPU device of JAX, before JAX looks for devices.

    Factorising one matrix with two threads takes no less time than with one; two matrices on two devices take half.
    Without effect on other platforms, and where ``JAX_NUM_CPU_DEVICES`` or ``XLA_FLAGS`` already says how many.
    """
    if "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    jax.config.update("jax_num_cpu_devices", available_cores())


@contextmanager
def one_lapack_thread() -> Iterator[None]:
    """LAPACK calls of this process take one thread each, so that those of several devices do not share the cores.

    The library JAX calls is SciPy's, which JAX loads at its first factorisation: a limit set before that would miss it.
    """
    import scipy.linalg.cython_lapack  # noqa: F401
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1, user_api="blas"):
        yield
