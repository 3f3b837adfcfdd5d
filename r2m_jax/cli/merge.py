"""``r2m merge``: specialists into one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from r2m_jax.cli.named import named
from r2m_jax.cli.processes import Joining
from r2m_jax.errors import InputError
from r2m_jax.jobs.merge import earlier_recipe, merge
from r2m_jax.parallel import is_first, one_device_per_core
from r2m_jax.profiling import reporter as reporter_of
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
    machine: Path | None,
    joining: Joining,
    profile: Path | None,
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
    if machine is not None and not dry_run:
        raise InputError("--machine is for --dry-run; a merge itself needs no rates.")
    if dry_run:
        print(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True), end="")
        _show_plan(recipe, machine, joining.processes or 1)
        return
    one_device_per_core()
    with joining.joined():
        reporter = reporter_of(profile, quiet=not is_first())
        made = merge(recipe, reporter=reporter, overwrite=overwrite)
        for sentence in made.sentences:
            reporter.say(sentence)
        reporter.say(f"written {made.directory}")


def _show_plan(recipe: MergeRecipe, file: Path | None, processes: int) -> None:
    """To stderr, as the recipe on stdout is for other programs to read."""
    from r2m_jax.jobs.calibrating import calibrate, read_machine, write_machine
    from r2m_jax.jobs.merge_plan import merge_plan

    reporter = Reporter()
    absent = [path for path in (recipe.base, *(entry.path for entry in recipe.models.values())) if not path.exists()]
    if absent:  # a recipe may be looked at before its models are there
        reporter.say(f"no plan: {absent[0]} does not exist.")
        return
    one_device_per_core()
    if file is not None and file.exists():
        machine = read_machine(file)
    else:
        reporter.say("measure this machine")
        machine = calibrate(processor_time=True)  # as if nothing else ran here
        if file is not None:
            write_machine(file, machine)
            reporter.say(f"written {file}")
    for line in merge_plan(recipe, machine, processes):
        reporter.say(line)
