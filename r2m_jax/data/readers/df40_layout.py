"""DF40's downloads as they lie on disk, with the real images of FaceForensics++ and Celeb-DF beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from r2m_jax.data.readers import folders, universal
from r2m_jax.data.readers.places import CELEB_DF, Place, is_method_folder, place
from r2m_jax.data.readers.reading import Clip, Findings, Options
from r2m_jax.data.readers.tree import Folder, Tree
from r2m_jax.data.records import Record
from r2m_jax.errors import InputError

DATASET = "DF40"
_MARKS = {"df40", "df40_train", "original_sequences", "manipulated_sequences", *CELEB_DF}


def matches(tree: Tree) -> bool:
    """Images in folders named as DF40's methods, FaceForensics++'s or Celeb-DF's, the folder given included.

    Not ``fake/simswap`` (plain folders) nor ``stargan/0_real`` (universal detectors).
    """
    named = [(tree.root.name, *folder.parts) for folder in tree.folders if folder.images]
    return any(map(_known, named)) and not universal.matches(tree) and not folders.matches(tree)


def read(tree: Tree, options: Options, findings: Findings) -> list[Clip]:
    """Clips of a tree of DF40's folders.

    ``DF40_train`` is the split train and ``DF40`` test. Real clips of FaceForensics++ carry no split on disk; they
    are train where a training fake of the ``ff`` domain is made from them (``001_870`` is made from 001 and 870) and
    no other fake is.

    Raises:
        InputError: a folder with images tells neither method nor real/fake.
    """
    clips = []
    for folder in tree.folders:
        clips += list(_clips(tree, folder, options))
    return _split_reals(clips, findings)


def label_folder(tree: Tree, folder: Folder) -> Place:
    """Class, method, domain, split and clip of a folder.

    Raises:
        InputError: its path tells neither a method nor real or fake.
    """
    found = place((tree.root.name, *folder.parts))
    if found.label is None:
        raise InputError(
            f"{folder.path} tells neither a method of DF40 nor real or fake; DF40's uniface zip, for one, has no top "
            "folder: put the files into a folder named after the method."
        )
    return found


def shared_record(found: Place, video: str, options: Options) -> Record:
    """The record of a clip's frames."""
    family = (found.family or options.family) if found.label else ""
    return Record(
        path="",
        label=found.label or 0,
        family=family,
        method=found.method,
        domain=options.domain or found.domain,
        video="/".join(filter(None, (found.method, video))),
        split=found.split or options.split,
        dataset=options.dataset or DATASET,
        compression=found.compression,
    )


def _known(parts: tuple[str, ...]) -> bool:
    return any(part.lower() in _MARKS or is_method_folder(part) for part in parts)


def _clips(tree: Tree, folder: Folder, options: Options) -> Iterator[Clip]:
    if not folder.images and place((tree.root.name, *folder.parts)).label is None:
        return  # an empty folder that is nobody's clip
    found = label_folder(tree, folder)
    if found.video:
        video = clip_name(folder, found)
        yield Clip(shared_record(found, video, options), folder.files)
        return
    inner = "/".join(folder.parts)
    for name, path in zip(folder.images, folder.files, strict=True):
        stem = f"{inner}/{name.rpartition('.')[0]}" if not found.method else name.rpartition(".")[0]
        yield Clip(shared_record(found, stem, options), [path])


def clip_name(folder: Folder, found: Place) -> str:
    """The clip's name; below a method, with Celeb-DF's folder or the domain that tells equal names apart."""
    kinds = [part for part in folder.parts if part.lower() in CELEB_DF] if found.method else []
    domain = [found.domain] if found.domain and found.label else []
    return "/".join(filter(None, [*domain, *kinds, found.video]))


def _split_reals(clips: list[Clip], findings: Findings) -> list[Clip]:
    used: dict[str, set[str]] = {}
    for clip in clips:
        fake = clip.shared
        if fake.label and fake.domain == "ff":
            for source in fake.video.rpartition("/")[2].split("_"):
                used.setdefault(source, set()).add(fake.split)
    moved = 0
    out = []
    for clip in clips:
        real = clip.shared
        if not real.label and real.domain == "ff" and used.get(real.video) == {"train"} and real.split != "train":
            clip = replace(clip, shared=replace(real, split="train"))
            moved += 1
        out.append(clip)
    if moved:
        findings.notes.append(f"{moved} real clips of FaceForensics++ are train, as the fakes made from them are.")
    return out
