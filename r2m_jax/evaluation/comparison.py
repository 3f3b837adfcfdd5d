"""Models compared on the columns of a protocol: every metric, bootstrap intervals, paired tests. From scores alone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from r2m_jax.errors import InputError
from r2m_jax.evaluation.metrics import VideoKey, class_accuracy, clips, summary
from r2m_jax.evaluation.protocols import Protocol
from r2m_jax.evaluation.resampling import Paired, bootstrap_auc, interval, paired
from r2m_jax.evaluation.scores import ScoreTable
from r2m_jax.evaluation.tables import Table

MEAN = "mean"
COUNTS = ("images", "real", "fake", "videos")
LOWER_IS_BETTER = frozenset({"eer", "eer_interp", "video_eer", "ece"})
TITLES = {
    "frame_auc": "Image AUC",
    "video_auc": "Video AUC",
    "eer": "EER",
    "eer_interp": "EER (interpolated)",
    "video_eer": "Video EER",
    "ap": "Average precision",
    "acc": "Accuracy",
    "macc": "Mean accuracy of both classes",
    "f1": "F1",
    "ece": "Calibration error",
    "tpr_at_fpr_0.01": "TPR at 1 % FPR",
    "tpr_at_fpr_0.1": "TPR at 10 % FPR",
    "acc_best_thr_oracle": "Accuracy at the oracle threshold",
}
"""Metrics and what tables call them."""


@dataclass(frozen=True)
class Cell:
    """A model on a column.

    Attributes:
        metrics: of :func:`r2m_jax.evaluation.metrics.summary`, and ``macc``.
        intervals: low and high of ``frame_auc`` and ``video_auc``; empty without resampling.
        against: image AUC of this model minus that of the column's reference; None for the reference itself.
    """

    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    against: Paired | None = None


@dataclass(frozen=True)
class Comparison:
    """Every model on every column.

    Attributes:
        protocol: the columns.
        cells: by model, then column.
        references: the model the others are tested against, by column; empty without resampling.
        notes: warnings of the metrics, a sentence each.
    """

    protocol: Protocol
    cells: Mapping[str, Mapping[str, Cell]]
    references: Mapping[str, str]
    notes: tuple[str, ...]

    def means(self, model: str) -> dict[str, dict[str, float]]:
        """Plain means of every metric over all columns (``mean``) and over those of each heading (``FF mean``)."""
        cells = self.cells[model]
        over = {f"{group} {MEAN}": names for group, names in self.protocol.groups().items() if len(names) > 1}
        over[MEAN] = list(cells)
        metrics = [key for key in next(iter(cells.values())).metrics if key not in COUNTS]
        return {
            heading: {key: float(np.mean([cells[name].metrics[key] for name in names])) for key in metrics}
            for heading, names in over.items()
        }

    def columns(self) -> list[str]:
        """Columns in order, each heading's mean behind its columns, the mean over all last."""
        model = next(iter(self.cells))
        means = self.means(model)
        order: list[str] = []
        for group, names in (self.protocol.groups() or {"": list(self.cells[model])}).items():
            order += names + ([f"{group} {MEAN}"] if f"{group} {MEAN}" in means else [])
        return order + ([MEAN] if len(self.cells[model]) > 1 else [])

    def values(self, metric: str) -> dict[str, list[float]]:
        """One metric, a row per model in the order of :meth:`columns`."""
        rows = {}
        for model, cells in self.cells.items():
            means = self.means(model)
            rows[model] = [
                cells[name].metrics[metric] if name in cells else means[name][metric] for name in self.columns()
            ]
        return rows

    def table(self, metric: str, *, source: str = "") -> Table:
        """One metric as a table, with intervals where there are any; ``source`` is the score table it is linked to."""
        columns = self.columns()
        better = frozenset(columns) if metric in LOWER_IS_BETTER else frozenset[str]()
        ends = {
            model: [cells[name].intervals.get(metric) if name in cells else None for name in columns]
            for model, cells in self.cells.items()
        }
        return Table(
            TITLES.get(metric, metric), columns, {"Models": list(self.cells)}, self.values(metric), better,
            intervals=ends if any(pair for row in ends.values() for pair in row) else None, source=source,
        )  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        """Everything as JSON values; what is NaN is null."""
        protocol = self.protocol
        first = next(iter(self.cells.values()))
        return _plain(
            {
                "protocol": {
                    "name": protocol.name, "title": protocol.title, "source": protocol.source, "train": protocol.train,
                    "notes": [*protocol.notes, *self.notes],
                },
                "columns": {
                    column.name: {
                        "group": column.group,
                        "fake": column.fake.words(),
                        "real": column.real.words(),
                        "reference": self.references.get(column.name),
                        "counts": {key: first[column.name].metrics[key] for key in COUNTS},
                    }
                    for column in protocol.columns
                },
                "models": {
                    model: {
                        "columns": {
                            name: dict(cell.metrics)
                            | {"intervals": {key: list(ends) for key, ends in cell.intervals.items()}}
                            | {"against": None if cell.against is None else _test(cell.against, self.references[name])}
                            for name, cell in cells.items()
                        },
                        "means": self.means(model),
                    }
                    for model, cells in self.cells.items()
                },
            }
        )  # fmt: skip


