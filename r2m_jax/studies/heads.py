"""One merged backbone under several heads (R²M appendix C.1, Table A.1)."""

from __future__ import annotations

from r2m_jax.evaluation.plots import bars
from r2m_jax.studies.context import Context
from r2m_jax.studies.result import Figure, Result
from r2m_jax.studies.seen_unseen import seen_columns
from r2m_jax.studies.stock import Model


def heads(context: Context) -> Result:
    """The averaged head, the norm-matched average and each specialist's head on R²M's and on the average's backbone."""
    team = context.specialists()
    merges = context.merges(team)
    name, merger = context.printed()
    averaging = next((n for n, m in context.recipe.mergers.items() if m.method == "weight_averaging"), None)
    backbones = {name: merges.model(name, merger)}
    if averaging:
        backbones[averaging] = merges.model(averaging, context.recipe.mergers[averaging])
    kinds = {"average": "averaged head", "norm_matched": "norm-matched head"}
    kinds |= {family: f"head of {family}" for family in team}
    models: dict[str, Model] = {}
    groups: dict[str, list[str]] = {}
    for shown, backbone in backbones.items():
        own = {f"{shown}, {title}": _headed(backbone, how, context) for how, title in kinds.items()}
        models |= own
        groups[shown] = list(own)
    table, measured = context.measured(models, seen_columns(context), "heads")
    sentences = []
    for shown, rows in groups.items():
        means = measured.means(rows)
        first = rows[0]
        others = {row: abs(means[row] - means[first]) for row in rows[1:]}
        farthest = max(others, key=lambda row: others[row])
        sentences.append(
            f"Under {shown}, the mean AUC of the heads lies between {min(means.values()):.3f} and "
            f"{max(means.values()):.3f}; farthest from the average is {farthest} ({others[farthest]:.3f} away)."
        )
        sentences.append(measured.compared(farthest, first))
    rows = [row for each in groups.values() for row in each]
    found = measured.table("AUC by head", groups)
    mean = len(found.columns) - 1
    ends = [found.interval(row, mean) or (0.0, 0.0) for row in rows]
    values = [found.values[row][mean] for row in rows]
    svg = bars(
        [row.rpartition(", ")[2] for row in rows], values,
        title="Mean AUC on the seen columns by head", intervals=([a for a, _ in ends], [b for _, b in ends]),
        groups=[shown for shown, each in groups.items() for _ in each], start=0.5, high=1.0,
    )  # fmt: skip
    figure = Figure(svg, "Mean over the seen columns with its interval; bars begin at chance.")
    return Result(sentences, {"heads": found}, {"heads": figure}, {"heads": table}, measured.as_json())


def _headed(backbone: Model, how: str, context: Context) -> Model:
    if how == "average":
        return backbone
    merges = context.merges(context.specialists())
    return Model(f"{backbone.key}, head {how}", lambda: {**backbone.load(), "head": merges.head(how)})
