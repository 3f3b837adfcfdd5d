"""Lists of images: ForensicHub's JSON, CSV, Parquet indexes and GenD's text files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from r2m_jax.data import catalogue
from r2m_jax.data.index import read_index
from r2m_jax.data.readers.paths import Resolver
from r2m_jax.data.readers.places import place_of
from r2m_jax.data.readers.reading import Clip, Findings, Options
from r2m_jax.data.records import SPLITS, Record
from r2m_jax.errors import InputError

_GEND = {"DF": "FF-DF", "F2F": "FF-F2F", "FS": "FF-FS", "NT": "FF-NT", "FSh": "FaceShifter"}


def read_json(path: Path, document: Any, options: Options, findings: Findings) -> list[Clip]:
    """Clips of ForensicHub's list ``[{"path": …, "label": 0 | 1}, …]``; other fields as the columns of a CSV.

    Args:
        path: the file, for messages.
        document: its content, objects as tuples of pairs.
        options: how to read it.
        findings: where notes and warnings go.

    Raises:
        InputError: an entry has no path or label, or an unknown one; it is named by its number.
    """
    rows = []
    for number, entry in enumerate(document, start=1):
        where = f"entry {number}"
        if not isinstance(entry, tuple):
            raise InputError(f"{path}, {where}: an object with path and label was expected.")
        rows.append((where, {str(key): value for key, value in entry}))
    return _clips(rows, path, options, findings)


def read_csv(path: Path, options: Options, findings: Findings) -> list[Clip]:
    """Clips of a CSV file with ``path,label`` and any columns of :class:`~r2m_jax.data.records.Record`.

    Raises:
        InputError: the file has no such columns, or a line an unknown label or split; it is named by its number.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text ({error}).") from None
    rows = csv.DictReader(io.StringIO(text))
    missing = {"path", "label"} - set(rows.fieldnames or ())
    if missing:
        raise InputError(f"{path} lacks the column {' and '.join(sorted(missing))}; a list needs path and label.")
    return _clips(((f"line {line}", row) for line, row in enumerate(rows, start=2)), path, options, findings)


def read_parquet(path: Path, options: Options) -> list[Clip]:
    """Clips of an index written earlier.

    Raises:
        InputError: as :func:`r2m_jax.data.index.read_index`.
    """
    return _by_clip(
        (Record(**(_fields(r) | _overrides(options))), r.path, r.landmarks, r.mask) for r in read_index(path)
    )


def read_texts(paths: Iterable[Path], options: Options, findings: Findings) -> list[Clip]:
    """Clips of GenD's text files ``<data set>/{train,val,test}/{real,DF,F2F,FS,NT,…}.txt``, one image path a line.

    The file's name is the class or method, the folder its split; an image's folder is its clip.

    Raises:
        InputError: a file's name is neither ``real``, ``fake``, a method of the catalogue nor a label given.
    """
    rows = []
    for path in paths:
        method = _GEND.get(path.stem, path.stem)
        label = catalogue.class_of(method, options.labels)
        known = catalogue.find_method(method)
        if label is None and known is None:
            raise InputError(
                f"{path}: the name {path.stem!r} is neither real, fake nor a known method; pass --label "
                f"{path.stem}=real or --label {path.stem}=fake."
            )
        label = 1 if label is None else label
        in_split = path.parent.name in SPLITS
        dataset = (path.parent.parent if in_split else path.parent).name
        family = "" if known is None or not label else known.family
        name = known.name if known and label else "" if not label or method == "fake" else method
        resolver = Resolver(options.root or path.parent, options.strip_prefix)
        for line in _lines(path):
            clip = line.replace("\\", "/").rpartition("/")[0].rpartition("/")[2]
            shared = Record(
                path="",
                label=label,
                family=family or (options.family if label else ""),
                method=name,
                domain=options.domain or {"FF": "ff", "CDF": "cdf"}.get(dataset, catalogue.domain_of(dataset)),
                video="/".join(filter(None, (name, clip))),
                split=path.parent.name if in_split else options.split,
                dataset=options.dataset or dataset,
            )
            rows.append((shared, resolver(line), "", ""))
        resolver.report(findings)
    return _by_clip(rows)


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text ({error}).") from None
    return [line for line in lines if line]


def _clips(
    rows: Iterable[tuple[str, Mapping[str, Any]]], path: Path, options: Options, findings: Findings
) -> list[Clip]:
    resolver = Resolver(options.root or path.parent, options.strip_prefix)
    clips = _by_clip(_row(where, row, path, options, resolver) for where, row in rows)
    resolver.report(findings)
    return clips


def _row(
    where: str, row: Mapping[str, Any], path: Path, options: Options, resolver: Resolver
) -> tuple[Record, str, str, str]:
    values = {name: "" if value is None else str(value).strip() for name, value in row.items() if name is not None}
    file, label = values.get("path", ""), values.get("label", "")
    if not file or not label:
        raise InputError(f"{path}, {where}: {'the path' if not file else 'the label'} is missing.")
    target = catalogue.class_of(label, options.labels)
    if target is None:
        raise catalogue.unknown_label(label, f"{path}, {where}")
    split = values.get("split") or options.split
    if split not in SPLITS:
        raise InputError(f"{path}, {where}: the split {split!r} is not one of {', '.join(SPLITS)}.")
    frame = values.get("frame") or "-1"
    if not frame.lstrip("-").isdigit():
        raise InputError(f"{path}, {where}: the frame {frame!r} is not a whole number.")
    method, family = catalogue.method_of_label(label) if target else ("", "")
    place = place_of(file)
    if target:
        method = values.get("method") or method or place.method
        known = catalogue.find_method(method)
        family = values.get("family") or family or (known.family if known else "") or options.family
    dataset = options.dataset or values.get("dataset") or path.stem
    shared = Record(
        path="",
        label=target,
        family=family,
        method=method,
        domain=options.domain or values.get("domain") or catalogue.domain_of(dataset) or place.domain,
        video=values.get("video") or file.replace("\\", "/").rpartition(".")[0],
        split=split,
        dataset=dataset,
        compression=values.get("compression") or place.compression,
        frame=int(frame),
    )
    sides = [resolver(values[name]) if values.get(name) else "" for name in ("landmarks", "mask")]
    return shared, resolver(file), sides[0], sides[1]


def _fields(record: Record) -> dict[str, Any]:
    kept = ("label", "family", "method", "domain", "video", "split", "dataset", "compression", "frame")
    return {"path": ""} | {name: getattr(record, name) for name in kept}


def _overrides(options: Options) -> dict[str, str]:
    given = {"dataset": options.dataset, "domain": options.domain}
    return {name: value for name, value in given.items() if value}


def _by_clip(rows: Iterable[tuple[Record, str, str, str]]) -> list[Clip]:
    """Rows that share everything but their files, gathered in the order of the first."""
    clips: dict[Record, tuple[list[str], dict[str, str], dict[str, str]]] = {}
    for shared, path, landmarks, mask in rows:
        files, points, masks = clips.setdefault(shared, ([], {}, {}))
        files.append(path)
        if landmarks:
            points[path] = landmarks
        if mask:
            masks[path] = mask
    return [Clip(shared, files, points, masks) for shared, (files, points, masks) in clips.items()]
