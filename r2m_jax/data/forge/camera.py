"""Cameras: what real and forged images are recorded by alike, so that neither is told by its encoding.

A data set's real images may come through several cameras (the paper's heterogeneous real domains, R²M §4.4): the same
photographs with other optics, noise, resolution, colours and codecs.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from r2m_jax.data.forge.blending import to_uint8
from r2m_jax.data.forge.codec import h264, jpeg
from r2m_jax.data.forge.warping import through_bottleneck
from r2m_jax.errors import InputError

_QUALITY = (85, 97)

Recording: TypeAlias = Callable[[UInt8[np.ndarray, "h w 3"], np.random.Generator], UInt8[np.ndarray, "h w 3"]]


@dataclass(frozen=True)
class Camera:
    """A way of recording.

    Attributes:
        name: becomes the domain of the images.
        summary: one line on what it does.
        record: ``(image, rng) -> image`` of the same shape.
    """

    name: str
    summary: str
    record: Recording


def record(image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """Expose and compress an image: contrast within 3 %, brightness within 3 levels, JPEG of quality 85 to 97.

    Args:
        image: uint8 RGB.
        rng: of exposure, quality and chroma subsampling (4:4:4 or 4:2:0).

    Returns:
        What a JPEG decoder gives back; same shape.
    """
    exposed = _exposed(image, rng, 0.03, 3)
    quality = int(rng.integers(_QUALITY[0], _QUALITY[1] + 1))
    return jpeg(exposed, quality, "4:4:4" if rng.random() < 0.5 else "4:2:0")


def find_camera(name: str) -> Camera:
    """A camera by its name.

    Raises:
        InputError: there is none; the message suggests the nearest.
    """
    if name not in CAMERAS:
        near = difflib.get_close_matches(name, CAMERAS, n=1, cutoff=0.0)
        raise InputError(f"there is no camera {name!r}; did you mean {near[0]!r}?")
    return CAMERAS[name]


def _exposed(
    image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator, contrast: float, brightness: float
) -> UInt8[np.ndarray, "h w 3"]:
    gain = 1 + rng.uniform(-contrast, contrast)
    return to_uint8((image - 128.0) * gain + 128.0 + rng.uniform(-brightness, brightness))


def _phone(image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    pixels = _exposed(image, rng, 0.06, 6).astype(np.float64)
    grey = pixels.mean(axis=2, keepdims=True)
    pixels = grey + rng.uniform(1.08, 1.25) * (pixels - grey)
    pixels += rng.uniform(0.4, 0.9) * (pixels - cv2.GaussianBlur(pixels, (0, 0), 1.2))
    return jpeg(to_uint8(pixels), int(rng.integers(82, 94)), "4:2:0")


def _webcam(image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    soft = through_bottleneck(_exposed(image, rng, 0.1, 10), rng.uniform(1.3, 1.7))
    tint = np.array([rng.uniform(0.95, 1.05), 1.0, rng.uniform(0.95, 1.08)])
    return jpeg(to_uint8(_noisy(soft * tint, rng, rng.uniform(3, 6))), int(rng.integers(60, 80)), "4:2:0")


def _night(image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    light = rng.uniform(0.35, 0.6)
    photons = rng.poisson(np.maximum(image * light, 0) * 2.0) / 2.0  # about two electrons a grey level
    noisy = to_uint8(photons * rng.uniform(1.1, 1.4))
    return jpeg(cv2.bilateralFilter(noisy, 5, 18, 2), int(rng.integers(80, 92)), "4:2:0")


def _messenger(image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    once = jpeg(_exposed(image, rng, 0.03, 3), int(rng.integers(75, 90)), "4:2:0")
    smaller = to_uint8(through_bottleneck(once, rng.uniform(1.1, 1.4)))
    return jpeg(smaller, int(rng.integers(60, 80)), "4:2:0")


def _video(crf: int) -> Recording:
    def film(image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
        # The second of two equal frames: predicted, as nearly all frames of a film are.
        return h264([_exposed(image, rng, 0.03, 3)] * 2, crf)[-1]

    return film


def _noisy(pixels: Float[np.ndarray, "h w 3"], rng: np.random.Generator, sigma: float) -> Float[np.ndarray, "h w 3"]:
    """Sensor noise that demosaicing has smeared over neighbours."""
    noise = rng.standard_normal(pixels.shape)
    return pixels + sigma * 1.6 * cv2.GaussianBlur(noise, (3, 3), 0)


CAMERAS: dict[str, Camera] = {
    camera.name: camera
    for camera in (
        Camera("still", "slight exposure changes, JPEG of quality 85 to 97", record),
        Camera("phone", "saturated and sharpened, JPEG of quality 82 to 93, 4:2:0", _phone),
        Camera("webcam", "half the resolution, tinted, noisy, JPEG of quality 60 to 79", _webcam),
        Camera("night", "photon noise of little light, denoised, JPEG of quality 80 to 91", _night),
        Camera("messenger", "compressed, shrunk and compressed again (JPEG 75 to 89, then 60 to 79)", _messenger),
        Camera("c23", "H.264 at the constant rate factor 23, as FaceForensics++ c23", _video(23)),
        Camera("c40", "H.264 at the constant rate factor 40, as FaceForensics++ c40", _video(40)),
    )
}
