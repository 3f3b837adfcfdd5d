from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from r2m_jax import InputError
from r2m_jax.evaluation.robustness import BLOCK, GREY, KINDS, LEVELS, PAPER, STRENGTHS, perturb, rav


@pytest.fixture(scope="module")
def face():
    """A photograph-like image: smooth colours with texture, 256 px."""
    rng = np.random.default_rng(3)
    coarse = cv2.resize(rng.integers(40, 216, (8, 8, 3), dtype=np.uint8), (256, 256), interpolation=cv2.INTER_CUBIC)
    texture = cv2.GaussianBlur(rng.normal(0, 60, coarse.shape), (0, 0), 2)
    return np.clip(coarse + texture, 0, 255).astype(np.uint8)


def distance(a, b):
    return float(np.sqrt(np.mean((a.astype(float) - b.astype(float)) ** 2)))


@pytest.mark.parametrize("kind", KINDS)
def test_levels_rise_and_nothing_else_changes(kind, face):
    before = face.copy()
    steps = [distance(perturb(face, kind, level, seed=1, index=2), face) for level in (0, *LEVELS)]
    assert steps[0] == 0
    assert steps == sorted(steps)
    assert len(set(steps)) == 6
    np.testing.assert_array_equal(face, before)
    again = perturb(face, kind, 3, seed=1, index=2)
    assert again.shape == face.shape
    assert again.dtype == np.uint8
    np.testing.assert_array_equal(again, perturb(face, kind, 3, seed=1, index=2))
    random = kind in ("block_wise", "gaussian_noise")
    for seed, index in ((2, 2), (1, 3)):
        assert (perturb(face, kind, 3, seed=seed, index=index) != again).any() == random


@pytest.mark.parametrize(("level", "size"), list(zip(LEVELS, (7, 9, 13, 17, 21), strict=True)))
def test_blur_is_the_gaussian_of_scipy(level, size, face):
    from scipy.ndimage import convolve1d

    x = np.arange(size) - size // 2
    kernel = np.exp(-(x**2) / (2 * (size / 6) ** 2))
    kernel /= kernel.sum()
    expected = convolve1d(convolve1d(face.astype(float), kernel, axis=0, mode="mirror"), kernel, axis=1, mode="mirror")
    np.testing.assert_allclose(perturb(face, "gaussian_blur", level), expected, atol=1.5)


@pytest.mark.parametrize(("level", "gain"), list(zip(LEVELS, (0.85, 0.725, 0.6, 0.475, 0.35), strict=True)))
def test_contrast_is_a_product_cut_to_whole_numbers(level, gain, face):
    expected = (face.astype(np.float32) * np.float32(gain)).astype(np.uint8)
    np.testing.assert_array_equal(perturb(face, "contrast", level), expected)


