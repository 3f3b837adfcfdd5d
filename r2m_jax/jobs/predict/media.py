"""Decoding what is to be scored: images, frames spread over a film, and the faces in them.

Imports no JAX: worker processes start with this module.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from r2m_jax.data.faces.crop import crop_face
from r2m_jax.data.faces.crop_folders import Framing, framing_of, is_framed
from r2m_jax.data.images import decode_image, resize_and_crop
from r2m_jax.data.readers.tree import VIDEOS
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
        images: uint8 ``[k, size, size, 3]``.
        frames: numbers of the k frames; -1 of an image.
        faceless: numbers of frames in which no face was found.
        several: images and frames with more than one face.
        error: why there is nothing, or nothing after these frames; empty where all is well.
    """

    item: Item
    images: UInt8[np.ndarray, "k size size 3"]
    frames: tuple[int, ...]
    faceless: tuple[int, ...]
    several: int
    error: str


class Media:
    """Random access to decoded items, the form Grain reads.

    Args:
        work: the items.
        size: sides of the model's input in pixels.
        frames: evenly spaced frames of each video.
        faces: how faces are cropped; None takes whole images.
    """

    def __init__(self, work: Work, size: int, frames: int, faces: Faces | None):
        self._work, self._size, self._frames, self._faces = work, size, frames, faces

    def __len__(self) -> int:
        return len(self._work)

    def __getitem__(self, place: int) -> Taken:
        item = self._work[place]
        images: list[np.ndarray] = []
        frames: list[int] = []
        faceless: list[int] = []
        several, error = 0, ""
        try:
            for number, image in self._decoded(item):
                found, faces = self._framed(image, item)
                several += faces > 1
                if found is None:
                    faceless.append(number)
                else:
                    images.append(resize_and_crop(found, self._size))
                    frames.append(number)
        except InputError as reason:
            error = str(reason)
        stacked = np.stack(images) if images else np.empty((0, self._size, self._size, 3), np.uint8)
        return Taken(item, stacked, tuple(frames), tuple(faceless), several, error)

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

    def _framed(self, image: Image.Image, item: Item) -> tuple[Image.Image | None, int]:
        """The image or the crop of its largest face, None without one, and how many faces were found."""
        faces = self._faces
        if faces is None or (faces.spare_crops and _in_crops(item.path)):
            return image, 0
        crop = crop_face(np.asarray(image), faces.framing.size, faces.framing.margin)
        if crop is None:
            return None, 0
        if faces.spare_crops and is_framed(crop.matrix, image.width, image.height, faces.framing):
            return image, crop.faces
        return Image.fromarray(crop.image), crop.faces


def _in_crops(path: str) -> bool:
    return framing_of(os.path.dirname(os.path.abspath(path))) is not None  # noqa: PTH100, PTH120  # once per image
