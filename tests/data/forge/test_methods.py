"""What holds for every forging method, on patches without faces and on a face with landmarks."""

import numpy as np
import pytest
from skimage import data as photographs
from sklearn.metrics import roc_auc_score

from r2m_jax.data.embedded import cut_patches, embedded_photographs
from r2m_jax.data.forge import FAMILIES, FAMILY_NAMES, METHODS, Face, fit_method, forge_faces, forge_images, registry
from r2m_jax.data.forge.landmarks import MEAN_FACE
from r2m_jax.data.forge.method import Method
from r2m_jax.errors import InputError

GLOBAL = ("self_blended", "multiband_swap", "dense_motion", "thin_plate_motion", "recoded_motion")
"""Swaps and reenactments that touch the whole frame: colours, wide bands, background motion, video coding."""
LOCAL = tuple(name for family in ("FS", "FR") for name in FAMILIES[family] if name not in GLOBAL)
PARTIAL = ("part_swap", "mouth_replacement", "gaze_redirection")
"""Methods that touch one part of a face."""
EFFORT = 0.02


@pytest.fixture(scope="module")
def patches() -> np.ndarray:
    return cut_patches(embedded_photographs(), 64, 200, 0)[0]


@pytest.fixture(scope="module")
def forged(patches) -> dict[str, np.ndarray]:
    return {name: forge(name, patches[:60], patches, seed=1) for name in METHODS}


def forge(name: str, images: np.ndarray, donors: np.ndarray, seed: int) -> np.ndarray:
    """`forge_images` with generators hardly trained: what is tested here does not depend on how well they are."""
    state = fit_method(name, donors, seed, EFFORT)
    return np.array(list(forge_faces(name, [Face(image) for image in images], [Face(d) for d in donors], state, seed)))


def test_families_hold_every_method_once():
    assert list(FAMILIES) == list(FAMILY_NAMES) == ["FS", "FR", "EFS"]
    assert sorted(name for names in FAMILIES.values() for name in names) == sorted(METHODS)
    for family, names in FAMILIES.items():
        assert len(names) >= 8
        assert all(METHODS[name].family == family and METHODS[name].name == name for name in names)
    assert all("http" in method.source for method in METHODS.values())


@pytest.mark.parametrize("method", METHODS)
def test_forgeries_differ_from_every_image_but_not_in_shape(method, patches, forged):
    assert forged[method].shape == patches[:60].shape
    assert forged[method].dtype == np.uint8
    changed = (forged[method] != patches[:60]).any(axis=3).mean(axis=(1, 2))
    assert changed.min() > (0.004 if method in PARTIAL else 0.03)
    assert np.median(changed) > (0.02 if method in PARTIAL else 0.1)


@pytest.mark.parametrize("method", METHODS)
def test_a_forgery_depends_on_seed_method_and_image_alone(method, patches, forged):
    picked = [41, 7, 23]
    again = forge(method, patches[picked], patches, seed=1)
    np.testing.assert_array_equal(again, forged[method][picked])
    other = forge(method, patches[picked], patches, seed=2)
    assert all((a != b).any() for a, b in zip(again, other, strict=True))


@pytest.mark.parametrize("method", LOCAL)
def test_local_methods_keep_what_lies_around_the_centre(method, patches, forged):
    outside = np.ones((64, 64), bool)
    outside[1:63, 1:63] = False
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
    assert forge(method, images, images, seed=0).shape == images.shape


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("level", [0, 255])
def test_flat_images_are_forged_without_a_warning(method, level, patches):
    flat = np.full((2, 64, 64, 3), level, np.uint8)
    assert forge(method, flat, patches[:30], seed=0).shape == flat.shape


def test_an_image_is_never_its_own_donor(monkeypatch, patches):
    given = []

    def remember(face, donors, state, rng):
        given.append((face.pixels, [donor.pixels for donor in donors]))
        return face.pixels

    monkeypatch.setitem(METHODS, "probe", Method("probe", "FS", "", "", remember))
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
    for method in (name for name in METHODS if METHODS[name].fit):
        with pytest.raises(InputError, match="1 generator images without texture"):
            fit_method(method, np.zeros_like(few[:1]), 0, EFFORT)
        with pytest.raises(InputError, match="0 generator images"):
            fit_method(method, few[:0], 0, EFFORT)


def test_reenactment_and_self_blending_need_no_donor(patches):
    for method in ("self_blended", *FAMILIES["FR"]):
        forge_images(method, patches[:1], patches[:0], patches[:0], 0)


def test_shortlist_is_smaller_than_the_donors(monkeypatch, patches):
    sizes = []

    def count(face, donors, state, rng):
        sizes.append(len(donors))
        return face.pixels

    monkeypatch.setitem(METHODS, "probe", Method("probe", "FS", "", "", count))
    forge_images("probe", patches[:3], patches, patches, seed=0)
    assert sizes == [registry._SHORTLIST] * 3


@pytest.fixture(scope="module")
def person() -> Face:
    """The astronaut of scikit-image; her landmarks are a mean face over hers (eyes at y 118, jaw about 100 wide)."""
    crop = photographs.astronaut()[20:276, 96:352]
    return Face(np.ascontiguousarray(crop), MEAN_FACE * 105 + [128, 125])


@pytest.mark.parametrize("method", LOCAL)
def test_on_a_face_local_methods_change_the_face_alone(method, person):
    donors = [Face(person.pixels[:, ::-1].copy(), person.landmarks + 0.5), Face(person.pixels // 2, person.landmarks)]
    (forged,) = forge_faces(method, [person], donors, {}, seed=3)
    changed = (forged != person.pixels).any(axis=2)
    rows, columns = np.nonzero(changed)
    left, top = person.landmarks.min(axis=0) - np.array([25, 50])
    right, bottom = person.landmarks.max(axis=0) + 25
    assert changed.sum() > 400
    assert left <= columns.min() <= columns.max() <= right
    assert top <= rows.min() <= rows.max() <= bottom
