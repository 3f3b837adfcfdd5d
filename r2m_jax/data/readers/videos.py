"""Folders of video files, in ``real``/``fake`` folders or laid out as FaceForensics++, Celeb-DF and DF40 are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from r2m_jax.data.readers import df40_layout, folders
from r2m_jax.data.readers.reading import Clip, Findings, Options
from r2m_jax.data.readers.tree import Tree
from r2m_jax.data.video import frame_table
from r2m_jax.errors import InputError


def matches(tree: Tree) -> bool:
    """Any video file."""
    return tree.videos > 0


def read(tree: Tree, options: Options, findings: Findings) -> list[Clip]:
    """Clips of the tree, one per video file.

    Raises:
        InputError: no number of frames is asked for, or a folder does not tell real from fake.
    """
    if options.frames is None:
        raise InputError(
            f"{tree.root} holds {tree.videos} video files; say how many frames of each to use with --frames "
            "(DeepfakeBench uses 32, DF40 and R2M 8)."
        )
    clips: list[Clip] = []
    unreadable: list[str] = []
    for folder in tree.folders:
        if not folder.videos:
            continue
        found = folders.labelled(tree, folder.parts)
        if found:
            shared = folders.shared_record(found, tree, options)
        else:
            # The file stands where the folder of its frames would.
            place = df40_layout.label_folder(tree, folder)
            shared = df40_layout.shared_record(place, df40_layout.clip_name(folder, place), options)
        for name in folder.videos:
            path = f"{folder.path}/{name}"
            length = count_frames(path)
            if not length:
                unreadable.append(path)
                continue
            video = "/".join(filter(None, (shared.video, name.rpartition(".")[0])))
            clips.append(Clip(replace(shared, video=video), [path], length=length))
    if unreadable:
        findings.warnings.append(
            f"{len(unreadable)} video files cannot be read and are left out ({', '.join(unreadable[:3])}"
            f"{' …' * (len(unreadable) > 3)})."
        )
    return clips


def count_frames(path: str | Path) -> int:
    """Frames of a video file, as :func:`r2m_jax.data.video.read_frames` counts them; 0 if it cannot be read."""
    try:
        return len(frame_table(path))
    except InputError:
        return 0
