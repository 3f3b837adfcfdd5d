"""A prepared data set as a source of the pipelines."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

from r2m_jax.data.images import decode_image
from r2m_jax.data.records import Record
from r2m_jax.data.tfds.core import record_of
from r2m_jax.errors import InputError


class TfdsSource:
    """One split of a prepared data set: the same records and images as its index gives, in the same order.

    Args:
        folder: of the data set, as :func:`r2m_jax.data.tfds.prepare` returns it, or its parent.
        split: ``train``, ``val``, ``test``, or a slice of one as tensorflow-datasets writes it: ``train[:50%]``.

    Raises:
        InputError: there is no prepared data set, or it has no such split.
    """

    def __init__(self, folder: str | Path, split: str):
        self._folder, self._split = _version_folder(Path(folder)), split
        self._data = self._open()

    @cached_property
    def records(self) -> Sequence[Record]:
        """One record per image; read from the examples when first asked for."""
        split = self._split.partition("[")[0]
        return [record_of(self._data[place], split) for place in range(len(self._data))]

    def image(self, index: int, shortest: int | None = None) -> Image.Image:
        """Image ``index`` as RGB, upright; ``shortest`` as in :func:`~r2m_jax.data.images.decode_image`.

        Raises:
            InputError: the image is damaged; the file it was prepared from is named.
        """
        example = self._data[index]
        name = f"{example['path'].decode()} in {self._folder}"
        return decode_image(io.BytesIO(example["image"]), name=name, shortest=shortest)

    def _open(self) -> Any:
        builder = tfds.builder_from_directory(self._folder)
        try:
            # Pillow decodes the image, as for files: the decoder of tensorflow-datasets ignores the EXIF orientation.
            return builder.as_data_source(self._split, decoders={"image": tfds.decode.SkipDecoding()})
        except (ValueError, KeyError):
            splits = ", ".join(sorted(builder.info.splits))
            raise InputError(f"{self._folder} has no split {self._split!r}; it has {splits}.") from None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_data"}  # open files stay behind

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._data = self._open()


def _version_folder(folder: Path) -> Path:
    for place in (folder, *sorted(folder.glob("*.*.*"), reverse=True)):
        if (place / "dataset_info.json").is_file():
            return place
    raise InputError(f"{folder} holds no prepared data set; make one with r2m data prepare.")
