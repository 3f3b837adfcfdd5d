"""Networks on the same images: AUCs over seeds, decisions, sizes and times, beside a paper's findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from r2m_jax import compression
from r2m_jax.compression.measures import Latency, Size
from r2m_jax.data.records import Record
from r2m_jax.evaluation.metrics import accuracy, f1
from r2m_jax.evaluation.protocols import Column, Selector
from r2m_jax.evaluation.resampling import paired
from r2m_jax.evaluation.scores import ScoreTable, sigmoid
from r2m_jax.evaluation.tables import Table
from r2m_jax.models.convolutional import trained_parameters
from r2m_jax.studies.compression.bench import Made, Workbench
from r2m_jax.studies.corit.comparing import Compared, over_seeds
from r2m_jax.studies.measuring import Measured, measure, signed
from r2m_jax.studies.roles import as_protocol
from r2m_jax.trees import flatten

LEARNT, NEW = "learnt", "new"
"""Generators whose images a network saw in training, and others."""
MET, NOT_MET, UNDECIDED = "met", "not met", "within the noise"


@dataclass(frozen=True)
class Weight:
    """What a network takes.

    Attributes:
        parameters, nonzero: without running statistics.
        stored: bytes, as stored and zipped; running statistics and a header included.
        latency: by batch size.
    """

    parameters: int
    nonzero: int
    stored: Size
    latency: Sequence[Latency]


@dataclass(frozen=True)
class Finding:
    """A sentence of the paper beside what was found.

    Attributes:
        paper: what it says; empty where it does not.
        here: what the numbers say.
        verdict: whether the one holds for the other.
    """

    paper: str
    here: str
    verdict: str

    def sentence(self) -> str:
        """Both and the verdict."""
        if not self.paper:
            return f"Beside the paper: {self.here}."
        return f"Paper: {self.paper}. Here: {self.here} — {self.verdict}."


def compare_networks(context: Workbench, networks: Mapping[str, Made], name: str) -> Compared:
    """AUCs by generator of every network, over its seeds.

    Args:
        context: trains and scores them.
        networks: by the name they are shown under.
        name: of the score table's file.
    """
    table = ScoreTable(context.test)
    seeds = context.recipe.seeds
    for shown, made in networks.items():
        for seed in range(seeds):
            table.add(f"{shown}, seed {seed}", context.margins(made, seed))
    formed = as_protocol(name, name, columns(context.test, context.unseen), context.test)
    single = measure(table, formed, context.recipe.intervals, context.cited(name))
    return over_seeds(table, single, tuple(networks), seeds)


def columns(records: Sequence[Record], unseen: Sequence[str]) -> list[Column]:
    """A column per generator, against all real images; those that are learnt first."""
    methods = sorted({r.method for r in records if r.label}, key=lambda method: (method in unseen, method))
    return [Column(m, Selector(methods=(m,)), Selector(), NEW if m in unseen else LEARNT) for m in methods]


def decisions(found: Compared, context: Workbench, networks: Sequence[str]) -> dict[str, list[float]]:
    """Accuracy and F1 of fake at a probability of one half: on learnt generators, on new ones; means over seeds."""
    labels = found.table.labels
    new = np.asarray([bool(r.label) and r.method in context.unseen for r in context.test])
    parts = [~new, new | (labels == 0)]
    rows = {}
    for name in networks:
        logits = [found.table.logits[f"{name}, seed {seed}"] for seed in range(context.recipe.seeds)]
        rows[name] = [
            float(np.mean([metric(labels[part], sigmoid(each)[part]) for each in logits]))
            for metric in (accuracy, f1)
            for part in parts
        ]
    return rows


def weigh(context: Workbench, made: Made) -> Weight:
    """What the first seed's network takes."""
    params = trained_parameters(context.network(made.course, 0))
    if made.int8:
        params = compression.dequantise_tree(context.quantised(params))
    leaves = [np.asarray(leaf) for leaf in flatten(params).values()]
    return Weight(
        sum(leaf.size for leaf in leaves), sum(int(np.count_nonzero(leaf)) for leaf in leaves), context.size(made),
        context.latency(made),
    )  # fmt: skip


def summary(
    title: str, groups: Mapping[str, Sequence[str]], decided: Mapping[str, Sequence[float]],
    weights: Mapping[str, Weight],
) -> Table:  # fmt: skip
    """Decisions, sizes and times as a table."""
    batches = [each.batch for each in next(iter(weights.values())).latency]
    heads = ["accuracy, learnt", "accuracy, new", "F1, learnt", "F1, new", "parameters, M", "not zero, M", "MB",
             "MB zipped", *(f"ms, batch {batch}" for batch in batches)]  # fmt: skip
    values = {
        name: [
            *decided[name], each.parameters / 1e6, each.nonzero / 1e6, each.stored.bytes / 1e6,
            each.stored.zipped / 1e6,
            *(1e3 * time.median for time in each.latency),
        ]
        for name, each in weights.items()
    }  # fmt: skip
    return Table(
        title, heads, groups, values, lower_is_better=frozenset(heads[4:]),
        caption="Decisions at a probability of one half, means over seeds; sizes and times of the first seed, medians "
        "of few runs.",
    )  # fmt: skip


def as_json(weights: Mapping[str, Weight]) -> dict[str, object]:
    """Sizes and times as JSON values."""
    return {
        name: {
            "parameters": each.parameters, "nonzero": each.nonzero, "bytes": each.stored.bytes,
            "zipped": each.stored.zipped, "latency": [vars(time) for time in each.latency],
        }
        for name, each in weights.items()
    }  # fmt: skip


def gap(measured: Measured, ones: Sequence[str], twos: Sequence[str], group: str) -> tuple[float, float, float]:
    """Mean AUC of some networks minus that of others on a group of columns, with its interval.

    Args:
        measured: AUCs.
        ones, twos: as many of each, whose differences are averaged.
        group: of columns.
    """
    places = [place for place, each in enumerate(measured.groups) if each == group]

    def drawn(names: Sequence[str]) -> tuple[float, Float[np.ndarray, " r"]]:
        rows = [measured.models.index(name) for name in names]
        return float(measured.auc[np.ix_(rows, places)].mean()), measured.samples[np.ix_(rows, places)].mean(
            axis=(0, 1)
        )

    (one, first), (two, second) = drawn(ones), drawn(twos)
    test = paired(first, second, measured.level)
    return one - two, test.low, test.high


def judged(paper: str, what: str, found: tuple[float, float, float], *, above: bool = True) -> Finding:
    """A finding that says which of two is ahead.

    Args:
        paper: its sentence.
        what: that the number is of.
        found: of :func:`gap`.
        above: whether the paper has it above zero.
    """
    value, low, high = found
    verdict = UNDECIDED if low <= 0 <= high else MET if (value > 0) == above else NOT_MET
    return Finding(paper, worded(what, found), verdict)


def worded(what: str, found: tuple[float, float, float]) -> str:
    """A difference of :func:`gap` with its interval, in words."""
    value, low, high = found
    return f"{what} {signed(value)} in AUC (interval {signed(low)} to {signed(high)})"
