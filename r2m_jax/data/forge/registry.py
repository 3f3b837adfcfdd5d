"""All forging methods by name and by family, and forging with one of them."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt8
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

from r2m_jax.data.forge import face_swap, reenactment, synthesis
from r2m_jax.data.forge.method import Face, Method, State
from r2m_jax.errors import InputError

FAMILY_NAMES = {"FS": "face swap", "FR": "face reenactment", "EFS": "entire face synthesis"}

METHODS: dict[str, Method] = {
    method.name: method for method in (*face_swap.METHODS, *reenactment.METHODS, *synthesis.METHODS)
}

FAMILIES: dict[str, tuple[str, ...]] = {
    family: tuple(method.name for method in METHODS.values() if method.family == family) for family in FAMILY_NAMES
}

_SMALLEST = 16  # pixels a side; below, a region in the centre has no inside
_SHORTLIST = 24  # donors a forger may choose from: enough to find one that fits, few enough to compare


def find_method(name: str) -> Method:
    """A method by its name.

    Raises:
        InputError: there is none; the message suggests the nearest.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.0)
        raise InputError(f"there is no forging method {name!r}; did you mean {near[0]!r}?")
    return METHODS[name]


def fit_method(name: str, generator_images: UInt8[np.ndarray, "n h w 3"], seed: int, effort: float = 1.0) -> State:
    """Learn what a method needs from real images; empty for a method that learns nothing.

    Args:
        name: key of :data:`METHODS`.
        generator_images: uint8 RGB.
        seed: of everything random.
        effort: share of the full training budget, above 0.

    Raises:
        InputError: unknown method, or images without texture.
    """
    method = find_method(name)
    _check_images("generator_images", generator_images)
    return method.fit(generator_images, seed, effort) if method.fit else {}


def forge_faces(
    name: str, faces: Sequence[Face], donors: Sequence[Face], state: State, seed: int
) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Forge every face with one method, one after the other.

    A face's randomness comes from the seed, the method and the image's own content, so that its forgery does not
    depend on which others are forged, nor on their order.

    Args:
        name: key of :data:`METHODS`.
        faces: real images to forge.
        donors: real images to take content from; an image is never its own donor, also when the donors hold copies
            of it.
        state: what :func:`fit_method` gave.
        seed: of everything random.

    Returns:
        Forgeries of the shape of each face, in order.

    Raises:
        InputError: unknown method, images that are not uint8 RGB of 16 pixels or more, no donor for a face swap.
    """
    method = find_method(name)
    for face in (*faces, *donors):
        _check_images("an image", face.pixels[None])
    # Threads that share matrices this small wait for each other: fourteen times slower on two busy cores.
    with threadpool_limits(1):
        donor_digests = np.array([_digest(donor.pixels.tobytes()) for donor in donors], dtype=np.uint64)
        for face in faces:
            digest = _digest(face.pixels.tobytes())
            rng = np.random.default_rng((seed, _digest(name.encode()), digest))
            others = np.flatnonzero(donor_digests != digest)
            shortlist = rng.choice(others, min(_SHORTLIST, len(others)), replace=False) if len(others) else others
            yield method.forge(face, [donors[int(index)] for index in shortlist], state, rng)


def forge_images(
    method: str,
    images: UInt8[np.ndarray, "n h w 3"],
    donors: UInt8[np.ndarray, "m h w 3"],
    generator_images: UInt8[np.ndarray, "k h w 3"],
    seed: int,
) -> UInt8[np.ndarray, "n h w 3"]:
    """Fit a method and forge images that hold no known faces: :func:`fit_method` and :func:`forge_faces` in one.

    Args:
        method: key of :data:`METHODS`.
        images: real images to forge.
        donors: real images to take content from, of the same size.
        generator_images: real images to fit generators on.
        seed: of everything random.

    Returns:
        Forgeries, in the order of the images.

    Raises:
        InputError: as in :func:`fit_method` and :func:`forge_faces`, or donors of another size.
    """
    find_method(method)
    for name, array in (("images", images), ("donors", donors)):
        _check_images(name, array)
    if donors.shape[1:] != images.shape[1:]:
        raise InputError(f"donors of {donors.shape[1:3]} pixels do not fit images of {images.shape[1:3]}; resize them.")
    with threadpool_limits(1):
        state = fit_method(method, generator_images, seed)
    faces, others = [Face(image) for image in images], [Face(image) for image in donors]
    forgeries = np.empty_like(images)
    for index, forgery in enumerate(forge_faces(method, faces, others, state, seed)):
        forgeries[index] = forgery
    return forgeries


def _check_images(name: str, array: np.ndarray) -> None:
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or min(array.shape[1:3]) < _SMALLEST:
        raise InputError(
            f"{name} is {array.dtype} {list(array.shape)}; uint8 images of shape [n, height, width, 3] with sides "
            f"of {_SMALLEST} or more are needed."
        )


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
