"""Random access to the images of records, decoded when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from PIL import Image, ImageOps

from r2m_jax.data.pipeline.video_frames import read_frame
from r2m_jax.data.records import Record
from r2m_jax.errors import InputError


class Source(Protocol):
    """Records and their images, in one order; can be pickled, for worker processes."""

    @property
    def records(self) -> Sequence[Record]:
        """One record per image."""

    def image(self, index: int, shortest: int | None = None) -> Image.Image:
        """Image ``index`` as RGB, upright; ``shortest`` as in :func:`decode`."""


class RecordSource:
    """The files that records name: images, and frames of videos.

    Args:
        records: e.g. from :func:`r2m_jax.data.index.read_index`.
    """

    def __init__(self, records: Sequence[Record]):
        self._records = records

    @property
    def records(self) -> Sequence[Record]:
        """One record per image."""
        return self._records

    def image(self, index: int, shortest: int | None = None) -> Image.Image:
        """Image ``index`` as RGB, upright; ``shortest`` as in :func:`decode`.

        Raises:
            InputError: the file cannot be read; it is named.
        """
        record = self._records[index]
        if record.frame >= 0:
            return read_frame(record.path, record.frame)
        return decode(record.path, record.path, shortest)


def decode(file: str | Path | BinaryIO, name: str, shortest: int | None = None) -> Image.Image:
    """An encoded image as RGB, turned upright by its EXIF orientation.

    Args:
        file: path or open file.
        name: what an error calls it.
        shortest: let the JPEG decoder shrink by 2, 4 or 8 while the shorter side stays at least this many pixels:
            faster for large photographs, but not pixel for pixel what full decoding and resizing gives.

    Raises:
        InputError: it is missing, no image, or damaged.
    """
    try:
        with Image.open(file) as image:
            if shortest is not None and min(image.size) >= 2 * shortest:
                image.draft(None, tuple(side * shortest // min(image.size) for side in image.size))  # type: ignore[arg-type]
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{name} cannot be read as an image ({error}).") from None
