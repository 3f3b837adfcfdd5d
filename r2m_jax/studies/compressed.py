"""Merging and compressing: which first, and how few bits the task vectors need.

Neither paper does this: https://arxiv.org/abs/2504.21066 compresses single detectors, R²M merges whole ones. Quantised
task vectors are those of https://arxiv.org/abs/2503.06921.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import jax
import numpy as np

from r2m_jax import compression, merging
from r2m_jax.compression.pruning import Masks, magnitude_masks
from r2m_jax.compression.selection import weights
from r2m_jax.evaluation.plots import bars
from r2m_jax.evaluation.tables import Table
from r2m_jax.merging.engine import run
from r2m_jax.merging.selection import attention_and_mlp
from r2m_jax.models import Params
from r2m_jax.parallel import one_lapack_thread
from r2m_jax.recipes.studying import Merger
from r2m_jax.studies.context import Context
from r2m_jax.studies.measuring import MEAN, Measured
from r2m_jax.studies.result import Figure, Result
from r2m_jax.studies.seen_unseen import seen_columns
from r2m_jax.studies.stock import Model
from r2m_jax.trees import flatten, unflatten

NAME = "merge_compress"
FLOAT = "float merge"
_NUMBER = 4
"""Bytes of a float32."""
Change = Callable[[Params], Params]


@dataclass(frozen=True)
class Kept:
    """What a variant leaves.

    Attributes:
        merge: megabytes of the merged tower as it would be stored.
        specialist: of one specialist's.
        density: share of the merge's kernels that is not zero.
    """

    merge: float
    specialist: float
    density: float


def merge_compress(context: Context) -> Result:
    """Float merges, merges that are compressed, and merges of what was compressed; the head stays as it is."""
    variants = _variants(context)
    kept: dict[str, Kept] = {}
    models = {name: _told(model, measure, kept) for name, (model, measure) in variants.items()}
    scores, measured = context.measured(models, seen_columns(context), NAME)
    mergers = list(context.recipe.compression.mergers)
    groups = {merger: [name for name in models if _merger(name) == merger] for merger in mergers}
    floats = [measured.models.index(_called(_merger(name), FLOAT)) for name in measured.models]
    tables = {
        NAME: measured.table("AUC", groups),
        f"{NAME}_change": measured.tabulate(
            "AUC minus that of the float merge", groups, lambda auc: auc - auc[floats],
            caption="Intervals are of the difference, on the same draws.",
        ),
        f"{NAME}_size": Table(
            "Tower", ["MB, merge", "MB, a specialist", "not zero"], groups,
            {name: [each.merge, each.specialist, each.density] for name, each in kept.items()},
            lower_is_better=frozenset({"MB, merge", "MB, a specialist", "not zero"}), mark_best=False,
            caption="As it would be stored: what is pruned by a bit each and the values left, where that is smaller.",
        ),
    }  # fmt: skip
    change = tables[f"{NAME}_change"]
    at = change.columns.index(MEAN)
    rows = [name for names in groups.values() for name in names if _variant(name) != FLOAT]
    ends = [change.interval(name, at) or (np.nan, np.nan) for name in rows]
    svg = bars(
        [_variant(name) for name in rows], [change.values[name][at] for name in rows],
        title="Mean AUC minus that of the float merge", label="difference of AUC",
        intervals=([low for low, _ in ends], [high for _, high in ends]), groups=[_merger(name) for name in rows],
    )  # fmt: skip
    metrics = {**measured.as_json(), "size": {name: vars(each) for name, each in kept.items()}}
    return Result(
        _sentences(context, measured, groups, kept), tables,
        {NAME: Figure(svg, "Below zero compression costs accuracy; a bar's interval is of the difference.")},
        {NAME: scores}, metrics,
    )  # fmt: skip


def _variants(context: Context) -> dict[str, tuple[Model, Callable[[Params], Kept]]]:
    """Models by name, merger by merger, each with what tells its size."""
    team, base, chosen = context.specialists(), context.begin.params["backbone"], context.recipe.compression
    found: dict[str, tuple[Model, Callable[[Params], Kept]]] = {}
    for shown, merger in chosen.mergers.items():

        def add(
            variant: str,
            start: Callable[[], Params],
            members: Mapping[str, Model],
            *,
            after: Change = lambda backbone: backbone,
            bits: int | None = None,
            member_bits: int | None = None,
            member_rate: float = 0.0,
            name: str = shown,
            merger: Merger = merger,
        ) -> None:
            def load() -> Params:
                # Made and forgotten with its copies of the specialists: a team of large towers fills memory.
                merged = _merged(merger, start(), {family: model.load() for family, model in members.items()})
                return {**merged, "backbone": after(merged["backbone"])}

            def measure(backbone: Params) -> Kept:
                own = stored_bytes(base, bits=member_bits, density=1 - member_rate)
                return Kept(
                    stored_bytes(backbone, bits=bits) / 1e6, own / 1e6, 1 - compression.sparsity(backbone)
                )  # fmt: skip

            found[_called(name, variant)] = (Model(_called(name, variant), load), measure)

        whole = partial(_as_it_is, base)
        add(FLOAT, whole, team)
        for rate in chosen.rates:
            add(f"merge, prune {rate:.0%}", whole, team, after=partial(_pruned, rate=rate))
        for bits in chosen.bits:
            add(f"merge, int{bits}", whole, team, after=partial(_rounded, bits=bits), bits=bits)
        for rate in chosen.team_rates:
            own = {family: _changed(model, partial(_pruned, rate=rate)) for family, model in team.items()}
            add(f"prune {rate:.0%} each, merge", whole, own, member_rate=rate)
        for rate in chosen.team_rates:
            masks = _Shared(team, rate)
            shared = {family: _changed(model, masks) for family, model in team.items()}
            add(f"prune {rate:.0%} with one mask, merge", partial(masks, base), shared, member_rate=rate)
        for bits in chosen.task_vector_bits:
            rounded = {
                family: _changed(model, partial(_rounded_difference, base=base, bits=bits))
                for family, model in team.items()
            }
            add(f"int{bits} task vectors, merge", whole, rounded, member_bits=bits)
    return found


def _merged(merger: Merger, base: Params, team: Mapping[str, Params]) -> Params:
    """A merge with the averaged head."""
    recipe, thetas = merger.recipe(tuple(team)), [each["backbone"] for each in team.values()]
    settings = recipe.settings()
    if recipe.method == "ties":
        backbone = merging.ties(base, thetas, **settings)
    else:
        fused = bool(settings.get("fused_qkv"))
        with one_lapack_thread():
            backbone, _ = run(recipe.linear_method(), base, thetas, select=attention_and_mlp, fused_qkv=fused)
            jax.block_until_ready(backbone)
    return {"backbone": backbone, "head": merging.average_heads([each["head"] for each in team.values()])}


class _Shared:
    """One mask for base and specialists: that of the mean magnitude over the specialists."""

    def __init__(self, team: Mapping[str, Model], rate: float):
        self._team, self._rate = team, rate

    def __call__(self, backbone: Params) -> Params:
        return compression.apply_masks(backbone, self._masks)

    @cached_property
    def _masks(self) -> Masks:
        total: dict[str, np.ndarray] = {}
        for model in self._team.values():
            for path, leaf in flatten(model.load()["backbone"]).items():
                if compression.kernels(path, leaf):
                    size = np.abs(np.asarray(leaf, np.float32))
                    total[path] = total[path] + size if path in total else size
        return magnitude_masks(unflatten(total), self._rate, select=lambda *_: True)


def _as_it_is(backbone: Params) -> Params:
    return backbone


def _changed(model: Model, change: Change) -> Model:
    def load() -> Params:
        params = model.load()
        return {**params, "backbone": change(params["backbone"])}

    return Model(model.key, load)


def _pruned(backbone: Params, rate: float) -> Params:
    return compression.apply_masks(backbone, magnitude_masks(backbone, rate))


def _rounded(backbone: Params, bits: int) -> Params:
    return compression.dequantise_tree(compression.quantise_tree(backbone, bits))


def _rounded_difference(backbone: Params, base: Params, bits: int) -> Params:
    """A tower whose kernels and tables differ from the base's by integers, a scale for every output."""
    start, flat = flatten(base), dict(flatten(backbone))
    moved = {path: leaf - start[path] for path, leaf in flat.items() if weights(path, leaf)}
    rounded = flatten(compression.dequantise_tree(compression.quantise_tree(unflatten(moved), bits)))
    return unflatten({**flat, **{path: start[path] + leaf for path, leaf in rounded.items()}})


