"""The JSON lists of DeepfakeBench and DF40.

Schema (https://github.com/SCLBD/DeepfakeBench, ``preprocessing/rearrange.py``)::

    {"<data set>": {"<label>": {"train" | "val" | "test": {["c23": {]
        "<video>": {"label": "<label>", "frames": ["<path>", …], ("masks": ["<path>", …])}
    [}]}}}}

The compression level is there for the FaceForensics++ family only and is recognised by structure, not by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r2m_jax.data import catalogue
from r2m_jax.data.readers.paths import Resolver, sibling
from r2m_jax.data.readers.places import place_of
from r2m_jax.data.readers.reading import Clip, Findings, Options
from r2m_jax.data.records import SPLITS, Record
from r2m_jax.errors import InputError

# JSON objects are kept as pairs: an object that names a video twice (merged by hand) loses neither.
_Object = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class _Entry:
    label: str
    split: str
    level: str
    video: str
    fields: Mapping[str, Any]


def load(path: Path) -> Any:
    """A JSON file, its objects as tuples of pairs.

    Raises:
        InputError: the file cannot be read or is no JSON.
    """
    try:
        return json.loads(path.read_bytes(), object_pairs_hook=tuple)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}).") from None


def read(path: Path, document: Any, options: Options, findings: Findings) -> list[Clip]:
    """Clips of a DeepfakeBench or DF40 list.

    A level of compression other than c23 becomes part of the data set's name (``FF-DF_c40``, as DeepfakeBench calls
    it), and a fake clip's method part of its video's (``FF-DF/000_003``), since one name stands for a clip of every
    method; so clips stay apart. ``landmarks`` and ``mask`` are set where those folders exist beside ``frames``, or
    where the list has ``masks``.

    Args:
        path: the file, for messages and names.
        document: what :func:`load` returned.
        options: how to read it.
        findings: where notes and warnings go.

    Raises:
        InputError: the top key is not the file's stem, a split or label is unknown, or the structure is another.
    """
    base, level = _name_and_level(path.stem)
    resolver = Resolver(options.root or path.parent, options.strip_prefix)
    entries = list(_entries(path, _content(path, document, base, findings)))
    levels = sorted({entry.level for entry in entries} - {""})
    wanted = _wanted_level(path, levels, level or options.compression)
    if wanted is None and len(levels) > 1:
        findings.notes.append(
            f"{path.name} holds the levels {', '.join(levels)}, read as data sets of their own; "
            "--compression reads one."
        )
    clips, regrouped = [], 0
    for entry in entries:
        if not wanted or not entry.level or entry.level == wanted:
            clip, moved = _clip(path, entry, base, resolver, options)
            clips.append(clip)
            regrouped += moved
    resolver.report(findings)
    if regrouped:
        findings.warnings.append(
            f"{path.name}: {regrouped} videos stand under a label of the other class; their own label is used."
        )
    return clips


def _name_and_level(stem: str) -> tuple[str, str]:
    """``FF-DF_c40`` is the c40 level of ``FF-DF``."""
    base, _, level = stem.rpartition("_")
    return (base, level) if base and level in catalogue.COMPRESSIONS else (stem, "")


def _content(path: Path, document: Any, base: str, findings: Findings) -> _Object:
    if not isinstance(document, tuple):
        raise InputError(f"{path} is no DeepfakeBench list: its top level is not an object named after the file.")
    content = dict(document)
    for name in (path.stem, base):
        if name in content:
            others = [key for key in content if key != name]
            if others:
                findings.warnings.append(f"{path.name}: the top keys {', '.join(others)} are ignored.")
            return _object(content[name], path, name)
    raise InputError(
        f"the top key of {path} is {', '.join(map(repr, content)) or 'missing'}, but must equal the file's stem "
        f"{path.stem!r}; rename the file or the key."
    )


def _entries(path: Path, content: _Object) -> Iterator[_Entry]:
    for group, splits in content:
        for split, videos in _object(splits, path, group):
            where = f"{group}/{split}"
            if split not in SPLITS:
                raise InputError(f"{path}, {group}: the split {split!r} is not one of {', '.join(SPLITS)}.")
            for name, value in _object(videos, path, where):
                inner = _object(value, path, f"{where}/{name}")
                if _is_video(inner):
                    yield _Entry(group, split, "", name, dict(inner))
                    continue
                if name not in catalogue.COMPRESSIONS:
                    raise InputError(
                        f"{path}, {where}: {name!r} is neither a video with a list of frames nor a compression level "
                        f"({', '.join(catalogue.COMPRESSIONS)})."
                    )
                for video, fields in inner:
                    where_video = f"{where}/{name}/{video}"
                    yield _Entry(group, split, name, video, dict(_object(fields, path, where_video)))


def _object(value: Any, path: Path, where: str) -> _Object:
    if not isinstance(value, tuple):
        raise InputError(f"{path}, {where}: an object was expected, not {json.dumps(value)[:40]}.")
    return value


def _is_video(fields: _Object) -> bool:
    return any(name == "frames" or (name == "label" and isinstance(value, str)) for name, value in fields)


def _wanted_level(path: Path, levels: list[str], wanted: str | None) -> str | None:
    if wanted and levels and wanted not in levels:
        raise InputError(f"{path} has no compression level {wanted}; it has {', '.join(levels)}.")
    return wanted or None


def _clip(path: Path, entry: _Entry, base: str, resolver: Resolver, options: Options) -> tuple[Clip, bool]:
    where = f"{path}, {entry.label}/{entry.split}/{entry.video}"
    label = entry.fields.get("label", entry.label)
    target = catalogue.class_of(str(label), options.labels)
    if target is None:
        raise catalogue.unknown_label(str(label), where)
    frames = _paths(entry.fields.get("frames"), where, "frames")
    masks = _paths(entry.fields.get("masks"), where, "masks")
    place = place_of(frames[0]) if frames else place_of("")
    method, family = catalogue.method_of_label(str(label)) if target else ("", "")
    if target and not method:
        method, family = place.method, place.family or family
    files = [resolver(frame) for frame in frames]
    folder = files[0].rpartition("/")[0] if files else ""
    level = entry.level or place.compression
    shared = Record(
        path="",
        label=target,
        family=family or (options.family if target else ""),
        method=method,
        domain=options.domain or catalogue.domain_of(base) or place.domain,
        video=f"{method}/{entry.video}" if method else entry.video,
        split=entry.split,
        dataset=options.dataset or (f"{base}_{entry.level}" if entry.level not in ("", "c23") else base),
        compression=level,
    )
    listed = {_stem(mask): mask for mask in map(resolver, masks)}
    by_file = {file: listed[_stem(file)] for file in files if _stem(file) in listed}
    clip = Clip(shared, files, landmarks=_beside(folder, "landmarks"), masks=by_file or _beside(folder, "masks"))
    stands_under = catalogue.class_of(entry.label, options.labels)
    return clip, stands_under is not None and stands_under != target


def _paths(value: Any, where: str, name: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(path, str) for path in value):
        raise InputError(f"{where}: {name!r} must be a list of paths.")
    return value


def _stem(path: str) -> str:
    return path.rpartition("/")[2].rpartition(".")[0]


def _beside(folder: str, name: str) -> str:
    other = sibling(folder, name)
    return other if other and Path(other).is_dir() else ""
