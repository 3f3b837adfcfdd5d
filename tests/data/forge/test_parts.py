"""The pieces forgeries are made of: colours, blending, warps, landmarks, motion, self-blending."""

import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from skimage.exposure import match_histograms as skimage_match

from r2m_jax.data.embedded import cut_patches, embedded_photographs
from r2m_jax.data.forge import Face
from r2m_jax.data.forge.blending import clone, feathered, harmonic, multiband, paste
from r2m_jax.data.forge.colour import match_histograms, transfer_colour
from r2m_jax.data.forge.donors import aligned, choose, fitted
from r2m_jax.data.forge.landmarks import MEAN_FACE, hull, outline, points_of
from r2m_jax.data.forge.motion import anchored_field, expression, expression_of, head_turn
from r2m_jax.data.forge.self_blending import self_blend
from r2m_jax.data.forge.warping import affine_field, similarity, spline_field, warp


@pytest.fixture(scope="module")
def patches() -> np.ndarray:
    return cut_patches(embedded_photographs(), 64, 60, 0)[0]


def disc(shape: tuple[int, int], radius: float) -> np.ndarray:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return (rows - shape[0] / 2) ** 2 + (columns - shape[1] / 2) ** 2 <= radius**2


def test_colour_transfer_matches_mean_and_spread_in_lab(patches):
    from skimage.color import rgb2lab

    everywhere = np.ones((64, 64), bool)
    # Mild colours: nothing leaves the gamut, so the match is exact.
    source, target = 96 + patches[3] / 4, (96 + patches[11] / 5).astype(np.uint8)
    matched = transfer_colour(source, target, everywhere)
    ours, theirs = rgb2lab(matched / 255)[everywhere], rgb2lab(target / 255)[everywhere]
    gain = theirs.std(axis=0) / rgb2lab(source / 255)[everywhere].std(axis=0)
    np.testing.assert_allclose(ours.mean(axis=0), theirs.mean(axis=0), atol=0.1)
    bounded = (gain > 0.5) & (gain < 2)
    assert bounded.any()
    np.testing.assert_allclose(ours.std(axis=0)[bounded], theirs.std(axis=0)[bounded], rtol=0.02)


def test_harmonic_continuation_restores_linear_values():
    rows, columns = np.mgrid[:20, :24].astype(float)
    plane = np.stack([rows, columns, 2 * rows - columns], axis=-1)
    inside = disc((20, 24), 7)
    hidden = np.where(inside[..., None], -1e3, plane)
    np.testing.assert_allclose(harmonic(hidden, inside)[inside], plane[inside], atol=1e-8)


def test_warp_moves_by_the_displacement_and_similarity_enlarges():
    image = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    shift = np.zeros((2, 20, 24))
    shift[0], shift[1] = 2, -3
    np.testing.assert_allclose(warp(image, shift)[:18, 3:], image[2:, :21])
    np.testing.assert_allclose(warp(image, similarity((20, 24), (10, 12), shift=(2, 3)))[2:, 3:], image[:18, :21])
    doubled = warp(image, similarity((20, 24), (10, 12), scale=(2, 2)))
    np.testing.assert_allclose(doubled[::2, ::2], image[5:15, 6:18])


def test_paste_keeps_pixels_outside_the_mask():
    inside = disc((40, 40), 8)
    mask = feathered(inside, 2.0)
    assert mask.max() <= 1 + 1e-12
    assert mask[20, 20] == pytest.approx(1)
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    pasted = paste(image, np.full((40, 40, 3), 300.0), mask)
    np.testing.assert_array_equal(pasted[mask == 0], image[mask == 0])
    assert (mask == 0).mean() > 0.5
    assert (pasted[20, 20] == 255).all()


