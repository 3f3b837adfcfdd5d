"""Scores of clips from scores of their frames, and which frames make a clip: ours, DeepfakeBench's or DF40's way."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from r2m_jax.data.records import Record
from r2m_jax.errors import InputError
from r2m_jax.evaluation.metrics.inputs import absent
from r2m_jax.evaluation.metrics.ranking import auc, eer

VideoKey = Literal["clip", "bench", "df40"]


@dataclass(frozen=True)
class Clips:
    """Which images make a clip.

    Attributes:
        index: clip of every image, int [n], numbered by first appearance.
        labels: of every clip, int [m]: 1 where all its images are fake.
        names: of every clip, for people: the folder, or data set, class and video.
        mixed: numbers of the clips that hold real and fake images; only a key without the label has any.
    """

    index: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " m"]
    names: Sequence[str]
    mixed: Sequence[int] = ()

    def means(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " m"]:
        """Mean over the images of every clip."""
        count = len(self.names)
        return np.bincount(self.index, values, minlength=count) / np.bincount(self.index, minlength=count)


def clips(records: Sequence[Record], key: VideoKey = "clip") -> Clips:
    """Group images into clips.

    ``clip`` goes by data set, label and video, so that real and fake footage of one name and equal names of two sets
    stay apart; an image without a video is a clip of its own. ``bench`` and ``df40`` go by the name of the folder the
    image lies in and nothing else, the label of a clip being ``int`` of its mean label (DeepfakeBench,
    ``training/metrics/utils.py``); for a frame of a video file it is the file's name, which is what the folder of its
    frames would be called.

    Raises:
        InputError: ``bench`` or ``df40`` and a path without a folder.
    """
    named: dict[tuple[str, ...], int] = {}
    key_of = _own if key == "clip" else _folder
    index = np.asarray([named.setdefault(key_of(record), len(named)) for record in records], dtype=np.int64)
    fakes = np.bincount(index, [record.label >= 1 for record in records], minlength=len(named)).astype(np.int64)
    images = np.bincount(index, minlength=len(named))
    mixed = np.flatnonzero((fakes > 0) & (fakes < images)).tolist()
    return Clips(index, (fakes == images).astype(np.int64), ["/".join(name) for name in named], mixed)


def video_auc(records: Sequence[Record], probabilities: Float[np.ndarray, " n"], key: VideoKey = "clip") -> float:
    """AUC of clips: a clip's score is the mean probability of its frames.

    Returns:
        NaN, without a warning, when only one class is present. With ``bench``, NaN and a warning that names the
        collision where merging folders of one name leaves clips of one label only: DeepfakeBench raises ``ValueError:
        All-NaN slice encountered`` there. With ``df40``, the AUC of the frames and a warning in that case, which
        DF40's and Effort's code return silently.

    Raises:
        InputError: a probability is NaN or infinite, or as :func:`clips`.
    """
    labels = np.asarray([record.label for record in records])
    frames = auc(labels, probabilities)
    if math.isnan(frames):
        return frames
    value, _, _, warning = of_clips(records, np.asarray(probabilities, np.float64), frames, key)
    if warning:
        warnings.warn(warning, stacklevel=2)
    return value


def of_clips(
    records: Sequence[Record], probabilities: Float[np.ndarray, " n"], frame_auc: float, key: VideoKey
) -> tuple[float, float, int, str]:
    """AUC and EER of clips, their number, and what a reader has to be warned of; both classes are present."""
    grouped = clips(records, key)
    if not absent(grouped.labels == 1):
        scores = grouped.means(probabilities)
        return auc(grouped.labels, scores), eer(grouped.labels, scores), len(grouped.names), ""
    what = _collision(records, grouped, key)
    if key == "df40":
        said = f"{what}; video_auc is the AUC of the frames, {frame_auc:.6f}, as in DF40, and video_eer NaN."
        return frame_auc, math.nan, len(grouped.names), said
    said = f"{what}; video_auc and video_eer are NaN where DeepfakeBench stops with a ValueError."
    return math.nan, math.nan, len(grouped.names), said


def _collision(records: Sequence[Record], grouped: Clips, key: VideoKey) -> str:
    first = grouped.mixed[0]
    held = [record.label >= 1 for record, clip in zip(records, grouped.index, strict=True) if clip == first]
    return (
        f"the video key {key!r} goes by folder names alone and {len(grouped.mixed)} of {len(grouped.names)} hold real "
        f"and fake images, first {grouped.names[first]!r} with {held.count(False)} real and {held.count(True)} fake, "
        "so every video counts as real (the key 'clip' keeps them apart)"
    )


def _own(record: Record) -> tuple[str, ...]:
    return record.dataset, "fake" if record.label >= 1 else "real", record.video or record.path


def _folder(record: Record) -> tuple[str, ...]:
    path = record.path
    if record.frame >= 0:
        return (PurePosixPath(path.replace("\\", "/")).stem,)
    parts = path.split("\\" if "\\" in path else "/")
    if len(parts) < 2:
        raise InputError(f"{path} names no folder, by which DeepfakeBench tells videos apart; use the video key clip.")
    return (parts[-2],)
