"""What a source of raw photographs and videos holds: as the readers tell, or all of one class as the user says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from r2m_jax.data.faces.places import FRAMES, VIDEO_FOLDER
from r2m_jax.data.readers import Reading, folders, read_source, videos
from r2m_jax.data.readers.reading import Clip, Findings, Options, expand, remarks
from r2m_jax.data.readers.tree import IMAGES, VIDEOS, Folder, scan
from r2m_jax.data.readers.videos import count_frames
from r2m_jax.data.records import Record
from r2m_jax.errors import InputError


def read_labelled(
    source: Path, *, layout: str = "auto", root: Path | None = None, frames: int, **fields: str
) -> Reading:
    """Records of a source that tells real from fake: a list or index, or folders of images, video files or both.

    Args:
        source: list file or folder.
        layout: one of :data:`r2m_jax.data.readers.LAYOUTS`.
        root: what relative paths of a list are relative to.
        frames: evenly spaced frames per clip.
        fields: dataset, domain, family and split, as :func:`r2m_jax.data.readers.read_source` takes them.

    Raises:
        InputError: as that function.
    """
    if layout == "auto" and source.is_dir():
        tree = scan(source)
        if tree.videos and folders.matches(tree):
            # Photographs beside videos in real/ and fake/: two layouts to the readers, one source here.
            options, findings = Options(frames=frames, **fields), Findings()  # type: ignore[arg-type]
            clips = [*folders.read(tree, options, findings), *videos.read(tree, options, findings)]
            records = expand(clips, options, findings)
            remarks(records, findings, probe=False)
            return Reading(records, "folders and videos", findings.notes, findings.warnings)
    return read_source(source, layout=layout, root=root, frames=frames, **fields)  # type: ignore[arg-type]


def read_unlabelled(source: Path, shared: Record, frames: int) -> Reading:
    """Records of a photograph, a video file, or a folder of such, all with the fields of ``shared``.

    Images below a folder ``frames`` are clips, other images photographs of their own.

    Args:
        source: file or folder.
        shared: label, family, method, domain, split and data set; the data set is the source's name where empty.
        frames: evenly spaced frames per clip.

    Raises:
        InputError: the source is missing or holds neither image nor video.
    """
    if not source.exists():
        raise InputError(f"{source} does not exist.")
    shared = replace(shared, dataset=shared.dataset or source.stem)
    if source.is_dir():
        contents = scan(source).folders
    else:
        file = source.absolute()
        kind = {suffix: kind for kind, suffixes in enumerate((IMAGES, VIDEOS)) for suffix in suffixes}
        images, films = ([file.name] if kind.get(file.suffix.lower()) == which else [] for which in (0, 1))
        contents = [Folder((), file.parent.as_posix(), tuple(images), tuple(films))]
    findings = Findings()
    clips = [clip for folder in contents for clip in _clips(folder, shared)]
    records = expand(clips, Options(frames=frames), findings)
    if not records:
        raise InputError(
            f"{source} holds no image or video; {', '.join(sorted(IMAGES))} and {', '.join(sorted(VIDEOS))} are read."
        )
    return Reading(records, "unlabelled", findings.notes, findings.warnings)


def _clips(folder: Folder, shared: Record) -> Iterator[Clip]:
    parts = [part for part in folder.parts if part not in (FRAMES, VIDEO_FOLDER)]
    if FRAMES in folder.parts and folder.images:
        yield Clip(replace(shared, video="/".join(parts)), folder.files)
    else:
        for name, path in zip(folder.images, folder.files, strict=True):
            yield Clip(replace(shared, video=_video(parts, name)), [path])
    for name in folder.videos:
        path = f"{folder.path}/{name}"
        # A file that cannot be read is entered with one frame, so that cropping meets and names it.
        yield Clip(replace(shared, video=_video(parts, name)), [path], length=max(count_frames(path), 1))


def _video(parts: list[str], name: str) -> str:
    return "/".join([*parts, name.rpartition(".")[0]])
