"""Where an adapter is put: in the pruned baseline and in a student, both frozen after other images."""

from __future__ import annotations

from r2m_jax.evaluation.plots import bars
from r2m_jax.studies.compression.bench import Made, Workbench
from r2m_jax.studies.compression.comparing import LEARNT, NEW, compare_networks, gap, judged
from r2m_jax.studies.compression.techniques import adapted, pruned_source, source_student
from r2m_jax.studies.result import Figure, Result, Unavailable

NAME = "compression_adapters"
DEEP, SMALL = "Pruned baseline", "Student"


def placing(context: Workbench) -> Result:
    """Adapters at several places, at the middle one of the rates.

    Raises:
        Unavailable: there are no images to learn first, or one place only.
    """
    places = context.recipe.adapters.places
    if context.source is None:
        raise Unavailable("it needs images that networks learn first (data.source or data.source_methods)")
    if len(places) < 2:
        raise Unavailable("it needs two places or more (adapters.places)")
    rates = context.recipe.rates
    rate = rates[len(rates) // 2]
    number = next(at for at, student in enumerate(context.recipe.students) if student.rate == rate)
    starts = {DEEP: pruned_source(context, rate), SMALL: source_student(context, number)}
    groups = {kind: {f"{kind}, {place}": place for place in places} for kind in starts}
    networks = {
        name: Made(adapted(starts[kind], place, context))
        for kind, members in groups.items()
        for name, place in members.items()
    }
    found = compare_networks(context, networks, NAME)
    measured = found.measured
    shown = {kind: list(members) for kind, members in groups.items()}
    table = found.as_table(f"AUC by place, {rate:.0%} fewer weights", shown, "Means over seeds.")
    last = {kind: f"{kind}, last" for kind in groups}
    findings = []
    if "last" in places:
        early = [place for place in places if place != "last"]
        for group in (LEARNT, NEW):
            findings.append(
                judged(
                    "in the deep network an earlier place is best", f"early minus last on {group} generators",
                    gap(measured, [f"{DEEP}, {place}" for place in early], [last[DEEP]], group),
                )
            )  # fmt: skip
            findings.append(
                judged(
                    "in small students the last place is best", f"last minus early on {group} generators",
                    gap(measured, [last[SMALL]], [f"{SMALL}, {place}" for place in early], group),
                )
            )  # fmt: skip
    at = list(table.columns).index("mean")
    rows = [name for members in shown.values() for name in members]
    ends = [table.interval(name, at) or (0.0, 0.0) for name in rows]
    svg = bars(
        [place for members in groups.values() for place in members.values()], [table.values[name][at] for name in rows],
        title="Mean AUC by the adapter's place", groups=[kind for kind, members in groups.items() for _ in members],
        intervals=([low for low, _ in ends], [high for _, high in ends]), start=0.4, high=1.0,
    )  # fmt: skip
    metrics = {**found.as_json(), "findings": [vars(finding) for finding in findings]}
    return Result(
        [finding.sentence() for finding in findings], {NAME: table},
        {NAME: Figure(svg, "Over all generators; 0.5 is chance.")}, {NAME: found.table}, metrics,
    )  # fmt: skip
