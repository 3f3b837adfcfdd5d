"""All forging methods by name and by family, and forging with one of them."""

from __future__ import annotations

import difflib
import hashlib

import numpy as np
from jaxtyping import UInt8
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

from r2m_jax.data.forge import face_swap, reenactment, synthesis
from r2m_jax.data.forge.method import Method
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


def forge_images(
    method: str,
    images: UInt8[np.ndarray, "n h w 3"],
    donors: UInt8[np.ndarray, "m h w 3"],
    generator_images: UInt8[np.ndarray, "k h w 3"],
    seed: int,
) -> UInt8[np.ndarray, "n h w 3"]:
    """Forge every image with one method.

    An image's randomness comes from the seed, the method and the image's own content, so that its forgery does not
    depend on which others are forged, nor on their order.

    Args:
        method: key of :data:`METHODS`.
        images: real images to forge.
        donors: real images to take content from, of the same size; an image is never its own donor, also when the
            donors hold copies of it.
        generator_images: real images to fit generators on.
        seed: of everything random.

    Returns:
        Forgeries, in the order of the images.

    Raises:
        InputError: unknown method, arrays that are not uint8 RGB images of 16 pixels or more, no donor for a face swap,
            or generator images without texture.
    """
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, n=1, cutoff=0.0)
        raise InputError(f"there is no forging method {method!r}; did you mean {near[0]!r}?")
    for name, array in (("images", images), ("donors", donors), ("generator_images", generator_images)):
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or min(array.shape[1:3]) < _SMALLEST:
            raise InputError(
                f"{name} is {array.dtype} {list(array.shape)}; uint8 images of shape [n, height, width, 3] with sides "
                f"of {_SMALLEST} or more are needed."
            )
    if donors.shape[1:] != images.shape[1:]:
        raise InputError(f"donors of {donors.shape[1:3]} pixels do not fit images of {images.shape[1:3]}; resize them.")
    # Threads that share matrices this small wait for each other: fourteen times slower on two busy cores.
    with threadpool_limits(1):
        forger = METHODS[method].prepare(generator_images, seed)
        donor_digests = np.array([_digest(donor.tobytes()) for donor in donors], dtype=np.uint64)
        forgeries = np.empty_like(images)
        for index, image in enumerate(images):
            digest = _digest(image.tobytes())
            rng = np.random.default_rng((seed, _digest(method.encode()), digest))
            others = np.flatnonzero(donor_digests != digest)
            shortlist = rng.choice(others, min(_SHORTLIST, len(others)), replace=False) if len(others) else others
            forgeries[index] = forger(image, donors[shortlist], rng)
    return forgeries


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
