"""Retention and transfer of merged models: DROP and GAIN (R²M, arXiv 2509.24367, §4 "Metrics", App. C.2).

Both compare a model's AUC with that of the specialists, column by column (a forgery family in one domain, or an unseen
generator). What "the specialists" score in a column can be read in four ways:

- ``"best"``: the best specialist of that column. The paper's tables A.2 and A.3 use it for DROP and GAIN.
- own: the specialist trained on that column, Drop_i = AUC_i(θ_i) - AUC_i(θ*) of the paper's text.
- ``"single"``: the one specialist that is best on average over the columns, what one would deploy instead of a merge.
- ``"mean"``: the mean of the specialists, what choosing one blindly gives.

DROP is the reference minus the model (smaller is better) and GAIN the model minus the reference (larger is better).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from r2m_jax.errors import InputError

Reading: TypeAlias = Literal["best", "single", "mean"]
Aucs: TypeAlias = Mapping[str, Mapping[str, float]]


def reference(
    specialists: Float[np.ndarray, "s c *r"], against: Reading | Sequence[int] = "best"
) -> Float[np.ndarray, " c *r"]:
    """What the specialists score in each column.

    Args:
        specialists: AUC of every specialist in every column; trailing axes (resamples) are carried along.
        against: the reading, or the number of each column's own specialist.

    Raises:
        InputError: there is no specialist, an AUC is NaN or infinite, or the own specialists do not fit.
    """
    specialists = _finite(specialists, "specialists")
    if not specialists.size:
        raise InputError("DROP and GAIN compare with specialists; name at least one, and at least one column.")
    if against == "best":
        return specialists.max(axis=0)
    if against == "mean":
        return specialists.mean(axis=0)
    if against == "single":
        # Chosen once, on the AUCs themselves or the mean over resamples, and then kept.
        return specialists[specialists.reshape(len(specialists), -1).mean(axis=1).argmax()]
    if isinstance(against, str):
        raise InputError(f"{against!r} is no reading of DROP and GAIN; use best, single, mean or own specialists.")
    own = np.asarray(against, np.int64)
    if own.shape != (specialists.shape[1],) or own.min() < 0 or own.max() >= len(specialists):
        raise InputError(
            f"own specialists {list(against)} do not name one of {len(specialists)} specialists for each of "
            f"{specialists.shape[1]} columns."
        )
    return specialists[own, np.arange(len(own))]


def drop_matrix(
    models: Float[np.ndarray, "m c *r"],
    specialists: Float[np.ndarray, "s c *r"],
    against: Reading | Sequence[int] = "best",
) -> Float[np.ndarray, "m c *r"]:
    """DROP of every model in every column; smaller is better, negative where the model beats the reference.

    Args:
        models: AUC of every model in every column; trailing axes (resamples) are carried along.
        specialists: the same of the specialists, on the same images (and resamples).
        against: see :func:`reference`.

    Raises:
        InputError: an AUC is NaN or infinite, or the columns differ.
    """
    models, base = _finite(models, "models"), reference(specialists, against)
    if models.shape[1:] != base.shape:
        raise InputError(f"models have columns of shape {models.shape[1:]}, specialists of {base.shape}.")
    return base[None] - models


def gain_matrix(
    models: Float[np.ndarray, "m c *r"],
    specialists: Float[np.ndarray, "s c *r"],
    against: Reading | Sequence[int] = "best",
) -> Float[np.ndarray, "m c *r"]:
    """GAIN of every model in every column; larger is better. The arguments are those of :func:`drop_matrix`."""
    return -drop_matrix(models, specialists, against)


def drop(
    aucs: Aucs,
    model: str,
    specialists: Sequence[str],
    families: Sequence[str],
    *,
    against: Reading | Mapping[str, str] = "best",
) -> dict[str, float]:
    """DROP per column, by default the best specialist's AUC minus the model's; smaller is better.

    Args:
        aucs: model to column to AUC, of :func:`r2m_jax.evaluation.family_auc`.
        model: the model asked about.
        specialists: models it is compared with.
        families: columns.
        against: a reading, or every column's own specialist (Drop_i of the paper's text).

    Returns:
        A number per column, their ``mean``, and the largest as ``max`` (DROP_max).

    Raises:
        InputError: a model or column is unknown, or an AUC is NaN.
    """
    row = _row(aucs, model, specialists, families, against)
    return dict(zip(families, row, strict=True)) | {"mean": float(np.mean(row)), "max": max(row)}


def gain(
    aucs: Aucs,
    model: str,
    specialists: Sequence[str],
    columns: Sequence[str],
    *,
    against: Reading | Mapping[str, str] = "best",
) -> dict[str, float]:
    """GAIN per unseen column, by default the model's AUC minus the best specialist's; larger is better.

    Args:
        aucs, model, specialists, columns, against: as in :func:`drop`; the columns are those no model was trained on.

    Returns:
        A number per column, their ``mean``, and the smallest as ``min``.

    Raises:
        InputError: a model or column is unknown, or an AUC is NaN.
    """
    row = [0.0 - value for value in _row(aucs, model, specialists, columns, against)]  # no minus before a zero
    return dict(zip(columns, row, strict=True)) | {"mean": float(np.mean(row)), "min": min(row)}


@dataclass(frozen=True)
class TradeOff:
    """A model between retention and transfer.

    Attributes:
        mean_drop, max_drop: over the seen columns; smaller is better.
        mean_gain: over the unseen columns; larger is better.
    """

    mean_drop: float
    max_drop: float
    mean_gain: float


def trade_off(
    aucs: Aucs,
    models: Sequence[str],
    specialists: Sequence[str],
    *,
    seen: Sequence[str],
    unseen: Sequence[str],
    against: Reading = "best",
) -> dict[str, TradeOff]:
    """Where every model lies between retention and transfer (R²M Fig. 5).

    Args:
        aucs: model to column to AUC.
        models: to be compared.
        specialists: what they are compared with.
        seen, unseen: columns of DROP and of GAIN.
        against: one reading for both.

    Raises:
        InputError: a model or column is unknown, an AUC is NaN, or a column is both seen and unseen.
    """
    both = sorted(set(seen) & set(unseen))
    if both:
        raise InputError(f"{both[0]!r} cannot be seen and unseen; take it out of one of the two lists of columns.")
    found = {}
    for model in models:
        lost = drop(aucs, model, specialists, seen, against=against)
        won = gain(aucs, model, specialists, unseen, against=against)
        found[model] = TradeOff(lost["mean"], lost["max"], won["mean"])
    return found


def non_dominated(drops: Float[np.ndarray, " n"], gains: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Models that no other beats: at most as much DROP, at least as much GAIN, and one of them strictly."""
    x, y = np.asarray(drops, np.float64), np.asarray(gains, np.float64)
    no_worse = (x[:, None] <= x) & (y[:, None] >= y)
    better = (x[:, None] < x) | (y[:, None] > y)
    return np.logical_not((no_worse & better).any(axis=0))


