"""Faces of known photographs: where they are is known from looking at them."""

import importlib.util
from concurrent.futures import ThreadPoolExecutor

import cv2
import matplotlib.cbook
import numpy as np
import pytest
import skimage.data
from PIL import Image

from r2m_jax.data.faces import detect, landmarks_of, largest_face, with_forehead
from r2m_jax.data.faces.align import crop_matrix, similarity, template, warp_points
from r2m_jax.data.faces.crop import crop_centre, crop_face
from r2m_jax.data.index import read_index
from r2m_jax.errors import InputError

# Pupils, read off enlarged photographs under a grid: right eye, left eye.
ASTRONAUT = [[203, 101], [246, 103]]
HOPPER = [[222, 190], [305, 187]]


# Normalised by the distance of the eyes, an error of 0.1 is what benchmarks of landmarks call a failure.
FAILURE = 0.1


def eyes(landmarks: np.ndarray) -> np.ndarray:
    return np.stack([landmarks[36:42].mean(axis=0), landmarks[42:48].mean(axis=0)])


@pytest.fixture(scope="module")
def hopper() -> np.ndarray:
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        return np.array(Image.open(file).convert("RGB"))


def test_eyes_are_found(astronaut, hopper):
    for image, truth in ((astronaut, ASTRONAUT), (hopper, HOPPER)):
        face = largest_face(image)
        error = np.linalg.norm(eyes(face.landmarks) - truth, axis=1) / np.linalg.norm(np.subtract(*truth))
        assert error.max() < FAILURE
        left, top, right, bottom = face.box
        assert left < face.landmarks[30, 0] < right
        assert top < face.landmarks[30, 1] < bottom
        assert face.confidence > 1


def test_large_photographs_are_marked_in_full_resolution(astronaut):
    large = cv2.resize(astronaut, (2560, 2560), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_allclose(eyes(largest_face(large).landmarks) / 5, ASTRONAUT, atol=5)


def test_small_faces_are_found_in_the_second_try(astronaut):
    small = cv2.resize(astronaut, (256, 256), interpolation=cv2.INTER_AREA)  # a face of 44 pixels
    np.testing.assert_allclose(eyes(largest_face(small).landmarks) * 2, ASTRONAUT, atol=6)


def test_the_largest_face_comes_first(astronaut, hopper):
    half = cv2.resize(hopper, None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA)
    both = np.zeros((600, 1024, 3), np.uint8)
    both[: half.shape[0], : half.shape[1]] = half
    both[:512, 512:] = astronaut
    faces = detect(both)
    assert len(faces) >= 2
    assert [face.area for face in faces] == sorted((face.area for face in faces), reverse=True)
    np.testing.assert_allclose(eyes(faces[0].landmarks), 0.8 * np.array(HOPPER), atol=6)


def test_no_face():
    assert detect(np.zeros((100, 90, 3), np.uint8)) == []
    assert largest_face(skimage.data.chelsea()) is None
    assert crop_face(skimage.data.chelsea()) is None


def test_many_images_by_processes(astronaut):
    images = [astronaut, np.zeros((64, 64, 3), np.uint8), astronaut[:, ::-1]]
    alone, together = landmarks_of(images), landmarks_of(images, workers=2)
    assert alone[1] is None
    assert together[1] is None
    for k in (0, 2):
        np.testing.assert_array_equal(alone[k].landmarks, together[k].landmarks)
    assert abs(eyes(alone[2].landmarks)[::-1, 0] - (511 - np.array(ASTRONAUT)[:, 0])).max() < 5


def test_threads_do_not_see_each_others_faces(astronaut):
    cat = skimage.data.chelsea()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(largest_face, [astronaut, cat] * 6))
    assert found[1::2] == [None] * 6
    assert {face.box for face in found[::2]} == {largest_face(astronaut).box}


def test_dlib_is_asked_for(monkeypatch, astronaut):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "dlib" else find(name))
    with pytest.raises(InputError, match=r"pip install 'r2m-jax\[faces\]'"):
        landmarks_of([astronaut])


def test_forehead(astronaut):
    landmarks = largest_face(astronaut).landmarks
    points = with_forehead(landmarks)
    np.testing.assert_array_equal(points[:68], landmarks)
    assert points[68:, 1].max() < max(landmarks[0, 1], landmarks[16, 1])
    top = points[68:, 1].min()
    brows = landmarks[17:27].mean(axis=0)
    assert 30 < top < 80  # under the hair, above the end of the fringe
    assert np.isclose(brows[1] - top, 0.5 * (landmarks[8, 1] - brows[1]), rtol=0.05)
    # one arc from temple to temple, in the order in which the 81-point predictor's points are read
    arc = points[[77, 75, 76, 68, 69, 70, 71, 80, 72, 73, 79, 74, 78]]
    assert (np.diff(arc[:, 0]) > 0).all()
    # similarities carry over
    matrix = similarity(np.array([[0.0, 0], [1, 0]]), np.array([[3.0, 4], [5, 5]]))
    np.testing.assert_allclose(with_forehead(warp_points(landmarks, matrix)), warp_points(points, matrix), atol=1e-9)


def test_crop_is_upright_and_on_the_template(astronaut):
    turned = np.array(Image.fromarray(astronaut).rotate(20, Image.Resampling.BICUBIC))
    crop = crop_face(turned, 256, 1.3)
    assert crop.image.shape == (256, 256, 3)
    right, left = eyes(crop.landmarks)
    assert abs(np.degrees(np.arctan2(*(left - right)[::-1]))) < 4
    expected = template(256, 1.3)
    residual = np.linalg.norm(crop.landmarks[[37, 44, 30, 49, 55]] - expected, axis=1)
    assert residual.max() < 12
    # the landmarks follow: found anew in the crop they are where they were carried to
    again = largest_face(crop.image)
    assert np.linalg.norm(again.landmarks - crop.landmarks, axis=1).mean() < 4
    # and cropping what is aligned already changes next to nothing
    matrix = crop_matrix(again.landmarks, 256, 1.3)
    assert abs(np.sqrt(np.linalg.det(matrix[:, :2])) - 1) < 0.05


def test_centre_crop_has_its_matrix():
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (100, 200, 3))
    crop = crop_centre(np.ascontiguousarray(ramp), 50)
    x = warp_points(np.array([[50.5, 0.5], [148.5, 98.5]]), crop.matrix)
    np.testing.assert_allclose(x, [[0, 0], [49, 49]])  # 2 x 2 pixels become one
    np.testing.assert_allclose(crop.image[0, [0, 49], 0], [50.5, 148.5], atol=0.51)
    assert crop.landmarks is None
    assert crop.faces == 0


@pytest.mark.integration
def test_faces_of_the_shared_sets_are_found(shared_data):
    """Over both sets; of CIPLab's 400 alone, 19 are missed: heads far from upright, turned away, or in the dark."""
    found, total = 0, 0
    for name in ("faces_ffhq", "faces_photoshop"):
        for record in read_index(shared_data / name / "index.csv"):
            if record.label == 0:
                total += 1
                found += largest_face(np.array(Image.open(record.path).convert("RGB"))) is not None
    assert total == 1000
    assert found / total >= 0.97, found
