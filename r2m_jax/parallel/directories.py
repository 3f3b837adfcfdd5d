"""Output directories of several processes: process 0 makes and renames them, all write into them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from r2m_jax.atomic import atomic_directory
from r2m_jax.errors import InputError
from r2m_jax.parallel.processes import check, is_first, meet


@contextmanager
def common_directory(target: Path, overwrite: bool = False, kept: Path | None = None) -> Iterator[Path]:
    """:func:`r2m_jax.atomic.atomic_directory` of all processes, on a file system that all of them see.

    The block ends when it has ended in all; the directory is in place then, or in none, if one failed.

    Raises:
        InputError: the place is taken or cannot be written, or another process failed.
    """
    if jax.process_count() == 1:
        with atomic_directory(target, overwrite, kept) as aside:
            yield aside
    elif is_first():
        with atomic_directory(target, overwrite, kept) as aside:
            meet(str(aside))
            yield aside
            meet()  # every process has written what it had to
        meet()
    else:
        aside = Path(meet()[0])
        if not aside.is_dir():
            raise InputError(f"{aside.parent} of process 0 is not seen by all processes; choose an output that is.")
        try:
            yield aside
        except InputError:
            check()  # where process 0 failed and cleared up, writing fails for no reason of its own
            raise
        meet()
        meet()