def test_warp_is_scipys_bilinear_interpolation():
    rng = np.random.default_rng(0)
    image, field = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8), rng.uniform(-2, 2, (2, 30, 40))
    grid = np.mgrid[:30, :40] + field
    expected = [map_coordinates(image[..., c].astype(float), grid, order=1, mode="mirror") for c in range(3)]
    # OpenCV places samples on a grid of 1/32 pixel: half a step of error, times the largest difference of neighbours.
    assert np.abs(warp(image, field) - np.stack(expected, axis=-1)).max() < 2 * 255 / 64 + 1


def test_histograms_match_as_in_scikit_image(patches):
    everywhere = np.ones((64, 64), bool)
    ours = match_histograms(patches[3], patches[11], everywhere)
    theirs = skimage_match(patches[3], patches[11], channel_axis=-1)
    assert np.abs(ours - theirs).mean() < 3  # it ranks a level by its last pixel, we by the middle one
    for c in range(3):
        difference = np.sort(ours[..., c], axis=None) - np.sort(patches[11][..., c], axis=None)
        assert np.abs(difference).mean() < 2


def test_cloning_itself_changes_nothing_and_an_offset_vanishes(patches):
    inside = disc((64, 64), 20)
    np.testing.assert_array_equal(clone(patches[0], patches[0].astype(float), inside), patches[0])
    np.testing.assert_array_equal(clone(patches[0], patches[0] + 30.0, inside), patches[0])


def test_multiband_blending_of_equals_is_the_image_and_full_masks_choose_a_side(patches):
    mask = feathered(disc((64, 64), 20), 2.0)
    np.testing.assert_array_equal(multiband(patches[0], patches[0], mask, 3), patches[0])
    np.testing.assert_array_equal(multiband(patches[0], patches[1], np.ones((64, 64)), 3), patches[1])
    np.testing.assert_array_equal(multiband(patches[0], patches[1], np.zeros((64, 64)), 3), patches[0])


def test_the_mean_face_is_symmetric():
    mirrored = MEAN_FACE * [-1, 1]
    jaw = np.arange(16, -1, -1)
    np.testing.assert_array_equal(mirrored[jaw], MEAN_FACE[:17])
    eye = [45, 44, 43, 42, 47, 46]
    np.testing.assert_array_equal(mirrored[eye], MEAN_FACE[36:42])
    assert np.ptp(MEAN_FACE[:, 0]) == 1


def test_known_landmarks_are_used_and_unknown_ones_lie_in_the_image():
    pixels = np.zeros((80, 60, 3), np.uint8)
    known = MEAN_FACE * 30 + [30, 40]
    np.testing.assert_array_equal(points_of(Face(pixels, known), np.random.default_rng(0)), known)
    for seed in range(50):
        ring = outline(points_of(Face(pixels), np.random.default_rng(seed)))
        assert ring.min() > 0
        assert (ring < [59, 79]).all()


def test_hull_is_convex_and_keeps_off_the_edge():
    points = np.array([(-20.0, 5), (30, -10), (100, 40), (30, 90)])
    inside = hull(points, (50, 60))
    assert inside.any()
    assert not inside[[0, -1]].any()
    assert not inside[:, [0, -1]].any()


def blob(points: np.ndarray) -> np.ndarray:
    """An image with a bright spot at every point."""
    x, y = np.arange(200)[None, :, None], np.arange(200)[:, None, None]
    spots = np.exp(-((x - points[:, 0]) ** 2 + (y - points[:, 1]) ** 2) / 8).max(axis=2)
    return np.repeat((255 * spots).astype(np.uint8)[..., None], 3, axis=2)


def test_a_donor_is_brought_to_the_landmarks():
    there = MEAN_FACE * 80 + [100, 100]
    here = (MEAN_FACE * 60) @ np.array([[0.96, 0.28], [-0.28, 0.96]]) + [90, 105]
    moved = aligned(Face(blob(here), here), there, (200, 200), np.random.default_rng(0))
    np.testing.assert_allclose(moved.landmarks, there, atol=1e-9)
    values = moved.pixels[..., 0][tuple(np.rint(there[:, ::-1]).astype(int).T)]
    assert values.min() > 200


