"""Finding faces and their landmarks: dlib's frontal detector and 68-point predictor, the pair DeepfakeBench builds on.

Detector: histograms of oriented gradients with a structural SVM (King 2015, https://arxiv.org/abs/1502.00046).
Predictor: Kazemi and Sullivan, "One Millisecond Face Alignment with an Ensemble of Regression Trees", CVPR 2014,
trained on iBUG 300-W, whose annotations are for research only. Both come as wheels (extra ``faces``); nothing is
downloaded at run time.
"""

from __future__ import annotations

import functools
import importlib.util
import multiprocessing
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from r2m_jax.errors import InputError

DETECTION_SIDE = 1280
"""Longer side, in pixels, beyond which faces are looked for in a reduced copy.

The detector's time grows with the area (7 ms for 256², 0.1 s for 1280x720) and its smallest face is 80 pixels: in a
reduced 1920x1080 frame that is a face of 120 pixels, of 60 in the second try. Landmarks are always placed in the full
image.
"""

FOREHEAD = 0.5
"""Height of the hairline above the brows as a share of the distance from chin to brows.

The canon of facial thirds: hairline to brows, brows to base of the nose, base of the nose to chin are equal (Farkas et
al., "Vertical and horizontal proportions of the face", Plastic and Reconstructive Surgery 75, 1985).
"""

# dlib's 81-point predictor, which the layout is that of, numbers its forehead points in no order; from the person's
# right temple to the left one they are (SBI's reading of it, https://github.com/mapooon/SelfBlendedImages)
_FOREHEAD_ORDER = np.array([77, 75, 76, 68, 69, 70, 71, 80, 72, 73, 79, 74, 78])
_CHUNK = 16  # images a process takes at a time
# A detector keeps the pyramid of its image and lets go of Python's lock: two threads would see each other's faces.
_DETECTING = threading.Lock()


@dataclass(frozen=True)
class Landmarked:
    """A face in an image. Coordinates are (x, y) in pixels; the centre of the first pixel is (0, 0).

    Attributes:
        box: left, top, right and bottom of the detector's square; may reach beyond the image.
        confidence: the detector's score, above 0; clear frontal faces have 1 to 3.
        landmarks: float64 ``[68, 2]`` in the order of iBUG 300-W: jaw 0-16, brows 17-26, nose 27-35, the person's
            right eye 36-41 and left eye 42-47, mouth 48-67. Whole pixels.
    """

    box: tuple[float, float, float, float]
    confidence: float
    landmarks: Float[np.ndarray, "68 2"]

    @property
    def area(self) -> float:
        """Area of the box in pixels²."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


def detect(image: UInt8[np.ndarray, "h w 3"]) -> list[Landmarked]:
    """Faces of an RGB image, the largest first.

    Where none is found at once they are looked for again with the image enlarged twice, which halves the smallest
    face to 40 pixels (DeepfakeBench always enlarges, at four times the cost).

    Raises:
        InputError: dlib or the predictor's file is not installed.
    """
    detector, predictor = _detector(), _predictor()
    image = np.ascontiguousarray(image)
    height, width = image.shape[:2]
    scale = min(1.0, DETECTION_SIDE / max(height, width))
    small = image
    if scale < 1.0:
        sides = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = cv2.resize(image, sides, interpolation=cv2.INTER_AREA)
    boxes: Any = ()
    with _DETECTING:
        for enlarge in (0, 1):
            boxes, scores, _ = detector.run(small, enlarge, 0.0)
            if boxes:
                break
    faces = [_mark(image, box, score, scale, predictor) for box, score in zip(boxes, scores, strict=True)]
    return sorted(faces, key=lambda face: (-face.area, -face.confidence, face.box))


def largest_face(image: UInt8[np.ndarray, "h w 3"]) -> Landmarked | None:
    """The face with the largest box (of equal ones the most confident), None where no face is found.

    Raises:
        InputError: dlib or the predictor's file is not installed.
    """
    faces = detect(image)
    return faces[0] if faces else None


def landmarks_of(images: Sequence[UInt8[np.ndarray, "h w 3"]], workers: int = 1) -> list[Landmarked | None]:
    """The largest face of every image, in order; ``workers`` processes look side by side.

    Raises:
        InputError: dlib or the predictor's file is not installed.
    """
    require_dlib()
    if workers == 1:
        return [largest_face(image) for image in images]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(largest_face, images, chunksize=_CHUNK))


def with_forehead(landmarks: Float[np.ndarray, "68 2"]) -> Float[np.ndarray, "81 2"]:
    """The 68 landmarks and 13 of the forehead, which a 68-point predictor does not see, in dlib's 81-point order.

    The forehead is the upper half of an ellipse (of its image under a shear, where the face is not upright in its own
    axes): its ends are the ends of the jaw (0 and 16), its top lies :data:`FOREHEAD` times the way from the chin (8)
    to the middle of the brows above that middle. The points divide it into 14 equal angles. Similarities of the
    landmarks carry over, so alignment and extrapolation may come in either order.
    """
    brows = landmarks[17:27].mean(axis=0)
    middle = (landmarks[0] + landmarks[16]) / 2
    top = brows + FOREHEAD * (brows - landmarks[8])
    angles = np.pi * np.arange(1, 14)[:, None] / 14
    arc = middle + np.cos(angles) * (landmarks[0] - middle) + np.sin(angles) * (top - middle)
    points = np.concatenate([landmarks, np.empty((13, 2))])
    points[_FOREHEAD_ORDER] = arc
    return points


def require_dlib() -> None:
    """Refuse early where faces cannot be found.

    Raises:
        InputError: dlib or the predictor's file is not installed.
    """
    _predictor_file()


def _mark(image: np.ndarray, box: Any, score: float, scale: float, predictor: Any) -> Landmarked:
    import dlib

    # A dlib rectangle ends on its last pixel.
    corners = (box.left() / scale, box.top() / scale, (box.right() + 1) / scale, (box.bottom() + 1) / scale)
    left, top, right, bottom = (round(value) for value in corners)
    shape = predictor(image, dlib.rectangle(left, top, right - 1, bottom - 1))
    points = np.array([(part.x, part.y) for part in shape.parts()], np.float64)
    return Landmarked((float(left), float(top), float(right), float(bottom)), float(score), points)


@functools.cache
def _detector() -> Any:
    require_dlib()
    import dlib

    return dlib.get_frontal_face_detector()


@functools.cache
def _predictor() -> Any:
    file = _predictor_file()
    import dlib

    return dlib.shape_predictor(str(file))


def _predictor_file() -> Path:
    # find_spec, since importing face_recognition_models needs pkg_resources, which setuptools 82 no longer brings.
    models = importlib.util.find_spec("face_recognition_models")
    if models is None or models.origin is None or importlib.util.find_spec("dlib") is None:
        raise InputError("faces are found by dlib, which is not installed: pip install 'r2m-jax[faces]'.")
    file = Path(models.origin).parent / "models" / "shape_predictor_68_face_landmarks.dat"
    if not file.is_file():
        raise InputError(f"{file} is missing: pip install --force-reinstall 'r2m-jax[faces]'.")
    return file
