"""The demo's photographs: those that pip installs anyway, or a user's own, cut into patches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import product
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from r2m_jax.data.images import decode_image, image_files
from r2m_jax.errors import InputError

# Left out: motorcycle_right (the same scene as motorcycle_left), hubble_deep_field (black), retina (flat), and what
# is no photograph (color, logo, phantom …).
_EMBEDDED = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "coffee": ("skimage", "data/coffee.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "grace_hopper": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    "ihc": ("skimage", "data/ihc.png"),
    "motorcycle_left": ("skimage", "data/motorcycle_left.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
}

HELD_OUT: frozenset[str] = frozenset({"grace_hopper", "china", "coffee"})
"""Embedded photographs kept for testing: a face, a building amid leaves, an object on wood. What remains to learn
from holds a face too (astronaut), and objects, fur, petals and tissue."""

LONGEST_SIDE = 1024  # larger photographs are mostly flat at the scale of a patch, and would fill the memory
SCALES = (1.0, 1.5, 2.0, 3.0)
MIN_DEVIATION = 12.0  # grey levels; below lie sky, black cloth and blurred background, where a forgery shows nothing


@dataclass(frozen=True)
class Photograph:
    """One photograph.

    Attributes:
        name: unique within a list of photographs.
        pixels: uint8 RGB ``[H, W, 3]``.
    """

    name: str
    pixels: np.ndarray


def embedded_photographs() -> list[Photograph]:
    """Colour photographs in the wheels of scikit-image, scikit-learn and matplotlib, by name.

    They are read from the installed packages; nothing is downloaded. Those named in :data:`HELD_OUT` are meant for
    testing.

    Raises:
        InputError: a package comes without the file, as some distributions strip sample data.
    """
    photographs = []
    for name, (package, inside) in _EMBEDDED.items():
        file = resources.files(package).joinpath(inside)
        if not file.is_file():
            raise InputError(f"{file} is missing; install {package} from PyPI, or name a folder of your own images.")
        with resources.as_file(file) as path:
            photographs.append(Photograph(name, np.asarray(decode_image(path))))
    return photographs


def read_photographs(folder: Path) -> list[Photograph]:
    """A user's photographs: every JPEG, PNG, WebP, BMP and TIFF file in a folder and below, sorted by path.

    They become upright RGB, at most :data:`LONGEST_SIDE` pixels long; exact copies are read once, or they could land
    on both sides of a split. Names are paths relative to the folder.

    Raises:
        InputError: the folder is missing or holds no such file, or a file cannot be read.
    """
    folder = Path(folder)
    files = image_files(folder)
    photographs, seen = [], set()
    for path in files:
        image = decode_image(path)
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BOX, reducing_gap=None)
        pixels = np.asarray(image)
        if (digest := _digest(pixels)) not in seen:
            seen.add(digest)
            photographs.append(Photograph(path.relative_to(folder).as_posix(), pixels))
    return photographs


def split_photographs(
    photographs: Sequence[Photograph], test_share: float, seed: int
) -> tuple[list[Photograph], list[Photograph]]:
    """Hold out whole photographs, so that no test patch comes from a photograph any model saw.

    Args:
        photographs: at least two.
        test_share: share to hold out, between 0 and 1; at least one photograph stays on either side.
        seed: of the choice.

    Returns:
        Photographs to learn from and photographs to test on, both in the order given.

    Raises:
        InputError: fewer than two photographs, or a share outside (0, 1).
    """
    if len(photographs) < 2:
        raise InputError(f"{len(photographs)} photographs cannot be split; at least 2 are needed, better 10.")
    if not 0 < test_share < 1:
        raise InputError(f"the held-out share {test_share} is not between 0 and 1.")
    count = min(max(round(test_share * len(photographs)), 1), len(photographs) - 1)
    chosen = set(np.random.default_rng(seed).permutation(len(photographs))[:count].tolist())
    train = [photograph for index, photograph in enumerate(photographs) if index not in chosen]
    return train, [photographs[index] for index in sorted(chosen)]


def cut_patches(
    photographs: Sequence[Photograph], size: int, count: int, seed: int
) -> tuple[UInt8[np.ndarray, "n size size 3"], list[str]]:
    """Square patches at several scales, the photographs taking turns.

    Every photograph is shrunk by the factors of :data:`SCALES` (area averaging) and tiled twice, the second tiling
    shifted by half a patch, so that two patches of one scale share at most a quarter. Nearly flat ones (grey standard
    deviation below :data:`MIN_DEVIATION` in the centre, where most forgeries happen) and repeated ones are left out;
    photographs smaller than a patch are skipped.

    Args:
        photographs: where to cut.
        size: side of a patch in pixels.
        count: patches wanted.
        seed: of their choice and order.

    Returns:
        uint8 patches and their ids, ``name@top,leftxscale`` in pixels of the photograph, e.g.
        ``astronaut@0128,0064x2``. There are fewer than ``count`` when the photographs hold no more.

    Raises:
        InputError: every photograph is smaller than a patch.
    """
    usable = [photograph for photograph in photographs if min(photograph.pixels.shape[:2]) >= size]
    if not usable:
        raise InputError(
            f"all {len(photographs)} photographs are smaller than {size} x {size} pixels; add larger ones."
        )
    turns = [_patches(p, size, np.random.default_rng((seed, index))) for index, p in enumerate(usable)]
    patches: list[np.ndarray] = []
    ids: list[str] = []
    seen = set()
    while turns and len(patches) < count:
        for source in list(turns):
            found = next(source, None)
            if found is None:
                turns.remove(source)
            elif len(patches) < count and (digest := _digest(found[0])) not in seen:
                seen.add(digest)
                patches.append(found[0])
                ids.append(found[1])
    return np.stack(patches) if patches else np.empty((0, size, size, 3), np.uint8), ids


def _patches(photograph: Photograph, size: int, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, str]]:
    """All patches of a photograph that are not flat: those of the first tiling at random, then the second's."""
    height, width = photograph.pixels.shape[:2]
    shrunk = {}
    for scale in SCALES:
        shape = int(width / scale), int(height / scale)
        if min(shape) >= size:
            image = Image.fromarray(photograph.pixels)
            shrunk[scale] = np.asarray(image if scale == 1 else image.resize(shape, Image.Resampling.BOX))
    for start in (0, size // 2):
        places = [
            (scale, top, left)
            for scale, pixels in shrunk.items()
            for top, left in product(*(range(start, side - size + 1, size) for side in pixels.shape[:2]))
        ]
        for index in rng.permutation(len(places)):
            scale, top, left = places[index]
            patch = shrunk[scale][top : top + size, left : left + size]
            if _deviation(patch) >= MIN_DEVIATION:
                yield patch, f"{photograph.name}@{int(top * scale):04d},{int(left * scale):04d}x{scale:g}"


def _deviation(patch: UInt8[np.ndarray, "size size 3"]) -> float:
    """Standard deviation of the grey levels in the central half of a patch."""
    edge = len(patch) // 4
    return float(patch[edge : len(patch) - edge, edge : len(patch) - edge].mean(axis=2).std())


def _digest(pixels: np.ndarray) -> bytes:
    return hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=16).digest()
