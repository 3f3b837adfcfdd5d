"""``r2m compare``: how specialists relate, before they are merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from r2m_jax.cli.named import named
from r2m_jax.errors import InputError
from r2m_jax.jobs.compare import compare
from r2m_jax.parallel import one_device_per_core
from r2m_jax.progress import Reporter
from r2m_jax.recipes import load_recipe
from r2m_jax.recipes.comparing import CompareRecipe


def run(
    *,
    specialists: Sequence[str],
    index: Path | None,
    split: str | None,
    limit: int | None,
    flags: Mapping[str, Any],
    overwrite: bool,
) -> None:
    """Compare, say what stands out, and print the tables of the whole task vectors last.

    Raises:
        InputError: see :func:`r2m_jax.jobs.compare.compare`.
    """
    settings = {name: value for name, value in flags.items() if value is not None}
    settings["models"] = named(specialists, "--specialist")
    on_images = {name: value for name, value in (("split", split), ("limit", limit)) if value is not None}
    if on_images and index is None:
        raise InputError(f"--{next(iter(on_images))} chooses images; name an index with --data.")
    if index is not None:
        settings["data"] = {"index": index, **on_images}
    recipe = load_recipe(CompareRecipe, "compare", None, (), settings)
    one_device_per_core()
    reporter = Reporter()
    made = compare(recipe, reporter=reporter, overwrite=overwrite)
    for sentence in made.sentences:
        reporter.say(sentence)
    reporter.say(f"written {made.directory / 'report.html'}")
    print("\n".join(table.markdown() for table in made.tables), end="")
