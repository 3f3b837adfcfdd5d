"""How sure an AUC is: bootstrap over clips, with the same draws for every model.

Frames of one clip look alike, so resampling images would make intervals too narrow; whole clips are drawn instead, with
replacement and separately for each class (Efron and Tibshirani 1993, chapter 8; Field and Welsh 2007, *Bootstrapping
clustered data*). A draw is how often each clip was drawn, and since scores do not change between draws, they are sorted
once: every resample is then a running sum, exact and without repeating a row.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Num

from r2m_jax.errors import InputError
from r2m_jax.evaluation.metrics.inputs import absent, checked


class WeightedAuc:
    """AUC of fixed scores under changing weights, O(n) each after sorting once.

    Equals scikit-learn's ``roc_auc_score(labels, scores, sample_weight=weights)``, and for whole weights the AUC of
    rows repeated so often. Integer weights are counted exactly.

    Args:
        labels: 0 real, 1 (or more) fake.
        scores: larger means fake.
        groups: which weight counts for each row; its own by default.

    Raises:
        InputError: a score is NaN or infinite, a class is absent, or the lengths differ.
    """

    def __init__(
        self,
        labels: Int[np.ndarray, " n"],
        scores: Float[np.ndarray, " n"],
        groups: Int[np.ndarray, " n"] | None = None,
    ):
        fake, values = checked(labels, scores)
        if absent(fake):
            raise InputError(f"a weighted AUC needs both classes: there are {absent(fake)}.")
        groups = np.arange(len(fake)) if groups is None else np.asarray(groups)
        if groups.shape != fake.shape:
            raise InputError(f"{len(groups)} groups do not belong to {len(fake)} scores; give one per image.")
        real, forged = (rows[np.argsort(values[rows])] for rows in (np.flatnonzero(~fake), np.flatnonzero(fake)))
        self._real, self._fake = groups[real], groups[forged]
        self._below = np.searchsorted(values[real], values[forged], side="left")
        self._upto = np.searchsorted(values[real], values[forged], side="right")

    def __call__(self, weights: Num[np.ndarray, " groups"]) -> float:
        """The AUC when every row counts as often as the weight of its group says; NaN where a class weighs nothing."""
        real, fake = weights.take(self._real), weights.take(self._fake)
        mass = np.zeros(len(real) + 1, real.dtype)
        np.cumsum(real, out=mass[1:])
        # A fake wins against the real images below it and half against those it ties with.
        won = mass.take(self._below)
        won += mass.take(self._upto)
        pairs = 2.0 * float(mass[-1]) * float(fake.sum())
        return float(fake @ won) / pairs if pairs else np.nan


@dataclass(frozen=True)
class Paired:
    """How much better one model is than another on the same images.

    Attributes:
        difference: mean over the resamples of the first model's AUC minus the second's.
        low: end of the interval.
        high: other end.
        p_value: two-sided, of the hypothesis that there is no difference.
    """

    difference: float
    low: float
    high: float
    p_value: float


def bootstrap_auc(
    labels: Int[np.ndarray, " n"],
    scores: Float[np.ndarray, "models n"],
    clips: Int[np.ndarray, " n"],
    *,
    resamples: int = 1000,
    seed: int = 0,
    key: Literal["frame", "video"] = "frame",
) -> Float[np.ndarray, "models resamples"]:
    """AUC of every model on clips drawn with replacement, the same clips for all models.

    As many clips are drawn of each class as there are, so every resample has both. Clips that hold real and fake
    images (of a key without the label) are a class of their own. The draws follow from ``seed``, the number of clips
    of each class and their order, not from the models or ``key``: samples of separate calls on the same images are
    paired too.

    Args:
        labels: 0 real, 1 (or more) fake.
        scores: one row per model; with ``key="video"`` probabilities, whose mean is a clip's score.
        clips: number of every image's clip from 0, ``clips(records).index``.
        resamples: how many.
        seed: of the draws.
        key: AUC of ``frame``, all images of the drawn clips, or of ``video``, the means of the drawn clips.

    Returns:
        float64 [models, resamples]; all NaN with a warning where a class is absent.

    Raises:
        InputError: a score is NaN or infinite, lengths differ, a clip's number is negative, or ``resamples`` is not
            positive.
    """
    if resamples < 1:
        raise InputError(f"{resamples} resamples make no interval; choose 1000 or so.")
    if clips.shape != labels.shape or (len(clips) and clips.min() < 0):
        raise InputError(f"clip numbers of shape {clips.shape} do not fit labels of shape {labels.shape}, from 0 on.")
    rows = [checked(labels, row)[1] for row in scores]
    fake = np.asarray(labels) >= 1
    _, index = np.unique(clips, return_inverse=True)
    images = np.bincount(index)
    share = np.bincount(index, fake) / images
    if key == "video":
        # The label of a clip that holds both is int(its mean label), as DeepfakeBench has it.
        rows = [np.bincount(index, row) / images for row in rows]
        fake, index = share == 1, np.arange(len(images))
    samples = np.full((len(rows), resamples), np.nan)
    if absent(fake):
        warnings.warn(f"the bootstrap is NaN: there are {absent(fake)} ({key} level).", stacklevel=2)
        return samples
    curves = [WeightedAuc(fake.astype(np.int64), row, index) for row in rows]
    strata = [np.flatnonzero(kind) for kind in (share == 0, share == 1, (share > 0) & (share < 1))]
    rng = np.random.default_rng(seed)
    drawn = np.empty(len(images), np.int64)
    for resample in range(resamples):
        for members in filter(len, strata):
            picks = rng.integers(len(members), size=len(members))
            drawn[members] = np.bincount(picks, minlength=len(members))
        samples[:, resample] = [curve(drawn) for curve in curves]
    return samples


def interval(
    samples: Float[np.ndarray, "*models resamples"], level: float = 0.95
) -> tuple[Float[np.ndarray, "*models"], Float[np.ndarray, "*models"]]:
    """Percentile interval of bootstrap samples: the (1 − level) / 2 quantiles of the last axis from both ends.

    Returns:
        Low and high ends, float64 of the shape before the last axis; NaN where a sample is.

    Raises:
        InputError: ``level`` is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise InputError(f"the level {level} of an interval is not between 0 and 1; 0.95 is usual.")
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=-1)
    return np.asarray(low), np.asarray(high)


def paired(
    samples_a: Float[np.ndarray, " resamples"], samples_b: Float[np.ndarray, " resamples"], level: float = 0.95
) -> Paired:
    """Compare two models by their samples from the same draws (:func:`bootstrap_auc`).

    The p-value is twice the smaller share of differences on one side of 0, zeros counted on both, with one added to
    count and number of resamples, so that it is never 0 (Davison and Hinkley 1997, §4.2.3): at least 2 / (B + 1).

    Returns:
        The difference a − b with its percentile interval; all NaN where a sample is.

    Raises:
        InputError: the samples differ in number, or ``level`` is not between 0 and 1.
    """
    if samples_a.shape != samples_b.shape or samples_a.ndim != 1:
        raise InputError(
            f"samples of shapes {samples_a.shape} and {samples_b.shape} are no pairs; draw both by one bootstrap."
        )
    differences = samples_a - samples_b
    low, high = interval(differences, level)
    if np.isnan(differences).any():
        return Paired(np.nan, np.nan, np.nan, np.nan)
    sides = [int((differences <= 0).sum()), int((differences >= 0).sum())]
    p_value = min(1.0, 2 * (1 + min(sides)) / (1 + len(differences)))
    return Paired(float(differences.mean()), float(low), float(high), p_value)
