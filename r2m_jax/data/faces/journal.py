"""What became of every image of a cropping run: lets a run that was stopped go on, and a finished one be examined."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TextIO

from r2m_jax.atomic import atomic_text
from r2m_jax.errors import InputError

NAME = "crops.jsonl"

Outcome = Literal["face", "no face", "unreadable"]


@dataclass(frozen=True)
class Entry:
    """One image or frame.

    Attributes:
        place: of the crop below the output folder, without suffix.
        source: file it is from.
        frame: number in a video file, -1 for images.
        bytes: size of the source, by which a changed source is noticed.
        outcome: a face was cropped, none was found, or the source cannot be read.
        faces: number of faces found.
        confidence: the detector's score of the cropped one.
        reason: why the source cannot be read.
    """

    place: str
    source: str
    frame: int
    bytes: int
    outcome: Outcome = "face"
    faces: int = 0
    confidence: float = 0.0
    reason: str = ""


def read_journal(folder: Path, recipe: dict[str, Any]) -> dict[str, Entry]:
    """Entries of an earlier run by place; a last line that was cut off is passed over.

    Raises:
        InputError: the folder holds something else, or was made with other settings.
    """
    path = folder / NAME
    if not path.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} already exists and is no unfinished output of this command; choose another.")
        return {}
    lines = path.read_text(encoding="utf-8").split("\n")
    header, *rows = [_parse(path, number, line) for number, line in enumerate(lines[:-1], start=1)] or [recipe]
    for name, value in recipe.items():
        if header.get(name) != value:
            raise InputError(
                f"{folder} was made with --{name.replace('_', '-')} {header.get(name)}, not {value}; choose another "
                "output or the same settings."
            )
    known = {field.name for field in fields(Entry)}
    if any(set(row) != known for row in rows):
        raise InputError(f"{path} was not written by this version of the command; choose another output.")
    return {row["place"]: Entry(**row) for row in rows}


def write_journal(folder: Path, recipe: dict[str, Any], entries: Iterable[Entry]) -> None:
    """Write a whole journal at once.

    Raises:
        InputError: the place cannot be written.
    """
    lines = [recipe, *map(asdict, entries)]
    atomic_text(folder / NAME, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def append(file: TextIO, entries: Iterable[Entry]) -> None:
    """Add entries to a journal that is open; they are on disk when this returns."""
    file.writelines(json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in entries)
    file.flush()


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise InputError(f"{path}, line {number}: not a line of a journal; choose another output.")
    return row
