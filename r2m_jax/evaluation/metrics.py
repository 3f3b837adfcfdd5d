"""Metrics of score tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from r2m_jax.data.records import Record
from r2m_jax.errors import InputError
from r2m_jax.evaluation.scores import ScoreTable


def auc(labels: Int[np.ndarray, n] | Sequence[int], scores: Float[np.ndarray, n] | Sequence[float]) -> float:
    """Area under the ROC curve, ties counted one half (scikit-learn's ``roc_auc_score``).

    Returns:
        NaN when only one class is present, because the curve is then undefined.

    Raises:
        InputError: a score is NaN.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    if np.isnan(scores).any():
        raise InputError(f"{int(np.isnan(scores).sum())} scores are NaN; an AUC over them would mean nothing.")
    if len(np.unique(labels)) < 2:
        return math.nan
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores))


def video_auc(records: Sequence[Record], probabilities: Float[np.ndarray, n]) -> float:
    """AUC of clips: a clip's score is the mean probability of its frames.

    A clip is (data set, label, video), so real and fake footage of one name stay apart. A still is a clip.

    Returns:
        NaN when only one class is present.
    """
    of: dict[tuple[str, int, str], list[float]] = {}
    for record, probability in zip(records, probabilities, strict=True):
        of.setdefault(record.clip, []).append(float(probability))
    return auc([label for _, label, _ in of], [float(np.mean(scores)) for scores in of.values()])


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
