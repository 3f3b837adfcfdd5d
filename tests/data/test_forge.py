"""The forge: forgeries of three families, and the camera that records them."""

import numpy as np
import pytest
from scipy.fft import dctn
from sklearn.metrics import roc_auc_score

from r2m_jax.data.embedded import cut_patches, embedded_photographs
from r2m_jax.data.forge import FAMILIES, FAMILY_NAMES, METHODS, face_swap, forge_images, registry
from r2m_jax.data.forge.camera import record
from r2m_jax.data.forge.face_swap import transfer_colour
from r2m_jax.data.forge.method import Method, unfitted
from r2m_jax.data.forge.regions import ellipse, feathered, paste
from r2m_jax.data.forge.warping import similarity, warp
from r2m_jax.errors import InputError

LOCAL = ("feathered_swap", "poisson_swap", "self_blended", "expression_warp", "mouth_replacement")


@pytest.fixture(scope="module")
def patches() -> np.ndarray:
    return cut_patches(embedded_photographs(), 64, 200, 0)[0]


@pytest.fixture(scope="module")
def forged(patches) -> dict[str, np.ndarray]:
    return {m: forge_images(m, patches[:60], patches, patches, seed=1) for m in METHODS}


def test_families_hold_every_method_once():
    assert list(FAMILIES) == list(FAMILY_NAMES) == ["FS", "FR", "EFS"]
    assert sorted(name for names in FAMILIES.values() for name in names) == sorted(METHODS)
    for family, names in FAMILIES.items():
        assert len(names) >= 3
        assert all(METHODS[name].family == family and METHODS[name].name == name for name in names)
    assert all("http" in method.source for method in METHODS.values())


@pytest.mark.parametrize("method", METHODS)
def test_forgeries_differ_from_every_image_but_not_in_shape(method, patches, forged):
    assert forged[method].shape == patches[:60].shape
    assert forged[method].dtype == np.uint8
    changed = (forged[method] != patches[:60]).any(axis=3).mean(axis=(1, 2))
    assert changed.min() > 0.03
    assert np.median(changed) > 0.1


@pytest.mark.parametrize("method", METHODS)
def test_a_forgery_depends_on_seed_method_and_image_alone(method, patches, forged):
    picked = [41, 7, 23]
    again = forge_images(method, patches[picked], patches, patches, seed=1)
    np.testing.assert_array_equal(again, forged[method][picked])
    other = forge_images(method, patches[picked], patches, patches, seed=2)
    assert all((a != b).any() for a, b in zip(again, other, strict=True))


@pytest.mark.parametrize("method", LOCAL)
def test_local_methods_keep_what_lies_around_the_centre(method, patches, forged):
    outside = ellipse((64, 64), (0.5, 0.5), (0.5, 0.5)) > 1.15
    assert outside.mean() > 0.05
    np.testing.assert_array_equal(forged[method][:, outside], patches[:60][:, outside])


@pytest.mark.parametrize("method", FAMILIES["EFS"])
def test_synthesis_leaves_no_region_untouched(method, patches, forged):
    changed = (forged[method] != patches[:60]).any(axis=3)
    corners = changed.reshape(60, 4, 16, 4, 16).mean(axis=(0, 2, 4))
    assert corners.min() > 0.5


@pytest.mark.parametrize("method", METHODS)
def test_mean_and_spread_do_not_tell_forgeries(method, patches, forged):
    labels = np.repeat([0, 1], 60)
    both = np.concatenate([patches[:60], forged[method]]).astype(float)
    for statistic in (both.mean(axis=(1, 2, 3)), both.std(axis=(1, 2, 3))):
        assert abs(roc_auc_score(labels, statistic) - 0.5) < 0.15


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(16, 16), (37, 50)])
def test_other_sizes_are_forged_too(method, shape):
    images = np.random.default_rng(0).integers(0, 256, (4, *shape, 3), dtype=np.uint8)
    assert forge_images(method, images, images, images, seed=0).shape == images.shape


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("level", [0, 255])
def test_flat_images_are_forged_without_a_warning(method, level, patches):
    flat = np.full((2, 64, 64, 3), level, np.uint8)
    assert forge_images(method, flat, patches, patches[:30], seed=0).shape == flat.shape


def test_an_image_is_never_its_own_donor(monkeypatch, patches):
    given = []

    def remember(image, donors, rng):
        given.append((image, donors))
        return image

    monkeypatch.setitem(METHODS, "probe", Method("probe", "FS", "", "", unfitted(remember)))
    few = patches[:5]
    forge_images("probe", few, np.concatenate([few, few[::-1]]), few, seed=0)
    assert len(given) == 5
    for image, donors in given:
        assert len(donors) == 8
        assert not any((donor == image).all() for donor in donors)


