"""The one record every reader produces and everything else consumes, and its index file (CSV)."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from r2m_jax.checkpoints.atomic import atomic_text
from r2m_jax.errors import InputError

SPLITS = ("train", "val", "test")
_LABELS = {"real": 0, "fake": 1, "0": 0, "1": 1}


@dataclass(frozen=True)
class Record:
    """One image.

    Attributes:
        path: of the image file, absolute or relative to the index.
        label: 0 real, 1 fake.
        family: forgery family (FS, FR, EFS, FE …), empty for real images.
        method: forgery method, empty for real images.
        domain: where the underlying footage is from, e.g. ``ff`` or ``cdf``.
        video: clip the frame belongs to; for stills the image's own id.
        split: train, val or test.
    """

    path: str
    label: int
    family: str = ""
    method: str = ""
    domain: str = ""
    video: str = ""
    split: str = "test"


_COLUMNS = tuple(field.name for field in fields(Record))


def read_index(path: str | Path) -> list[Record]:
    """Read a CSV index.

    Paths relative to the index's folder are made absolute; columns beyond those of :class:`Record` are ignored;
    ``label`` is ``real``/``fake`` or 0/1.

    Raises:
        InputError: the file is missing or empty, lacks ``path`` or ``label``, or a row holds an unknown label or
            split; the message names the line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a UTF-8 text file; an index is CSV.") from None
    rows = csv.DictReader(io.StringIO(text))
    missing = {"path", "label"} - set(rows.fieldnames or ())
    if missing:
        raise InputError(f"{path} lacks the column {' and '.join(sorted(missing))}; an index needs path and label.")
    records = [_record(row, path, line) for line, row in enumerate(rows, start=2)]
    if not records:
        raise InputError(f"{path} lists no image.")
    return records


def _record(row: dict[str, str | None], index: Path, line: int) -> Record:
    values = {name: (row.get(name) or "").strip() for name in _COLUMNS}
    label = values["label"].lower()
    if label not in _LABELS:
        raise InputError(f"{index}, line {line}: the label {values['label']!r} is not real, fake, 0 or 1.")
    split = values["split"] or "test"
    if split not in SPLITS:
        raise InputError(f"{index}, line {line}: the split {split!r} is not one of {', '.join(SPLITS)}.")
    if not values["path"]:
        raise InputError(f"{index}, line {line}: the path is empty.")
    return Record(
        path=str(index.parent / values["path"]),
        label=_LABELS[label],
        family=values["family"],
        method=values["method"],
        domain=values["domain"],
        video=values["video"],
        split=split,
    )


def write_index(records: Sequence[Record], path: str | Path) -> None:
    """Write a CSV index; paths below the index's folder are stored relative to it."""
    path = Path(path)
    folder = path.parent.resolve()
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for record in records:
        image = Path(record.path).resolve()
        row = asdict(record) | {"label": "fake" if record.label else "real"}
        row["path"] = image.relative_to(folder).as_posix() if image.is_relative_to(folder) else str(image)
        writer.writerow(row)
    atomic_text(path, buffer.getvalue())


def select(
    records: Iterable[Record], *, split: str | None = None, families: Sequence[str] | None = None
) -> list[Record]:
    """Records of a split, and of the real images plus the named forgery families."""
    return [
        r
        for r in records
        if (split is None or r.split == split) and (families is None or r.label == 0 or r.family in families)
    ]


def counts(records: Iterable[Record]) -> Counter[tuple[str, str]]:
    """Images per (split, family), real images under the family ``real``."""
    return Counter((r.split, r.family if r.label else "real") for r in records)
