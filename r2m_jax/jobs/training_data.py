"""The records a training recipe asks for, and what is wrong with them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from r2m_jax.data.catalogue import nearest
from r2m_jax.data.index import index_file, read_index
from r2m_jax.data.named_sets import select_set
from r2m_jax.data.records import Record
from r2m_jax.data.selection import frame_indices, natural_key
from r2m_jax.errors import InputError
from r2m_jax.recipes.training import DataRecipe


@dataclass(frozen=True)
class TrainingData:
    """Records to learn from and to validate on; the latter may be none."""

    train: list[Record]
    val: list[Record]

    def summary(self) -> dict[str, dict[str, int]]:
        """Images per split and method, real ones under ``real``."""
        return {
            split: dict(Counter(r.method or r.family or "fake" if r.label else "real" for r in records))
            for split, records in (("train", self.train), ("val", self.val))
        }


def training_data(recipe: DataRecipe) -> TrainingData:
    """Records of the splits train and val that the recipe selects.

    Warns where validation images or clips are test images or clips as well: what is selected on them is selected on
    the test (DF40's lists have the same val and test).

    Raises:
        InputError: a selection is not in the index, or the training data lack a class.
    """
    path = index_file(recipe.index)
    listed = read_index(path)
    chosen = _selected(listed, recipe)
    train = _frames([r for r in chosen if r.split == "train"], recipe)
    val = _frames([r for r in chosen if r.split == "val"], recipe)
    absent = [name for label, name in enumerate(("real", "fake")) if all(r.label != label for r in train)]
    if absent:
        what = ", ".join(f"{key}={list(value)}" for key, value in _selection(recipe).items())
        raise InputError(
            f"{path} has no {absent[0]} image to train on in the split train{f' under {what}' if what else ''}; a "
            "detector needs both classes."
        )
    test = [r for r in listed if r.split == "test"]
    shared = {(r.path, r.frame) for r in val} & {(r.path, r.frame) for r in test}
    clips = {r.clip for r in val if r.video} & {r.clip for r in test}
    if shared or clips:
        what = f"{len(shared)} images" if shared else f"{len(clips)} clips"
        warnings.warn(
            f"{path}: {what} of val are in test too; what is chosen by validation is chosen on the test", stacklevel=2
        )
    return TrainingData(train, val)


def _selection(recipe: DataRecipe) -> dict[str, tuple[str, ...]]:
    fields = {name: getattr(recipe, name) for name in ("sets", "families", "methods", "domains", "compressions")}
    return {name: values for name, values in fields.items() if values}


def _selected(records: Sequence[Record], recipe: DataRecipe) -> list[Record]:
    fakes = [r for r in records if r.label]
    for what, wanted, there in (
        ("families", recipe.families, {r.family for r in fakes}),
        ("methods", recipe.methods, {r.method for r in fakes}),
        ("domains", recipe.domains, {r.domain for r in records}),
        ("compressions", recipe.compressions, {r.compression for r in records}),
    ):
        for name in wanted:
            if name not in there:
                raise InputError(
                    f"data.{what}: {recipe.index} has no {name!r}; {nearest(name, sorted(there - {''}) or ['none'])}"
                )
    if recipe.sets:
        union: list[Record] = []
        for name in recipe.sets:
            seen = set(union)  # real images are shared by sets; repetitions within one list are its weights
            union += [r for r in select_set(records, name).records if r not in seen]
        records = union
    return [
        r
        for r in records
        if (not recipe.domains or r.domain in recipe.domains)
        and (not recipe.compressions or r.compression in recipe.compressions)
        and (not r.label or not recipe.families or r.family in recipe.families)
        and (not r.label or not recipe.methods or r.method in recipe.methods)
    ]


def _frames(records: list[Record], recipe: DataRecipe) -> list[Record]:
    """At most so many frames of each clip; the order of the records stays."""
    if recipe.frames is None:
        return records
    clips: dict[tuple[str, int, str, str], list[int]] = {}
    for number, record in enumerate(records):
        clips.setdefault((*record.clip, record.compression), []).append(number)
    kept: set[int] = set()
    for numbers in clips.values():
        if recipe.frame_selection != "df40":
            numbers.sort(key=lambda n: (natural_key(records[n].path.rpartition("/")[2]), records[n].frame))
        kept.update(numbers[i] for i in frame_indices(len(numbers), recipe.frames, recipe.frame_selection))
    return [record for number, record in enumerate(records) if number in kept]
