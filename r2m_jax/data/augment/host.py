"""Augmentation of one image on the host, with OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import UInt8

from r2m_jax.data.augment.draws import UNIFORMS, Draws, parameters
from r2m_jax.data.augment.policy import Policy, Subsampling
from r2m_jax.data.augment.principal import pca_shift

Image = UInt8[np.ndarray, "h w 3"]

_SAMPLING = {"4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420, "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444}


def augment(image: Image, rng: np.random.Generator, policy: Policy) -> Image:
    """Draw parameters and apply them. Depends on nothing but its arguments.

    Args:
        image: RGB.
        rng: advanced by the same amount whatever the policy.
        policy: probabilities and ranges.
    """
    return apply(image, draw(rng, policy), policy.jpeg_subsampling)


def draw(rng: np.random.Generator, policy: Policy) -> Draws:
    """Parameters of one image, as numpy scalars."""
    return parameters(rng.random(UNIFORMS, np.float32), rng.standard_normal(dtype=np.float32), policy, np)


def apply(image: Image, draws: Draws, subsampling: Subsampling = "4:2:0") -> Image:
    """Apply the parameters of one image in the order of DeepfakeBench; the input is left as it is."""
    if draws.flip:
        image = flip(image)
    if draws.degrees != 0:
        image = rotate(image, draws.degrees)
    if draws.blur_size > 1:
        image = gaussian_blur(image, draws.blur_size)
    if draws.gain != 1 or draws.offset != 0:
        image = brightness_contrast(image, draws.gain, draws.offset)
    if draws.pca != 0:
        image = fancy_pca(image, draws.pca)
    if draws.hue != 0 or draws.saturation != 0 or draws.value != 0:
        image = hue_saturation_value(image, draws.hue, draws.saturation, draws.value)
    if draws.jpeg_quality > 0:
        image = jpeg(image, draws.jpeg_quality, subsampling)
    return image


def flip(image: Image) -> Image:
    """Mirror left to right."""
    return cv2.flip(image, 1)


def rotate(image: Image, degrees: float) -> Image:
    """Rotate counter-clockwise about (width/2, height/2), bilinear, border reflected without its edge pixel."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), float(degrees), 1.0)
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def gaussian_blur(image: Image, size: int) -> Image:
    """Gaussian blur with OpenCV's own kernel of 3, 5 or 7 taps, border reflected without its edge pixel."""
    return cv2.GaussianBlur(image, (int(size), int(size)), 0, borderType=cv2.BORDER_REFLECT_101)


def brightness_contrast(image: Image, gain: float, offset: float) -> Image:
    """x·gain + 255·offset, limited to 0…255 and cut to whole numbers (albumentations cuts, it does not round)."""
    table = np.arange(256, dtype=np.float32) * np.float32(gain) + np.float32(255) * np.float32(offset)
    return cv2.LUT(image, np.clip(table, 0, 255).astype(np.uint8))


def fancy_pca(image: Image, alpha: float) -> Image:
    """Add alpha times the image's own colour shift (``pca_shift``), limited to 0…255 and cut to whole numbers."""
    colours = image.reshape(-1, 3)
    products, _ = cv2.calcCovarMatrix(colours, None, cv2.COVAR_NORMAL | cv2.COVAR_ROWS, ctype=cv2.CV_64F)
    shift = 255 * float(alpha) * pca_shift(products / (255**2 * max(len(colours) - 1, 1)), np)
    levels = np.arange(256)[:, None, None] + shift  # [256, 1, 3], one table per channel
    return cv2.LUT(image, np.clip(levels, 0, 255).astype(np.uint8))


def hue_saturation_value(image: Image, hue: float, saturation: float, value: float) -> Image:
    """Shift the channels of OpenCV's 8-bit HSV (H 0…179, wrapping; S and V 0…255, limited), cut to whole numbers."""
    levels = np.arange(256, dtype=np.float32)
    tables = np.stack(
        [
            np.mod(levels + np.float32(hue), np.float32(180)),
            np.clip(levels + np.float32(saturation), 0, 255),
            np.clip(levels + np.float32(value), 0, 255),
        ],
        axis=-1,
    ).astype(np.uint8)[:, None]
    return cv2.cvtColor(cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), tables), cv2.COLOR_HSV2RGB)


def jpeg(image: Image, quality: int, subsampling: Subsampling = "4:2:0") -> Image:
    """Compress to JPEG in memory and decode again: libjpeg's quality 1…100, chroma subsampling as told."""
    options = [cv2.IMWRITE_JPEG_QUALITY, int(quality), cv2.IMWRITE_JPEG_SAMPLING_FACTOR, _SAMPLING[subsampling]]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
