"""Metrics of whole sets: everything about one, one metric over forgery families, means over several."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

from r2m_jax.data.records import Record
from r2m_jax.errors import InputError
from r2m_jax.evaluation.metrics.decisions import accuracy, class_accuracy, expected_calibration_error, f1
from r2m_jax.evaluation.metrics.inputs import LabelledSet, absent, checked_probabilities
from r2m_jax.evaluation.metrics.ranking import (
    auc,
    average_precision,
    eer,
    eer_interpolated,
    oracle_accuracy,
    tpr_at_fpr,
)
from r2m_jax.evaluation.metrics.videos import VideoKey, clips, of_clips
from r2m_jax.evaluation.scores import ScoreTable

METRICS = (
    "frame_auc", "video_auc", "eer", "eer_interp", "ap", "acc", "f1", "tpr_at_fpr_0.01", "tpr_at_fpr_0.1", "ece",
    "video_eer", "acc_best_thr_oracle",
)  # fmt: skip
"""The metrics of :func:`summary`, in its order; four counts follow them."""


def summary(
    records: Sequence[Record], probabilities: Float[np.ndarray, " n"], *, video_key: VideoKey = "clip"
) -> dict[str, float]:
    """All metrics of one model on one set of images.

    Args:
        records: the images.
        probabilities: of fake, float [n].
        video_key: which images make a clip, see :func:`r2m_jax.evaluation.metrics.clips`.

    Returns:
        ``frame_auc``, ``video_auc``, ``eer`` (DeepfakeBench's), ``eer_interp``, ``ap``, ``acc`` and ``f1`` at 0.5,
        ``tpr_at_fpr_0.01``, ``tpr_at_fpr_0.1``, ``ece``, ``video_eer`` (DeepfakeBench's, of clips),
        ``acc_best_thr_oracle``, and the counts ``images``, ``real``, ``fake``, ``videos``. Where a class is absent,
        all but ``acc``, ``ece`` and the counts are NaN and one warning names the class; one warning too where
        ``video_key`` merges clips until none is fake (:func:`r2m_jax.evaluation.metrics.video_auc`).

    Raises:
        InputError: a probability is NaN or infinite (with its path) or outside [0, 1], or their number is not that of
            the images.
    """
    values = np.asarray(probabilities, np.float64)
    if len(values) == len(records) and not np.isfinite(values).all():
        broken = np.flatnonzero(~np.isfinite(values))
        raise InputError(
            f"{len(broken)} of {len(values)} probabilities are NaN or infinite, first that of "
            f"{records[broken[0]].path}; score it again or leave it out."
        )
    labels = np.asarray([record.label for record in records], np.int64)
    fake, values = checked_probabilities(labels, values)
    found = dict.fromkeys(METRICS, math.nan)
    if len(fake):
        found |= {"acc": accuracy(labels, values), "ece": expected_calibration_error(labels, values)}
    missing = absent(fake)
    if missing:
        warnings.warn(
            f"there are {missing}: AUC, EER, AP, F1, TPR and the oracle accuracy are NaN.",
            stacklevel=2,
        )
        videos = len(clips(records, video_key).names)
    else:
        frames = auc(labels, values)
        video, video_eer, videos, warning = of_clips(records, values, frames, video_key)
        if warning:
            warnings.warn(warning, stacklevel=2)
        found |= {
            "frame_auc": frames, "video_auc": video, "eer": eer(labels, values),
            "eer_interp": eer_interpolated(labels, values), "ap": average_precision(labels, values),
            "f1": f1(labels, values), "tpr_at_fpr_0.01": tpr_at_fpr(labels, values, 0.01),
            "tpr_at_fpr_0.1": tpr_at_fpr(labels, values, 0.1), "video_eer": video_eer,
            "acc_best_thr_oracle": oracle_accuracy(labels, values),
        }  # fmt: skip
    count, fakes = len(fake), int(fake.sum())
    return found | {"images": count, "real": count - fakes, "fake": fakes, "videos": videos}


def family_auc(table: ScoreTable) -> dict[str, dict[str, float]]:
    """Image-level AUC of every model on every forgery family against all real images, and their mean.

    Returns:
        ``{model: {family: auc, …, "mean": macro mean over families}}``.

    Raises:
        InputError: the table holds no real or no fake image.
    """
    labels = table.labels
    if not table.families or labels.all():
        raise InputError("the score table needs real and fake images for an AUC.")
    family = np.asarray([record.family for record in table.records])
    rows = {}
    for model, logits in table.logits.items():
        values = {}
        for name in table.families:
            chosen = (labels == 0) | (family == name)
            values[name] = auc(labels[chosen], logits[chosen])
        rows[model] = values | {"mean": float(np.mean(list(values.values())))}
    return rows


def mean_average_precision(sets: Iterable[LabelledSet]) -> float:
    """UniversalFakeDetect's mAP: the plain mean over test sets of their average precision.

    Args:
        sets: labels and scores of each set.

    Returns:
        NaN with a warning when a set lacks a class; leave such a set out knowingly instead.

    Raises:
        InputError: there is no set, or as :func:`r2m_jax.evaluation.metrics.auc`.
    """
    return _mean([average_precision(labels, scores) for labels, scores in sets])


def mean_accuracy(sets: Iterable[LabelledSet], threshold: float = 0.5) -> float:
    """UniversalFakeDetect's average accuracy: the mean over test sets of the mean of real and fake accuracy.

    Its sets hold equally many images of both classes, where this is their accuracy.

    Args:
        sets: labels and probabilities of each set.
        threshold: of the probability, above which (strictly) an image is called fake.

    Returns:
        NaN with a warning when a set lacks a class.

    Raises:
        InputError: there is no set, or as :func:`r2m_jax.evaluation.metrics.accuracy`.
    """
    return _mean([class_accuracy(labels, probabilities, threshold) for labels, probabilities in sets])


def _mean(values: Sequence[float]) -> float:
    if not values:
        raise InputError("a mean over test sets needs at least one set.")
    return float(np.mean(values))