def _row(
    aucs: Aucs, model: str, specialists: Sequence[str], columns: Sequence[str], against: Reading | Mapping[str, str]
) -> list[float]:
    reserved = sorted({"mean", "max", "min"} & set(columns))
    if reserved:
        raise InputError(f"a column is called {reserved[0]!r}, which names a summary of the columns; leave it out.")
    if isinstance(against, Mapping):
        missing = [c for c in columns if against.get(c) not in specialists]
        if missing:
            raise InputError(f"column {missing[0]!r} has no specialist of its own among {', '.join(specialists)}.")
        own: Reading | list[int] = [list(specialists).index(against[column]) for column in columns]
    else:
        own = against
    base = np.asarray([[_auc(aucs, name, column) for column in columns] for name in specialists])
    row = np.asarray([[_auc(aucs, model, column) for column in columns]])
    return [float(value) for value in drop_matrix(row, base.reshape(len(specialists), len(columns)), own)[0]]


def _auc(aucs: Aucs, model: str, column: str) -> float:
    if model not in aucs or column not in aucs[model]:
        raise InputError(f"there is no AUC of model {model!r} in column {column!r}; score it, or leave it out.")
    if np.isnan(aucs[model][column]):
        raise InputError(
            f"the AUC of model {model!r} in column {column!r} is NaN: the column lacks a class; leave it out."
        )
    return aucs[model][column]


def _finite(aucs: np.ndarray, what: str) -> np.ndarray:
    aucs = np.asarray(aucs, np.float64)
    if not np.isfinite(aucs).all():
        raise InputError(
            f"{int((~np.isfinite(aucs)).sum())} AUCs of {what} are NaN or infinite; leave those columns out."
        )
    return aucs
