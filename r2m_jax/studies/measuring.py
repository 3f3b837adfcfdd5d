"""AUCs of models on columns with one bootstrap over all of them, so that means and differences have intervals too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from r2m_jax.errors import InputError
from r2m_jax.evaluation.metrics import clips
from r2m_jax.evaluation.protocols import Protocol
from r2m_jax.evaluation.resampling import WeightedAuc, interval, paired
from r2m_jax.evaluation.scores import ScoreTable
from r2m_jax.evaluation.tables import Table
from r2m_jax.recipes.evaluating import Intervals

MEAN = "mean"
_TRIES = 100


@dataclass(frozen=True)
class Measured:
    """Image AUC of every model on every column.

    Attributes:
        models: rows.
        columns: headings.
        groups: heading over each column; empty for none.
        auc: of the images, float64 [models, columns].
        samples: of the resamples, float64 [models, columns, resamples].
        level: of the intervals.
        source: the score table, relative to the page.
    """

    models: tuple[str, ...]
    columns: tuple[str, ...]
    groups: tuple[str, ...]
    auc: Float[np.ndarray, "m c"]
    samples: Float[np.ndarray, "m c r"]
    level: float
    source: str

    def mean(self, model: str, columns: Sequence[str] | None = None) -> float:
        """Plain mean over columns, all by default."""
        return float(self.auc[self.models.index(model), self._places(columns)].mean())

    def means(self, models: Sequence[str]) -> dict[str, float]:
        """Mean over all columns, by model."""
        return {model: self.mean(model) for model in models}

    def headings(self) -> list[tuple[str, list[int]]]:
        """What a table shows: columns by their places, each group's mean behind its columns, the mean of all last."""
        several = len(set(self.groups)) > 1
        found: list[tuple[str, list[int]]] = []
        for group in dict.fromkeys(self.groups):
            members = [place for place, each in enumerate(self.groups) if each == group]
            found += [(self.columns[place], [place]) for place in members]
            if several and len(members) > 1:
                found.append((f"{group} {MEAN}".strip(), members))
        return [*found, (MEAN, list(range(len(self.columns))))] if len(self.columns) > 1 else found

    def table(
        self, title: str, groups: Mapping[str, Sequence[str]], *, caption: str = "", intervals: bool = True
    ) -> Table:
        """AUCs with their means and intervals."""
        return self.tabulate(title, groups, lambda auc: auc, caption=caption, intervals=intervals)

    def tabulate(
        self,
        title: str,
        groups: Mapping[str, Sequence[str]],
        function: Callable[[np.ndarray], np.ndarray],
        *,
        caption: str = "",
        intervals: bool = True,
        lower_is_better: bool = False,
        extra: Mapping[str, Callable[[np.ndarray], np.ndarray]] | None = None,
    ) -> Table:
        """A function of the AUCs, such as DROP, as a table.

        Args:
            title: of the table.
            groups: heading to its rows, models.
            function: from AUCs [models, columns, …] to numbers of that shape, resamples being carried along.
            caption: below it.
            intervals: show them.
            lower_is_better: in all columns.
            extra: further columns, from the function's numbers [models, columns, …] to [models, …].
        """
        values, drawn = function(self.auc), function(self.samples)
        heads = self.headings()
        points = {name: values[:, places].mean(axis=1) for name, places in heads}
        spread = {name: drawn[:, places].mean(axis=1) for name, places in heads}
        for name, further in (extra or {}).items():
            points[name], spread[name] = further(values), further(drawn)
        ends = {name: interval(samples, self.level) for name, samples in spread.items()}
        rows = {model: self.models.index(model) for models in groups.values() for model in models}
        return Table(
            title, list(points), groups,
            {model: [float(points[name][row]) for name in points] for model, row in rows.items()},
            lower_is_better=frozenset(points) if lower_is_better else frozenset(),
            intervals={
                model: [(float(ends[name][0][row]), float(ends[name][1][row])) for name in points]
                for model, row in rows.items()
            } if intervals else None,
            caption=caption, source=self.source,
        )  # fmt: skip

    def difference(self, one: str, two: str, columns: Sequence[str] | None = None) -> dict[str, float]:
        """Mean AUC of one model minus another's on the same draws: ``value``, ``low``, ``high``, ``p_value``."""
        places = self._places(columns)
        a, b = (self.models.index(name) for name in (one, two))
        test = paired(self.samples[a, places].mean(axis=0), self.samples[b, places].mean(axis=0), self.level)
        value = float((self.auc[a, places] - self.auc[b, places]).mean())
        return {"value": value, "low": test.low, "high": test.high, "p_value": test.p_value}

    def compared(self, one: str, two: str, columns: Sequence[str] | None = None, what: str = "on average") -> str:
        """The same in words, with whether the resamples tell the two apart."""
        found = self.difference(one, two, columns)
        value, p = found["value"], found["p_value"]
        side = "above" if value > 0 else "below"
        sure = f"{self.level:.0%} interval {signed(found['low'])} to {signed(found['high'])}, p = {p:.2g}"
        if p >= 1 - self.level:
            return f"{one} and {two} differ by {signed(value)} {what}, which is within the noise ({sure})."
        return f"{one} lies {abs(value):.3f} {side} {two} {what} ({sure})."

    def as_json(self) -> dict[str, Any]:
        """AUC and interval of every model on every heading, and the score table they follow from."""
        low, high = zip(
            *(interval(self.samples[:, p].mean(axis=1), self.level) for _, p in self.headings()), strict=True
        )
        return {
            "source": self.source,
            "columns": [name for name, _ in self.headings()],
            "auc": {
                model: {
                    name: {
                        "value": float(self.auc[row, places].mean()),
                        "low": float(low[head][row]),
                        "high": float(high[head][row]),
                    }
                    for head, (name, places) in enumerate(self.headings())
                }
                for row, model in enumerate(self.models)
            },
        }

    def rows(self, models: Sequence[str]) -> Float[np.ndarray, "k c"]:
        """AUCs of some models."""
        return self.auc[[self.models.index(model) for model in models]]

    def _places(self, columns: Sequence[str] | None) -> list[int]:
        return list(range(len(self.columns))) if columns is None else [self.columns.index(name) for name in columns]


