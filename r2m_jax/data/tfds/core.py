"""The one builder all data sets share: records in, array_record files out."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from r2m_jax.data.records import SPLITS, Record
from r2m_jax.data.video import read_frame
from r2m_jax.errors import InputError

_TEXTS = ("path", "family", "method", "domain", "video", "dataset", "compression", "landmarks", "mask")


class RecordsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes records and their images; a subclass names its data set and the layout it is published in.

    An example has the image's original encoded bytes (a frame of a video: PNG, which loses nothing), all fields of
    its record but the split, which is the split it is in, and its ``index``: its number among all records. Within a
    split the order is that of the records.

    Args:
        records: what to write; instead of ``source``.
        source: folder or file in the data set's published layout; by default ``manual_dir`` of the download
            configuration.
        options: further arguments of :func:`r2m_jax.data.readers.read_source`, over the data set's own.
        on_progress: called with 1 for every image written.
        **kwargs: of ``tfds.core.GeneratorBasedBuilder``, e.g. ``data_dir``.
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Place the data set, as published, in manual_dir, or pass source=<folder or file>."
    HOMEPAGE: ClassVar[str] = ""
    OPTIONS: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self,
        *,
        records: Sequence[Record] | None = None,
        source: str | Path | None = None,
        options: Mapping[str, Any] | None = None,
        on_progress: Callable[[int], None] | None = None,
        **kwargs: Any,
    ):
        self._records, self._source, self._options = records, source, options or {}
        self._on_progress = on_progress
        super().__init__(**({"file_format": "array_record"} | kwargs))

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), doc="the original file"),
            "label": tfds.features.ClassLabel(names=["real", "fake"]),
            "frame": tfds.features.Scalar(np.int32, doc="of a video file, from 0; -1 of an image file"),
            "index": tfds.features.Scalar(np.int64, doc="number of the record among all splits"),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.name}: real and fake images, one example per record of r2m_jax.",
            features=tfds.features.FeaturesDict(features | {name: tfds.features.Text() for name in _TEXTS}),
            supervised_keys=("image", "label"),
            homepage=self.HOMEPAGE or None,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        records = self._records
        if records is None:
            records = self.read(self._source if self._source is not None else dl_manager.manual_dir, **self._options)
        numbered = list(enumerate(records))
        splits = {split: [(i, record) for i, record in numbered if record.split == split] for split in SPLITS}
        return {split: self._generate_examples(rows) for split, rows in splits.items() if rows}

    @classmethod
    def read(cls, source: str | Path, **options: Any) -> list[Record]:
        """Records of the data set in its published layout.

        Args:
            source: its folder or list.
            **options: of :func:`r2m_jax.data.readers.read_source`, over the data set's own.

        Raises:
            InputError: the source cannot be read.
        """
        from r2m_jax.data.readers import read_source

        return read_source(Path(source), **(dict(cls.OPTIONS) | options)).records

    def _generate_examples(self, rows: Sequence[tuple[int, Record]]) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, record in rows:
            example = {name: getattr(record, name) for name in _TEXTS}
            example |= {"image": encoded(record), "label": record.label, "frame": record.frame, "index": number}
            yield number, example
            if self._on_progress:
                self._on_progress(1)


def encoded(record: Record) -> bytes:
    """The bytes of a record's image file, or its video frame as PNG.

    Raises:
        InputError: the file is missing or no image; damage behind its header shows when it is decoded.
    """
    if record.frame >= 0:
        buffer = io.BytesIO()
        read_frame(record.path, record.frame).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()
    try:
        content = Path(record.path).read_bytes()
        Image.open(io.BytesIO(content)).close()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "its format is not known"
        raise InputError(f"{record.path} cannot be read as an image ({reason}).") from None
    return content


def record_of(example: Mapping[str, Any], split: str) -> Record:
    """The record of an example read back."""
    texts = {name: example[name].decode() for name in _TEXTS}
    return Record(label=int(example["label"]), frame=int(example["frame"]), split=split, **texts)
