"""What a forged data set will hold: real images, their splits, and who is forged by which method."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from r2m_jax.data.forge.camera import find_camera
from r2m_jax.data.forge.registry import FAMILIES, METHODS, find_method
from r2m_jax.data.images import image_files
from r2m_jax.data.index import read_index
from r2m_jax.data.records import SPLITS, Record
from r2m_jax.errors import InputError

SHARES = (0.60, 0.15, 0.25)
"""Of train, val and test, where the source does not say."""


@dataclass(frozen=True)
class ForgeRecipe:
    """Settings of a forged data set.

    Attributes:
        methods: to forge with, keys of :data:`r2m_jax.data.forge.METHODS`.
        per_image: how many methods of each family forge an image; 0 for all of them.
        cameras: that record every image, real and forged; keys of :data:`r2m_jax.data.forge.camera.CAMERAS`.
        size: sides of the images in pixels.
        seed: of everything random.
        effort: share of the training budget of methods that learn, above 0.
        landmarks: whether faces are looked for; without, the middle of every image is taken for one.
    """

    methods: tuple[str, ...] = tuple(METHODS)
    per_image: int = 1
    cameras: tuple[str, ...] = ("still",)
    size: int = 256
    seed: int = 0
    effort: float = 1.0
    landmarks: bool = True

    def __post_init__(self) -> None:
        for name in self.methods:
            find_method(name)
        for name in self.cameras:
            find_camera(name)
        for what, names in (("method", self.methods), ("camera", self.cameras)):
            if not names or len(set(names)) < len(names):
                raise InputError(f"every {what} is named once, and at least one: got {', '.join(names) or 'none'}.")
        if not 32 <= self.size <= 2048:
            raise InputError(f"images of {self.size} pixels cannot be forged; choose a size from 32 to 2048.")
        if self.per_image < 0 or not 0 < self.effort <= 10:
            raise InputError("per_image is 0 or more, and effort above 0 and at most 10.")


@dataclass(frozen=True)
class Job:
    """One image to make.

    Attributes:
        real: number of the real image it comes from.
        method: that forges it, empty for the real image itself.
        camera: that records it.
        name: of its file, which tells nothing.
    """

    real: int
    method: str
    camera: str
    name: str


def real_records(source: Path, seed: int) -> list[Record]:
    """The real images of an index, or of a folder of photographs.

    A folder's images are split at random, 60 % train, 15 % val, 25 % test; an index keeps its splits. The ``video`` of
    a still is the image's own name, and all that is made of it carries the same.

    Raises:
        InputError: neither an index nor a folder, or no real image in it.
    """
    source = Path(source)
    if source.is_dir():
        for name in ("index.parquet", "index.csv"):
            if (source / name).is_file():
                return real_records(source / name, seed)
        files = image_files(source)
        records = [Record(str(path), 0, video=path.relative_to(source).with_suffix("").as_posix()) for path in files]
        return _split_at_random(records, seed)
    records = [record for record in read_index(source) if record.label == 0]
    if not records:
        raise InputError(f"{source} lists no real image; forgeries are made from real ones.")
    return [replace(record, video=record.video or Path(record.path).stem) for record in records]


def plan(records: Sequence[Record], recipe: ForgeRecipe) -> list[Job]:
    """Every image of the set, real ones first, in a fixed order.

    Within each family methods take turns in random order over the real images of a split, so that each forges equally
    often and none meets a kind of photograph of its own.
    """
    chosen: list[tuple[int, str]] = [(index, "") for index in range(len(records))]
    for family, every in FAMILIES.items():
        methods = [name for name in recipe.methods if name in every]
        count = min(recipe.per_image or len(methods), len(methods))
        for split in SPLITS if methods else ():
            members = [index for index, record in enumerate(records) if record.split == split]
            turns = _seeded(recipe.seed, family, split).permutation(len(members))
            for place, turn in zip(members, turns, strict=True):
                chosen += [(place, methods[(turn * count + k) % len(methods)]) for k in range(count)]
    return [
        Job(real, method, camera, _name(recipe.seed, real, method, camera))
        for camera in recipe.cameras
        for real, method in chosen
    ]


def record_of(job: Job, real: Record, path: str, recipe: ForgeRecipe, dataset: str) -> Record:
    """The record of a made image. With several cameras the domain is the camera, else the source's domain."""
    return Record(
        path=path,
        label=int(bool(job.method)),
        family=METHODS[job.method].family if job.method else "",
        method=job.method,
        domain=job.camera if len(recipe.cameras) > 1 else real.domain,
        video=real.video,
        split=real.split,
        dataset=dataset,
        compression=job.camera if job.camera in ("c23", "c40") else "",
    )


def camera_rng(job: Job, recipe: ForgeRecipe) -> np.random.Generator:
    """Randomness of the recording of one image."""
    return _seeded(recipe.seed, "camera", job.name)


def _split_at_random(records: Sequence[Record], seed: int) -> list[Record]:
    bounds = np.rint(np.cumsum(SHARES) * len(records)).astype(int)
    place = np.argsort(_seeded(seed, "split").permutation(len(records)))
    return [
        replace(record, split=SPLITS[int((rank >= bounds).sum())]) for record, rank in zip(records, place, strict=True)
    ]


def _name(seed: int, real: int, method: str, camera: str) -> str:
    return hashlib.blake2b(f"{seed}/{real}/{method}/{camera}".encode(), digest_size=8).hexdigest()


def _seeded(seed: int, *what: str) -> np.random.Generator:
    key = hashlib.blake2b("/".join(what).encode(), digest_size=8).digest()
    return np.random.default_rng((seed, int.from_bytes(key, "little")))
