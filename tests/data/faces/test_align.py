"""Alignment against scikit-image, DeepfakeBench's steps carried out one by one, and identities."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.transform import SimilarityTransform

from r2m_jax.data.faces.align import (
    KEYPOINTS,
    TEMPLATE,
    crop_matrix,
    similarity,
    template,
    warp_image,
    warp_mask,
    warp_points,
)
from r2m_jax.errors import InputError


@given(st.integers(0, 10_000), st.floats(0.05, 20), st.floats(-3.1, 3.1), st.floats(-500, 500))
def test_similarity_is_recovered(seed, scale, angle, shift):
    points = np.random.default_rng(seed).normal(50, 30, (5, 2))
    truth = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = similarity(points, points @ truth.T + [shift, -shift])
    np.testing.assert_allclose(matrix, np.column_stack([truth, [shift, -shift]]), atol=1e-8 * max(1, abs(shift)))


@given(st.integers(0, 10_000))
def test_similarity_is_umeyamas(seed):
    rng = np.random.default_rng(seed)
    source, target = rng.normal(0, 50, (2, 7, 2))
    source += 0.5 * target  # not so unlike that the best fit degenerates
    expected = SimilarityTransform.from_estimate(source, target).params[:2]
    fitted = similarity(source, target)
    if np.linalg.det(np.cov(source.T, target.T)[:2, 2:]) > 0:
        np.testing.assert_allclose(fitted, expected, rtol=1e-6, atol=1e-6)
    assert np.linalg.det(fitted[:, :2]) > 0


def test_reflections_are_not_fitted():
    square = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    assert np.linalg.det(similarity(square, square * [-1, 1])[:, :2]) >= 0
    with pytest.raises(InputError, match="coincide"):
        similarity(np.ones((5, 2)), TEMPLATE)


@pytest.mark.parametrize(("size", "margin"), [(256, 1.3), (224, 1.3), (112, 1.0), (299, 1.7)])
def test_template_is_deepfakebenchs(size, margin):
    points = np.array(  # SphereFace's 112 x 96 template
        [[30.2946, 51.6963], [65.5318, 51.5014], [48.0252, 71.7366], [33.5493, 92.3655], [62.7299, 92.2041]]
    )
    points[:, 0] += 8
    points = points * size / 112
    border = size * (margin - 1) / 2
    points = (points + border) * size / (size + 2 * border)
    np.testing.assert_allclose(template(size, margin), points, rtol=1e-12)


def test_margin_is_about_the_centre():
    np.testing.assert_allclose(template(112, 1.0), TEMPLATE)
    np.testing.assert_allclose(template(200, 2.0) - 100, (template(200, 1.0) - 100) / 2)
    for size, margin in ((0, 1.3), (256, 0.0), (256, -1.0)):
        with pytest.raises(InputError, match="positive"):
            template(size, margin)


def test_a_face_on_the_template_is_not_moved(rng):
    landmarks = rng.uniform(0, 256, (68, 2))
    landmarks[KEYPOINTS] = template(256, 1.3)
    matrix = crop_matrix(landmarks, 256, 1.3)
    np.testing.assert_allclose(matrix, [[1, 0, 0], [0, 1, 0]], atol=1e-9)
    image = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
    np.testing.assert_array_equal(warp_image(image, matrix, 256), image)


def test_points_and_mask_go_where_the_image_goes(rng):
    corners = np.array([[60.0, 80], [190, 70], [120, 150]])
    image, mask = np.zeros((240, 260, 3), np.uint8), np.zeros((240, 260), np.uint8)
    for x, y in corners.astype(int):
        image[y - 3 : y + 4, x - 3 : x + 4] = 255
        mask[y - 3 : y + 4, x - 3 : x + 4] = 7
    matrix = similarity(corners, np.array([[60.0, 60], [150, 80], [90, 130]]))
    crop, carried = warp_image(image, matrix, 200)[..., 0], warp_mask(mask, matrix, 200)
    assert set(np.unique(carried)) == {0, 7}
    for x, y in warp_points(corners, matrix):
        for pixels in (crop, carried):
            rows, columns = np.nonzero(pixels[round(y) - 12 : round(y) + 13, round(x) - 12 : round(x) + 13])
            assert abs(rows.mean() - 12 + round(y) - y) < 0.6
            assert abs(columns.mean() - 12 + round(x) - x) < 0.6


def test_beyond_the_image_is_black():
    white = np.full((20, 20, 3), 255, np.uint8)
    crop = warp_image(white, np.array([[1.0, 0, 10], [0, 1, 10]]), 40)
    assert crop[:10].max() == 0
    assert crop[30:].max() == 0
    assert crop[10:30, 10:30].min() == 255
