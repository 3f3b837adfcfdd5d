"""The shortcut alarm: how well files tell real from fake before anyone has looked at a picture.

Detectors learn what is easiest. Where fakes are PNG and reals JPEG, or all fakes are 512 pixels wide, that is format
and size; Grommelt et al., "Fake or JPEG?", 2024, https://arxiv.org/abs/2403.17608, found published sets to be so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from r2m_jax.data.audit.facts import Facts
from r2m_jax.data.records import Record

MARGIN = 0.03
"""How far above one half the AUC of metadata may be."""

_FOLDS = 5
_RESAMPLES = 200
_MOST = 20_000  # records the AUC is measured on; its error is far below the margin then
_FEWEST = 50  # of either label; below, five folds say nothing
_BINS = 4  # of the file size, in its table

_CATEGORIES: dict[str, Callable[[Record, Facts], str]] = {
    "format": lambda record, facts: facts.format,
    "suffix": lambda record, facts: PurePath(record.path).suffix.lower(),
    "mode": lambda record, facts: facts.mode,
    "subsampling": lambda record, facts: facts.subsampling,
    "progressive": lambda record, facts: str(facts.progressive),
}
_NUMBERS: dict[str, Callable[[Record, Facts], float]] = {
    "bytes": lambda record, facts: float(facts.bytes),
    "bytes per pixel": lambda record, facts: facts.bytes / max(1, facts.width * facts.height),
    "width": lambda record, facts: float(facts.width),
    "height": lambda record, facts: float(facts.height),
    "aspect": lambda record, facts: facts.width / max(1, facts.height),
    "JPEG quality": lambda record, facts: float(facts.quality),
    "bit depth": lambda record, facts: float(facts.bits),
    "bit rate": lambda record, facts: float(facts.bit_rate),
    "length of name": lambda record, facts: float(len(PurePath(record.path).stem)),
    "digits in name": lambda record, facts: float(sum(c.isdigit() for c in PurePath(record.path).stem)),
}


@dataclass(frozen=True)
class Shortcut:
    """How well metadata alone tells fake from real.

    Attributes:
        auc: cross-validated, 0.5 is none; NaN where there are too few images or videos to say.
        low, high: 95 % interval, by resampling videos.
        single: AUC of each property on its own, in whichever direction is better.
    """

    auc: float
    low: float
    high: float
    single: dict[str, float]

    @property
    def alarming(self) -> bool:
        """Whether it is surely more than chance, and by more than the margin."""
        return bool(self.low > 0.5 and self.auc > 0.5 + MARGIN)


def shortcut(records: Sequence[Record], facts: Mapping[str, Facts], seed: int = 0) -> Shortcut:
    """Measure it with gradient boosting on format, size, quality, resolution and file names.

    Folds are made of whole videos: a photograph and what was forged from it are on the same side.

    Args:
        records: those with problems are passed over.
        facts: about their files, by path.
        seed: of folds and resampling.
    """
    usable = [record for record in records if not facts[record.path].problem]
    if len(usable) > _MOST:
        chosen = np.random.default_rng(seed).permutation(len(usable))[:_MOST]
        usable = [usable[index] for index in sorted(chosen)]
    labels = np.array([record.label for record in usable])
    clips = [len({r.video or r.path for r in usable if r.label == label}) for label in (0, 1)]
    # Fewer clips of a label than folds would leave folds without it.
    if min(labels.sum(), len(labels) - labels.sum()) < _FEWEST or min(clips) < _FOLDS:
        return Shortcut(float("nan"), float("nan"), float("nan"), {})
    columns = _columns(usable, facts)
    names = {name: index for index, name in enumerate(dict.fromkeys(r.video or r.path for r in usable))}
    groups = np.array([names[record.video or record.path] for record in usable])
    single = {name: _either_way(labels, column) for name, column in columns.items()}
    varying = [column for column in columns.values() if np.ptp(column)]
    if not varying:
        return Shortcut(0.5, 0.5, 0.5, single)
    folds = _cross_validated(np.stack(varying, axis=1), labels, groups, seed)
    auc = _mean_auc(folds, None)
    rng = np.random.default_rng(seed)
    resampled = [_mean_auc(folds, rng) for _ in range(_RESAMPLES)]
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return Shortcut(auc, float(low), float(high), single)


def tables(records: Sequence[Record], facts: Mapping[str, Facts], most: int = 8) -> dict[str, list[dict[str, Any]]]:
    """Properties against the label: for each value how many real and fake images have it, the commonest first; file
    sizes in bins, the smallest first.

    Args:
        records: those with problems are passed over.
        facts: about their files, by path.
        most: values listed; the others are summed up as ``other``.
    """
    usable = [(record, facts[record.path]) for record in records if not facts[record.path].problem]
    values: dict[str, Callable[[Record, Facts], str]] = {
        "format": _CATEGORIES["format"],
        "subsampling": lambda record, known: known.subsampling or "none",
        "JPEG quality": lambda record, known: str(known.quality) if known.quality else "none",
        "resolution": lambda record, known: f"{known.width} x {known.height}",
        "bit depth": lambda record, known: str(known.bits) if known.bits else "none",
        "bytes": _size_bins([known.bytes for _, known in usable]),
    }
    crossed = {}
    for name, value_of in values.items():
        counted = Counter((value_of(record, known), record.label) for record, known in usable)
        total = Counter({value: counted[value, 0] + counted[value, 1] for value, _ in counted})
        shown = [value for value, _ in total.most_common(most)]
        if name == "bytes":
            shown.sort(key=lambda value: (len(value), value))  # numbers written alike: the shorter is smaller
        rows = [{"value": value, "real": counted[value, 0], "fake": counted[value, 1]} for value in shown]
        rest = [sum(n for (value, label), n in counted.items() if value not in shown and label == k) for k in (0, 1)]
        if any(rest):
            rows.append({"value": "other", "real": rest[0], "fake": rest[1]})
        crossed[name] = rows
    return crossed


def _size_bins(sizes: Sequence[int]) -> Callable[[Record, Facts], str]:
    """Names of bins of about equally many files each."""
    edges = np.unique(np.quantile(sizes, np.arange(1, _BINS + 1) / _BINS, method="higher")) if sizes else np.zeros(1)
    return lambda record, known: f"up to {edges[np.searchsorted(edges, known.bytes)]:,.0f}"


def _columns(records: Sequence[Record], facts: Mapping[str, Facts]) -> dict[str, Float[np.ndarray, " n"]]:
    columns = {}
    for name, category in _CATEGORIES.items():
        values = [category(record, facts[record.path]) for record in records]
        order = {value: index for index, value in enumerate(sorted(set(values)))}
        columns[name] = np.array([float(order[value]) for value in values])
    for name, number in _NUMBERS.items():
        columns[name] = np.array([number(record, facts[record.path]) for record in records])
    return columns


Fold = tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"], Int[np.ndarray, " n"]]


def _cross_validated(
    columns: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"], groups: Int[np.ndarray, " n"], seed: int
) -> list[Fold]:
    """Labels, scores and groups of each fold, scored by a model of the others."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import StratifiedGroupKFold
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    folds = []
    splitter = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed)
    # One thread: OpenMP's wait for one another actively, and on a busy machine that took thirty times as long.
    with threadpool_limits(1, user_api="openmp"):
        for learnt, held in splitter.split(columns, labels, groups):
            model = HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=15, random_state=seed)
            model.fit(columns[learnt], labels[learnt])
            folds.append((labels[held], model.predict_proba(columns[held])[:, 1], groups[held]))
    return folds


def _mean_auc(folds: Sequence[Fold], rng: np.random.Generator | None) -> float:
    """AUC averaged over folds; scores of different folds come from different models and are not compared."""
    found = []
    for labels, scores, groups in folds:
        weights = np.ones(len(labels))
        if rng is not None:
            names, number = np.unique(groups, return_inverse=True)
            weights = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))[number].astype(float)
        found.append(_weighted_auc(labels, scores, weights))
    return float(np.nanmean(found)) if np.isfinite(found).any() else float("nan")


def _weighted_auc(
    labels: Int[np.ndarray, " n"], scores: Float[np.ndarray, " n"], weights: Float[np.ndarray, " n"]
) -> float:
    """Probability that a fake scores above a real image, ties counted half."""
    _, level = np.unique(scores, return_inverse=True)
    fake = np.bincount(level, weights * (labels == 1))
    real = np.bincount(level, weights * (labels == 0))
    total = fake.sum() * real.sum()
    return float((fake * (np.cumsum(real) - real / 2)).sum() / total) if total else float("nan")


def _either_way(labels: Int[np.ndarray, " n"], column: Float[np.ndarray, " n"]) -> float:
    auc = _weighted_auc(labels, column, np.ones(len(labels)))
    return max(auc, 1 - auc)
