"""Outputs appear whole or not at all: written aside, then renamed into place."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from r2m_jax.errors import InputError

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)


class DiskError(InputError):
    """A place is full, failing or read-only."""


@contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """A disk that is full, failing or read-only ends the block with a sentence that names ``place``.

    Raises:
        DiskError: that happened; any other error passes.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK:
            raise
        raise DiskError(
            f"{place} cannot be written ({error.strerror}); make room there and give the same command again, or choose "
            "another output."
        ) from None


@contextmanager
def atomic_directory(target: Path, overwrite: bool = False, kept: Path | None = None) -> Iterator[Path]:
    """A fresh directory beside ``target`` that becomes ``target`` when the block ends without an exception.

    Args:
        target: where the result goes. An empty directory there counts as absent.
        overwrite: replace what is at ``target`` (it stays until the new one is complete).
        kept: where to write instead, on the same disk; what an earlier attempt left there is taken up, and what this
            one leaves is kept.

    Raises:
        InputError: ``target`` exists and ``overwrite`` is off, its parent cannot be written, or the disk is full.
    """
    target = Path(target)
    if target.exists() and not overwrite and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"{target} already exists; choose another output or pass --overwrite.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(target)
        aside = kept or Path(tempfile.mkdtemp(prefix=f".{target.name}.part.", dir=target.parent))
        aside.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{target.parent} cannot be written ({error.strerror}); choose another output.") from None
    with _locked(aside):
        try:
            with disk_errors(target):
                aside.chmod(0o777 & ~_umask())
                yield aside
                _replace(aside, target)
        finally:
            if kept is None:
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


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold the folder's lock, which ends with the process however it ends; False if another process holds it."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # gone in the meantime
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except OSError:  # or the file system has no locks
            held = False
        yield held
    finally:
        os.close(handle)


def _clear_leftovers(target: Path) -> None:
    """Remove what processes that were killed left of this output."""
    for found in target.parent.glob(f".{glob.escape(target.name)}.part.*"):
        with _locked(found) as dead:
            if dead:
                shutil.rmtree(found, ignore_errors=True)


def _umask() -> int:
    # mkdtemp makes private directories; a result should be as readable as one made by mkdir.
    current = os.umask(0)
    os.umask(current)
    return current


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """A second name of the same file, or a copy where the file system has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
