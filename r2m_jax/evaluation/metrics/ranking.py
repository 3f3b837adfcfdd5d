"""Metrics of how scores rank images: nothing here depends on a decision threshold chosen beforehand.

Scores may be logits or probabilities; larger means fake. A set without one of the classes gives NaN. :func:`auc` says
nothing about it, because training asks it of windows in which that is normal; the others warn and name the class.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from r2m_jax.errors import InputError
from r2m_jax.evaluation.metrics.inputs import Labels, Scores, absent, both_classes, checked


def auc(labels: Labels, scores: Scores) -> float:
    """Area under the ROC curve, ties counted one half (scikit-learn's ``roc_auc_score``).

    Returns:
        NaN, without a warning, when only one class is present, because the curve is then undefined.

    Raises:
        InputError: a score is NaN or infinite, or their number is not that of the labels.
    """
    fake, values = checked(labels, scores)
    if absent(fake):
        return math.nan
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(fake, values))


def average_precision(labels: Labels, scores: Scores) -> float:
    """Σ (Rₖ − Rₖ₋₁) Pₖ over distinct scores, without interpolation (scikit-learn's ``average_precision_score``).

    Returns:
        NaN with a warning when a class is absent.

    Raises:
        InputError: as :func:`auc`.
    """
    fake, values = checked(labels, scores)
    if not both_classes(fake, "average precision"):
        return math.nan
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(fake, values))


def eer(labels: Labels, scores: Scores) -> float:
    """Equal error rate as DeepfakeBench computes it: the false-positive rate where |FNR − FPR| is least.

    Taken on scikit-learn's ``roc_curve`` with ``drop_intermediate=True``, the first such point on ties, without
    interpolation (DeepfakeBench, ``training/metrics/utils.py``). It is the FPR of that point, not the mean of both
    rates, so it changes when the classes are exchanged; :func:`eer_interpolated` does not.

    Returns:
        NaN with a warning when a class is absent.

    Raises:
        InputError: as :func:`auc`.
    """
    fake, values = checked(labels, scores)
    if not both_classes(fake, "the equal error rate"):
        return math.nan
    from sklearn.metrics import roc_curve

    fpr, tpr, _ = roc_curve(fake, values)
    return float(fpr[np.argmin(np.abs(1 - tpr - fpr))])


def eer_interpolated(labels: Labels, scores: Scores) -> float:
    """Equal error rate where the ROC polygon crosses TPR = 1 − FPR, what a root finder on the curve converges to.

    Returns:
        NaN with a warning when a class is absent.

    Raises:
        InputError: as :func:`auc`.
    """
    fake, values = checked(labels, scores)
    if not both_classes(fake, "the equal error rate"):
        return math.nan
    from sklearn.metrics import roc_curve

    fpr, tpr, _ = roc_curve(fake, values)
    # Falls from 1 to -1 and strictly, since every step along the curve raises one of the rates: one crossing.
    gap = 1 - tpr - fpr
    after = int(np.argmax(gap <= 0))
    share = gap[after - 1] / (gap[after - 1] - gap[after])
    return float(fpr[after - 1] + share * (fpr[after] - fpr[after - 1]))


def oracle_accuracy(labels: Labels, scores: Scores) -> float:
    """Accuracy at the threshold that is best on these very images: an upper bound, never a result.

    UniversalFakeDetect reports it beside the accuracy at 0.5, over sets of equally many real and fake images.

    Returns:
        NaN with a warning when a class is absent.

    Raises:
        InputError: as :func:`auc`.
    """
    fake, values = checked(labels, scores)
    if not both_classes(fake, "the oracle accuracy"):
        return math.nan
    from sklearn.metrics import roc_curve

    fpr, tpr, _ = roc_curve(fake, values)
    return float(((1 - fpr) * (~fake).sum() + tpr * fake.sum()).max() / len(fake))


def threshold_at_fpr(labels: Labels, scores: Scores, fpr: float) -> float:
    """The smallest threshold t at which "fake where score > t" calls at most a share ``fpr`` of the real images fake.

    With n real images and k the largest number for which k / n ≤ ``fpr``, t is the (k + 1)-th largest score of the
    real images: images at t are called real. Where several real images share that score, fewer than k may lie above
    it, and the false-positive rate stays below ``fpr``; any smaller threshold would exceed it. Fakes play no part.

    Raises:
        InputError: there are no real images, ``fpr`` is outside [0, 1), or as :func:`auc`.
    """
    fake, values = checked(labels, scores)
    if not 0 <= fpr < 1:
        raise InputError(f"the false-positive rate {fpr} is not in [0, 1); choose one such as 0.01.")
    if fake.all():
        raise InputError(f"{len(fake)} images without a real one have no false-positive rate; add real images.")
    return _threshold(values[~fake], fpr)


def tpr_at_fpr(labels: Labels, scores: Scores, fpr: float) -> float:
    """Share of the fakes above :func:`threshold_at_fpr`, the largest any threshold reaches within that rate.

    Returns:
        NaN with a warning when a class is absent.

    Raises:
        InputError: ``fpr`` is outside [0, 1), or as :func:`auc`.
    """
    fake, values = checked(labels, scores)
    if not both_classes(fake, f"the true-positive rate at a false-positive rate of {fpr:g}"):
        return math.nan
    return float((values[fake] > threshold_at_fpr(labels, scores, fpr)).mean())


def _threshold(real: Float[np.ndarray, " n"], fpr: float) -> float:
    # k / n is compared as it will be measured: floor(0.29 * 100) is 28, although 29 / 100 <= 0.29.
    rates = np.arange(len(real)) / len(real)
    allowed = int(np.searchsorted(rates, fpr, side="right")) - 1
    return float(np.partition(real, len(real) - 1 - allowed)[len(real) - 1 - allowed])
