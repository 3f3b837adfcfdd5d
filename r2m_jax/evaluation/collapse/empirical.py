"""The critical optimisation radius in practice: from which radius on SAM leaves a linear probe knowing nothing.

CoRIT (https://arxiv.org/abs/2603.24057), §III-A: the AUC of a probe trained with SAM falls to about 0.5 beyond some
radius. The paper gives no rule. Here radii are a logarithmic grid, the first collapse on it is narrowed by bisection in
log ρ, seed by seed, and what is a collapse is judged in two ways:

- ``auc``, the paper's: the AUC on test samples is below 0.5 + margin.
- ``loss``: the mean cross entropy of the training samples is not below log 2, that of a head that knows nothing.

The two differ. The cross entropy of a linear head is convex, so SAM's step always descends on its own batch
(⟨∇L(w + ρg/‖g‖), g⟩ ≥ ‖g‖² > 0): what a large radius spoils is the size of the logits before their order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from r2m_jax.errors import InputError
from r2m_jax.evaluation.collapse.probes import (
    ProbeData,
    ProbeTraining,
    batches,
    cross_entropy,
    heads,
    margins,
    rank_auc,
    sam_train,
)

Outcome = Literal["collapses", "holds", "never learns"]
"""Whether a probe collapses within the grid, holds up to its end, or is collapsed from the smallest radius on."""

CRITERIA = ("auc", "loss")


@dataclass(frozen=True)
class RadiusSearch:
    """Where the critical radius is looked for.

    Attributes:
        least, most: ends of the grid of radii.
        points: of the grid, evenly spaced in log ρ.
        bisections: halvings of the interval of the first collapse.
        margin: above an AUC of 0.5, of the criterion ``auc``.
        seeds: starts and orders of the samples.
    """

    least: float = 1e-3
    most: float = 5.0
    points: int = 16
    bisections: int = 6
    margin: float = 0.05
    seeds: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.least < self.most < np.inf or self.points < 2 or self.bisections < 0 or self.seeds < 1:
            raise InputError(
                f"the radii go from above 0 to a larger one in two points or more, with a seed or more, not {self}."
            )
        if not 0 < self.margin < 0.5:
            raise InputError(f"the margin above chance is between 0 and 0.5, not {self.margin}; 0.05 is usual.")

    @property
    def grid(self) -> Float[np.ndarray, " radii"]:
        """The radii, 0 (plain SGD) first."""
        return np.concatenate([[0.0], np.geomspace(self.least, self.most, self.points)])


@dataclass(frozen=True)
class Bracket:
    """Where the probes of one set of features first collapse, by one criterion.

    Attributes:
        ends: least and largest radius of the grid above 0.
        low, high: of every seed, the largest radius before the first collapse and the smallest collapsed one after
            bisection; 0 and the least radius of the grid where it collapsed at once, the largest and infinity where
            it never did.
        recovers: of every seed, whether a radius beyond the first collapsed one was not collapsed.
        at_zero: of every seed, whether plain SGD was collapsed.
    """

    ends: tuple[float, float]
    low: Float[np.ndarray, " seeds"]
    high: Float[np.ndarray, " seeds"]
    recovers: Bool[np.ndarray, " seeds"]
    at_zero: Bool[np.ndarray, " seeds"]

    @property
    def by_seed(self) -> Float[np.ndarray, " seeds"]:
        """Critical radius of every seed, the geometric mean of its two ends: 0 below the grid, infinite above it."""
        return np.sqrt(self.low * self.high)

    @property
    def median(self) -> float:
        """Over the seeds; the lower of the middle two where their number is even."""
        return float(np.sort(self.by_seed)[(len(self.low) - 1) // 2])

    @property
    def outcome(self) -> Outcome:
        """Of the median seed."""
        return "never learns" if self.median == 0 else "collapses" if np.isfinite(self.median) else "holds"

    def words(self) -> str:
        """The median as a number, or as what lies beyond the grid."""
        if self.outcome == "collapses":
            return f"{self.median:.3g}"
        return f"> {self.ends[1]:g}" if self.outcome == "holds" else f"< {self.ends[0]:g}"


@dataclass(frozen=True)
class EmpiricalRadius:
    """What was found on one set of features.

    Attributes:
        grid: radii tried, 0 first.
        auc, train_auc, loss: of every probe, AUC on test and on training samples and final training loss.
        brackets: criterion to the first collapse.
    """

    grid: Float[np.ndarray, " radii"]
    auc: Float[np.ndarray, "radii seeds"]
    train_auc: Float[np.ndarray, "radii seeds"]
    loss: Float[np.ndarray, "radii seeds"]
    brackets: Mapping[str, Bracket]


def critical_radius(
    data: ProbeData, search: RadiusSearch | None = None, training: ProbeTraining | None = None
) -> EmpiricalRadius:
    """Train probes with every radius and seed, and narrow each seed's first collapse; one compiled program.

    All radii of a seed share its start and its batches. Only a change of shapes or settings compiles anew.

    Raises:
        InputError: a training diverged to NaN or infinity.
    """
    search, training = search or RadiusSearch(), training or ProbeTraining()
    order = np.stack([batches(len(data.labels), training, seed) for seed in range(search.seeds)])
    grid = search.grid
    found = _search(
        jnp.asarray(data.features, jnp.float32),
        jnp.asarray(data.labels, jnp.int32),
        jnp.asarray(data.test_features, jnp.float32),
        _places(data.labels),
        _places(data.test_labels),
        jnp.asarray(order[:, None], jnp.int32),
        heads(data.features.shape[1], search.seeds),
        jnp.asarray(grid, jnp.float32),
        search,
        training,
    )
    auc, train_auc, loss, collapsed, low, high, first, whole = map(np.asarray, found)
    if not whole.all():
        raise InputError(
            f"a probe diverged to NaN or infinity at a learning rate of {training.learning_rate:g}; lower it or "
            "normalise the features."
        )
    brackets = {}
    for row, name in enumerate(CRITERIA):
        never, at_once = first[row] >= search.points, first[row] == 0
        brackets[name] = Bracket(
            ends=(float(grid[1]), float(grid[-1])),
            low=np.where(never, grid[-1], np.where(at_once, 0.0, low[row])).astype(np.float64),
            high=np.where(never, np.inf, np.where(at_once, grid[1], high[row])).astype(np.float64),
            recovers=np.asarray([not collapsed[row, 1 + p :, seed].all() for seed, p in enumerate(first[row])]),
            at_zero=collapsed[row, 0],
        )
    auc, train_auc, loss = (each.astype(np.float64) for each in (auc, train_auc, loss))
    return EmpiricalRadius(grid, auc, train_auc, loss, brackets)


def _places(labels: np.ndarray) -> tuple[Array, Array]:
    real, fake = (jnp.asarray(np.flatnonzero(labels == kind), jnp.int32) for kind in (0, 1))
    return real, fake


@partial(jax.jit, static_argnums=(8, 9))
def _search(
    features: Any, labels: Any, test_features: Any, places: Any, test_places: Any, order: Any, starts: Any, grid: Any,
    search: RadiusSearch, training: ProbeTraining,
) -> tuple[Array, ...]:  # fmt: skip
    """Grid and bisection. Arrays with a criterion have it first; ``first`` is each seed's first collapse."""

    def probe(start: Any, chosen: Array, rho: Array) -> tuple[Array, ...]:
        head, _ = sam_train(start, features, labels, chosen, rho, training)
        scores = margins(head, test_features)
        auc, loss = rank_auc(scores, *test_places), cross_entropy(head, features, labels)
        collapsed = jnp.stack([auc < 0.5 + search.margin, loss >= jnp.log(2.0)])
        whole = jnp.isfinite(scores).all() & jnp.isfinite(head["kernel"]).all()
        return auc, rank_auc(margins(head, features), *places), loss, collapsed, whole

    seeds = jax.vmap(probe, in_axes=(0, 0, None))
    auc, train_auc, loss, collapsed, whole = jax.vmap(seeds, in_axes=(None, None, 0))(starts, order, grid)
    collapsed = jnp.moveaxis(collapsed, -1, 0)
    sure = collapsed[:, 1:]
    first = jnp.where(sure.any(axis=1), sure.argmax(axis=1), search.points)
    inside = jnp.clip(first, 1, search.points - 1)  # dummies for the seeds without an interval
    every = jnp.arange(len(CRITERIA))

    def halve(ends: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], None]:
        low, high, whole = ends
        middle = jnp.sqrt(low * high)
        found, sound = jax.vmap(lambda radii: jax.vmap(probe)(starts, order, radii))(middle)[-2:]
        fell = found[every, :, every]
        return (jnp.where(fell, low, middle), jnp.where(fell, middle, high), whole & sound.all()), None

    ends = (grid[inside], grid[inside + 1], whole.all())
    (low, high, sound), _ = jax.lax.scan(halve, ends, None, length=search.bisections)
    return auc, train_auc, loss, collapsed, low, high, first, sound
