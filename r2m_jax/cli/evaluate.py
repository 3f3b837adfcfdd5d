"""``r2m eval``: models compared on images, or again from a score table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from r2m_jax.cli.named import named
from r2m_jax.cli.processes import Joining
from r2m_jax.errors import InputError
from r2m_jax.jobs.evaluate import evaluate
from r2m_jax.parallel import is_first
from r2m_jax.profiling import reporter as reporter_of
from r2m_jax.recipes import load_recipe
from r2m_jax.recipes.evaluating import EvalRecipe


def run(
    arguments: Sequence[str],
    *,
    models: Sequence[str],
    index: Path | None,
    split: str | None,
    fpr: float | None,
    calibrate_split: str | None,
    flags: Mapping[str, Any],
    overwrite: bool,
    dry_run: bool,
    joining: Joining,
    profile: Path | None,
) -> None:
    """Compare, say what was left out, and print the table last.

    Raises:
        InputError: see :func:`r2m_jax.jobs.evaluate.evaluate`.
    """
    bare = [a for a in arguments if "=" not in a]
    if len(bare) > 1:
        raise InputError(f"one recipe at a time: {' and '.join(bare)} were given.")
    if calibrate_split is not None and fpr is None:
        raise InputError("--calibrate-split needs --calibrate with a false-positive rate, e.g. --calibrate 0.05.")
    settings = {name: value for name, value in flags.items() if value is not None}
    for section, values in (
        ("data", {"index": index, "split": split}),
        ("calibrate", {"fpr": fpr, "split": calibrate_split}),
    ):
        given = {name: value for name, value in values.items() if value is not None}
        if given:
            settings[section] = given
    if models:
        settings["models"] = named(models, "--model")
    recipe = load_recipe(EvalRecipe, "eval", bare[0] if bare else None, [a for a in arguments if "=" in a], settings)
    if dry_run:
        print(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True), end="")
        return
    with joining.joined():
        reporter = reporter_of(profile, quiet=not is_first())
        made = evaluate(recipe, reporter=reporter, overwrite=overwrite)
        for sentence in made.notes:
            reporter.say(sentence)
        reporter.say(f"written {made.directory}")
        if is_first():
            print(made.table.markdown(), end="")
