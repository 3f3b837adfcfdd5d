"""Random access to the images of records, decoded when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from PIL import Image

from r2m_jax.data.images import decode_image
from r2m_jax.data.records import Record
from r2m_jax.data.video import read_frame


class Source(Protocol):
    """Records and their images, in one order; can be pickled, for worker processes."""

    @property
    def records(self) -> Sequence[Record]:
        """One record per image."""

    def image(self, index: int, shortest: int | None = None) -> Image.Image:
        """Image ``index`` as RGB, upright; ``shortest`` as in :func:`~r2m_jax.data.images.decode_image`."""


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
        """Image ``index`` as RGB, upright; ``shortest`` as in :func:`~r2m_jax.data.images.decode_image`.

        Raises:
            InputError: the file cannot be read; it is named.
        """
        record = self._records[index]
        if record.frame >= 0:
            return read_frame(record.path, record.frame)
        return decode_image(record.path, shortest=shortest)
