"""Decoding what is to be scored: images, frames spread over a film, and the faces in them.

Imports no JAX: worker processes start with this module.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from r2m_jax.data.faces.crop import crop_face
from r2m_jax.data.faces.crop_folders import Framing, framing_of, is_framed
from r2m_jax.data.images import decode_image, resize_and_crop
from r2m_jax.data.pairs import Pairs, by_content
from r2m_jax.data.readers.tree import VIDEOS
from r2m_jax.data.records import Record
from r2m_jax.data.selection import frame_indices
from r2m_jax.data.video import frame_table, read_frame, read_frames
from r2m_jax.errors import InputError

PART = 64
"""Frames of a video decoded at a time; bounds the memory, whatever number is asked for."""


class Item(NamedTuple):
    """An image, one frame of a video file, or a part of the frames chosen of a video file.

    Attributes:
        path: of the file, as the user or a list names it; it need not exist.
        frame: number of the one frame a list asks for; -1 otherwise.
        part, parts: which part of the chosen frames, counted from 0, and of how many.
    """

    path: str
    frame: int = -1
    part: int = 0
    parts: int = 1

    @property
    def is_video(self) -> bool:
        """Whether frames are to be chosen from a film."""
        return self.frame < 0 and Path(self.path).suffix.lower() in VIDEOS


class Work:
    """The items in order. Of a million files it holds the paths, some 100 MB, and nothing else.

    Args:
        files: path, and frame number or -1.
        frames: chosen of every video.
    """

    def __init__(self, files: Iterable[tuple[str, int]], frames: int):
        self._paths: list[str] = []
        self._more: dict[int, tuple[int, int, int]] = {}  # of the items that are not a whole file
        parts = -(-frames // PART)
        for path, frame in files:
            pieces = range(parts if Item(path, frame).is_video else 1)
            for part in pieces:
                if frame >= 0 or len(pieces) > 1:
                    self._more[len(self._paths)] = (frame, part, len(pieces))
                self._paths.append(path)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, place: int) -> Item:
        return Item(self._paths[place], *self._more.get(place, (-1, 0, 1)))


@dataclass(frozen=True)
class Faces:
    """How faces are cropped before they are scored.

    Attributes:
        framing: of the crops.
        spare_crops: leave images that are crops already as they are.
    """

    framing: Framing
    spare_crops: bool


@dataclass(frozen=True)
class Taken:
    """What could be had of an item.

    Attributes:
        item: which.
        images: uint8 ``[k, size, size, 3]``, or ``[k, streams, size, size, 3]`` for models that see several of each.
        frames: numbers of the k frames; -1 of an image.
        faceless: numbers of frames in which no face was found.
        several: images and frames with more than one face.
        error: why there is nothing, or nothing after these frames; empty where all is well.
        others: what else the model takes of the images, ``[k, …]`` each.
    """

    item: Item
    images: UInt8[np.ndarray, "k *streams size size 3"]
    frames: tuple[int, ...]
    faceless: tuple[int, ...]
    several: int
    error: str
    others: tuple[np.ndarray, ...] = ()

    def of(self, place: int) -> Any:
        """What the model takes of one of the images: an array, or a tuple with the others."""
        return (self.images[place], *(other[place] for other in self.others)) if self.others else self.images[place]


class Media:
    """Random access to decoded items, the form Grain reads.

    Args:
        work: the items.
        size: sides of the model's input in pixels.
        frames: evenly spaced frames of each video.
        faces: how faces are cropped; None takes whole images.
        prepare: makes what the model takes of an image (random choices by its pixels); None resizes and crops it.
        inputs: names of what it takes, images first.
    """

    def __init__(
        self,
        work: Work,
        size: int,
        frames: int,
        faces: Faces | None,
        prepare: Pairs | None = None,
        inputs: tuple[str, ...] = ("image",),
    ):
        self._work, self._size, self._frames, self._faces = work, size, frames, faces
        self._prepare, self._inputs = prepare, inputs

    def __len__(self) -> int:
        return len(self._work)

    def __getitem__(self, place: int) -> Taken:
        item = self._work[place]
        taken: list[tuple[np.ndarray, ...]] = []
        frames: list[int] = []
        faceless: list[int] = []
        several, error = 0, ""
        try:
            for number, image in self._decoded(item):
                found, faces, landmarks = self._framed(image, item)
                several += faces > 1
                if found is None:
                    faceless.append(number)
                else:
                    taken.append(self._inputs_of(found, item, landmarks))
                    frames.append(number)
        except InputError as reason:
            error = str(reason)
        if not taken:
            return Taken(item, np.empty((0, self._size, self._size, 3), np.uint8), (), tuple(faceless), several, error)
        images, *others = (np.stack(each) for each in zip(*taken, strict=True))
        return Taken(item, images, tuple(frames), tuple(faceless), several, error, tuple(others))

    def _inputs_of(self, picture: Image.Image, item: Item, landmarks: np.ndarray | None) -> tuple[np.ndarray, ...]:
        if self._prepare is None:
            return (resize_and_crop(picture, self._size),)
        record = Record(item.path, 0, frame=item.frame)
        made = self._prepare(picture, record, by_content(picture), landmarks)
        return tuple(made[name] for name in self._inputs)

    def _decoded(self, item: Item) -> Iterator[tuple[int, Image.Image]]:
        path = Path(item.path)
        if path.is_dir():
            raise InputError(f"{path} is a folder that holds no image and no video file.")
        if not path.exists():
            raise InputError(f"{path} does not exist.")
        if item.frame >= 0:
            yield item.frame, read_frame(path, item.frame)
        elif item.is_video:
            table = frame_table(path)
            if not len(table):
                raise InputError(f"{path} holds no frame of video.")
            wanted = frame_indices(len(table), self._frames, "even")[item.part * PART : (item.part + 1) * PART]
            for number, pixels in read_frames(path, wanted, table):
                yield number, Image.fromarray(pixels)
        else:
            yield -1, decode_image(path)

    def _framed(self, image: Image.Image, item: Item) -> tuple[Image.Image | None, int, np.ndarray | None]:
        """The image or the crop of its largest face (None without one), how many were found, landmarks in a crop."""
        faces = self._faces
        if faces is None or (faces.spare_crops and _in_crops(item.path)):
            return image, 0, None
        crop = crop_face(np.asarray(image), faces.framing.size, faces.framing.margin)
        if crop is None:
            return None, 0, None
        if faces.spare_crops and is_framed(crop.matrix, image.width, image.height, faces.framing):
            return image, crop.faces, None
        return Image.fromarray(crop.image), crop.faces, crop.landmarks


def _in_crops(path: str) -> bool:
    return framing_of(os.path.dirname(os.path.abspath(path))) is not None  # noqa: PTH100, PTH120  # once per image
