"""``r2m train``: fine-tune by a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import absl.logging
import yaml

from r2m_jax.cli.processes import Joining
from r2m_jax.errors import InputError
from r2m_jax.jobs.train import train
from r2m_jax.parallel import is_first
from r2m_jax.profiling import reporter as reporter_of
from r2m_jax.progress import Reporter
from r2m_jax.recipes import TrainRecipe, load_recipe, shipped
from r2m_jax.recipes.deepfakebench import read_deepfakebench
from r2m_jax.training import Interrupted


def run(
    arguments: Sequence[str],
    *,
    deepfakebench: Path | None,
    overwrite: bool,
    dry_run: bool,
    joining: Joining,
    profile: Path | None,
) -> None:
    """Train and say where the model is.

    Raises:
        InputError: see :func:`r2m_jax.jobs.train.train`.
        KeyboardInterrupt: stopped by a signal, after the state was saved.
    """
    absl.logging.set_verbosity(absl.logging.FATAL)  # Orbax logs failures with tracebacks before it raises them
    source, replacements = _source(arguments)
    settings, notes = None, list[str]()
    if deepfakebench:
        settings, notes = read_deepfakebench(deepfakebench)
        notes = [f"{deepfakebench.name}: {note}" for note in notes]
    elif source is None:
        raise InputError(f"no recipe was given; give a .yaml file or one of {', '.join(shipped('train'))}.")
    recipe = load_recipe(TrainRecipe, "train", source, replacements, settings)
    if dry_run:
        for note in notes:
            Reporter().say(note)
        print(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True), end="")
        return
    with joining.joined():
        reporter = reporter_of(profile, quiet=not is_first())
        for note in notes:
            reporter.say(note)
        try:
            made = train(recipe, reporter=reporter, overwrite=overwrite)
        except Interrupted as stopped:
            reporter.say(f"stopped after step {stopped.step}; the same command goes on from there")
            raise KeyboardInterrupt from None
        measured = "".join(f", val {name} {value:.4f}" for name, value in made.validation.items() if name != "step")
        reporter.say(f"{made.directory}: {made.steps} steps{measured}")


def _source(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The recipe, bare or as ``recipe=…``, and the replacements."""
    bare = [a for a in arguments if "=" not in a]
    named = [a.removeprefix("recipe=") for a in arguments if a.startswith("recipe=")]
    if len(bare) + len(named) > 1:
        raise InputError(f"one recipe at a time: {' and '.join(bare + named)} were given.")
    return next(iter(bare + named), None), [a for a in arguments if "=" in a and not a.startswith("recipe=")]
