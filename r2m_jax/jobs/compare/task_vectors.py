"""Tables and figures of how task vectors lie to each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np

from r2m_jax.evaluation.plots import energy_lost, heat_map, lines
from r2m_jax.evaluation.tables import Table
from r2m_jax.merging.interference import GRID, Comparison, TaskVectorReport

_MOST_PAIRS = 8  # more lines than this cannot be told apart
_MOST_COLUMNS = 12


def tables(report: TaskVectorReport) -> dict[str, Table]:
    """The numbers of a report by name: ``specialists``, ``cosines``, ``layers`` (where there are any), ``leaves``."""
    found = {"specialists": _specialists(report), "cosines": _cosines(report)}
    if report.layers:
        found["layers"] = _parts(report, "By depth", report.layers, ("Layer", "Layers"))
    found["leaves"] = _parts(report, "Leaf by leaf", report.entries, ("Leaf", "Leaves"))
    return found


def figures(report: TaskVectorReport) -> dict[str, str]:
    """SVG elements by caption; what there is nothing to draw of is left out."""
    found = {}
    names = list(report.names)
    if len(names) > 1 and np.isfinite(report.whole.cosines).all():
        title = "Cosines of whole task vectors"
        found["Cosines of whole task vectors: 1 is the same direction, 0 unrelated, −1 opposite."] = heat_map(
            report.whole.cosines, names, names, title=title, low=-1, high=1, better="higher", decimals=2
        )
    parts = report.layers
    if len(parts) > 1:
        depth = [float(part.layer or 0) for part in parts]
        if len(names) > 1:
            found["Cosines of the task vectors' layers."] = _depth_of_cosines(report, depth)
            found[
                "Interference is the share of the squared length that is lost by adding the task vectors; specialists "
                "reinforce each other where it is below what orthogonal ones would have. Sign conflicts are places "
                "that specialists moved in both directions; independent signs would have as many as the dotted line."
            ] = lines(
                depth,
                {
                    "interference": [part.interference for part in parts],
                    "interference, if orthogonal": [part.orthogonal for part in parts],
                    "sign conflicts": [part.sign_conflicts for part in parts],
                    f"sign conflicts in the top {report.density:.0%}": [part.kept_sign_conflicts for part in parts],
                },
                title="Interference by depth", x_label="layer", y_label="share", low=0.0, high=1.0,
                reference=1 - 2.0 ** (1 - len(names)),
            )  # fmt: skip
        ranks = _ranks_by_layer(report)
        if ranks is not None:
            found["Effective ranks of the task vectors' matrices, mean over the specialists."] = ranks
    drawn = np.isfinite(report.energy_curves).all(axis=1)
    if drawn.any():
        curves = {name: curve for name, curve, ok in zip(names, report.energy_curves, drawn, strict=True) if ok}
        found["What truncation discards of a task vector's matrices, mean over the matrices."] = energy_lost(
            GRID, curves, title="Spectra of the task vectors"
        )
    return found


def _specialists(report: TaskVectorReport) -> Table:
    matrices = [part for part in report.entries if part.spectra]

    def mean(index: int, field: str) -> float:
        values = np.array([getattr(part.spectra[index], field) for part in matrices])
        return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan

    fields = ("stable_rank", "effective_rank", "leading", "tenth", "seventy")
    return Table(
        "Task vectors",
        ["norm", "stable rank", "effective rank", "first", "10 %", "70 %"],
        {"Specialists": list(report.names)},
        {
            name: [float(report.whole.norms[index]), *(mean(index, field) for field in fields)]
            for index, name in enumerate(report.names)
        },
        caption="Means over the matrices of attention and MLP: two measures of how many directions a matrix uses, and "
        "the share of its energy in the first direction, in the leading 10 % and in 70 % of them.",
        heading="Specialist",
        mark_best=False,
    )


def _cosines(report: TaskVectorReport) -> Table:
    return Table(
        "Cosines",
        list(report.names),
        {"Whole task vectors": list(report.names)},
        {name: row.tolist() for name, row in zip(report.names, report.whole.cosines, strict=True)},
        heading="Specialist",
        mark_best=False,
    )


def _parts(report: TaskVectorReport, title: str, parts: Sequence[Comparison], called: tuple[str, str]) -> Table:
    pairs = list(combinations(range(len(report.names)), 2))
    columns = [f"‖{name}‖" for name in report.names]
    columns += [f"cos {report.names[i]}, {report.names[j]}" for i, j in pairs]
    columns += ["interference", "if orthogonal", "sign conflicts", f"in the top {report.density:.0%}"]
    ranked = any(part.spectra for part in parts)
    columns += ["stable rank", "effective rank"] if ranked else []
    rows = {}
    for part in (report.whole, *parts):
        row = [*part.norms.tolist(), *(float(part.cosines[pair]) for pair in pairs)]
        row += [part.interference, part.orthogonal, part.sign_conflicts, part.kept_sign_conflicts]
        if ranked:
            row += [_mean(getattr(s, rank) for s in part.spectra) for rank in ("stable_rank", "effective_rank")]
        rows[part.where] = row
    return Table(
        title, columns, {"Model": [report.whole.where], called[1]: list(rows)[1:]}, rows,
        caption="Ranks are means over the specialists." if ranked else "", heading=called[0], mark_best=False,
    )  # fmt: skip


def _mean(values: Iterable[float]) -> float:
    found = np.array(list(values))
    return float(found.mean()) if found.size else math.nan


def _depth_of_cosines(report: TaskVectorReport, depth: Sequence[float]) -> str:
    pairs = list(combinations(range(len(report.names)), 2))
    drawn = np.array([[part.cosines[pair] for part in report.layers] for pair in pairs])
    title, bands = "Cosines by depth", None
    if len(pairs) <= _MOST_PAIRS:
        series = {
            f"{report.names[i]}, {report.names[j]}": line.tolist() for (i, j), line in zip(pairs, drawn, strict=True)
        }
    else:
        whole = np.ma.masked_invalid(drawn)
        title += f": mean, smallest and largest of {len(pairs)} pairs"
        series = {"mean": whole.mean(axis=0).filled(np.nan).tolist()}
        ends = (whole.min(axis=0).filled(np.nan).tolist(), whole.max(axis=0).filled(np.nan).tolist())
        bands = dict.fromkeys(series, ends)
    return lines(
        depth, series, title=title, x_label="layer", y_label="cosine", bands=bands, reference=0.0,
        low=min(0.0, float(np.nanmin(drawn, initial=0.0))) - 0.02, high=1.02,
    )  # fmt: skip


def _ranks_by_layer(report: TaskVectorReport) -> str | None:
    """A map of matrix by layer; layers are thinned out to as many columns as fit."""
    found: dict[str, dict[int, float]] = {}
    for part in report.entries:
        if part.spectra and part.layer is not None:
            found.setdefault(part.path, {})[part.layer] = _mean(s.effective_rank for s in part.spectra)
    layers = sorted({layer for row in found.values() for layer in row})
    if not found or not np.isfinite([value for row in found.values() for value in row.values()]).any():
        return None
    shown = sorted({layers[i] for i in np.linspace(0, len(layers) - 1, _MOST_COLUMNS).round().astype(int)})
    grid = np.array([[row.get(layer, math.nan) for layer in shown] for row in found.values()])
    rows = [path.removeprefix("layers/").removesuffix("/kernel") for path in found]
    return heat_map(grid, rows, [str(layer) for layer in shown], title="Effective ranks by layer", decimals=0)
