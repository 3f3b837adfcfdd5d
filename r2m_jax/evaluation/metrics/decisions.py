"""Metrics of probabilities: decisions at a threshold, and whether the probabilities mean what they say."""

from __future__ import annotations

import math

import numpy as np

from r2m_jax.errors import InputError
from r2m_jax.evaluation.metrics.inputs import Labels, Scores, both_classes, checked_probabilities


def accuracy(labels: Labels, probabilities: Scores, threshold: float = 0.5) -> float:
    """Share of images decided right, fake being ``probability > threshold``, strictly.

    Returns:
        NaN with a warning when there are no images.

    Raises:
        InputError: a probability is NaN or outside [0, 1], or their number is not that of the labels.
    """
    fake, values = checked_probabilities(labels, probabilities)
    if not len(fake):
        both_classes(fake, "the accuracy")
        return math.nan
    return float(((values > threshold) == fake).mean())


def class_accuracy(labels: Labels, probabilities: Scores, threshold: float = 0.5) -> float:
    """Mean of the accuracy on real and on fake images (scikit-learn's ``balanced_accuracy_score``).

    Returns:
        NaN with a warning when a class is absent.

    Raises:
        InputError: as :func:`accuracy`.
    """
    fake, values = checked_probabilities(labels, probabilities)
    if not both_classes(fake, "the mean accuracy of the classes"):
        return math.nan
    right = (values > threshold) == fake
    return float((right[fake].mean() + right[~fake].mean()) / 2)


def f1(labels: Labels, probabilities: Scores, threshold: float = 0.5) -> float:
    """2 TP / (2 TP + FP + FN) of the class fake, which is ``probability > threshold`` (scikit-learn's ``f1_score``).

    Returns:
        NaN with a warning when a class is absent.

    Raises:
        InputError: as :func:`accuracy`.
    """
    fake, values = checked_probabilities(labels, probabilities)
    if not both_classes(fake, "F1"):
        return math.nan
    called = values > threshold
    return float(2 * (called & fake).sum() / (called.sum() + fake.sum()))


def expected_calibration_error(labels: Labels, probabilities: Scores, bins: int = 15) -> float:
    """Mean distance between the probability of fake and the share of fakes, over bins of equal width.

    Σ_b n_b / n · |share of fakes in b − mean probability in b|, bins (0, 1/B], (1/B, 2/B], …, of which the first holds
    0 too. Guo et al. 2017 (arXiv 1706.04599, equation 3, B = 15) on the probability of fake instead of that of the
    predicted class, so that errors in opposite directions on the two sides of 0.5 do not cancel in a bin.

    Returns:
        NaN with a warning when there are no images.

    Raises:
        InputError: as :func:`accuracy`, or ``bins`` is not positive.
    """
    if bins < 1:
        raise InputError(f"a calibration error over {bins} bins means nothing; choose at least 1.")
    fake, values = checked_probabilities(labels, probabilities)
    if not len(fake):
        both_classes(fake, "the calibration error")
        return math.nan
    place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], values)
    # The sums' difference is n_b times the means' difference.
    fakes, expected = (np.bincount(place, part, minlength=bins) for part in (fake, values))
    return float(np.abs(fakes - expected).sum() / len(fake))
