"""One image to one crop of its face."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from r2m_jax.data.faces.align import crop_matrix, warp_image, warp_points
from r2m_jax.data.faces.landmarks import detect

NoFace = Literal["skip", "error", "centre"]
NO_FACE: tuple[str, ...] = get_args(NoFace)
"""What becomes of an image without a face: left out and counted, refused, or its central square taken instead."""


@dataclass(frozen=True)
class Crop:
    """A square crop.

    Attributes:
        image: uint8 RGB ``[size, size, 3]``.
        matrix: float64 ``[2, 3]``, from pixels of the image to pixels of the crop.
        landmarks: float64 ``[68, 2]`` in pixels of the crop; None where no face was found.
        faces: faces found in the image; the largest is the one cropped.
        confidence: the detector's score of that face, 0 where there is none.
    """

    image: UInt8[np.ndarray, "size size 3"]
    matrix: Float[np.ndarray, "2 3"]
    landmarks: Float[np.ndarray, "68 2"] | None
    faces: int
    confidence: float


def crop_face(image: UInt8[np.ndarray, "h w 3"], size: int = 256, margin: float = 1.3) -> Crop | None:
    """The largest face, upright on DeepfakeBench's template; None where no face is found.

    DeepfakeBench looks for the face once more in the crop and stores the landmarks found there. Here the landmarks of
    the image are carried along: none is lost to a second detection, and a crop and its landmarks always agree.

    Args:
        image: RGB.
        size: sides of the crop in pixels.
        margin: how many times ArcFace's field of view, see :func:`r2m_jax.data.faces.align.template`.

    Raises:
        InputError: size or margin is not positive, or dlib is not installed.
    """
    faces = detect(image)
    if not faces:
        return None
    matrix = crop_matrix(faces[0].landmarks, size, margin)
    landmarks = warp_points(faces[0].landmarks, matrix)
    return Crop(warp_image(image, matrix, size), matrix, landmarks, len(faces), faces[0].confidence)


def crop_centre(image: UInt8[np.ndarray, "h w 3"], size: int = 256) -> Crop:
    """The central square, for images without a face; reductions are averaged over the area."""
    height, width = image.shape[:2]
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    square = image[top : top + side, left : left + side]
    resized = cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LINEAR)
    # Pixels are areas: the centre of the first one is half a pixel from the edge before and after.
    scale = size / side
    shift = (scale - 1) / 2
    matrix = np.array([[scale, 0, shift - left * scale], [0, scale, shift - top * scale]])
    return Crop(np.asarray(resized, np.uint8), matrix, None, 0, 0.0)
