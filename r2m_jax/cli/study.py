"""``r2m study``: the paper's tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from r2m_jax.errors import InputError
from r2m_jax.jobs.compression_study import compression_study
from r2m_jax.jobs.corit_study import corit_study
from r2m_jax.jobs.study import study
from r2m_jax.progress import Reporter
from r2m_jax.recipes import load_recipe
from r2m_jax.recipes.compression_studying import CompressionStudyRecipe
from r2m_jax.recipes.corit_studying import CoritStudyRecipe
from r2m_jax.recipes.studying import StudyRecipe

ALL, CORIT, COMPRESSION = "all", "corit", "compression"
"""Names that stand for all studies of R²M, of CoRIT and of compression; those of the last two begin with them."""


def run(
    arguments: Sequence[str],
    *,
    quick: bool,
    index: Path | None,
    images: Path | None,
    flags: Mapping[str, Any],
    overwrite: bool,
    dry_run: bool,
) -> None:
    """Run studies, say what was left out and where everything is.

    Raises:
        InputError: see :func:`r2m_jax.jobs.study.study`.
    """
    bare = [a for a in arguments if "=" not in a]
    files = [a for a in bare if a.endswith((".yaml", ".yml"))]
    names = [a for a in bare if a not in files]
    if len(files) > 1 or (files and quick):
        raise InputError("one recipe at a time: give one .yaml file, or --quick, or neither.")
    if not names:
        raise InputError("name the studies to run, or all, corit or compression, e.g. r2m study table1 --out results.")
    settings: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
    settings["studies"] = [] if ALL in names else names
    data = {name: value for name, value in (("index", index), ("images", images)) if value is not None}
    if data:
        settings["data"] = data
    replacements = [a for a in arguments if "=" in a]
    recipe: StudyRecipe | CoritStudyRecipe | CompressionStudyRecipe
    if all(name.startswith(COMPRESSION) for name in names):
        settings["studies"] = [] if COMPRESSION in names else names
        if settings.pop("base", None):
            raise InputError("studies of compression train networks from nothing: leave --base out.")
        source = files[0] if files else "compression-quick" if quick else COMPRESSION
        recipe = load_recipe(CompressionStudyRecipe, "study", source, replacements, settings)
    elif any(name.startswith(COMPRESSION) for name in names):
        raise InputError("studies of compression train networks of their own: run them apart from the others.")
    elif all(name.startswith(CORIT) for name in names):
        settings["studies"] = [] if CORIT in names else names
        source = files[0] if files else "corit-quick" if quick else CORIT
        recipe = load_recipe(CoritStudyRecipe, "study", source, replacements, settings)
    elif any(name.startswith(CORIT) for name in names):
        raise InputError("studies of CoRIT take images and a tower of their own: run them apart from the others.")
    else:
        source = files[0] if files else "quick" if quick else "full"
        recipe = load_recipe(StudyRecipe, "study", source, replacements, settings)
    if dry_run:
        print(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True), end="")
        return
    reporter = Reporter()
    if isinstance(recipe, CompressionStudyRecipe):
        made = compression_study(recipe, reporter=reporter, overwrite=overwrite)
    elif isinstance(recipe, CoritStudyRecipe):
        made = corit_study(recipe, reporter=reporter, overwrite=overwrite)
    else:
        made = study(recipe, reporter=reporter, overwrite=overwrite)
    for name, result in made.results.items():
        print(f"{name}:")
        for sentence in result.sentences:
            print(f"  {sentence}")
    for sentence in made.left_out.values():
        print(sentence)
    reporter.say(
        f"{len(made.trained)} models trained, {len(made.taken)} models or files taken from an earlier run; "
        f"report: {made.directory / 'report.html'}"
    )
