"""Where the parts of a face are: detected landmarks, or a mean face in the middle of images that have none."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, Float

from r2m_jax.data.forge.method import Face

JAW = np.arange(0, 17)
BROWS = np.arange(17, 27)
NOSE = np.arange(27, 36)
RIGHT_EYE = np.arange(36, 42)  # the person's right, on the left of the image
LEFT_EYE = np.arange(42, 48)
MOUTH = np.arange(48, 68)
OUTER_LIPS = np.arange(48, 60)
INNER_LIPS = np.arange(60, 68)

# One half of a symmetric face whose jaw is 1 wide: the median of 970 frontal faces found by dlib in photographs (FFHQ
# and CIPLab), aligned by similarities and made symmetric. x to the right of the middle, y downwards.
_MIDDLE = {
    8: 0.475,
    27: -0.324,
    28: -0.240,
    29: -0.157,
    30: -0.071,
    33: 0.022,
    51: 0.113,
    57: 0.250,
    62: 0.151,
    66: 0.183,
}
_RIGHT_HALF = {
    (0, 16): (0.500, -0.303), (1, 15): (0.493, -0.175), (2, 14): (0.476, -0.046), (3, 13): (0.452, 0.081),
    (4, 12): (0.407, 0.201), (5, 11): (0.332, 0.305), (6, 10): (0.234, 0.390), (7, 9): (0.123, 0.456),
    (17, 26): (0.411, -0.401), (18, 25): (0.346, -0.458), (19, 24): (0.257, -0.475), (20, 23): (0.168, -0.463),
    (21, 22): (0.079, -0.429), (31, 35): (0.103, -0.009), (32, 34): (0.053, 0.007), (36, 45): (0.308, -0.311),
    (37, 44): (0.253, -0.343), (38, 43): (0.189, -0.342), (39, 42): (0.131, -0.298), (40, 47): (0.193, -0.288),
    (41, 46): (0.256, -0.289), (48, 54): (0.193, 0.150), (49, 53): (0.125, 0.118), (50, 52): (0.053, 0.100),
    (59, 55): (0.127, 0.211), (58, 56): (0.058, 0.243), (60, 64): (0.163, 0.152), (61, 63): (0.054, 0.146),
    (67, 65): (0.055, 0.176),
}  # fmt: skip
FOREHEAD = 0.28  # height of the forehead above the brows, as a share of the distance from chin to brows


def _mean_face() -> Float[np.ndarray, "68 2"]:
    points = np.zeros((68, 2))
    for index, y in _MIDDLE.items():
        points[index] = 0.0, y
    for (left, right), (x, y) in _RIGHT_HALF.items():
        points[left], points[right] = (-x, y), (x, y)
    return points


MEAN_FACE: Float[np.ndarray, "68 2"] = _mean_face()
"""Landmarks of a mean face, its jaw 1 wide, x to the right and y downwards from between nose and mouth."""


def points_of(face: Face, rng: np.random.Generator) -> Float[np.ndarray, "68 2"]:
    """A face's landmarks; where none are known, those of a mean face about the middle of the image.

    The prior is drawn anew each time: its sides and place vary as those of faces in aligned crops do.
    """
    if face.landmarks is not None:
        return np.asarray(face.landmarks, np.float64)
    height, width = face.pixels.shape[:2]
    scale = rng.uniform(0.48, 0.60) * width, rng.uniform(0.48, 0.58) * height
    angle = rng.uniform(-0.25, 0.25)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    # The forehead is part of the face: what is centred is the face with it.
    jitter = rng.normal(0, 0.008, MEAN_FACE.shape)
    centred = MEAN_FACE + np.array([0, FOREHEAD / 2]) + jitter
    centre = (0.5 + rng.uniform(-0.04, 0.04, 2)) * (width, height)
    return (centred * scale) @ turn.T + centre - 0.5


def outline(points: Float[np.ndarray, "68 2"], forehead: float = FOREHEAD) -> Float[np.ndarray, "27 2"]:
    """Jaw and forehead; the forehead, which the annotation lacks, lies above the brows.

    Args:
        points: landmarks.
        forehead: its height as a share of the distance from chin to brows.
    """
    up = points[BROWS].mean(axis=0) - points[8]
    return np.concatenate([points[JAW], points[BROWS] + forehead * up])


def hull(points: Float[np.ndarray, "k 2"], shape: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Pixels inside the convex hull of points; those on the image's edge stay out, so that every hull has an outside.

    Raises nothing for points outside the image: what lies there is cut off.
    """
    mask = np.zeros(shape, np.uint8)
    corners = cv2.convexHull(np.rint(points).astype(np.int32))
    cv2.fillConvexPoly(mask, corners, 1)
    mask[[0, -1]] = 0
    mask[:, [0, -1]] = 0
    return mask.astype(bool)


def edge_points(shape: tuple[int, int]) -> Float[np.ndarray, "8 2"]:
    """Corners of an image and the middles of its sides: what meshes and splines are anchored to."""
    height, width = shape
    shares = [(x, y) for x in (0, 0.5, 1) for y in (0, 0.5, 1) if (x, y) != (0.5, 0.5)]
    return np.array(shares) * [width - 1, height - 1]


def face_width(points: Float[np.ndarray, "68 2"]) -> float:
    """Distance between the ends of the jaw, in pixels: the unit in which seams and motions are measured."""
    return float(np.linalg.norm(points[16] - points[0]))
