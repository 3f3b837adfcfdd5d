"""The processes that load, forge and record images side by side.

They share their inputs through memory-mapped files of a working folder, so that none holds the data set.
"""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from r2m_jax.data.forge.camera import CAMERAS
from r2m_jax.data.forge.method import Face, State
from r2m_jax.data.forge.plan import ForgeRecipe, Job, camera_rng
from r2m_jax.data.forge.registry import forge_faces
from r2m_jax.data.images import decode_image, resize_and_crop

DONORS = 512
"""Real images of a split that may lend content: plenty to find one that fits, few enough to keep at hand."""


@dataclass(frozen=True)
class Workshop:
    """Files the processes share.

    Attributes:
        folder: working folder with ``reals.npy`` (uint8 ``[n, s, s, 3]``), ``landmarks.npy`` (float64
            ``[n, 68, 2]``, NaN where no face is known) and one ``<method>.npz`` per method that has learned.
        images: folder the made images go to.
        recipe: of the data set.
    """

    folder: Path
    images: Path
    recipe: ForgeRecipe

    def create(self, count: int) -> None:
        """Make room for ``count`` real images."""
        size = self.recipe.size
        np.lib.format.open_memmap(self.folder / "reals.npy", "w+", np.uint8, (count, size, size, 3)).flush()
        landmarks = np.lib.format.open_memmap(self.folder / "landmarks.npy", "w+", np.float64, (count, 68, 2))
        landmarks[:] = np.nan
        landmarks.flush()

    def reals(self, mode: str = "r") -> UInt8[np.ndarray, "n s s 3"]:
        """The real images, mapped from disk."""
        return np.lib.format.open_memmap(self.folder / "reals.npy", mode)

    def landmarks(self, mode: str = "r") -> Float[np.ndarray, "n 68 2"]:
        """Their landmarks, mapped from disk."""
        return np.lib.format.open_memmap(self.folder / "landmarks.npy", mode)

    def faces(self, numbers: Sequence[int]) -> list[Face]:
        """Some of the real images with their landmarks; pixels stay on disk until they are touched."""
        reals, landmarks = self.reals(), self.landmarks()
        return [Face(reals[i], None if np.isnan(landmarks[i, 0, 0]) else np.array(landmarks[i])) for i in numbers]

    def state(self, method: str) -> State:
        """What a method has learned."""
        return _state(self.folder / f"{method}.npz")


@contextmanager
def crew(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes started afresh: forking a process in which JAX runs threads may hang."""
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_stay_on_the_cpu)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def load(shop: Workshop, numbers: Sequence[int], paths: Sequence[str]) -> int:
    """Decode real images to the set's size and look for a face in each; returns how many faces were found.

    Raises:
        InputError: a file cannot be read as an image; it is named.
    """
    reals, landmarks = shop.reals("r+"), shop.landmarks("r+")
    found = 0
    for number, path in zip(numbers, paths, strict=True):
        reals[number] = resize_and_crop(decode_image(path), shop.recipe.size)
        if shop.recipe.landmarks:
            from r2m_jax.data.faces import largest_face

            face = largest_face(np.array(reals[number]))
            if face is not None:
                landmarks[number] = face.landmarks
                found += 1
    return found


def make(shop: Workshop, jobs: Sequence[Job], donors: Sequence[int]) -> int:
    """Forge and record images of one method, and write them; returns how many.

    They become PNG files without compression: all images of a set have the same size on disk.
    """
    method, faces = jobs[0].method, shop.faces([job.real for job in jobs])
    forged = (
        forge_faces(method, faces, shop.faces(donors), shop.state(method), shop.recipe.seed)
        if method
        else (face.pixels for face in faces)
    )
    for job, image in zip(jobs, forged, strict=True):
        taken = CAMERAS[job.camera].record(np.array(image), camera_rng(job, shop.recipe))
        Image.fromarray(taken).save(shop.images / f"{job.name}.png", compress_level=0)
    return len(jobs)


def _stay_on_the_cpu() -> None:
    # Generators forge on the CPU; without this every process would reserve an accelerator's memory.
    import jax

    jax.config.update("jax_platforms", "cpu")


@functools.cache
def _state(file: Path) -> State:
    if not file.exists():
        return {}
    with np.load(file) as arrays:
        return dict(arrays)
