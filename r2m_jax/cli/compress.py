"""``r2m compress``: a smaller model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from r2m_jax.compression.measures import table
from r2m_jax.errors import InputError
from r2m_jax.jobs.compress import compress
from r2m_jax.progress import Reporter
from r2m_jax.recipes import load_recipe
from r2m_jax.recipes.compressing import CompressRecipe


def run(
    arguments: Sequence[str],
    *,
    flags: Mapping[str, Any],
    measure: bool,
    overwrite: bool,
    dry_run: bool,
) -> None:
    """Compress, and say what that saves and changes.

    Raises:
        InputError: see :func:`r2m_jax.jobs.compress.compress`.
    """
    bare = [argument for argument in arguments if "=" not in argument]
    if len(bare) > 1:
        raise InputError(f"one model or recipe at a time: {' and '.join(bare)} were given.")
    settings = {name: value for name, value in flags.items() if value not in (None, [])}
    source = bare[0] if bare else None
    if source is not None and Path(source).is_dir():
        settings["model"], source = source, None
    if measure:
        settings["measure"] = {}
    recipe = load_recipe(CompressRecipe, "compress", source, [a for a in arguments if "=" in a], settings)
    if dry_run:
        print(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True), end="")
        return
    reporter = Reporter()
    made = compress(recipe, reporter=reporter, overwrite=overwrite)
    print(table(_rows(made.report)))
    for line in (*_changes(made.report), *made.remarks):
        print(line)
    reporter.say(f"written {made.directory}")


def _rows(report: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    rows = [("", "before", "after", "times less")]
    before, after = report["size"]["before"], report["size"]["after"]
    for name, title in (("parameters", "parameters"), ("nonzero", "non-zeros")):
        rows.append((title, f"{before[name]:,}", f"{after[name]:,}", f"{report['times_less'][name]:.2f}"))
    for name, title in (("bytes", "on disk"), ("zipped", "zipped")):
        rows.append(
            (title, f"{before[name] / 1e6:.2f} MB", f"{after[name] / 1e6:.2f} MB", f"{report['times_less'][name]:.2f}")
        )
    if "flops" in report:
        first, last = report["flops"]["before"], report["flops"]["after"]
        rows.append(("operations", f"{first / 1e9:.3g} GFLOP", f"{last / 1e9:.3g} GFLOP", f"{first / last:.2f}"))
    if "time" in report:
        for one, other in zip(report["time"]["before"]["latency"], report["time"]["after"]["latency"], strict=True):
            first, last = one["median"], other["median"]
            times = f"{first / last:.2f}"
            rows.append((f"batch of {one['batch']}", f"{first * 1e3:.1f} ms", f"{last * 1e3:.1f} ms", times))
        for batch, one in report["time"]["before"]["memory"].items():
            first, last = (
                each["arguments"] + each["temporaries"] for each in (one, report["time"]["after"]["memory"][batch])
            )
            rows.append((f"memory, {batch}", f"{first / 1e6:.1f} MB", f"{last / 1e6:.1f} MB", f"{first / last:.2f}"))
    return rows


def _changes(report: Mapping[str, Any]) -> list[str]:
    lines = [f"zeros      {report['zeros']:.1%} of the weights pruned"] if "zeros" in report else []
    change = report.get("change")
    if change:
        logit = "" if change["logit"] is None else f"max |Δ logit| {change['logit']:.3g}, "
        lines.append(f"changed    {change['images']} built-in images: {logit}features by {change['features']:.2%}")
    return lines
