"""``r2m merge``: specialists into one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from r2m_jax.cli.named import named
from r2m_jax.errors import InputError
from r2m_jax.jobs.merge import earlier_recipe, merge
from r2m_jax.parallel import one_device_per_core
from r2m_jax.progress import Reporter
from r2m_jax.recipes import load_recipe
from r2m_jax.recipes.merging import MergeRecipe


def run(
    arguments: Sequence[str],
    *,
    specialists: Sequence[str],
    add: Sequence[str],
    remove: Sequence[str],
    flags: Mapping[str, Any],
    parameters: Mapping[str, Any],
    overwrite: bool,
    dry_run: bool,
) -> None:
    """Merge, and say what the merge is made of.

    Raises:
        InputError: see :func:`r2m_jax.jobs.merge.merge`.
    """
    bare = [a for a in arguments if "=" not in a]
    if len(bare) > 1:
        raise InputError(f"one recipe at a time: {' and '.join(bare)} were given.")
    source = bare[0] if bare else None
    settings: dict[str, Any] = {}
    if source and Path(source).is_dir():
        settings, source = earlier_recipe(Path(source)), None
    elif add or remove:
        raise InputError("--add and --remove change an earlier merge; give its model directory.")
    models = dict(settings.get("models", {})) | named(specialists, "--specialist") | named(add, "--add")
    for name in remove:
        if name not in models:
            raise InputError(f"there is no specialist {name!r} to remove; there are {', '.join(models)}.")
        del models[name]
    settings |= {name: value for name, value in flags.items() if value is not None}
    if models:
        settings["models"] = models
    given = {name: value for name, value in parameters.items() if value is not None}
    if given:
        settings["parameters"] = {**settings.get("parameters", {}), **given}
    recipe = load_recipe(MergeRecipe, "merge", source, [a for a in arguments if "=" in a], settings)
    if dry_run:
        print(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True), end="")
        return
    reporter = Reporter()
    one_device_per_core()
    made = merge(recipe, reporter=reporter, overwrite=overwrite)
    for sentence in made.sentences:
        reporter.say(sentence)
    reporter.say(f"written {made.directory}")
