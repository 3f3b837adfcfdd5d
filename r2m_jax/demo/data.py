"""The demo's data: photographs cut into patches, forged, and written as an index of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from r2m_jax.data.embedded import (
    HELD_OUT,
    Photograph,
    cut_patches,
    embedded_photographs,
    read_photographs,
    split_photographs,
)
from r2m_jax.data.forge import FAMILIES, forge_images
from r2m_jax.data.forge.camera import record as through_camera
from r2m_jax.data.index import write_index
from r2m_jax.data.records import Record
from r2m_jax.demo.recipe import DemoRecipe
from r2m_jax.errors import InputError


@dataclass(frozen=True)
class Photographs:
    """Photographs by what they are for; no photograph is in both lists."""

    train: Sequence[Photograph]
    test: Sequence[Photograph]


def photographs(folder: Path | None, recipe: DemoRecipe) -> Photographs:
    """The embedded photographs, or a user's own; whole photographs are held out for testing.

    Raises:
        InputError: the folder is missing, holds an unreadable image, or fewer than two photographs.
    """
    if folder is None:
        every = embedded_photographs()
        return Photographs([p for p in every if p.name not in HELD_OUT], [p for p in every if p.name in HELD_OUT])
    return Photographs(*split_photographs(read_photographs(folder), recipe.held_out_share, recipe.seed))


def make_dataset(source: Photographs, recipe: DemoRecipe, size: int, folder: Path) -> list[Record]:
    """Cut, forge and write images below ``folder``, with ``index.csv``.

    In each split every real patch is forged once per family, by one of the recipe's methods of that family, all
    equally often.
    Forgers that need fitting (vector quantiser, patch diffusion) are fitted on training patches, whichever split they
    forge; a forgery's donors come from its own split. Real and forged images pass through the same camera and are
    written as PNG without compression, so that neither format nor file size tells them apart.

    Raises:
        InputError: the photographs give too few patches.
    """
    wanted = {"train": (source.train, recipe.train_patches), "test": (source.test, recipe.test_patches)}
    patches = {}
    for number, (split, (pictures, count)) in enumerate(wanted.items()):
        patches[split] = cut_patches(pictures, size, count, recipe.seed + number)
        if len(patches[split][0]) < recipe.batch_size:
            raise InputError(
                f"the {split} photographs give only {len(patches[split][0])} patches of {size} pixels; "
                f"add photographs (at least {recipe.batch_size} patches are needed)."
            )
    generator_images = patches["train"][0]
    records = []
    for number, (split, (real, names)) in enumerate(patches.items()):
        seed = 2 * recipe.seed + number
        records += _write(real, folder / split / "real", seed, split, names, [""] * len(real), "")
        for family, methods in recipe.methods.items():
            chosen = _in_random_turns(methods, len(real), (seed, len(family), ord(family[0])))
            forged = _forge_each(real, chosen, methods, generator_images, seed)
            records += _write(forged, folder / split / family, seed, split, names, chosen, family)
    write_index(records, folder / "index.csv")
    return records


def _in_random_turns(methods: Sequence[str], count: int, seed: tuple[int, ...]) -> list[str]:
    # Patches come in turns too, one photograph after the other: methods in a fixed order would each meet the same
    # photographs only, and a method's score would tell of those photographs.
    turns = [methods[index % len(methods)] for index in range(count)]
    return [turns[index] for index in np.random.default_rng(seed).permutation(count)]


def _forge_each(
    real: UInt8[np.ndarray, "n h w 3"],
    chosen: Sequence[str],
    methods: Sequence[str],
    generator_images: UInt8[np.ndarray, "m h w 3"],
    seed: int,
) -> UInt8[np.ndarray, "n h w 3"]:
    forged = np.empty_like(real)
    for method in methods:
        picked = np.flatnonzero([name == method for name in chosen])
        if len(picked):
            forged[picked] = forge_images(
                method, real[picked], donors=real, generator_images=generator_images, seed=seed
            )
    return forged


def _write(
    images: UInt8[np.ndarray, "n h w 3"],
    folder: Path,
    seed: int,
    split: str,
    names: Sequence[str],
    methods: Sequence[str],
    family: str,
) -> list[Record]:
    folder.mkdir(parents=True)
    stream = list(FAMILIES).index(family) + 1 if family else 0
    records = []
    for index, (image, name, method) in enumerate(zip(images, names, methods, strict=True)):
        path = folder / f"{index:05d}.png"
        rng = np.random.default_rng((seed, stream, index))
        Image.fromarray(through_camera(image, rng)).save(path, compress_level=0)
        records.append(
            Record(
                str(path),
                int(bool(family)),
                family=family,
                method=method,
                domain=name.rsplit("@", 1)[0],
                video=name,
                split=split,
            )
        )
    return records