@pytest.mark.parametrize(("level", "factor"), list(zip(LEVELS, (2, 3, 4, 5, 6), strict=True)))
def test_resampling_is_opencvs_and_no_jpeg(level, factor, face):
    small = cv2.resize(face, (256 // factor, 256 // factor))
    np.testing.assert_array_equal(perturb(face, "resample", level), cv2.resize(small, (256, 256)))
    flat = np.full((64, 64, 3), 77, np.uint8)
    np.testing.assert_array_equal(perturb(flat, "resample", level), flat)


@pytest.mark.parametrize(("level", "count"), list(zip(LEVELS, (16, 32, 48, 64, 80), strict=True)))
@pytest.mark.parametrize(("side", "factor"), [(224, 1), (256, 1), (512, 2), (96, 1)])
def test_blocks_are_grey_squares_as_many_as_told(level, count, side, factor):
    """Also at 224 px, where DeeperForensics' own count is 0."""
    from scipy.ndimage import binary_opening

    white = np.full((side, side + 40, 3), 255, np.uint8)
    grey = (perturb(white, "block_wise", level, seed=5) != 255).any(axis=2)
    assert 0 < grey.sum() <= count * factor * BLOCK**2
    assert set(np.unique(perturb(white, "block_wise", level, seed=5))) == {GREY, 255}
    # Every grey pixel belongs to a whole square: opening with an 8 × 8 square takes nothing away.
    np.testing.assert_array_equal(binary_opening(grey, np.ones((BLOCK, BLOCK))), grey)


def test_the_number_of_blocks_shows_in_the_area_they_cover():
    """Squares at random places leave each inner pixel free with chance (1 - 64/(248·248))^count."""
    white = np.full((256, 256, 3), 255, np.uint8)
    inner = np.s_[8:248, 8:248]
    for level, count in zip(LEVELS, STRENGTHS["block_wise"], strict=True):
        free = np.mean([(perturb(white, "block_wise", level, index=i)[inner] == 255).mean() for i in range(60)])
        assert free == pytest.approx((1 - 64 / 248**2) ** count, abs=4e-3)


@given(st.integers(0, 2**31), st.integers(0, 10**6))
def test_a_higher_level_has_the_lower_ones_blocks_and_more(seed, index):
    white = np.full((64, 80, 3), 255, np.uint8)
    covered = [(perturb(white, "block_wise", level, seed=seed, index=index) == GREY) for level in LEVELS]
    for low, high in pairwise(covered):
        assert (high | ~low).all()


@pytest.mark.parametrize("level", LEVELS)
def test_saturation_is_a_mixture_with_grey_as_in_pillow(level, face):
    """Scaling Cb and Cr is mixing with BT.601 grey, which is Pillow's colour enhancement."""
    gain = STRENGTHS["saturation"][level - 1]
    expected = np.asarray(ImageEnhance.Color(Image.fromarray(face)).enhance(gain))
    np.testing.assert_allclose(perturb(face, "saturation", level).astype(float), expected, atol=2)
    grey = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2).repeat(16, axis=1)
    np.testing.assert_array_equal(perturb(grey, "saturation", level), grey)


@pytest.mark.parametrize(("level", "variance"), list(zip(LEVELS[:4], (0.001, 0.002, 0.005, 0.01), strict=True)))
def test_noise_has_the_variance_in_studio_range(level, variance):
    """Measured by scikit-image's BT.601 matrix, whose Y, Cb, Cr are of studio range."""
    from skimage.color import rgb2ycbcr

    grey = np.full((256, 256, 3), 128, np.uint8)
    planes = rgb2ycbcr(perturb(grey, "gaussian_noise", level)).reshape(-1, 3)
    # Cb and Cr are measured in G too, which a strong noise limits; 4 % covers that and the rounding.
    np.testing.assert_allclose(planes.std(axis=0), 255 * np.sqrt(variance), rtol=0.04)
    np.testing.assert_allclose(planes.mean(axis=0), rgb2ycbcr(grey)[0, 0], atol=0.7)


@pytest.mark.parametrize("level", LEVELS)
def test_jpeg_is_jpeg(level, face):
    quality = (90, 70, 50, 30, 10)[level - 1]
    _, data = cv2.imencode(".jpg", face[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    np.testing.assert_array_equal(perturb(face, "jpeg", level), cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])


@given(st.floats(0.01, 1), st.floats(0.01, 1))
def test_rav_is_a_relative_change(perturbed, clean):
    assert clean * (1 + rav(perturbed, clean)) == pytest.approx(perturbed)
    assert rav(clean, clean) == 0


@pytest.mark.parametrize("pair", [(0.5, 0.0), (np.nan, 0.9), (0.9, np.nan), (0.5, 1.1)])
def test_rav_of_no_auc_is_refused(pair):
    with pytest.raises(InputError, match="not defined"):
        rav(*pair)


def test_unknown_kinds_levels_and_images_are_refused(face):
    assert set(PAPER) < set(KINDS)
    for call in (
        lambda: perturb(face, "fog", 1),
        lambda: perturb(face, "contrast", 6),
        lambda: perturb(face.astype(np.float32), "contrast", 1),
        lambda: perturb(face[..., 0], "contrast", 1),
        lambda: perturb(face[:8], "block_wise", 1),
    ):
        with pytest.raises(InputError, match=r"there is no|an image is"):
            call()
