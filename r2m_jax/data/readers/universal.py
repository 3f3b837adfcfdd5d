"""Folders ``0_real`` and ``1_fake``: CNNDetection, UniversalFakeDetect, AIDE.

``<root>/[<generator>/][<class>/]{0_real,1_fake}/*``; the diffusion sets of UniversalFakeDetect keep their real images
in ``imagenet`` and ``laion``, shared by several generators.
"""

from __future__ import annotations

from dataclasses import replace

from r2m_jax.data import catalogue
from r2m_jax.data.readers.reading import Clip, Findings, Options
from r2m_jax.data.readers.tree import Tree
from r2m_jax.data.records import SPLITS, Record

_CLASSES = {"0_real": 0, "1_fake": 1}
_CONTAINERS = frozenset({"diffusion_datasets", "cnndetection", "cnn_synth_testset", "universalfakedetect"})


def matches(tree: Tree) -> bool:
    """A folder named ``0_real`` or ``1_fake``, the folder given included."""
    return any(_class(tree, folder.parts) is not None for folder in tree.folders if folder.images)


def read(tree: Tree, options: Options, findings: Findings) -> list[Clip]:
    """Clips (one image each) of the tree; the data set is the generator's folder, as the papers report per generator.

    Real images of ``imagenet`` and ``laion`` are listed once for every generator in the tree that shares them.
    """
    clips: list[Clip] = []
    outside = 0
    for folder in tree.folders:
        label = _class(tree, folder.parts)
        if label is None:
            outside += len(folder.images)
            continue
        generator, inner, split = _generator(tree, folder.parts)
        method = catalogue.find_method(generator) if label else None
        shared = Record(
            path="",
            label=label,
            family=(method.family if method else options.family) if label else "",
            method=(method.name if method else generator) if label else "",
            domain=options.domain or (generator if generator in catalogue.SHARED_REALS else ""),
            split=split or options.split,
            dataset=options.dataset or generator,
        )
        for name, path in zip(folder.images, folder.files, strict=True):
            video = "/".join(filter(None, (shared.method, *inner, name.rpartition(".")[0])))
            clips.append(Clip(replace(shared, video=video), [path]))
    if outside:
        findings.warnings.append(f"{outside} images outside 0_real and 1_fake are left out.")
    return clips if options.dataset else _share_reals(clips, findings)


def _class(tree: Tree, parts: tuple[str, ...]) -> int | None:
    return next((_CLASSES[part] for part in reversed((tree.root.name, *parts)) if part in _CLASSES), None)


def _generator(tree: Tree, parts: tuple[str, ...]) -> tuple[str, tuple[str, ...], str]:
    """Generator, components below it (a class of objects), and split."""
    whole = (tree.root.parent.name, tree.root.name, *parts)
    end = max(i for i, part in enumerate(whole) if part in _CLASSES)
    split = next((part for part in whole[:end] if part in SPLITS), "")
    # The folders above count only where nothing below them can be the generator.
    start = 2 if end > 2 else 1 if end == 2 else 0
    names = [part for part in whole[start:end] if part not in SPLITS and part.lower() not in _CONTAINERS]
    names = names or [whole[end - 1]]
    root = catalogue.find_method(tree.root.name)
    if start == 2 and root is not None and not any(catalogue.find_method(name) for name in names):
        return root.name, tuple(names), split  # progan/airplane/0_real, with progan given
    at = next((i for i, name in enumerate(names) if catalogue.find_method(name)), 0)
    return names[at], tuple(names[at + 1 :]), split


def _share_reals(clips: list[Clip], findings: Findings) -> list[Clip]:
    present = {clip.shared.dataset for clip in clips if clip.shared.label}
    out: list[Clip] = []
    for clip in clips:
        users = [key for key in catalogue.SHARED_REALS.get(clip.shared.dataset, ()) if key in present]
        if clip.shared.label or not users:
            out.append(clip)
        else:
            out += [replace(clip, shared=replace(clip.shared, dataset=key)) for key in users]
    for reals, keys in catalogue.SHARED_REALS.items():
        users = [key for key in keys if key in present]
        if users and len(out) > len(clips):
            findings.notes.append(f"the real images of {reals} stand for {', '.join(users)}.")
    return out
