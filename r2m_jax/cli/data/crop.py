"""``r2m data crop``: raw photographs and videos to aligned faces."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from r2m_jax.data.faces.dataset import Cropped, CropRecipe, crop_dataset, name_of
from r2m_jax.data.faces.journal import NAME
from r2m_jax.data.faces.sources import read_labelled, read_unlabelled
from r2m_jax.data.records import SPLITS, Record
from r2m_jax.data.selection import check_selection
from r2m_jax.errors import InputError
from r2m_jax.progress import Reporter

_CLASSES = {"real": 0, "fake": 1}
_NAMED = 3  # files named on the terminal; all are in the journal


def run(
    source: Path,
    out: Path,
    *,
    size: int,
    margin: float,
    frames: int,
    no_face: str,
    workers: int,
    label: str | None,
    family: str,
    method: str,
    domain: str,
    dataset: str,
    split: str,
    layout: str,
    root: Path | None,
) -> None:
    """Crop and print what was made, and what was not."""
    recipe = CropRecipe(size, margin, no_face)  # type: ignore[arg-type]  # checked by crop_dataset
    check_selection("even", frames)
    options: dict[str, Any] = {"dataset": dataset, "domain": domain, "family": family, "split": split}
    if label is None:
        if method:
            raise InputError("--method goes with --label fake; where a source tells real from fake it tells methods.")
        try:
            reading = read_labelled(source, layout=layout, root=root, frames=frames, **options)
        except InputError as error:
            if not source.is_dir() or layout != "auto":
                raise
            raise InputError(f"{error} If all files are of one class, pass --label real or fake.") from None
    else:
        reading = read_unlabelled(source, _shared(label, method, options), frames)
    reporter = Reporter()
    for line in reading.warnings:
        reporter.say(f"warning: {line}")
    cropped = crop_dataset(
        reading.records,
        out,
        recipe,
        root=source if source.is_dir() else None,
        workers=workers,
        track=reporter.track,
    )
    print_summary(cropped, out, recipe)


def print_summary(cropped: Cropped, out: Path, recipe: CropRecipe) -> None:
    """How many images became crops, and the counts and first names of the others."""
    console = Console(highlight=False, soft_wrap=True)
    outcomes = Counter(entry.outcome for entry in cropped.entries)
    total = len(cropped.entries)
    console.print(f"faces      {outcomes['face']} in {total} images ({outcomes['face'] / total:.1%})")
    if cropped.reused:
        console.print(f"done       {cropped.reused} of them by an earlier run")
    several = [name_of(entry) for entry in cropped.entries if entry.faces > 1]
    if several:
        console.print(f"several    {len(several)} images have more faces, the largest was cropped: {_names(several)}")
    lacking = [name_of(entry) for entry in cropped.entries if entry.outcome == "no face"]
    if lacking:
        what = "the centre was cropped" if recipe.no_face == "centre" else "left out"
        console.print(f"no face    {len(lacking)} images, {what}: {_names(lacking)}")
    reasons = list(dict.fromkeys(entry.reason for entry in cropped.entries if entry.outcome == "unreadable"))
    if reasons:
        console.print(f"unreadable {outcomes['unreadable']} images, left out:")
        for reason in reasons[:_NAMED]:
            console.print(f"           {escape(reason)}")
    if len(reasons) > _NAMED or max(len(several), len(lacking)) > _NAMED:
        console.print(f"           all names are in {escape(str(out / NAME))}")
    labels = Counter(record.label for record in cropped.records)
    console.print(f"written    {escape(str(out))}: {labels[0]} real, {labels[1]} fake")


def _shared(label: str, method: str, options: dict[str, Any]) -> Record:
    if label not in _CLASSES:
        raise InputError(f"--label {label} is neither real nor fake.")
    if options["split"] not in SPLITS:
        raise InputError(f"--split {options['split']} is unknown; choose one of {', '.join(SPLITS)}.")
    if label == "real" and (method or options["family"]):
        raise InputError("--method and --family are of fake images; leave them out with --label real.")
    return Record("", _CLASSES[label], method=method, **options)


def _names(names: list[str]) -> str:
    return escape(", ".join(names[:_NAMED])) + " …" * (len(names) > _NAMED)
