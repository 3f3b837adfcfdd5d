"""What generators can learn from."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from r2m_jax.errors import InputError


def refuse_flat(generator_images: UInt8[np.ndarray, "n h w 3"]) -> None:
    """Check that there is texture to learn.

    Raises:
        InputError: no images, or none that varies.
    """
    if not len(generator_images) or not np.ptp(generator_images, axis=(1, 2)).any():
        raise InputError(f"{len(generator_images)} generator images without texture teach nothing; give photographs.")
