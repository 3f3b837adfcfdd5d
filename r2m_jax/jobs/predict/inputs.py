"""Which files a prediction is asked for: named ones, folders, globs, lists. Nothing is opened but lists."""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from r2m_jax.checkpoints.provenance import read_json
from r2m_jax.data.index import read_index
from r2m_jax.data.readers import read_source
from r2m_jax.data.readers.paths import Resolver
from r2m_jax.data.readers.tree import scan
from r2m_jax.data.selection import natural_key
from r2m_jax.errors import InputError
from r2m_jax.jobs.predict.media import Work

LISTS = frozenset({".txt", ".csv", ".json", ".parquet"})
"""Suffixes of files that list others."""


def gather(arguments: Iterable[str], frames: int) -> Work:
    """The files that arguments mean.

    A folder means the images and video files in it and below, in natural order (hidden ones and the folders ``masks``
    and ``landmarks`` are passed over, as by ``r2m data index``); a pattern what it matches; a list, the files it
    names. What is not there stays among the items, to be reported as any file that cannot be read.

    Raises:
        InputError: a list cannot be read or names no path, or a folder cannot be listed.
    """
    return Work((file for argument in arguments for file in _files(argument)), frames)


def _files(argument: str) -> Iterator[tuple[str, int]]:
    path = Path(argument)
    if path.is_dir():
        yield from _below(argument)
    elif path.is_file():
        yield from _listed(path) if path.suffix.lower() in LISTS else [(argument, -1)]
    else:
        matches = sorted(glob.glob(argument, recursive=True), key=natural_key)  # noqa: PTH207  # any root, `**` too
        if not matches:
            yield argument, -1
        for match in matches:
            yield from _files(match)


def _below(folder: str) -> Iterator[tuple[str, int]]:
    count = 0
    for found in scan(Path(folder)).folders:
        for name in (*found.images, *found.videos):
            count += 1
            yield "/".join([folder.rstrip("/") or "/", *found.parts, name]), -1
    if not count:
        yield folder, -1


def _listed(path: Path) -> Iterator[tuple[str, int]]:
    """Paths of a list, relative ones taken from the list's folder."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from ((record.path, record.frame) for record in read_index(path))
        return
    resolve = Resolver(path.parent)
    count = 0
    if suffix == ".json":
        document = read_json(path)
        if isinstance(document, dict):  # of DeepfakeBench
            yield from ((record.path, record.frame) for record in read_source(path).records)
            return
        rows = _json_rows(path, document)
    else:
        rows = _csv_rows(path) if suffix == ".csv" else _lines(path)
    for where, file, frame in rows:
        count += 1
        if not file:
            raise InputError(f"{path}, {where}: the path is missing.")
        if not frame.removeprefix("-").isdigit():
            raise InputError(f"{path}, {where}: the frame {frame!r} is not a whole number.")
        yield resolve(file), max(int(frame), -1)
    if not count:
        raise InputError(f"{path} lists no file.")


def _json_rows(path: Path, document: Any) -> Iterator[tuple[str, str, str]]:
    if not isinstance(document, list):
        raise InputError(f"{path} is no list of paths, or of objects with a path.")
    for number, entry in enumerate(document, start=1):
        fields = entry if isinstance(entry, dict) else {"path": entry}
        if not isinstance(fields.get("path"), str):
            raise InputError(f"{path}, entry {number}: a path, or an object with one, was expected.")
        frame = fields.get("frame")
        yield f"entry {number}", fields["path"], "-1" if frame is None else json.dumps(frame)


def _csv_rows(path: Path) -> Iterator[tuple[str, str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if "path" not in (rows.fieldnames or ()):
                raise InputError(f"{path} lacks the column path; a list needs one.")
            for row in rows:
                yield f"line {rows.line_num}", (row["path"] or "").strip(), (row.get("frame") or "-1").strip()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a CSV list ({error}).") from None


def _lines(path: Path) -> Iterator[tuple[str, str, str]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"line {number}", line.strip(), "-1"
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a list of paths ({error}).") from None
