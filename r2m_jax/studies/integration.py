"""A forgery arrives after deployment: merge one more specialist, or train everything again (R²M §4.3, Fig. 7)."""

from __future__ import annotations

from r2m_jax.evaluation.plots import radar
from r2m_jax.evaluation.scores import ScoreTable
from r2m_jax.evaluation.tables import Table
from r2m_jax.studies.context import Context
from r2m_jax.studies.measuring import Measured
from r2m_jax.studies.result import Figure, Result, Unavailable
from r2m_jax.studies.roles import Lesson, as_protocol
from r2m_jax.studies.stock import Model


def integration(context: Context) -> Result:
    """The near and the far newcomer of the recipe, one after the other."""
    present = {record.method for record in context.test if record.label}
    wanted = [(case, name) for case, name in context.recipe.integration if name is not None]
    cases = [(case, name) for case, name in wanted if name in present]
    if not cases:
        raise Unavailable(
            "it needs test images of a method that arrives later (integration.near and integration.far"
            + (f", now {' and '.join(name for _, name in wanted)})" if wanted else ")")
        )
    sentences = [
        f"{name} ({case}) is left out: no test image is of it." for case, name in wanted if name not in present
    ]
    tables: dict[str, Table] = {}
    figures: dict[str, Figure] = {}
    scores: dict[str, ScoreTable] = {}
    metrics = {}
    for case, method in cases:
        found = _arrival(context, case, method)
        sentences += found.sentences
        tables |= found.tables
        figures |= found.figures
        scores |= found.scores
        metrics[case] = found.metrics
    return Result(sentences, tables, figures, scores, metrics)


def _arrival(context: Context, case: str, method: str) -> Result:
    roles, families = context.roles, tuple(context.roles.families)
    columns = [*roles.seen(), *roles.new(context.test, {method})]
    formed = as_protocol("integration", f"the families learnt and {method}", columns, context.test)
    team = context.specialists()
    newcomer = context.trained(f"only-{method}", Lesson((method,), (roles.domain,)))
    retrained = f"all-in-one-with-{method}"
    old, new = f" of {len(team)}", f" of {len(team) + 1}"
    again = context.merges({**team, method: newcomer})
    models: dict[str, Model] = context.merged(team, old)
    models |= context.merged(again.team, new)
    models[f"Specialist {method}"] = newcomer
    models["All-in-one, old"] = context.all_in_one()
    models["All-in-one, trained again"] = context.trained(retrained, roles.lesson(*families, also=(method,)))
    label = f"integration_{case}"
    table, measured = context.measured(models, formed, label)
    names = list(context.recipe.mergers)
    groups = {
        "The new specialist": [f"Specialist {method}"],
        "Joint training": ["All-in-one, old", "All-in-one, trained again"],
        "Merged before": [name + old for name in names],
        "Merged again": [name + new for name in names],
    }
    timed = (context.readings()[0] or names)[0]
    seconds = {
        "train the new specialist": context.stock.seconds(f"only-{method}"),
        f"merge again by {timed}": again.seconds_again(context.recipe.mergers[timed]),
        f"merge again by all {len(names)} mergers, compilation included": again.seconds,
        "train all-in-one again": context.stock.seconds(retrained),
    }
    times = Table(
        f"Seconds ({case})", ["seconds"], {"Work": list(seconds)}, {key: [value] for key, value in seconds.items()},
        heading="Work", decimals=1, mark_best=False, caption="Measured on the machine of this run, while it trained.",
    )  # fmt: skip
    return Result(
        _said(context, measured, case, method, (old, new), seconds),
        {label: measured.table(f"AUC when {method} arrives ({case})", groups), f"{label}_seconds": times},
        {label: _figure(context, measured, case, method, new)},
        {label: table},
        measured.as_json(),
    )


def _said(
    context: Context, measured: Measured, case: str, method: str, suffixes: tuple[str, str], seconds: dict[str, float]
) -> list[str]:
    old, new = suffixes
    legacy = [column for column in measured.columns if column != method]
    names = list(context.recipe.mergers)
    best = max(names, key=lambda name: measured.mean(name + new, [method]))
    said = [
        f"{case.capitalize()}: before {method} arrives, the mergers reach "
        f"{min(measured.mean(n + old, [method]) for n in names):.3f} to "
        f"{max(measured.mean(n + old, [method]) for n in names):.3f} on it; merged again with its specialist "
        f"({measured.mean(f'Specialist {method}', [method]):.3f}), {best} reaches most, "
        f"{measured.mean(best + new, [method]):.3f}, and all-in-one trained again "
        f"{measured.mean('All-in-one, trained again', [method]):.3f}."
    ]
    for name in dict.fromkeys([*context.readings()[0][:1], best]):
        said.append(measured.compared(name + new, name + old, [method], f"on {method}"))
        said.append(measured.compared(name + new, name + old, legacy, "on the families learnt before"))
    train, merge, all_of_them, retrain = seconds.values()
    said.append(
        f"One more specialist took {train:.1f} s to train and {merge:.1f} s to merge (all mergers with their "
        f"compilation {all_of_them:.1f} s); training all-in-one again took {retrain:.1f} s."
    )
    return said


def _figure(context: Context, measured: Measured, case: str, method: str, new: str) -> Figure:
    chosen = {name: measured.rows([name + new])[0] for name in context.recipe.mergers}
    chosen["All-in-one, trained again"] = measured.rows(["All-in-one, trained again"])[0]
    title = f"AUC after {method} has been integrated ({case})"
    low = min(float(row.min()) for row in chosen.values())
    svg = radar(list(measured.columns), chosen, title=title, low=None if low > 0.5 else max(0.0, low - 0.05))
    return Figure(svg, f"{title}: every spoke is a column of the table.")
