"""The distributions of the draws, on host and device, against what albumentations 1.1.0 would draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from r2m_jax.data.augment import Draws, Policy, device, host, preset
from r2m_jax.data.augment.draws import UNIFORMS, parameters

COUNT = 12_000
ALPHA = 1e-4
"""Of every test below; seeds are fixed, so that a test either always passes or always fails."""


def _drawn(where: str, policy: Policy) -> Draws:
    if where == "device":
        keys = device.image_keys(jax.random.key(7), jnp.arange(COUNT))
        return jax.tree.map(np.asarray, device.draw_batch(keys, policy))
    rng = np.random.default_rng(7)
    return Draws(*(np.array(column) for column in zip(*(host.draw(rng, policy) for _ in range(COUNT)), strict=True)))


@pytest.fixture(scope="module", params=["host", "device"])
def drawn(request) -> Draws:
    return _drawn(request.param, preset("df40"))


def _rate(fired, probability: float) -> None:
    assert stats.binomtest(int(fired.sum()), COUNT, probability).pvalue > ALPHA


def _uniform(values, low: float, high: float) -> None:
    assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > ALPHA


def test_each_transform_fires_as_often_as_it_should(drawn):
    hsv = (drawn.hue != 0) | (drawn.saturation != 0) | (drawn.value != 0)
    _rate(drawn.flip, 1 / 2)
    _rate(drawn.degrees != 0, 1 / 2)
    _rate(drawn.blur_size > 1, 1 / 2)
    _rate(drawn.jpeg_quality > 0, 1 / 2)
    both = (drawn.gain != 1) & (drawn.offset != 0)
    for fired in (both, drawn.pca != 0, hsv):
        _rate(fired, 1 / 6)
    assert (both.astype(int) + (drawn.pca != 0) + hsv).max() == 1
    # transforms fire independently of each other
    table = [[np.sum((drawn.flip == a) & ((drawn.jpeg_quality > 0) == b)) for a in (0, 1)] for b in (0, 1)]
    assert stats.chi2_contingency(table).pvalue > ALPHA


def test_ranges_are_uniform_and_fancy_pca_is_normal(drawn):
    _uniform(drawn.degrees[drawn.degrees != 0], -10, 10)
    _uniform(drawn.gain[drawn.gain != 1], 0.9, 1.1)
    _uniform(drawn.offset[drawn.offset != 0], -0.1, 0.1)
    for values, limit in ((drawn.hue, 20), (drawn.saturation, 30), (drawn.value, 20)):
        _uniform(values[values != 0], -limit, limit)
    assert stats.kstest(drawn.pca[drawn.pca != 0], stats.norm(0, 0.1).cdf).pvalue > ALPHA


def test_blur_sizes_and_jpeg_qualities_have_their_frequencies(drawn):
    sizes = drawn.blur_size[drawn.blur_size > 1]
    counts = [np.sum(sizes == size) for size in (3, 5, 7)]
    assert sum(counts) == len(sizes)
    assert stats.chisquare(counts, np.array([1, 2, 2]) / 5 * len(sizes)).pvalue > ALPHA
    qualities = drawn.jpeg_quality[drawn.jpeg_quality > 0]
    assert (qualities.min(), qualities.max()) == (40, 100)
    assert stats.chisquare(np.bincount(qualities, minlength=101)[40:]).pvalue > ALPHA


def test_host_and_device_draw_from_one_distribution():
    policy = preset("df40")
    for name, a, b in zip(Draws._fields, _drawn("host", policy), _drawn("device", policy), strict=True):
        assert a.dtype == b.dtype, name
        assert stats.ks_2samp(a.astype(float), b.astype(float)).pvalue > ALPHA, name


def test_the_paper_s_wording_draws_brightness_and_contrast_independently():
    draws = _drawn("device", preset("r2m_text"))
    brighter, contrast = draws.offset != 0, draws.gain != 1
    for fired, probability in ((brighter, 0.5), (contrast, 0.5), (brighter & contrast, 0.25)):
        _rate(fired, probability)
    assert not draws.pca.any()
    assert not draws.hue.any()


@pytest.mark.parametrize("uniform", [0.0, np.nextafter(np.float32(1), np.float32(0))])
def test_equal_numbers_give_equal_parameters_and_stay_in_range(uniform):
    policy = Policy(flip=1, rotate=1, blur=1, one_of=1, jpeg=1)
    numbers = np.full(UNIFORMS, uniform, np.float32)
    here = parameters(numbers, np.float32(1), policy, np)
    there = parameters(jnp.asarray(numbers), jnp.float32(1), policy, jnp)
    for a, b in zip(here, there, strict=True):
        np.testing.assert_allclose(a, np.asarray(b), rtol=1e-6)
    assert 40 <= here.jpeg_quality <= 100
    assert here.blur_size in (3, 7)


def test_no_augmentation_is_neutral():
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    np.testing.assert_array_equal(host.augment(image, np.random.default_rng(1), preset("none")), image)
    keys = device.image_keys(jax.random.key(0), jnp.arange(2))
    out = device.augment_batch(keys, jnp.stack([image, image]), preset("none"))
    np.testing.assert_array_equal(out[0], image)
