"""Readers of published data: every layout in, records out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from r2m_jax.data.catalogue import COMPRESSIONS, FAMILIES, nearest
from r2m_jax.data.readers import deepfakebench, df40_layout, folders, lists, synthbuster, universal, videos
from r2m_jax.data.readers.reading import Clip, Findings, Options, Reading, expand, remarks
from r2m_jax.data.readers.tree import Tree, scan
from r2m_jax.data.records import SPLITS, Record
from r2m_jax.data.selection import FrameSelection, check_selection
from r2m_jax.errors import InputError

_FOLDER_LAYOUTS = {
    "df40": df40_layout,
    "universal": universal,
    "synthbuster": synthbuster,
    "folders": folders,
    "videos": videos,
}
_FILE_LAYOUTS = {"deepfakebench": ".json", "forensichub": ".json", "csv": ".csv", "index": ".parquet", "gend": ".txt"}
_INDEX_NAMES = ("index.parquet", "index.csv")
LAYOUTS = ("auto", *_FILE_LAYOUTS, *_FOLDER_LAYOUTS)
"""What ``layout`` may be: ``auto``, a kind of list, or a layout of folders (``gend`` is both)."""


def read_source(
    path: str | Path,
    *,
    layout: str = "auto",
    root: str | Path | None = None,
    strip_prefix: str | None = None,
    frames: int | None = None,
    frame_selection: FrameSelection = "even",
    labels: Mapping[str, int] | None = None,
    compression: str | None = None,
    dataset: str = "",
    domain: str = "",
    family: str = "",
    split: str = "test",
    check_files: bool = False,
) -> Reading:
    """Read one source: a list file, or a folder of images or video files.

    Args:
        path: the file or folder; a folder's own ``index.parquet`` or ``index.csv`` is read in its stead.
        layout: one of :data:`LAYOUTS`; ``auto`` recognises it and refuses where two fit.
        root: what relative paths of a list are relative to; by default the list's own folder.
        strip_prefix: leading folders to take off a list's paths before ``root`` is put in front.
        frames: frames per clip, None for all (a number is needed for video files).
        frame_selection: ``even``, ``bench`` or ``df40``, see :mod:`r2m_jax.data.selection`.
        labels: label strings and their class, 0 real and 1 fake, before the built-in rule.
        compression: the only level to read from lists that have levels (raw, c23, c40).
        dataset: name of the data set instead of the source's.
        domain: domain instead of the source's.
        family: family of fakes whose method the catalogue does not know.
        split: split of files whose place does not tell.
        check_files: leave out files a list names that do not exist, and count them.

    Raises:
        InputError: the source is missing, empty or of no known or of two possible layouts, or its content is wrong;
            the message names the file and the entry.
    """
    path = Path(path)
    _check_choice("layout", layout, LAYOUTS)
    _check_choice("split", split, SPLITS)
    if compression is not None:
        _check_choice("compression", compression, COMPRESSIONS)
    if family:
        _check_choice("family", family, list(FAMILIES))
    check_selection(frame_selection, frames)
    options = Options(
        root=Path(root) if root is not None else None,
        strip_prefix=strip_prefix,
        labels=labels or {},
        compression=compression,
        dataset=dataset,
        domain=domain,
        family=family,
        split=split,
        frames=frames,
        frame_selection=frame_selection,
        check_files=check_files,
    )
    if not path.exists():
        raise InputError(f"{path} does not exist.")
    if path.is_dir() and layout == "auto":
        path = next((path / name for name in _INDEX_NAMES if (path / name).is_file()), path)
    findings = Findings()
    layout, clips = (_read_folder if path.is_dir() else _read_file)(path, layout, options, findings)
    records = expand(clips, options, findings)
    if not records:
        raise InputError(f"{path} ({layout}) holds no image. {' '.join(findings.warnings)}".rstrip())
    remarks(records, findings, probe=path.is_file() and not check_files)
    return Reading(records, layout, findings.notes, findings.warnings)


def require_reals(records: Sequence[Record], sources: Sequence[str | Path]) -> None:
    """Refuse data without real images.

    Raises:
        InputError: says what to give besides.
    """
    if not any(record.label == 0 for record in records):
        raise InputError(
            f"0 real images found in {', '.join(map(str, sources))}: the fake zips of DF40 and SynthBuster contain "
            "fakes only; give the real images (FaceForensics++ c23, Celeb-DF-v2, RAISE-1k) as a further source, or "
            "pass --fakes-only."
        )


def _read_file(path: Path, layout: str, options: Options, findings: Findings) -> tuple[str, list[Clip]]:
    suffix = path.suffix.lower()
    if layout == "auto" and suffix not in _FILE_LAYOUTS.values():
        raise InputError(f"{path} is no list that can be read; one ends in {_suffixes()}, or give a folder.")
    if layout in _FOLDER_LAYOUTS:
        raise InputError(f"{path} is a file, but the layout {layout} is one of folders.")
    if layout != "auto" and suffix != _FILE_LAYOUTS[layout]:
        raise InputError(f"{path} does not end in {_FILE_LAYOUTS[layout]}, as a list of the layout {layout} does.")
    if suffix == ".json":
        document = deepfakebench.load(path)
        found = "forensichub" if isinstance(document, list) else "deepfakebench"
        if layout not in ("auto", found):
            raise InputError(f"{path} is a {found} list, not {layout}.")
        reader: Callable[[Path, Any, Options, Findings], list[Clip]]
        reader = lists.read_json if found == "forensichub" else deepfakebench.read
        return found, reader(path, document, options, findings)
    if suffix == ".csv":
        return "csv", lists.read_csv(path, options, findings)
    if suffix == ".parquet":
        return "index", lists.read_parquet(path, options)
    return "gend", lists.read_texts([path], options, findings)


def _read_folder(path: Path, layout: str, options: Options, findings: Findings) -> tuple[str, list[Clip]]:
    if layout in _FILE_LAYOUTS and layout != "gend":
        raise InputError(f"{path} is a folder, but the layout {layout} is a list file; give the file.")
    tree = scan(path)
    if layout == "auto":
        layout = _recognise(tree)
    if layout == "gend":
        return layout, lists.read_texts([tree.root / name for name in tree.texts], options, findings)
    ignored = sum(tree.others.values()) + (tree.images if layout == "videos" else tree.videos)
    clips = _FOLDER_LAYOUTS[layout].read(tree, options, findings)
    if ignored:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in tree.others.most_common(3))
        findings.notes.append(
            f"{ignored} files that are no part of the layout are ignored{f' ({kinds})' * bool(kinds)}."
        )
    return layout, clips


def _recognise(tree: Tree) -> str:
    fitting = [name for name, module in _FOLDER_LAYOUTS.items() if module.matches(tree)]
    if len(fitting) > 1:
        raise InputError(f"{tree.root} could be {' or '.join(fitting)}; choose one with --layout.")
    if fitting:
        return fitting[0]
    if tree.images or tree.videos:
        raise InputError(
            f"the layout of {tree.root} ({tree.images} images) is not recognised: it has neither folders real/ and "
            "fake/, nor 0_real/ and 1_fake/, nor folders named after methods of DF40 or generators of SynthBuster; "
            "rename its folders so (files of DF40's uniface zip, which has no top folder, go into uniface/)."
        )
    if tree.texts:
        return "gend"
    jsons = tree.others[".json"]
    hint = f" It has {jsons} JSON files: give those, not their folder." if jsons else ""
    raise InputError(f"{tree.root} holds no image and no video file.{hint}")


def _check_choice(what: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InputError(f"the {what} {value!r} is unknown; {nearest(value, choices)}")


def _suffixes() -> str:
    return ", ".join(dict.fromkeys(_FILE_LAYOUTS.values()))