def compare(
    table: ScoreTable,
    protocol: Protocol,
    *,
    video_key: VideoKey = "clip",
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    reference: str | None = None,
) -> Comparison:
    """Measure every model of a score table on every column.

    Intervals come from drawing clips with replacement, real and fake ones apart; all models of a column share the
    draws, so their differences are paired. A clip is (data set, label, video) there whatever ``video_key`` says, since
    the folder names of ``bench`` and ``df40`` mix classes; under those keys the video AUC has no interval.

    Args:
        table: scores.
        protocol: formed from the table's records.
        video_key: what a clip is for the video metrics.
        resamples: of the bootstrap; 0 for no intervals and tests.
        level: of confidence.
        seed: of the draws.
        reference: the model others are tested against; None for each column's best by image AUC. That one was chosen
            by the same scores, so the p-values against it are a little too small.

    Raises:
        InputError: the table has no model, or none of that name.
    """
    if not table.models:
        raise InputError("the score table holds no model.")
    if reference is not None and reference not in table.models:
        raise InputError(f"the reference {reference!r} is not among the models {', '.join(table.models)}.")
    cells: dict[str, dict[str, Cell]] = {model: {} for model in table.models}
    references: dict[str, str] = {}
    notes: list[str] = []
    for name, mask in protocol.masks(table.records).items():
        part = table.where(mask)
        measured, said = _measure(part, video_key)
        notes += [f"{name}: {sentence}" for sentence in said]
        if not resamples:
            for model, metrics in measured.items():
                cells[model][name] = Cell(metrics)
            continue
        scores = np.stack([part.probabilities(model) for model in part.models])
        index = clips(part.records).index
        keys: tuple[Literal["frame", "video"], ...] = ("frame", "video") if video_key == "clip" else ("frame",)
        samples = {
            key: bootstrap_auc(part.labels, scores, index, resamples=resamples, seed=seed, key=key) for key in keys
        }
        ends = {key: interval(drawn, level) for key, drawn in samples.items()}
        best = reference or max(measured, key=lambda model: measured[model]["frame_auc"])
        references[name] = best
        drawn = dict(zip(part.models, samples["frame"], strict=True))
        for row, (model, metrics) in enumerate(measured.items()):
            cells[model][name] = Cell(
                metrics,
                {f"{key}_auc": (float(low[row]), float(high[row])) for key, (low, high) in ends.items()},
                None if model == best else paired(drawn[model], drawn[best]),
            )
    return Comparison(protocol, cells, references, tuple(dict.fromkeys(notes)))


def _measure(part: ScoreTable, video_key: VideoKey) -> tuple[dict[str, dict[str, float]], Sequence[str]]:
    """Metrics of every model, and what the metrics warned of, once."""
    measured = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for model in part.models:
            probabilities = part.probabilities(model)
            measured[model] = dict(summary(part.records, probabilities, video_key=video_key)) | {
                "macc": class_accuracy(part.labels, probabilities)
            }
    return measured, list(dict.fromkeys(str(warning.message) for warning in caught))


def _test(test: Paired, reference: str) -> dict[str, Any]:
    return {
        "reference": reference, "difference": test.difference, "low": test.low, "high": test.high,
        "p_value": test.p_value,
    }  # fmt: skip


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, int | str) or value is None:
        return value
    return None if math.isnan(value) else float(value)
