"""``r2m data forge``: real images to a labelled set of forgeries."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from r2m_jax.data.forge import FAMILIES, FAMILY_NAMES, METHODS
from r2m_jax.data.forge.camera import CAMERAS
from r2m_jax.data.forge.dataset import forge_dataset
from r2m_jax.data.forge.plan import ForgeRecipe
from r2m_jax.data.records import SPLITS, counts
from r2m_jax.errors import InputError
from r2m_jax.progress import Reporter


def run(
    images: Path | None,
    out: Path | None,
    *,
    methods: list[str],
    families: list[str],
    cameras: list[str],
    per_image: int,
    size: int,
    seed: int,
    effort: float,
    landmarks: bool,
    workers: int,
    overwrite: bool,
    list_methods: bool,
) -> None:
    """Forge and print what was made, or list the methods and cameras."""
    if list_methods:
        print_methods()
        return
    if images is None or out is None:
        raise InputError("name the real images and an output: r2m data forge IMAGES --out DIR (or pass --list).")
    unknown = sorted(set(families) - set(FAMILIES))
    if unknown:
        raise InputError(f"there is no family {unknown[0]!r}; choose from {', '.join(FAMILIES)}.")
    wanted = [*methods, *(name for family in families for name in FAMILIES[family] if name not in methods)]
    recipe = ForgeRecipe(
        methods=tuple(wanted or METHODS),
        per_image=per_image,
        cameras=tuple(cameras or ["still"]),
        size=size,
        seed=seed,
        effort=effort,
        landmarks=landmarks,
    )
    reporter = Reporter()
    forged = forge_dataset(images, out, recipe, workers=workers, track=reporter.track, overwrite=overwrite)
    if forged.repeated:
        reporter.say(f"left out {len(forged.repeated)} images equal to earlier ones, the first {forged.repeated[0]}")
    real = sum(not record.label for record in forged.records) // len(recipe.cameras)
    if landmarks:
        reporter.say(
            f"faces found in {forged.faces} of {real + len(forged.repeated)} real images; a mean face stands for others"
        )
    table = Table(title=str(out))
    for column in ("split", "real", *FAMILIES):
        table.add_column(column, justify="left" if column == "split" else "right")
    number = counts(forged.records)
    for split in SPLITS:
        table.add_row(split, *(f"{number[split, kind]:,}" for kind in ("real", *FAMILIES)))
    Console().print(table)


def print_methods() -> None:
    """Tables of the methods with their sources, and of the cameras."""
    console = Console()
    for family, names in FAMILIES.items():
        table = Table(title=f"{family}: {FAMILY_NAMES[family]}", title_justify="left", show_lines=False)
        for column in ("method", "what it does", "source"):
            table.add_column(column, overflow="fold")
        for name in names:
            table.add_row(name, METHODS[name].summary, METHODS[name].source)
        console.print(table)
    table = Table(title="cameras", title_justify="left")
    table.add_column("camera")
    table.add_column("what it does")
    for camera in CAMERAS.values():
        table.add_row(camera.name, camera.summary)
    console.print(table)
