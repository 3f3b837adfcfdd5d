"""The camera that real and forged images are recorded by alike, so that neither is told by its encoding."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from r2m_jax.data.forge.regions import to_uint8

_QUALITY = (85, 97)


def record(image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """Expose and compress an image: contrast within 3 %, brightness within 3 levels, JPEG of quality 85 to 97.

    Args:
        image: uint8 RGB.
        rng: of exposure, quality and chroma subsampling (4:4:4 or 4:2:0).

    Returns:
        What a JPEG decoder gives back; same shape.
    """
    exposed = to_uint8((image - 128.0) * rng.uniform(0.97, 1.03) + 128.0 + rng.uniform(-3, 3))
    quality = int(rng.integers(_QUALITY[0], _QUALITY[1] + 1))
    subsampling = "4:4:4" if rng.random() < 0.5 else "4:2:0"
    file = io.BytesIO()
    Image.fromarray(exposed).save(file, "JPEG", quality=quality, subsampling=subsampling)
    with Image.open(file) as decoded:
        return np.array(decoded.convert("RGB"))
