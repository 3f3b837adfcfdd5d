"""What the readers share: options, clips, and how clips become records."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from r2m_jax.data.records import SPLITS, Record
from r2m_jax.data.selection import FrameSelection, frame_indices, select_frames
from r2m_jax.errors import InputError


@dataclass(frozen=True)
class Options:
    """How a source is read.

    Attributes:
        root: what relative paths of a list are relative to; by default the list's own folder.
        strip_prefix: leading folders to take off a list's paths before ``root`` is put in front.
        labels: label strings and their class (0 real, 1 fake), before the built-in table.
        compression: read only this level where a list has several.
        dataset: name of the data set, instead of what the source says.
        domain: domain, where the source does not say.
        family: family of methods the catalogue does not know.
        split: split of files whose place does not tell.
        frames: frames per clip, None for all.
        frame_selection: which ones, see :mod:`r2m_jax.data.selection`.
        check_files: leave out files of a list that do not exist, and count them.
    """

    root: Path | None = None
    strip_prefix: str | None = None
    labels: Mapping[str, int] = field(default_factory=dict)
    compression: str | None = None
    dataset: str = ""
    domain: str = ""
    family: str = ""
    split: str = "test"
    frames: int | None = None
    frame_selection: FrameSelection = "even"
    check_files: bool = False


@dataclass(frozen=True, slots=True)
class Clip:
    """Frames that belong together, and the record they share.

    Attributes:
        shared: the record of every frame but for ``path``, ``frame``, ``landmarks`` and ``mask``.
        files: image files in the order of the source; for a video file, that one file.
        landmarks: folder of the landmark files, or the one of each image's path; empty where there is none.
        masks: folder of the masks, or the one of each image's path; empty where there is none.
        length: frames of a video file to select from; 0 for image files, and where ``shared`` names the frame.
    """

    shared: Record
    files: Sequence[str]
    landmarks: str | Mapping[str, str] = ""
    masks: str | Mapping[str, str] = ""
    length: int = 0


@dataclass
class Findings:
    """What a reader has to tell: notes about how it read, and warnings about the data."""

    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Reading:
    """What was read from one source."""

    records: list[Record]
    layout: str
    notes: list[str]
    warnings: list[str]


def expand(clips: Iterable[Clip], options: Options, findings: Findings) -> list[Record]:
    """Records of the selected frames of every clip; clips without frames are counted and named."""
    records: list[Record] = []
    empty: list[Record] = []
    missing: list[str] = []
    listed = 0
    folders: dict[str, frozenset[str]] = {}
    for clip in clips:
        shared = clip.shared
        files = clip.files
        listed += len(files)
        if options.check_files and not clip.length:
            present = [path for path in files if exists(path, folders)]
            missing += set(files).difference(present)
            files = present
        if not files:
            if not clip.files:
                empty.append(shared)
            continue
        if clip.length:
            chosen = frame_indices(clip.length, options.frames, options.frame_selection)
            records += [_record(shared, files[0], frame, "", "") for frame in chosen]
        else:
            records += [_image(clip, path) for path in select_frames(files, options.frames, options.frame_selection)]
    if empty:
        findings.warnings.append(
            f"{len(empty)} clips have no frames and are left out ({_named(clip.video for clip in empty)})."
        )
    if missing:
        if not records:
            raise InputError(
                f"none of the {listed} listed files exists, e.g. {missing[0]}; say where they are with --root "
                "(and what to take off the listed paths with --strip-prefix)."
            )
        findings.warnings.append(
            f"{len(missing)} of {listed} listed files do not exist and are left out ({_named(sorted(missing))})."
        )
    return records


def exists(path: str, folders: dict[str, frozenset[str]]) -> bool:
    """Whether a file exists; ``folders`` remembers the listings, one system call per folder instead of per file."""
    folder, _, name = path.rpartition("/")
    if folder not in folders:
        try:
            folders[folder] = frozenset(os.listdir(folder or "/"))  # noqa: PTH208  # names, not paths, 100,000 times
        except OSError:
            folders[folder] = frozenset()
    return name in folders[folder]


def remarks(records: Sequence[Record], findings: Findings, *, probe: bool) -> None:
    """Warn of what is wrong with the records as a set: leaks between splits, repetitions, one-class splits.

    Args:
        records: what was read.
        findings: where notes and warnings go.
        probe: look for some of the files, to notice a wrong root early.
    """
    _leaks(records, findings)
    _repetitions(records, findings)
    _one_class(records, findings)
    unknown = Counter(r.method or "unnamed" for r in records if r.label and not r.family)
    if unknown:
        names = ", ".join(f"{name} ({count})" for name, count in unknown.most_common(8))
        findings.warnings.append(
            f"the family of {sum(unknown.values())} fake images is not known: {names}; pass --family FS, FR, EFS or FE."
        )
    if probe and records:
        sample = [records[i * (len(records) - 1) // 19].path for i in range(20)]
        if not any(Path(path).exists() for path in sample):
            findings.warnings.append(
                f"none of {len(set(sample))} files looked for exists, e.g. {sample[0]}; say where they are with --root "
                "(and what to take off the listed paths with --strip-prefix)."
            )


def _leaks(records: Sequence[Record], findings: Findings) -> None:
    images: dict[str, dict[str, set[tuple[str, int]]]] = {}
    for r in records:
        images.setdefault(r.dataset, {name: set() for name in SPLITS})[r.split].add((r.path, r.frame))
    for dataset, paths in images.items():
        for one, other in combinations(SPLITS, 2):
            shared = len(paths[one] & paths[other])
            if shared and paths[one] == paths[other]:
                findings.warnings.append(
                    f"{dataset}: {one} and {other} are the same {shared} images; a checkpoint chosen on the one is "
                    "chosen on the other."
                )
            elif shared:
                findings.warnings.append(f"{dataset}: {one} and {other} share {shared} images.")


def _repetitions(records: Sequence[Record], findings: Findings) -> None:
    listed = Counter((r.path, r.frame, r.label, r.split, r.dataset) for r in records)
    repeated = [count for count in listed.values() if count > 1]
    if repeated:
        findings.notes.append(
            f"{len(repeated)} images are listed more than once (up to {max(repeated)} times); kept as listed, where "
            "they act as a weight; --dedup keeps the first of each."
        )
    labels: dict[tuple[str, int], int] = {}
    both = {r.path for r in records if labels.setdefault((r.path, r.frame), r.label) != r.label}
    if both:
        findings.warnings.append(f"{len(both)} images are listed both as real and as fake ({_named(sorted(both))}).")
    names = ({(r.dataset, r.video.rpartition("/")[2]) for r in records if r.label == label} for label in (0, 1))
    colliding = set.intersection(*names)
    if colliding:
        findings.notes.append(
            f"{len(colliding)} clip names are used by real and by fake clips alike "
            f"({_named(sorted(name for _, name in colliding))}); clips are told apart by data set, label and video."
        )


def _one_class(records: Sequence[Record], findings: Findings) -> None:
    splits: dict[str, dict[str, set[int]]] = {}
    for r in records:
        splits.setdefault(r.dataset, {}).setdefault(r.split, set()).add(r.label)
    for dataset, labels in splits.items():
        if set().union(*labels.values()) == {0, 1}:  # a source of fakes alone is told of elsewhere
            findings.warnings += [
                f"{dataset}: the split {split} holds {'fake' if 1 in found else 'real'} images only."
                for split, found in labels.items()
                if len(found) == 1
            ]


def _image(clip: Clip, path: str) -> Record:
    landmarks, mask = _beside(clip.landmarks, path, ".npy"), _beside(clip.masks, path, "")
    return _record(clip.shared, path, clip.shared.frame, landmarks, mask)


def _beside(files: str | Mapping[str, str], path: str, suffix: str) -> str:
    if not files:
        return ""
    if not isinstance(files, str):
        return files.get(path, "")
    name = path.rpartition("/")[2]
    return f"{files}/{name.rpartition('.')[0] + suffix if suffix else name}"


def _record(shared: Record, path: str, frame: int, landmarks: str, mask: str) -> Record:
    # dataclasses.replace is three times slower, and there are 100,000s of these
    return Record(
        path, shared.label, shared.family, shared.method, shared.domain, shared.video, shared.split, shared.dataset,
        shared.compression, frame, landmarks, mask,
    )  # fmt: skip


def _named(names: Iterable[str], most: int = 3) -> str:
    names = list(dict.fromkeys(names))
    return ", ".join(names[:most]) + (" …" if len(names) > most else "")
