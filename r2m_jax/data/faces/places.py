"""Where the crops of a source go: DeepfakeBench's folders, mirrored from the source's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from r2m_jax.data.records import Record
from r2m_jax.errors import InputError

FRAMES, LANDMARKS, MASKS = "frames", "landmarks", "masks"
VIDEO_FOLDER = "videos"

Source = tuple[str, int]
"""An image file and -1, or a video file and the number of a frame."""


def place_crops(records: Sequence[Record], root: str | Path | None = None) -> dict[Source, str]:
    """Path of every crop below the output folder, forward slashes, without suffix: ``…/frames/<clip>/<name>``.

    The folders between ``root`` and the file are kept, and below them come

    - ``frames/<video>/<NNN>`` for frame NNN of a video file; a folder ``videos`` becomes ``frames`` (FaceForensics++),
    - what follows ``frames/`` unchanged, for images that lie below such a folder already,
    - ``frames/<folder>/<image>`` for images that share a clip, which is what their folder is then taken for,
    - ``frames/<image>/000`` for photographs.

    Files of one folder that differ in their suffix alone keep it in the name (``a_jpg``, ``a_png``).

    Args:
        records: what is cropped; one image may occur several times.
        root: folder the records lie in; by default the lowest that holds them all.

    Raises:
        InputError: a file is not below ``root``, or two images would still get one place.
    """
    files = {record.path: os.path.abspath(record.path) for record in records}  # noqa: PTH100  # 100,000 times
    base = os.path.abspath(root) if root is not None else os.path.commonpath([*map(os.path.dirname, files.values())])  # noqa: PTH100
    outside = next((file for file in files.values() if os.path.commonpath([file, base]) != base), None)
    if outside is not None:
        raise InputError(f"{outside} is not below {base}; all images must lie in one folder.")
    images: dict[tuple[str, int, str], set[str]] = {}
    for record in records:
        images.setdefault(record.clip, set()).add(record.path)
    in_clip = {record.path: len(images[record.clip]) > 1 for record in records}
    names = {path: PurePosixPath(os.path.relpath(file, base).replace(os.sep, "/")) for path, file in files.items()}
    sources = list(dict.fromkeys((record.path, record.frame) for record in records))
    owners: dict[str, set[str]] = {}
    for path, frame in sources:
        owners.setdefault(_owned(names[path], frame, in_clip[path]), set()).add(path)
    for path in {path for paths in owners.values() if len(paths) > 1 for path in paths}:
        names[path] = names[path].with_stem(f"{names[path].stem}_{names[path].suffix[1:]}")
    places = {(path, frame): _place(names[path], frame, in_clip[path]) for path, frame in sources}
    taken: dict[str, str] = {}
    for (path, _), place in places.items():
        if taken.setdefault(place, path) != path:
            raise InputError(f"{taken[place]} and {path} would both be cropped to {place}.png; rename one of them.")
    return places


def side_path(place: str, folder: str) -> str:
    """The place of a crop's landmarks or mask: its innermost folder ``frames`` replaced."""
    parts = place.split("/")
    at = len(parts) - 1 - parts[::-1].index(FRAMES)
    return "/".join([*parts[:at], folder, *parts[at + 1 :]])


def _owned(path: PurePosixPath, frame: int, in_clip: bool) -> str:
    """What only one file may have: the folder of a video or photograph, the place of an image of a clip."""
    place = _place(path, frame, in_clip)
    return place if frame < 0 and (in_clip or FRAMES in path.parts[:-1]) else place.rpartition("/")[0]


def _place(path: PurePosixPath, frame: int, in_clip: bool) -> str:
    folders, name = path.parts[:-1], path.stem
    if frame >= 0:
        if folders and folders[-1] == VIDEO_FOLDER:
            folders = folders[:-1]
        return "/".join([*folders, FRAMES, name, f"{frame:03d}"])
    if FRAMES in folders:
        return "/".join([*folders, name])
    if in_clip and folders:
        return "/".join([*folders[:-1], FRAMES, folders[-1], name])
    return "/".join([*folders, FRAMES, name, "000"])
