"""``r2m collapse``: critical radius, signal and curvature of linear probes on every layer of a frozen tower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from r2m_jax.errors import InputError
from r2m_jax.jobs.collapse import collapse
from r2m_jax.parallel import one_device_per_core
from r2m_jax.progress import Reporter
from r2m_jax.recipes import load_recipe
from r2m_jax.recipes.collapsing import CollapseRecipe


def run(
    arguments: Sequence[str],
    *,
    index: Path | None,
    layers: str | None,
    families: str | None,
    data: Mapping[str, Any],
    flags: Mapping[str, Any],
    overwrite: bool,
) -> None:
    """Measure, say what stands out, and print the tables of critical radii and of GSNR last.

    Raises:
        InputError: see :func:`r2m_jax.jobs.collapse.collapse`.
    """
    bare = [argument for argument in arguments if "=" not in argument]
    if len(bare) > 1:
        raise InputError(f"give one recipe, not {len(bare)}: {', '.join(bare)}.")
    settings = {name: value for name, value in flags.items() if value is not None}
    images = {name: value for name, value in data.items() if value is not None}
    if index is not None:
        images["index"] = index
    if families is not None:
        images["families"] = [name.strip() for name in families.split(",") if name.strip()]
    if images:
        settings["data"] = images
    if layers is not None:
        settings["layers"] = _layers(layers)
    recipe = load_recipe(
        CollapseRecipe, "collapse", bare[0] if bare else None, [a for a in arguments if "=" in a], settings
    )
    one_device_per_core()
    reporter = Reporter()
    made = collapse(recipe, reporter=reporter, overwrite=overwrite)
    for sentence in made.sentences:
        reporter.say(sentence)
    reporter.say(f"written {made.directory / 'report.html'}")
    print("\n".join(table.markdown() for table in made.tables), end="")


def _layers(text: str) -> str | list[int]:
    if text == "all":
        return text
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--layers {text!r} is neither all nor numbers such as 5,10,12.") from None
