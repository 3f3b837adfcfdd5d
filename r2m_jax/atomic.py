"""Outputs appear whole or not at all: written aside, then renamed into place."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from r2m_jax.errors import InputError


@contextmanager
def atomic_directory(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """A fresh directory beside ``target`` that becomes ``target`` when the block ends without an exception.

    Args:
        target: where the result goes. An empty directory there counts as absent.
        overwrite: replace what is at ``target`` (it stays until the new one is complete).

    Raises:
        InputError: ``target`` exists and ``overwrite`` is off, or its parent cannot be written.
    """
    target = Path(target)
    if target.exists() and not overwrite and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"{target} already exists; choose another output or pass --overwrite.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise InputError(f"{target.parent} cannot be written ({error.strerror}); choose another output.") from None
    try:
        aside.chmod(0o777 & ~_umask())
        yield aside
        _replace(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A path to write to that becomes ``target`` when the block ends without an exception.

    Raises:
        InputError: the place cannot be written.
    """
    target = Path(target)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        aside.replace(target)
    except OSError as error:
        raise InputError(f"{target} cannot be written ({error.strerror}); choose another output.") from None
    finally:
        aside.unlink(missing_ok=True)


def atomic_text(target: Path, text: str) -> None:
    """Write a text file so that readers see the old content or the new, never half of it.

    Raises:
        InputError: the place cannot be written.
    """
    with atomic_file(target) as aside:
        aside.write_text(text, encoding="utf-8")


def _replace(aside: Path, target: Path) -> None:
    if not target.exists():
        aside.rename(target)
        return
    # rename(2) cannot replace a directory that has entries, so the old one steps aside first.
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    target.rename(old / "old")
    try:
        aside.rename(target)
    except OSError:
        (old / "old").rename(target)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    # mkdtemp makes private directories; a result should be as readable as one made by mkdir.
    current = os.umask(0)
    os.umask(current)
    return current
