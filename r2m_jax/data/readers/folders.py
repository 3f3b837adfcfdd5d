"""Plain folders ``real`` and ``fake``.

``[train|val|test/]{real,fake}/[train|val|test/][<family>/][<method or source>/][<clip>/]<image>``: the first level
below ``fake`` is the method, below ``real`` the source; a level below that, or below a folder ``frames``, is the clip.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from r2m_jax.data import catalogue
from r2m_jax.data.readers.places import is_method_folder
from r2m_jax.data.readers.reading import Clip, Findings, Options
from r2m_jax.data.readers.tree import Tree
from r2m_jax.data.records import Record

_CLASSES = {"real": 0, "fake": 1}
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
MANY_METHODS = 64
"""More folders than this directly below ``fake`` are hardly methods."""


@dataclass(frozen=True)
class Labelled:
    """What a folder below ``real`` or ``fake`` tells; ``inner`` is the clip's folder, or the stills' place."""

    label: int
    split: str
    family: str
    method: str
    inner: tuple[str, ...]
    is_clip: bool


def matches(tree: Tree) -> bool:
    """Images in ``real`` or ``fake`` at the top or below a split, and the folder given is no method of DF40's."""
    if is_method_folder(tree.root.name):
        return False
    return any(folder.images and labelled(tree, folder.parts) for folder in tree.folders)


def read(tree: Tree, options: Options, findings: Findings) -> list[Clip]:
    """Clips of the tree; images that lie outside ``real`` and ``fake`` are counted."""
    clips: list[Clip] = []
    outside = 0
    for folder in tree.folders:
        found = labelled(tree, folder.parts)
        if found is None:
            outside += len(folder.images)
            continue
        shared = shared_record(found, tree, options)
        if found.is_clip:
            clips.append(Clip(shared, folder.files))
        else:
            clips += _stills(shared, folder.images, folder.files)
    if outside:
        findings.warnings.append(
            f"{outside} images are in neither real/ nor fake/ (at the top, or below train/, val/ or test/) and are "
            "left out."
        )
    methods = {clip.shared.method for clip in clips if clip.shared.label}
    if len(methods) > MANY_METHODS:
        findings.warnings.append(
            f"{len(methods)} folders directly below fake/ are read as methods; if they are clips, put them into "
            "fake/<method>/ or fake/frames/."
        )
    if options.frames is not None and not any(len(clip.files) > 1 for clip in clips):
        findings.notes.append(
            "no clips were found to select frames from; clips are real/<source>/<clip>/, fake/<method>/<clip>/ or "
            "folders below frames/."
        )
    return clips


def labelled(tree: Tree, parts: tuple[str, ...]) -> Labelled | None:
    """What a folder tells; None where it lies in neither ``real`` nor ``fake``."""
    whole = (tree.root.name, *parts) if tree.root.name.lower() in _CLASSES else parts
    lower = [part.lower() for part in whole]
    at = next((i for i, part in enumerate(lower) if part in _CLASSES), None)
    if at is None or any(part not in _SPLITS for part in lower[:at]):
        return None
    label = _CLASSES[lower[at]]
    split = next((_SPLITS[part] for part in lower[:at]), "")
    rest = list(whole[at + 1 :])
    if rest and rest[0].lower() in _SPLITS:
        split = _SPLITS[rest.pop(0).lower()]
    family = rest.pop(0) if label and rest and rest[0] in catalogue.FAMILIES else ""
    name = rest.pop(0) if rest and rest[0].lower() != "frames" else ""
    inner = [part for part in rest if part.lower() != "frames"]
    if not label and name:
        inner = [name, *inner]
    method = catalogue.find_method(name) if label and name else None
    return Labelled(
        label=label,
        split=split,
        family=family or (method.family if method else ""),
        method=(method.name if method else name) if label else "",
        inner=tuple(inner),
        is_clip=bool(inner) if label else len(inner) > bool(name),
    )


def shared_record(found: Labelled, tree: Tree, options: Options) -> Record:
    """The record of a clip's frames."""
    return Record(
        path="",
        label=found.label,
        family=(found.family or options.family) if found.label else "",
        method=found.method,
        domain=options.domain,
        video="/".join(filter(None, (found.method, *found.inner))),
        split=found.split or options.split,
        dataset=options.dataset or tree.root.name,
    )


def _stills(shared: Record, names: tuple[str, ...], paths: list[str]) -> Iterator[Clip]:
    for name, path in zip(names, paths, strict=True):
        video = "/".join(filter(None, (shared.video, name.rpartition(".")[0])))
        yield Clip(replace(shared, video=video), [path])