def measure(table: ScoreTable, protocol: Protocol, chosen: Intervals, source: str) -> Measured:
    """AUCs from scores, and the same of clips drawn with replacement.

    Whole clips are drawn, real and fake ones apart, once for all models and columns: a resample is a data set of its
    own, so any function of its AUCs, as a mean over columns or DROP, has an interval. A draw that leaves a column
    without one of the classes is drawn again.

    Args:
        table: scores.
        protocol: columns, formed from the table's records.
        chosen: resamples, level and seed.
        source: file of the table, for citation.

    Raises:
        InputError: there is no column, or one has so few clips of a class that draws keep missing them.
    """
    if not protocol.columns:
        raise InputError(f"{protocol.title}: no column has real and fake images; give test images of both.")
    masks = protocol.masks(table.records)
    index = clips(table.records).index
    curves = [
        [WeightedAuc(table.labels[mask], np.asarray(logits, np.float64)[mask], index[mask]) for mask in masks.values()]
        for logits in table.logits.values()
    ]
    whole = np.ones(int(index.max()) + 1, np.int64)
    fake = np.zeros(len(whole), np.bool_)
    fake[index[table.labels >= 1]] = True
    samples = np.empty((len(curves), len(masks), chosen.resamples))
    for number, drawn in enumerate(_draws(fake, masks, table, index, chosen)):
        samples[:, :, number] = [[curve(drawn) for curve in row] for row in curves]
    return Measured(
        tuple(table.models), tuple(masks), tuple(column.group for column in protocol.columns),
        np.asarray([[curve(whole) for curve in row] for row in curves]), samples, chosen.level, source,
    )  # fmt: skip


def _draws(
    fake: np.ndarray, masks: Mapping[str, np.ndarray], table: ScoreTable, index: np.ndarray, chosen: Intervals
) -> Iterator[np.ndarray]:
    """How often each clip is drawn, resample by resample, every column keeping both classes."""
    rng = np.random.default_rng(chosen.seed)
    strata = [np.flatnonzero(fake), np.flatnonzero(~fake)]
    needed = {
        name: [np.unique(index[mask & (table.labels == label)]) for label in (0, 1)] for name, mask in masks.items()
    }
    for _ in range(chosen.resamples):
        for _ in range(_TRIES):
            drawn = np.zeros(len(fake), np.int64)
            for members in strata:
                picks = rng.integers(len(members), size=len(members))
                drawn[members] = np.bincount(picks, minlength=len(members))
            empty = [name for name, both in needed.items() if any(not drawn[members].any() for members in both)]
            if not empty:
                break
        else:
            raise InputError(f"the column {empty[0]} has too few clips to be resampled; give it more test images.")
        yield drawn


def signed(value: float) -> str:
    """A difference for a sentence, with a true minus."""
    return f"{round(value, 3) + 0.0:+.3f}".replace("-", "−")