def test_errors_say_what_to_do(patches):
    few = patches[:2]
    with pytest.raises(InputError, match="no forging method 'poison_swap'; did you mean 'poisson_swap'"):
        forge_images("poison_swap", few, few, few, 0)
    with pytest.raises(InputError, match=r"images is float64 \[2, 64, 64, 3\]; uint8 images"):
        forge_images("dense_motion", few / 255, few, few, 0)
    with pytest.raises(InputError, match=r"donors is uint8 \[2, 8, 8, 3\]"):
        forge_images("dense_motion", few, few[:, :8, :8], few, 0)
    with pytest.raises(InputError, match=r"donors of \(32, 32\) pixels do not fit"):
        forge_images("dense_motion", few, few[:, :32, :32], few, 0)
    with pytest.raises(InputError, match="needs a donor"):
        forge_images("feathered_swap", few[:1], few[:1], few, 0)
    for method in ("vq_reconstruction", "patch_diffusion"):
        with pytest.raises(InputError, match="1 generator images without texture"):
            forge_images(method, few, few, np.zeros_like(few[:1]), 0)
        with pytest.raises(InputError, match="0 generator images"):
            forge_images(method, few, few, few[:0], 0)


def test_reenactment_and_self_blending_need_no_donor(patches):
    for method in ("self_blended", *FAMILIES["FR"]):
        forge_images(method, patches[:1], patches[:0], patches[:0], 0)


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
    inside = ellipse((20, 24), (0.5, 0.5), (0.3, 0.35)) <= 1
    hidden = np.where(inside[..., None], -1e3, plane)
    np.testing.assert_allclose(face_swap._harmonic(hidden, inside)[inside], plane[inside], atol=1e-8)


def test_warp_moves_by_the_displacement_and_similarity_enlarges():
    image = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    shift = np.zeros((2, 20, 24))
    shift[0], shift[1] = 2, -3
    np.testing.assert_allclose(warp(image, shift)[:18, 3:], image[2:, :21])
    np.testing.assert_allclose(warp(image, similarity((20, 24), (0.5, 0.5), shift=(2, 3)))[2:, 3:], image[:18, :21])
    doubled = warp(image, similarity((20, 24), (0.5, 0.5), scale=(2, 2)))
    np.testing.assert_allclose(doubled[::2, ::2], image[5:15, 6:18])


def test_paste_keeps_pixels_outside_the_mask():
    inside = ellipse((40, 40), (0.5, 0.5), (0.2, 0.2)) <= 1
    mask = feathered(inside, 2.0)
    assert mask.max() <= 1 + 1e-12
    assert mask[20, 20] == pytest.approx(1)
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    pasted = paste(image, np.full((40, 40, 3), 300.0), mask)
    np.testing.assert_array_equal(pasted[mask == 0], image[mask == 0])
    assert (mask == 0).mean() > 0.5
    assert (pasted[20, 20] == 255).all()


def test_camera_changes_every_image_a_little_and_repeats(patches):
    for index, image in enumerate(patches[:20]):
        taken = record(image, np.random.default_rng(index))
        np.testing.assert_array_equal(taken, record(image, np.random.default_rng(index)))
        assert taken.shape == image.shape
        assert taken.dtype == np.uint8
        difference = np.abs(taken.astype(int) - image).mean()
        assert 0.3 < difference < 12
    assert (record(patches[0], np.random.default_rng(0)) != record(patches[0], np.random.default_rng(1))).any()


def test_camera_quantises_as_jpeg():
    """Faint noise: the high frequencies of 8 × 8 blocks become zero at every quality the camera uses."""
    faint = np.random.default_rng(0).normal(128, 2, (64, 64, 1)).astype(np.uint8).repeat(3, axis=2)

    def zero_share(image: np.ndarray) -> float:
        blocks = image.mean(axis=2).reshape(8, 8, 8, 8).swapaxes(1, 2)
        return float((np.abs(dctn(blocks, axes=(2, 3), norm="ortho"))[:, :, 4:, 4:] < 1).mean())

    assert zero_share(faint) < 0.5
    for seed in range(10):
        assert zero_share(record(faint, np.random.default_rng(seed))) > 0.8


def test_shortlist_is_smaller_than_the_donors(monkeypatch, patches):
    sizes = []

    def count(image, donors, rng):
        sizes.append(len(donors))
        return image

    monkeypatch.setitem(METHODS, "probe", Method("probe", "FS", "", "", unfitted(count)))
    forge_images("probe", patches[:3], patches, patches, seed=0)
    assert sizes == [registry._SHORTLIST] * 3
