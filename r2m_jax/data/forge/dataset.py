"""Forging a whole data set: images, index, provenance and a contact sheet."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from r2m_jax.atomic import atomic_directory
from r2m_jax.checkpoints import provenance
from r2m_jax.data.forge import crew
from r2m_jax.data.forge.plan import ForgeRecipe, Job, plan, real_records, record_of
from r2m_jax.data.forge.registry import METHODS, fit_method
from r2m_jax.data.forge.sheet import contact_sheet
from r2m_jax.data.index import write_index
from r2m_jax.data.records import Record
from r2m_jax.errors import InputError

Track: TypeAlias = Callable[[str, int], AbstractContextManager[Callable[..., None]]]
"""``track(what, total)``: a context whose value is called with the number of units done."""

_CHUNK = 32  # images a process takes at a time
_GENERATOR_IMAGES = 400  # real training images methods learn from: enough texture, and they fit in memory


@dataclass(frozen=True)
class Forged:
    """What was made.

    Attributes:
        records: of the made images, paths below the output folder.
        faces: real images in which a face was found.
        repeated: names of real images left out because an equal one came before.
    """

    records: list[Record]
    faces: int
    repeated: list[str]


def forge_dataset(
    source: Path, out: Path, recipe: ForgeRecipe, *, workers: int, track: Track, overwrite: bool = False
) -> Forged:
    """Make a labelled set of real and forged images from real ones.

    The result depends on the source, the recipe and nothing else. Every image made of a photograph stays in the
    photograph's split; donors come from the same split; methods that learn see training images only. Real and forged
    images go through the same cameras and are written alike, under names that tell nothing.

    Args:
        source: index, or folder of photographs.
        out: directory to make: ``images/``, ``index.csv``, ``forge.json``, ``sheet.png``.
        recipe: settings.
        workers: processes.
        track: shows progress.
        overwrite: replace an existing directory.

    Raises:
        InputError: no or too few real images, an unreadable one, or no face detector where landmarks are wanted.
    """
    if recipe.landmarks and not importlib.util.find_spec("dlib"):
        raise InputError("faces are found by dlib: pip install 'r2m-jax[faces]', or forge with --no-landmarks.")
    records = real_records(source, recipe.seed)
    with atomic_directory(out, overwrite) as aside, tempfile.TemporaryDirectory(prefix="r2m-forge-") as folder:
        shop = crew.Workshop(Path(folder), aside / "images", recipe)
        shop.images.mkdir()
        shop.create(len(records))
        with crew.crew(workers) as pool:
            with track("reading real images", len(records)) as advance:
                faces = _load(pool, shop, records, advance)
            kept, repeated = _without_repeats(shop, records)
            jobs = plan([records[number] for number in kept], recipe)
            jobs = [Job(kept[job.real], job.method, job.camera, job.name) for job in jobs]
            _check_splits(records, kept, recipe)
            _fit(shop, records, kept, track)
            with track("forging", len(jobs)) as advance:
                _make(pool, shop, records, kept, jobs, advance)
        made = [
            record_of(job, records[job.real], str(shop.images / f"{job.name}.png"), recipe, Path(out).name)
            for job in jobs
        ]
        write_index(made, aside / "index.csv")
        contact_sheet(made, jobs, recipe).save(aside / "sheet.png")
        details = _provenance(source, recipe, shop, kept, made, faces)
        (aside / "forge.json").write_text(json.dumps(details, indent=2) + "\n", encoding="utf-8")
    placed = [replace(record, path=str(Path(out) / "images" / Path(record.path).name)) for record in made]
    return Forged(placed, faces, repeated)


def _load(
    pool: ProcessPoolExecutor, shop: crew.Workshop, records: Sequence[Record], advance: Callable[..., None]
) -> int:
    sizes: dict[Future[int], int] = {}
    for numbers in _chunks(range(len(records))):
        sizes[pool.submit(crew.load, shop, numbers, [records[i].path for i in numbers])] = len(numbers)
    faces = 0
    for future in as_completed(sizes):
        faces += future.result()
        advance(sizes[future])
    return faces


def _without_repeats(shop: crew.Workshop, records: Sequence[Record]) -> tuple[list[int], list[str]]:
    """Numbers of images that no earlier one equals: an image in two splits would be known to the detector."""
    seen: set[bytes] = set()
    kept, repeated = [], []
    for number, pixels in enumerate(shop.reals()):
        digest = hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
        if digest in seen:
            repeated.append(records[number].path)
        else:
            seen.add(digest)
            kept.append(number)
    return kept, repeated


def _check_splits(records: Sequence[Record], kept: Sequence[int], recipe: ForgeRecipe) -> None:
    sizes = Counter(records[number].split for number in kept)
    lone = [split for split, count in sizes.items() if count == 1]
    if lone and any(METHODS[name].family == "FS" for name in recipe.methods):
        raise InputError(f"the {lone[0]} split has one real image, and a face swap needs two; add images to it.")
    if not sizes["train"] and any(METHODS[name].fit for name in recipe.methods):
        raise InputError("no real image is in the train split, and synthesis methods learn from it; add some.")


def _fit(shop: crew.Workshop, records: Sequence[Record], kept: Sequence[int], track: Track) -> None:
    learning = [name for name in shop.recipe.methods if METHODS[name].fit]
    if not learning:
        return
    train = [number for number in kept if records[number].split == "train"]
    order = np.random.default_rng(shop.recipe.seed).permutation(len(train))[:_GENERATOR_IMAGES]
    images = np.array(shop.reals()[[train[i] for i in sorted(order)]])
    with track("training generators", len(learning)) as advance:
        for name in learning:
            state = fit_method(name, images, shop.recipe.seed, shop.recipe.effort)
            np.savez(shop.folder / f"{name}.npz", **state)  # type: ignore[arg-type]
            advance(1, note=name)


def _make(
    pool: ProcessPoolExecutor,
    shop: crew.Workshop,
    records: Sequence[Record],
    kept: Sequence[int],
    jobs: Sequence[Job],
    advance: Callable[..., None],
) -> None:
    groups: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.method, records[job.real].split), []).append(job)
    donors = {}
    for split in {records[number].split for number in kept}:
        members = [number for number in kept if records[number].split == split]
        order = np.random.default_rng((shop.recipe.seed, len(members))).permutation(len(members))[: crew.DONORS]
        donors[split] = sorted(members[i] for i in order)
    running = [
        pool.submit(crew.make, shop, chunk, donors[split] if method else [])
        for (method, split), group in groups.items()
        for chunk in _chunks(group)
    ]
    for future in as_completed(running):
        advance(future.result())


def _provenance(
    source: Path, recipe: ForgeRecipe, shop: crew.Workshop, kept: Sequence[int], made: Sequence[Record], faces: int
) -> dict[str, Any]:
    digest = hashlib.sha256()
    reals = shop.reals()
    for number in kept:
        digest.update(reals[number].tobytes())
    return provenance.record(
        "forged",
        inputs=[{"path": str(source), "images": len(kept), "pixels_sha256": digest.hexdigest()}],
        recipe=asdict(recipe),
        seed=recipe.seed,
        faces_found=faces,
        images=Counter(record.method or "real" for record in made),
        methods={
            name: {key: getattr(METHODS[name], key) for key in ("family", "summary", "source")}
            for name in recipe.methods
        },
    )


def _chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]
