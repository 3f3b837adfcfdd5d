"""What every part of CoRIT adds (arXiv 2603.24057, Tables VIII, IX, XI, XII and XIII)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from r2m_jax.evaluation.plots import bars, lines
from r2m_jax.models.corit import CoritSettings
from r2m_jax.studies.corit.comparing import SEEN, UNSEEN, Compared, compare, scored, seen_and_unseen
from r2m_jax.studies.corit.frozen import PLAIN, Frozen
from r2m_jax.studies.measuring import MEAN
from r2m_jax.studies.result import Figure, Result

CORIT, PROBE = "CoRIT", "Linear probe"
COMPONENTS, ALTERNATIVES, REGIONS, GAMMA, LAYER = (
    "Components",
    "Alternatives",
    "Regions",
    "Coherence coefficient",
    "Fusion layer",
)


def ablation(context: Frozen) -> Result:
    """Variants on the families, learnt and left out, each with heads of its own."""
    variants = plan(context)
    lessons = context.lessons()
    unique = dict.fromkeys(settings for group in variants.values() for settings in group.values())
    logits = {}
    for number, settings in enumerate(unique, start=1):
        context.reporter.say(f"variant {number} of {len(unique)}")
        logits[settings] = scored(context, settings, lessons)
    named = {name: logits[settings] for group in variants.values() for name, settings in group.items()}
    found = compare(context, named, list(lessons), seen_and_unseen(context), "corit_ablation")
    tables, figures = {}, {}
    for group, members in variants.items():
        file = f"corit_{group.lower().replace(' ', '_')}"
        rows = list(members)
        tables[file] = found.as_table(f"{group}: AUC", {group: rows}, _CAPTION)
        if group in (GAMMA, LAYER) and len(rows) > 2:
            figures[file] = _curve(found, group, members)
        else:
            figures[file] = _bars(found, group, rows)
    return Result(_sentences(found, variants), tables, figures, {"corit_ablation": found.table}, found.as_json())


_ALTERNATIVES: dict[str, tuple[str, dict[str, Any]]] = {
    "drawn": ("drawn self-blending", {"cgp": "random"}),
    "read_only": ("read-only attention", {"attention": "read_only"}),
    "maximum": ("maximum pooling", {"pooling": "max"}),
    "cross_attention": ("cross-attention", {"fusion": "cross_attention"}),
}
_CAPTION = (
    "Heads learn the training images of all families, or of all but the one they are tested on (unseen). AUCs are "
    "means over seeds with the interval of the mean; the last column is the standard deviation of the mean over seeds."
)


def plan(context: Frozen) -> dict[str, dict[str, CoritSettings]]:
    """Variants by table and name; the same switches may stand in several tables."""
    recipe, main = context.recipe, context.recipe.settings.resolved(context.base.config)
    chosen, plain = recipe.ablation, replace(PLAIN, feature_norm=main.feature_norm)
    found: dict[str, dict[str, CoritSettings]] = {}
    if chosen.components:
        found[COMPONENTS] = {
            PROBE: plain,
            "+ HRI": replace(plain, hri=True, fusion_layer=main.fusion_layer),
            "+ RSI": replace(main, rrm=False, hri=False, cgp="off"),
            "+ RSI + HRI": replace(main, rrm=False, cgp="off"),
            "+ RSI + RRM": replace(main, hri=False),
            CORIT: main,
        }
    others = {name: _ALTERNATIVES[name] for name in chosen.alternatives}
    if others:
        found[ALTERNATIVES] = {CORIT: main} | {name: replace(main, **changes) for name, changes in others.values()}
    whole = " + ".join(main.regions)
    combined = {" + ".join(areas): replace(main, regions=areas) for areas in chosen.regions if main.rule != "random"}
    drawn = {
        f"{count} random": replace(main, rule="random", regions=tuple(f"part {n}" for n in range(1, count + 1)))
        for count in chosen.random_regions
    }
    if combined or drawn:
        found[REGIONS] = {**combined, whole: main, **drawn}
    if chosen.gamma:
        found[GAMMA] = {f"γ = {g:g}": replace(main, gamma=g) for g in sorted({*chosen.gamma, main.gamma})}
    layers = chosen.fusion_layers or _spread(context.depth)
    if layers:
        every = sorted({*layers, main.fusion_layer or 1})
        found[LAYER] = {f"L' = {layer}": replace(main, fusion_layer=layer) for layer in every}
    return {group: members for group, members in found.items() if len(members) > 1}


def _spread(depth: int) -> tuple[int, ...]:
    """L' at 10, 16 and 20 of 24, as in Table XII, and a sixth of the depth."""
    return tuple(sorted({min(max(1, round(depth * share)), depth - 1) for share in (1 / 6, 10 / 24, 16 / 24, 20 / 24)}))


