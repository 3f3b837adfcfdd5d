"""Turning and scaling faces to a template: DeepfakeBench's aligned crop as a formula."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float, Num, UInt8

from r2m_jax.errors import InputError

TEMPLATE_SIDE = 112
TEMPLATE: Float[np.ndarray, "5 2"] = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Eyes, tip of the nose and corners of the mouth in ArcFace's 112 x 112 crop (Deng et al., CVPR 2019).

SphereFace's points for 112 x 96 pixels, moved right by 8; left before right as the image shows them.
"""

KEYPOINTS = np.array([37, 44, 30, 49, 55])
"""Landmarks DeepfakeBench lays on the template: points of the upper eyelids, the tip of the nose, points of the lips.

Not the centres of the eyes nor the corners of the mouth (48 and 54), which the template means: its crops are a little
tighter than ArcFace's, and ours are as its own.
"""


def template(size: int, margin: float) -> Float[np.ndarray, "5 2"]:
    """Where the key points go in a crop of ``size`` pixels.

    DeepfakeBench stretches the 112-pixel template to the crop, adds ``size (margin - 1) / 2`` on every side, and
    shrinks the whole by ``margin`` to the crop's size: ``size (t / 112 + (margin - 1) / 2) / margin``. A margin of 1
    is ArcFace's crop, 1.3 the one of DeepfakeBench and DF40.

    Args:
        size: sides of the crop in pixels.
        margin: how many times ArcFace's field of view, about the same centre.

    Raises:
        InputError: the margin is not positive, or the crop has no pixel.
    """
    if size < 1 or margin <= 0:
        raise InputError(f"a crop of {size} pixels with the margin {margin} cannot be made; both must be positive.")
    return size * (TEMPLATE / TEMPLATE_SIDE + (margin - 1) / 2) / margin


def similarity(source: Float[np.ndarray, "k 2"], target: Float[np.ndarray, "k 2"]) -> Float[np.ndarray, "2 3"]:
    """The rotation, uniform scale and shift that take ``source`` nearest to ``target``, by least squares.

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns", PAMI 1991
    (https://doi.org/10.1109/34.88573), equations 40-43. In the plane, with points as complex numbers, it is the
    regression ``w = a z + b``; a reflection is not among its solutions.

    Returns:
        Matrix ``M`` with ``target ≈ source @ M[:, :2].T + M[:, 2]``.

    Raises:
        InputError: all source points coincide.
    """
    z, w = source @ [1, 1j], target @ [1, 1j]
    centred = z - z.mean()
    spread = float((abs(centred) ** 2).sum())
    if spread == 0:
        raise InputError("a similarity cannot be fitted to points that all coincide.")
    a = (centred.conj() * (w - w.mean())).sum() / spread
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def crop_matrix(landmarks: Float[np.ndarray, "68 2"], size: int = 256, margin: float = 1.3) -> Float[np.ndarray, "2 3"]:
    """From pixels of the image to pixels of DeepfakeBench's aligned crop, as a ``[2, 3]`` matrix."""
    return similarity(landmarks[KEYPOINTS], template(size, margin))


def warp_points(points: Float[np.ndarray, "k 2"], matrix: Float[np.ndarray, "2 3"]) -> Float[np.ndarray, "k 2"]:
    """Points carried along by a transformation."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def warp_image(
    image: UInt8[np.ndarray, "h w 3"], matrix: Float[np.ndarray, "2 3"], size: int
) -> UInt8[np.ndarray, "size size 3"]:
    """The crop, bilinear and black beyond the image as in DeepfakeBench.

    Nothing is smoothed before a reduction, so large faces alias as they do in DeepfakeBench's own crops.
    """
    return np.asarray(cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR), np.uint8)


def warp_mask(
    mask: Num[np.ndarray, "h w"], matrix: Float[np.ndarray, "2 3"], size: int
) -> Num[np.ndarray, "size size"]:
    """A mask carried along: nearest neighbour, so that no new values appear; 0 beyond the image."""
    return np.asarray(cv2.warpAffine(mask, matrix, (size, size), flags=cv2.INTER_NEAREST), np.uint8)
