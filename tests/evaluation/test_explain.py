import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from r2m_jax.evaluation.explain import Relevance, draw, explainer
from r2m_jax.models import TowerOptions, apply_detector


def two(margin):
    """Logits whose difference is ``margin``."""
    return jnp.stack([jnp.zeros_like(margin), margin], axis=1)


@pytest.fixture
def images(rng):
    return rng.normal(size=(32, 32, 3)).astype(np.float32), rng.normal(size=(32, 32, 3)).astype(np.float32)


@pytest.fixture(scope="session")
def explain(tiny_config):
    return explainer(apply_detector(tiny_config, TowerOptions(remat="full")), 8)


def test_a_linear_model_is_explained_by_its_weights(rng, images):
    image, baseline = images
    weights = rng.normal(size=image.shape).astype(np.float32)
    found = explainer(lambda params, x: two(jnp.tensordot(x, params, 3)), 8)(weights, image, baseline)
    product = weights.astype(np.float64) * (image.astype(np.float64) - baseline)
    expected = [[product[r : r + 8, c : c + 8].sum() for c in range(0, 32, 8)] for r in range(0, 32, 8)]
    np.testing.assert_allclose(found.patches, expected, rtol=1e-4, atol=1e-4)
    assert found.logit == pytest.approx((weights * image).sum(), rel=1e-4, abs=1e-3)


def test_a_sharp_bend_is_found_by_refining():
    """tanh(600 mean) moves within a hundredth of the way; its integral is known, and only the left half matters."""
    image, baseline = np.ones((16, 16, 3), np.float32), np.zeros((16, 16, 3), np.float32)
    half = np.zeros((16, 16, 3), np.float32)
    half[:, :8] = 1 / half[:, :8].size
    found = explainer(lambda params, x: two(jnp.tanh(600 * jnp.tensordot(x, params, 3))), 8)(half, image, baseline)
    assert found.steps > 32
    np.testing.assert_allclose(found.patches, [[0.5, 0], [0.5, 0]], atol=0.005)


def test_the_map_adds_up_to_the_logit(detector, images, explain):
    image, baseline = images
    found = explain(detector.params, image, baseline)
    ends = np.asarray(detector(np.stack([image, baseline])))
    expected = ends[:, 1] - ends[:, 0]
    assert found.patches.shape == (4, 4)
    assert found.logit == pytest.approx(expected[0], abs=1e-5)
    assert found.baseline == pytest.approx(expected[1], abs=1e-5)
    assert found.patches.sum() == pytest.approx(expected[0] - expected[1], abs=0.01)
    assert np.abs(found.patches).max() > 0.01  # not a sum of nothings


def test_exchanged_classes_and_exchanged_ends_change_the_sign(detector, images, explain):
    image, baseline = images
    found = explain(detector.params, image, baseline)
    head = jax.tree.map(lambda leaf: leaf[..., ::-1], detector.params["head"])
    exchanged = explain({**detector.params, "head": head}, image, baseline)
    np.testing.assert_allclose(exchanged.patches, -found.patches, atol=1e-4)
    np.testing.assert_allclose(explain(detector.params, baseline, image).patches, -found.patches, atol=0.02)
    assert not explain(detector.params, image, image).patches.any()


def test_shares_of_pixels_are_those_of_the_patch_embeddings(detector, images, explain):
    """The patch projection has no bias and is linear, so integrating over embeddings gives the same map."""
    image, _ = images
    kernel = np.asarray(detector.params["backbone"]["embeddings"]["patch"]["kernel"], np.float64)
    inverse = np.linalg.pinv(kernel.reshape(-1, kernel.shape[-1]))

    def blocks(pixels):
        return pixels.reshape(4, 8, 4, 8, 3).transpose(0, 2, 1, 3, 4).reshape(4, 4, -1)

    # Pixels that embed as the patches do, but differ from them: only what embeds can be relevant.
    seen = blocks(image.astype(np.float64)) @ kernel.reshape(-1, kernel.shape[-1]) @ inverse
    other = seen.reshape(4, 4, 8, 8, 3).transpose(0, 2, 1, 3, 4).reshape(32, 32, 3).astype(np.float32)
    assert np.abs(other - image).max() > 0.1
    zeros = np.zeros_like(image)
    found, same = explain(detector.params, image, zeros), explain(detector.params, other, zeros)
    np.testing.assert_allclose(same.patches, found.patches, atol=1e-3)


def test_the_picture_shows_sign_and_place(rng):
    patches = np.zeros((2, 2))
    patches[0, 0], patches[1, 1] = 2.0, -2.0
    image = np.full((32, 32, 3), 128, np.uint8)
    with Image.open(io.BytesIO(draw(image, Relevance(patches, 1.0, 1.0, 32), "a face"))) as picture:
        assert picture.info["Title"] == "a face"
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    red, blue = pixels[..., 0] - pixels[..., 2] > 40, pixels[..., 2] - pixels[..., 0] > 40
    beside = int(0.82 * pixels.shape[1])  # the colour bar, which has the same on either side
    (rows, columns), (below, right) = (np.nonzero(each[:, :beside]) for each in (red, blue))
    assert len(rows) == pytest.approx(len(below), rel=0.05)
    assert len(rows) > 10_000
    assert rows.max() <= below.min()
    assert columns.max() <= right.min()
    assert rows.max() - rows.min() == pytest.approx(columns.max() - columns.min(), abs=3)
