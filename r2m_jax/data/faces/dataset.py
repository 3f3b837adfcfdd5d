"""Cropping whole sources: many photographs and videos side by side, in a run that may be stopped and continued."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from r2m_jax.atomic import atomic_file
from r2m_jax.data.faces.align import template, warp_mask
from r2m_jax.data.faces.crop import NO_FACE, NoFace, crop_centre, crop_face
from r2m_jax.data.faces.journal import NAME, Entry, append, read_journal, write_journal
from r2m_jax.data.faces.landmarks import require_dlib, with_forehead
from r2m_jax.data.faces.places import LANDMARKS, MASKS, place_crops, side_path
from r2m_jax.data.images import decode_image
from r2m_jax.data.index import write_index
from r2m_jax.data.records import Record
from r2m_jax.data.video import frame_table, read_frames
from r2m_jax.errors import InputError

Track: TypeAlias = Callable[[str, int], AbstractContextManager[Callable[..., None]]]
"""``track(what, total)``: a context whose value is called with the number of images done."""

INDEX = "index.csv"
_CHUNK = 8  # images a process takes at a time; frames of a video file stay together


@dataclass(frozen=True)
class CropRecipe:
    """Settings of a run.

    Attributes:
        size: sides of the crops in pixels.
        margin: how many times ArcFace's field of view, see :func:`r2m_jax.data.faces.align.template`.
        no_face: ``skip`` leaves images without a face out and counts them, ``error`` refuses them, ``centre`` takes
            their central square.
    """

    size: int = 256
    margin: float = 1.3
    no_face: NoFace = "skip"


@dataclass(frozen=True)
class Cropped:
    """What was made.

    Attributes:
        records: of the crops, paths below the output folder.
        entries: what became of every image or frame, ordered by place.
        reused: how many of them an earlier run had done.
    """

    records: list[Record]
    entries: list[Entry]
    reused: int


@dataclass(frozen=True)
class _Task:
    """One file: its image, or some of its frames, and where the crops go."""

    path: str
    places: dict[int, str]  # by frame number
    mask: str = ""


def crop_dataset(
    records: Sequence[Record],
    out: Path,
    recipe: CropRecipe,
    *,
    root: Path | None = None,
    workers: int = 1,
    track: Track,
) -> Cropped:
    """Crop the largest face of every image and video frame.

    Writes below ``out``, in the source's folders (see :func:`r2m_jax.data.faces.places.place_crops`):

    - ``frames/<clip>/<name>.png``: the crops,
    - ``landmarks/<clip>/<name>.npy``: float64 ``[81, 2]``, 68 landmarks and the forehead, in pixels of the crop,
    - ``masks/<clip>/<name>.png``: masks of records that have one, carried along,
    - ``index.csv``: the records of the crops,
    - ``crops.jsonl``: settings, and what became of every image.

    The result depends on records and recipe only, neither on ``workers`` nor on interruptions: a run into the folder
    of one that was stopped does what is left. Files that cannot be read are entered and left out.

    Args:
        records: images and frames of video files; one listed several times is cropped once.
        out: folder to make or to continue.
        recipe: settings.
        root: folder the records lie in; by default the lowest that holds them all.
        workers: processes.
        track: shows progress.

    Raises:
        InputError: the settings are wrong, ``out`` is of another source or other settings, dlib is not installed, an
            image has no face and the recipe refuses that, or nothing could be cropped.
    """
    _check(recipe)
    places = place_crops(records, root)
    # A run that refuses images without a face writes what one that skips them does, and may go on as one.
    settings = asdict(recipe) | {"no_face": "centre" if recipe.no_face == "centre" else "skip"}
    known = read_journal(out, settings)
    foreign = sorted(known.keys() - set(places.values()))
    if foreign:
        raise InputError(
            f"{out} holds {len(foreign)} crops that are not of this source and selection, e.g. {foreign[0]}; choose "
            "another output or delete it."
        )
    sizes = {path: _bytes(path) for path, _ in places}
    done = {
        place: known[place]
        for (path, frame), place in places.items()
        if place in known and _holds(known[place], out, path, frame, sizes[path], recipe)
    }
    tasks = _tasks(records, {source: place for source, place in places.items() if place not in done})
    reused = len(done)
    # Without its last line, should that have been cut off, and without what has changed since.
    write_journal(out, settings, done.values())
    with track("cropping", len(places) - reused) as advance, (out / NAME).open("a", encoding="utf-8") as journal:
        for entries in _run(tasks, out, recipe, workers):
            append(journal, entries)
            done.update((entry.place, entry) for entry in entries)
            _refuse_faceless(entries, recipe)
            advance(len(entries))
    ordered = [done[place] for place in sorted(done)]
    write_journal(out, settings, ordered)
    made = [made for record in records if (made := _made(record, done[places[record.path, record.frame]], out, recipe))]
    if not made:
        first = next((entry.reason for entry in ordered if entry.reason), "no face was found in any of them.")
        raise InputError(f"none of {len(ordered)} images could be cropped: {first}")
    write_index(made, out / INDEX)
    return Cropped(made, ordered, reused)


def _check(recipe: CropRecipe) -> None:
    template(recipe.size, recipe.margin)
    if recipe.no_face not in NO_FACE:
        raise InputError(f"{recipe.no_face!r} is no policy for images without a face; choose {', '.join(NO_FACE)}.")
    require_dlib()


def _refuse_faceless(entries: Sequence[Entry], recipe: CropRecipe) -> None:
    lacking = next((entry for entry in entries if entry.outcome == "no face"), None)
    if recipe.no_face == "error" and lacking is not None:
        raise InputError(f"no face was found in {name_of(lacking)}; leave it out, or pass --no-face skip or centre.")


def name_of(entry: Entry) -> str:
    """The source of an entry as a message names it."""
    return entry.source if entry.frame < 0 else f"{entry.source}, frame {entry.frame}"


def _bytes(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116  # 100,000 times
    except OSError:
        return -1


def _holds(entry: Entry, out: Path, path: str, frame: int, size: int, recipe: CropRecipe) -> bool:
    """Whether an entry of an earlier run still says what is so."""
    if (entry.source, entry.frame, entry.bytes) != (path, frame, size) or entry.outcome == "unreadable":
        return False
    if entry.outcome == "no face":
        return recipe.no_face == "skip" or (recipe.no_face == "centre" and (out / f"{entry.place}.png").exists())
    return (out / f"{entry.place}.png").exists() and (out / f"{side_path(entry.place, LANDMARKS)}.npy").exists()


def _tasks(records: Sequence[Record], places: dict[tuple[str, int], str]) -> list[_Task]:
    masks = {record.path: record.mask for record in records if record.mask and record.frame < 0}
    tasks: dict[str, _Task] = {}
    for (path, frame), place in places.items():
        tasks.setdefault(path, _Task(path, {}, masks.get(path, ""))).places[frame] = place
    return list(tasks.values())


def _run(tasks: Sequence[_Task], out: Path, recipe: CropRecipe, workers: int) -> Iterator[list[Entry]]:
    chunks = list(_chunks(tasks))
    if workers == 1 or len(chunks) <= 1:
        yield from (_crop_files(chunk, out, recipe) for chunk in chunks)
        return
    # Started afresh: forking a process in which JAX or OpenCV run threads may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,))
    try:
        for future in as_completed([pool.submit(_crop_files, chunk, out, recipe) for chunk in chunks]):
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _chunks(tasks: Sequence[_Task]) -> Iterator[list[_Task]]:
    chunk: list[_Task] = []
    for task in tasks:
        chunk.append(task)
        if sum(len(one.places) for one in chunk) >= _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _crop_files(tasks: Sequence[_Task], out: Path, recipe: CropRecipe) -> list[Entry]:
    return [entry for task in tasks for entry in _crop_file(task, out, recipe)]


def _crop_file(task: _Task, out: Path, recipe: CropRecipe) -> list[Entry]:
    """Crop what is wanted of one file; frames that cannot be had are entered as such, those before them are kept."""
    size = _bytes(task.path)
    entries: dict[int, Entry] = {}
    reason = f"{task.path} has no such frame."
    images = _images(task)
    while True:
        try:
            item = next(images, None)
        except InputError as error:
            reason = str(error)
            break
        if item is None:
            break
        # Outside of the try: what cannot be written must end the run.
        frame, image, mask = item
        entries[frame] = _crop_image(image, mask, Entry(task.places[frame], task.path, frame, size), out, recipe)
    missing = sorted(task.places.keys() - entries)
    lost = [Entry(task.places[frame], task.path, frame, size, "unreadable", reason=reason) for frame in missing]
    return [*entries.values(), *lost]


def _images(task: _Task) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"] | None]]:
    """Frame number, pixels and mask."""
    if -1 not in task.places:
        table = frame_table(task.path)
        # A list may count frames that the file's own edit list cuts away.
        there = [frame for frame in task.places if frame < len(table)]
        yield from ((frame, image, None) for frame, image in read_frames(task.path, there, table))
        return
    image = np.array(decode_image(task.path))
    mask = np.array(decode_image(task.mask).convert("L")) if task.mask else None
    if mask is not None and mask.shape != image.shape[:2]:
        height, width = image.shape[:2]
        raise InputError(f"the mask {task.mask} has other sides than its image, which has {width} x {height} pixels.")
    yield -1, image, mask


def _crop_image(image: np.ndarray, mask: np.ndarray | None, entry: Entry, out: Path, recipe: CropRecipe) -> Entry:
    crop = crop_face(image, recipe.size, recipe.margin)
    if crop is None:
        entry = replace(entry, outcome="no face")
        if recipe.no_face != "centre":
            return entry
        crop = crop_centre(image, recipe.size)
    if crop.landmarks is not None:
        with atomic_file(out / f"{side_path(entry.place, LANDMARKS)}.npy") as aside, aside.open("wb") as file:
            np.save(file, with_forehead(crop.landmarks))
    if mask is not None:
        _save(warp_mask(mask, crop.matrix, recipe.size), out / f"{side_path(entry.place, MASKS)}.png")
    _save(crop.image, out / f"{entry.place}.png")
    return replace(entry, faces=crop.faces, confidence=round(crop.confidence, 4))


def _save(pixels: np.ndarray, path: Path) -> None:
    with atomic_file(path) as aside:
        Image.fromarray(pixels).save(aside, format="PNG")


def _made(record: Record, entry: Entry, out: Path, recipe: CropRecipe) -> Record | None:
    if entry.outcome == "unreadable" or (entry.outcome == "no face" and recipe.no_face == "skip"):
        return None
    landmarks = out / f"{side_path(entry.place, LANDMARKS)}.npy"
    mask = out / f"{side_path(entry.place, MASKS)}.png"
    return replace(
        record,
        path=str(out / f"{entry.place}.png"),
        frame=-1,
        landmarks=str(landmarks) if entry.outcome == "face" else "",
        mask=str(mask) if record.mask and record.frame < 0 else "",
    )
