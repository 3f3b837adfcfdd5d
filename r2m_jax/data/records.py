"""The one record every reader produces and everything else consumes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Record:
    """One image, or one frame of a video file.

    Attributes:
        path: of the image or video file, absolute or relative to the index.
        label: 0 real, 1 fake.
        family: forgery family (FS, FR, EFS, FE …), empty for real images.
        method: forgery method, empty for real images.
        domain: where the underlying footage is from, e.g. ``ff`` or ``cdf``.
        video: clip the frame belongs to; for stills the image's own id.
        split: train, val or test.
        dataset: the published set or list the record was read from, e.g. ``FSAll_ff``; part of a clip's identity.
        compression: ``raw``, ``c23`` or ``c40`` where a set distinguishes them.
        frame: number of the frame in a video file, counted from 0; -1 where ``path`` is an image.
        landmarks: NumPy file of facial landmarks in pixels of the image, empty where there is none.
        mask: image of the manipulated region, empty where there is none.
    """

    path: str
    label: int
    family: str = ""
    method: str = ""
    domain: str = ""
    video: str = ""
    split: str = "test"
    dataset: str = ""
    compression: str = ""
    frame: int = -1
    landmarks: str = ""
    mask: str = ""

    @property
    def clip(self) -> tuple[str, int, str]:
        """What tells one clip from another: data set, label and name of the video."""
        return self.dataset, self.label, self.video


def select(
    records: Iterable[Record], *, split: str | None = None, families: Sequence[str] | None = None
) -> list[Record]:
    """Records of a split, and of the real images plus the named forgery families."""
    return [
        r
        for r in records
        if (split is None or r.split == split) and (families is None or r.label == 0 or r.family in families)
    ]


def counts(records: Iterable[Record]) -> Counter[tuple[str, str]]:
    """Images per (split, family), real images under the family ``real``."""
    return Counter((r.split, r.family if r.label else "real") for r in records)
