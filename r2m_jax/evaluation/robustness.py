"""Robustness: perturbed images at five levels, and the relative change of the AUC (CoRIT, arXiv 2603.24057, eq. 26).

The kinds and levels are those of DeeperForensics-1.0 (https://github.com/EndlessSora/DeeperForensics-1.0), whose names
CoRIT's four match. Two things to know:

- Their ``JPEG`` is not JPEG: it shrinks the image by a factor and enlarges it again. It is ``resample`` here, and
  ``jpeg`` is true JPEG, at qualities of our own.
- Their number of blocks has the factor ``min(height, width) // 256``, which is 0 for an input of 224 px: no block at
  all. Perturb the stored crop (256 px) before it is resized; where an image is smaller, the factor is 1 here.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import cv2
import numpy as np
from jaxtyping import UInt8

from r2m_jax.data.augment.host import brightness_contrast
from r2m_jax.data.augment.host import jpeg as compress
from r2m_jax.errors import InputError

Image: TypeAlias = UInt8[np.ndarray, "h w 3"]
Kind: TypeAlias = Literal["gaussian_blur", "block_wise", "contrast", "resample", "jpeg", "saturation", "gaussian_noise"]

KINDS: tuple[Kind, ...] = get_args(Kind)
PAPER: tuple[Kind, ...] = ("gaussian_blur", "block_wise", "contrast", "resample")
"""CoRIT's Gaussian blur, block-wise distortion, contrast change and "JPEG"."""

LEVELS = (1, 2, 3, 4, 5)

STRENGTHS: dict[Kind, tuple[float, ...]] = {
    "gaussian_blur": (7, 9, 13, 17, 21),
    "block_wise": (16, 32, 48, 64, 80),
    "contrast": (0.85, 0.725, 0.6, 0.475, 0.35),
    "resample": (2, 3, 4, 5, 6),
    "jpeg": (90, 70, 50, 30, 10),
    "saturation": (0.4, 0.3, 0.2, 0.1, 0.0),
    "gaussian_noise": (0.001, 0.002, 0.005, 0.01, 0.05),
}
"""Of levels 1…5: taps of the kernel, blocks per 256 px, gain, factor, JPEG quality, gain of chroma, variance."""

BLOCK, GREY = 8, 128


def perturb(image: Image, kind: Kind, level: int, *, seed: int = 0, index: int = 0) -> Image:
    """One image, perturbed. Depends on nothing but its arguments.

    The random kinds draw the same numbers at every level, so a higher level is the lower one and more: its blocks are
    all of the lower level's and others, its noise is the same noise, amplified.

    Args:
        image: RGB; left as it is.
        kind: of perturbation.
        level: 1…5; 0 gives the image itself.
        seed: of the whole evaluation.
        index: of the image in it.

    Raises:
        InputError: the kind or level is unknown, or the image is not RGB of 8 bits or smaller than a block.
    """
    if kind not in KINDS or level not in (0, *LEVELS):
        raise InputError(f"there is no {kind!r} of level {level}; kinds are {', '.join(KINDS)}, levels 0 to 5.")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) <= BLOCK:
        raise InputError(f"an image is {image.dtype} {image.shape}; give RGB of 8 bits, more than {BLOCK} px a side.")
    if level == 0:
        return image.copy()
    strength = STRENGTHS[kind][level - 1]
    rng = np.random.default_rng((seed, index, KINDS.index(kind)))
    match kind:
        case "gaussian_blur":
            return gaussian_blur(image, int(strength))
        case "block_wise":
            return block_wise(image, int(strength), rng)
        case "contrast":
            return brightness_contrast(image, strength, 0.0)
        case "resample":
            return resample(image, int(strength))
        case "jpeg":
            return compress(image, int(strength))
        case "saturation":
            return saturation(image, strength)
        case "gaussian_noise":
            return gaussian_noise(image, strength, rng)


def gaussian_blur(image: Image, size: int) -> Image:
    """Gaussian blur of ``size`` taps and standard deviation ``size``/6, border reflected without its edge pixel."""
    return cv2.GaussianBlur(image, (size, size), size / 6, borderType=cv2.BORDER_REFLECT_101)


def block_wise(image: Image, count: int, rng: np.random.Generator) -> Image:
    """Squares of 8 × 8 grey pixels at random places, which may overlap.

    Args:
        image: RGB.
        count: squares per 256 px of the shorter side, rounded, and never less than one such measure.
        rng: of the places.
    """
    height, width = image.shape[:2]
    count *= max(1, round(min(height, width) / 256))
    corners = (rng.random((count, 2)) * (height - BLOCK, width - BLOCK)).astype(np.int64)
    out = image.copy()
    for top, left in corners:
        out[top : top + BLOCK, left : left + BLOCK] = GREY
    return out


def resample(image: Image, factor: int) -> Image:
    """Shrink by a factor and enlarge again, both bilinear: what DeeperForensics calls JPEG compression."""
    height, width = image.shape[:2]
    small = cv2.resize(image, (max(1, width // factor), max(1, height // factor)), interpolation=cv2.INTER_LINEAR)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def saturation(image: Image, gain: float) -> Image:
    """Multiply the distances from grey (Cb and Cr of BT.601) by ``gain``; rounded to whole numbers."""
    planes = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2YCrCb)
    # OpenCV's chroma of float images is centred on 0.5 whatever their range.
    planes[..., 1:] = 0.5 + (planes[..., 1:] - 0.5) * np.float32(gain)
    return _whole(cv2.cvtColor(planes, cv2.COLOR_YCrCb2RGB))


def gaussian_noise(image: Image, variance: float, rng: np.random.Generator) -> Image:
    """Gaussian noise in Y, Cb and Cr of studio range (16…235, 16…240), limited to 0…255 and rounded.

    Args:
        image: RGB.
        variance: of the noise, where 255 steps are 1.
        rng: of the noise.
    """
    planes = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2YCrCb)
    # A step of studio range is worth 255/219 of luma and 255/224 of chroma in full range.
    steps = np.float32(255 * np.sqrt(variance)) * np.asarray([255 / 219, 255 / 224, 255 / 224], np.float32)
    planes += steps * rng.standard_normal(planes.shape, np.float32)
    return _whole(cv2.cvtColor(planes, cv2.COLOR_YCrCb2RGB))


def rav(perturbed: float, clean: float) -> float:
    """Relative AUC variation, (perturbed - clean) / clean: 0 is robust, -0.1 a loss of a tenth.

    Raises:
        InputError: an AUC is NaN or not between 0 and 1, or the clean one is 0.
    """
    if not (0 <= perturbed <= 1 and 0 < clean <= 1):
        raise InputError(f"the relative variation of AUC {perturbed} from {clean} is not defined.")
    return (perturbed - clean) / clean


def _whole(levels: np.ndarray) -> Image:
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)
