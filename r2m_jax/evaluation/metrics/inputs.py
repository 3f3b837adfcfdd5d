"""What every metric asks of its labels and scores before it counts anything."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from r2m_jax.errors import InputError

Labels = Int[np.ndarray, " n"] | Bool[np.ndarray, " n"] | Sequence[int]
Scores = Float[np.ndarray, " n"] | Sequence[float]
# Sets of one list differ in size, so their axes have no common name.
LabelledSet = tuple[
    Int[np.ndarray, " _"] | Bool[np.ndarray, " _"] | Sequence[int], Float[np.ndarray, " _"] | Sequence[float]
]


def checked(labels: Labels, scores: Scores) -> tuple[Bool[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Whether each image is fake (a label of 1 or more, as DeepfakeBench reads it), and its score as float64.

    Raises:
        InputError: labels and scores differ in number, or a score is NaN or infinite.
    """
    fake, values = np.asarray(labels) >= 1, np.asarray(scores, np.float64)
    if fake.ndim != 1 or fake.shape != values.shape:
        raise InputError(f"labels of shape {fake.shape} and scores of shape {values.shape} are not one per image.")
    broken = int((~np.isfinite(values)).sum())
    if broken:
        raise InputError(f"{broken} of {len(values)} scores are NaN or infinite; a metric over them means nothing.")
    return fake, values


def checked_probabilities(
    labels: Labels, probabilities: Scores
) -> tuple[Bool[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """The same, of probabilities of fake.

    Raises:
        InputError: as :func:`checked`, or a probability is outside [0, 1] (logits, for example).
    """
    fake, values = checked(labels, probabilities)
    if len(values) and not 0 <= values.min() <= values.max() <= 1:
        raise InputError(
            f"probabilities run from {values.min():g} to {values.max():g}, outside [0, 1]; logits go through a sigmoid."
        )
    return fake, values


def absent(fake: Bool[np.ndarray, " n"]) -> str:
    """Which class a set lacks, as words that follow "there are"; empty where both are present."""
    if not len(fake):
        return "no images"
    if fake.all():
        return f"no real images among {len(fake)}"
    return "" if fake.any() else f"no fake images among {len(fake)}"


def both_classes(fake: Bool[np.ndarray, " n"], metric: str) -> bool:
    """Whether both classes are present; warns that ``metric`` is NaN where not."""
    missing = absent(fake)
    if missing:
        # The caller's caller is who asked for the metric.
        warnings.warn(f"{metric} is NaN: there are {missing}.", stacklevel=3)
    return not missing
