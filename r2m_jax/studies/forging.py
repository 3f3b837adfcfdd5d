"""Test beds from photographs: patches, cut, split by photograph and forged as ``r2m data forge`` forges."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from r2m_jax.data.embedded import (
    HELD_OUT,
    Photograph,
    cut_patches,
    embedded_photographs,
    read_photographs,
    split_photographs,
)
from r2m_jax.data.forge.dataset import forge_dataset
from r2m_jax.data.forge.plan import ForgeRecipe
from r2m_jax.data.index import write_index
from r2m_jax.data.records import Record
from r2m_jax.errors import InputError
from r2m_jax.progress import Reporter
from r2m_jax.recipes.studying import StudyData

LEAST = 8
"""Patches of a split, below which no method has an image in it."""


class Bench:
    """Patches of photographs, no photograph being in both splits, and how they are to be forged.

    Args:
        data: of the recipe.
        size: sides of the patches in pixels.
        seed: of everything random.

    Raises:
        InputError: the photographs are unusable or give too few patches.
    """

    def __init__(self, data: StudyData, size: int, seed: int):
        recipe = data.forging
        if data.images is None:
            every = embedded_photographs()
            split = [p for p in every if p.name not in HELD_OUT], [p for p in every if p.name in HELD_OUT]
        else:
            split = split_photographs(read_photographs(data.images), recipe.held_out_share, seed)
        self.photographs: dict[str, list[Photograph]] = dict(zip(("train", "test"), split, strict=True))
        counts = {"train": recipe.train_patches, "test": recipe.test_patches}
        self._patches = {
            name: cut_patches(pictures, size, counts[name], seed + number)
            for number, (name, pictures) in enumerate(self.photographs.items())
        }
        for name, (patches, _) in self._patches.items():
            if len(patches) < LEAST:
                raise InputError(
                    f"the {name} photographs give only {len(patches)} patches of {size} pixels; add photographs (at "
                    f"least {LEAST} patches are needed)."
                )
        methods = tuple(name for family in recipe.methods.values() for name in family)
        self._recipe = ForgeRecipe(
            methods, recipe.per_image, recipe.cameras, size, seed, recipe.effort, landmarks=False
        )

    def key(self) -> str:
        """A hash of all that decides the images."""
        digest = hashlib.sha256(repr(asdict(self._recipe)).encode())
        for name, (patches, ids) in self._patches.items():
            digest.update(repr((name, ids)).encode() + patches.tobytes())
        return digest.hexdigest()

    def forge(self, folder: Path, workers: int, reporter: Reporter) -> list[Record]:
        """Make ``folder`` with the images and their ``index.csv``.

        Raises:
            InputError: see :func:`r2m_jax.data.forge.dataset.forge_dataset`.
        """
        with tempfile.TemporaryDirectory(prefix="r2m-study-") as aside:
            records = []
            for split, (patches, ids) in self._patches.items():
                for number, (patch, name) in enumerate(zip(patches, ids, strict=True)):
                    path = Path(aside) / f"{split}-{number:05d}.png"
                    Image.fromarray(patch).save(path, compress_level=0)
                    records.append(Record(str(path), 0, video=name, split=split))
            write_index(records, Path(aside) / "index.csv")
            track: Callable[..., object] = reporter.track
            made = forge_dataset(
                Path(aside) / "index.csv",
                folder,
                self._recipe,
                workers=workers,
                track=track,  # type: ignore[arg-type]
            )
        return made.records
