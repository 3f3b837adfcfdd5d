"""The index file of a data set: one row per record, as Parquet or CSV."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from r2m_jax.atomic import atomic_file, atomic_text
from r2m_jax.data.records import SPLITS, Record
from r2m_jax.errors import InputError

_LABELS = {"real": 0, "fake": 1, "0": 0, "1": 1}
_COLUMNS = tuple(field.name for field in fields(Record))
_FILES = ("path", "landmarks", "mask")  # columns that name files
_PARQUET = ".parquet"
_INTEGERS = {"label": "int8", "frame": "int32"}


def index_file(index: Path) -> Path:
    """The index itself, or the one inside a folder.

    Raises:
        InputError: a folder without an index.
    """
    if not index.is_dir():
        return index
    for name in ("index.parquet", "index.csv"):
        if (index / name).is_file():
            return index / name
    raise InputError(f"{index} holds no index.csv or index.parquet; make one with r2m data index {index} --out …")


def read_index(path: str | Path) -> list[Record]:
    """Read an index, Parquet where the file's name ends in ``.parquet`` and CSV otherwise.

    Paths relative to the index's folder are made absolute; columns beyond those of :class:`Record` are ignored;
    ``label`` is ``real``/``fake`` or 0/1.

    Raises:
        InputError: the file is missing or empty, lacks ``path`` or ``label``, or a row holds an unknown label or
            split, or a frame that is no number; the message names the line (CSV) or row (Parquet).
    """
    path = Path(path)
    columns, rows = _parquet_rows(path) if path.suffix == _PARQUET else _csv_rows(path)
    missing = {"path", "label"} - set(columns)
    if missing:
        raise InputError(f"{path} lacks the column {' and '.join(sorted(missing))}; an index needs path and label.")
    folder = str(path.parent)
    records = [_record(row, path, where, folder) for where, row in rows]
    if not records:
        raise InputError(f"{path} lists no image.")
    return records


def write_index(records: Sequence[Record], path: str | Path) -> None:
    """Write an index, Parquet where the name ends in ``.parquet`` and CSV otherwise.

    Files below the index's folder are stored relative to it, so that a folder can be moved with its index.
    """
    path = Path(path)
    folder = str(path.parent.resolve())
    rows = [_row(record, folder) for record in records]
    if path.suffix == _PARQUET:
        _write_parquet(rows, path)
        return
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_text(path, buffer.getvalue())


def _csv_rows(path: Path) -> tuple[Sequence[str], Iterable[tuple[str, Mapping[str, Any]]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a UTF-8 text file; an index is CSV or ends in {_PARQUET}.") from None
    rows = csv.DictReader(io.StringIO(text))
    return rows.fieldnames or (), ((f"line {line}", row) for line, row in enumerate(rows, start=2))


def _parquet_rows(path: Path) -> tuple[Sequence[str], Iterable[tuple[str, Mapping[str, Any]]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        table = pq.read_table(path, columns=[name for name in schema.names if name in _COLUMNS])
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read as Parquet ({str(error).splitlines()[0]}).") from None
    return schema.names, ((f"row {number}", row) for number, row in enumerate(table.to_pylist(), start=1))


def _write_parquet(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [(name, pa.type_for_alias(_INTEGERS.get(name, "string"))) for name in _COLUMNS],
        metadata={"r2m_jax": "index"},
    )
    numbered = [dict(row) | {"label": _LABELS[row["label"]]} for row in rows]
    with atomic_file(path) as aside:
        pq.write_table(pa.Table.from_pylist(numbered, schema), aside, compression="zstd")


def _record(row: Mapping[str, Any], index: Path, where: str, folder: str) -> Record:
    values = {name: "" if row.get(name) is None else str(row[name]).strip() for name in _COLUMNS}
    label = values["label"].lower()
    if label not in _LABELS:
        raise InputError(f"{index}, {where}: the label {values['label']!r} is not real, fake, 0 or 1.")
    split = values["split"] or "test"
    if split not in SPLITS:
        raise InputError(f"{index}, {where}: the split {split!r} is not one of {', '.join(SPLITS)}.")
    if not values["path"]:
        raise InputError(f"{index}, {where}: the path is empty.")
    try:
        frame = int(values["frame"] or -1)
    except ValueError:
        raise InputError(f"{index}, {where}: the frame {values['frame']!r} is not a whole number.") from None
    for name in _FILES:
        values[name] = values[name] and os.path.join(folder, values[name])  # noqa: PTH118  # 100,000 times
    return Record(**(values | {"label": _LABELS[label], "split": split, "frame": frame}))  # type: ignore[arg-type]


def _row(record: Record, folder: str) -> dict[str, Any]:
    row = asdict(record) | {"label": "fake" if record.label else "real"}
    for name in _FILES:
        if row[name]:
            absolute = os.path.abspath(row[name])  # noqa: PTH100  # 100,000 times
            inside = os.path.commonpath([absolute, folder]) == folder
            row[name] = Path(os.path.relpath(absolute, folder)).as_posix() if inside else absolute
    return row