def stored_bytes(backbone: Params, *, bits: int | None = None, density: float | None = None) -> float:
    """Bytes of a tower as ``r2m compress`` stores one, without names and headers.

    Args:
        backbone: parameters.
        bits: of kernels and tables, a float32 scale for every output; None for float32.
        density: share of kernels that is not zero; that found in the tower when None.
    """
    total = 0.0
    for path, leaf in flatten(backbone).items():
        count = leaf.size
        if bits is not None and weights(path, leaf):
            stack = leaf.shape[0] if path.startswith("layers/") else 1
            outputs = leaf.shape[-1] if path.endswith("kernel") else leaf.shape[0]
            total += count * bits / 8 + stack * outputs * _NUMBER
        elif bits is None and compression.kernels(path, leaf):
            left = int(np.count_nonzero(np.asarray(leaf))) if density is None else density * count
            total += min(count * _NUMBER, left * _NUMBER + count / 8)
        else:
            total += count * _NUMBER
    return total


def _told(model: Model, measure: Callable[[Params], Kept], kept: dict[str, Kept]) -> Model:
    """The model, which says what is kept when it is loaded."""

    def load() -> Params:
        params = jax.tree.map(np.asarray, model.load())
        kept[model.key] = measure(params["backbone"])
        return params

    return Model(model.key, load)


def _called(merger: str, variant: str) -> str:
    return f"{merger}: {variant}"


def _merger(name: str) -> str:
    return name.partition(": ")[0]


def _variant(name: str) -> str:
    return name.partition(": ")[2]


def _sentences(
    context: Context, measured: Measured, groups: Mapping[str, list[str]], kept: Mapping[str, Kept]
) -> list[str]:
    chosen, said = context.recipe.compression, []

    def versus(merger: str, one: str, two: str) -> str:
        return measured.compared(_called(merger, one), _called(merger, two))

    for merger, names in groups.items():
        alike = []
        for name in names[1:]:
            if measured.difference(name, names[0])["p_value"] >= 1 - measured.level:
                alike.append(_variant(name))
            else:
                said.append(versus(merger, _variant(name), FLOAT))
        if alike:
            said.append(f"{merger}: within the noise of the float merge are {', '.join(alike)}.")
        for rate in chosen.team_rates:
            after, own, one = (
                f"merge, prune {rate:.0%}", f"prune {rate:.0%} each, merge", f"prune {rate:.0%} with one mask, merge",
            )  # fmt: skip
            if rate in chosen.rates:
                said += [versus(merger, own, after), versus(merger, one, after)]
            density = {name: kept[_called(merger, name)].density for name in (own, one)}
            said.append(
                f"{merger}: of the kernels {density[own]:.0%} is not zero after merging specialists pruned to "
                f"{1 - rate:.0%} each with its own mask, {density[one]:.0%} with one mask."
            )
    return said
