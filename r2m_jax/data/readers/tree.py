"""A folder's files, listed once for recognising its layout and for reading it."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from r2m_jax.data.selection import natural_key
from r2m_jax.errors import InputError

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})
VIDEOS = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"})
_SIDE_FOLDERS = frozenset({"masks", "landmarks"})


@dataclass(frozen=True)
class Folder:
    """One folder with files.

    Attributes:
        parts: its components below the root.
        path: the folder itself, with forward slashes.
        images: names of its images, in natural order.
        videos: names of its video files, in natural order.
    """

    parts: tuple[str, ...]
    path: str
    images: tuple[str, ...]
    videos: tuple[str, ...]

    @property
    def files(self) -> list[str]:
        """Paths of the images."""
        return [f"{self.path}/{name}" for name in self.images]


@dataclass(frozen=True)
class Tree:
    """A folder and everything below it, in natural order.

    Attributes:
        root: the folder.
        folders: the folders with images or video files, and those with nothing in them at all.
        texts: list files, relative to the root.
        others: files that are neither, by suffix.
    """

    root: Path
    folders: list[Folder]
    texts: list[str]
    others: Counter[str] = field(default_factory=Counter)

    @property
    def images(self) -> int:
        """Images in all folders."""
        return sum(len(folder.images) for folder in self.folders)

    @property
    def videos(self) -> int:
        """Video files in all folders."""
        return sum(len(folder.videos) for folder in self.folders)


def scan(root: Path) -> Tree:
    """List a folder. Links are followed, each folder once; hidden files, ``__MACOSX``, masks and landmarks are not.

    Raises:
        InputError: the folder cannot be listed.
    """
    folders: list[Folder] = []
    texts: list[str] = []
    others: Counter[str] = Counter()
    visited: set[tuple[int, int]] = set()

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be listed ({error.strerror}).")

    base = root.absolute()
    for folder, below, names in os.walk(base, followlinks=True, onerror=refuse):
        status = os.stat(folder)  # noqa: PTH116  # one per folder of 10,000s
        if (status.st_dev, status.st_ino) in visited:
            below[:] = []
            continue
        visited.add((status.st_dev, status.st_ino))
        below[:] = sorted((name for name in below if _wanted(name) and name not in _SIDE_FOLDERS), key=natural_key)
        parts = Path(folder).relative_to(base).parts
        images, videos = [], []
        for name in sorted(filter(_wanted, names), key=natural_key):
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122  # once per image
            if suffix in IMAGES:
                images.append(name)
            elif suffix in VIDEOS:
                videos.append(name)
            else:
                others[suffix or name] += 1
                if suffix == ".txt":
                    texts.append("/".join([*parts, name]))
        if images or videos or not (below or names):
            folders.append(Folder(parts, Path(folder).as_posix(), tuple(images), tuple(videos)))
    return Tree(base, folders, texts, others)


def _wanted(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"
