"""``r2m sweep``: many merges from one factorisation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from r2m_jax.cli.processes import Joining
from r2m_jax.errors import InputError
from r2m_jax.jobs.sweep import sweep
from r2m_jax.parallel import is_first, one_device_per_core
from r2m_jax.progress import Reporter
from r2m_jax.recipes import load_recipe
from r2m_jax.recipes.sweeping import SweepRecipe


def run(arguments: Sequence[str], *, out: Path | None, overwrite: bool, dry_run: bool, joining: Joining) -> None:
    """Sweep, and say what is best.

    Raises:
        InputError: see :func:`r2m_jax.jobs.sweep.sweep`.
    """
    bare = [a for a in arguments if "=" not in a]
    if len(bare) != 1:
        raise InputError(f"give one recipe, a .yaml file or the shipped paper, not {len(bare)}.")
    replacements = [a for a in arguments if "=" in a]
    recipe = load_recipe(SweepRecipe, "sweep", bare[0], replacements, {"out": out} if out else {})
    if dry_run:
        print(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True), end="")
        return
    one_device_per_core()
    with joining.joined():
        reporter = Reporter(quiet=not is_first())
        found = sweep(recipe, reporter=reporter, overwrite=overwrite)
        if is_first():
            print((found.directory / "table.md").read_text(encoding="utf-8"), end="")
        reporter.say(f"best: {found.best}, mean AUC {found.value:.4f}; {found.directory / 'best.yaml'}")