def test_a_mesh_moves_every_landmark_to_its_place():
    here = MEAN_FACE * 90 + [100, 100]
    there = here + np.random.default_rng(0).normal(0, 1.5, here.shape)
    values = fitted(Face(blob(here), here), there, (200, 200))[..., 0][tuple(np.rint(there[:, ::-1]).astype(int).T)]
    assert np.median(values) > 220


def test_the_donor_chosen_is_the_most_alike(patches):
    everywhere = np.ones((64, 64), bool)
    twin = (patches[5].astype(int) + 2).clip(0, 255).astype(np.uint8)
    donors = [Face(image) for image in (*patches[20:30], twin)]
    assert choose(Face(patches[5]), donors, everywhere) is donors[-1]


def test_fields_move_content_where_they_say():
    image = blob(np.array([[60.0, 80.0], [120.0, 90.0]]))
    original = np.array([[60.0, 80], [120, 90], [10, 10], [190, 10], [10, 190], [190, 190]])
    moved = original.copy()
    moved[:2] += [[10, -6], [-4, 12]]
    result = warp(image, spline_field((200, 200), moved, original))[..., 0]
    assert result[74, 70] > 230
    assert result[102, 116] > 230
    shifted = warp(image, affine_field((200, 200), np.array([[1.0, 0, 5], [0, 1, -3]])))[..., 0]
    assert shifted[83, 55] > 250


def test_expressions_move_the_mouth_and_leave_the_surroundings(patches):
    points = MEAN_FACE * 100 + [128, 128]
    for seed in range(10):
        moved = expression(points, np.random.default_rng(seed))
        assert np.abs(moved - points)[48:68].max() > 2
        assert np.abs(moved - points).max() < 15
        np.testing.assert_array_equal(moved[27:36], points[27:36])
        field = anchored_field(points, moved, (256, 256))
        assert np.abs(field[:, :5]).max() < 2
        assert np.abs(field[:, 40:200]).max() > 2


def test_an_expression_is_taken_from_the_donor_whatever_its_place_and_size():
    points = MEAN_FACE * 100 + [128, 128]
    smiling = expression(points, np.random.default_rng(3))
    turned = smiling @ np.array([[0.8, -0.6], [0.6, 0.8]]) * 0.5 + [300, 10]
    there = expression_of(Face(np.zeros((4, 4, 3), np.uint8), turned), points)
    apart = lambda p: p[66, 1] - p[62, 1]  # noqa: E731  # opening of the lips
    assert apart(there) == pytest.approx(apart(smiling), abs=1.0)
    np.testing.assert_array_equal(there[:17], points[:17])


def test_a_turned_head_moves_most_at_the_nose_and_not_at_its_rim():
    points = MEAN_FACE * 100 + [128, 128]
    field = head_turn(points, (256, 256), yaw=0.2, pitch=0.0)
    assert np.abs(field[0]).max() < 1e-9
    assert abs(field[1, 120, 128]) > 8
    assert np.abs(field[:, :20]).max() == 0


def test_self_blending_blends_by_its_mask():
    pixels = cut_patches(embedded_photographs(), 256, 2, 0)[0][0]
    points = MEAN_FACE * 130 + [128, 140]
    altered = outside = 0
    for seed in range(30):
        target, forgery, mask = self_blend(pixels, points, np.random.default_rng(seed))
        assert mask.shape == (256, 256)
        assert 0 <= mask.min() <= mask.max() <= 1
        np.testing.assert_array_equal(forgery[mask == 0], target[mask == 0])
        altered += bool((target != pixels).any())
        outside += bool(mask[0].any())
        # The top of a mask is one of the published ratios, up to the blur's rounding.
        assert min(abs(mask.max() - ratio) for ratio in (0.25, 0.5, 0.75, 1.0)) < 0.02
    assert 5 <= altered <= 25
    assert not outside