def _heads(found: Compared) -> list[str]:
    return [name for name, places in found.measured.headings() if len(places) > 1]


def _bars(found: Compared, group: str, rows: list[str]) -> Figure:
    table = found.as_table(group, {group: rows})
    means = [heading for heading in _heads(found) if heading != MEAN] or [table.columns[-2]]  # the last is the spread
    values, ends, labels, groups = [], [], [], []
    for heading in means:
        place = list(table.columns).index(heading)
        for row in rows:
            values.append(table.values[row][place])
            ends.append(table.interval(row, place) or (np.nan, np.nan))
            labels.append(row)
            groups.append(heading.removesuffix(" mean"))
    svg = bars(
        labels, values, title=f"{group}: mean AUC over families",
        intervals=([low for low, _ in ends], [high for _, high in ends]), groups=groups, start=0.5, high=1.0,
    )  # fmt: skip
    return Figure(svg, "Mean AUC over families with its interval, bars from chance.")


def _curve(found: Compared, group: str, members: Mapping[str, CoritSettings]) -> Figure:
    of_gamma = group == GAMMA
    levels = [float(s.gamma if of_gamma else s.fusion_layer or 0) for s in members.values()]
    series = {}
    for heading in (SEEN, UNSEEN):
        columns = [c for c, g in zip(found.measured.columns, found.measured.groups, strict=True) if g == heading]
        if columns:
            series[heading] = [found.measured.mean(name, columns) for name in members]
    svg = lines(levels, series, title=f"Mean AUC by {group.lower()}", x_label="γ" if of_gamma else "L'")
    return Figure(svg, f"Mean AUC over families by {group.lower()}; the table has intervals.")


def _sentences(found: Compared, variants: Mapping[str, Mapping[str, CoritSettings]]) -> list[str]:
    measured = found.measured
    unseen = [c for c, g in zip(measured.columns, measured.groups, strict=True) if g == UNSEEN]
    over = [(None, "over all columns"), *([(unseen, "on families left out")] if unseen else [])]
    said = []
    if COMPONENTS in variants:
        said += [measured.compared(CORIT, PROBE, columns, what) for columns, what in over]
        for more, less in (("+ HRI", PROBE), ("+ RSI", PROBE), ("+ RSI + RRM", "+ RSI"), (CORIT, "+ RSI + RRM")):
            said.append(
                measured.compared(more, less, unseen or None, "on families left out" if unseen else "on average")
            )
    said += [measured.compared(name, CORIT) for name in variants.get(ALTERNATIVES, {}) if name != CORIT]
    for group, members in variants.items():
        means = {name: measured.mean(name, unseen or None) for name in members}
        best, worst = max(means, key=lambda n: means[n]), min(means, key=lambda n: means[n])
        said.append(
            f"{group}: mean AUC{' on families left out' if unseen else ''} lies between {means[worst]:.3f} ({worst}) "
            f"and {means[best]:.3f} ({best})."
        )
    seeds = found.by_seed.shape[1]
    if seeds > 1:
        largest = max(found.spread(name) for name in measured.models)
        said.append(f"Over {seeds} seeds the mean AUC of no variant has a standard deviation above {largest:.3f}.")
    return said
