"""Pairs: what is blended, where the foreground is after resizing and augmentation, what batches of them hold."""

import numpy as np
import pytest
from PIL import Image

from r2m_jax import InputError
from r2m_jax.data.augment import host, preset
from r2m_jax.data.augment.draws import Draws
from r2m_jax.data.embedded import embedded_photographs
from r2m_jax.data.faces.landmarks import with_forehead
from r2m_jax.data.foreground import (
    ALIGNED_FACE,
    after_augmentation,
    after_resizing,
    inside_ellipse,
    inside_face,
    patch_shares,
    read_landmarks,
)
from r2m_jax.data.forge.landmarks import MEAN_FACE
from r2m_jax.data.forge.self_blending import canonical_self_blend
from r2m_jax.data.images import resize_and_crop
from r2m_jax.data.pairs import Pairs
from r2m_jax.data.pipeline import Decoding, RecordSource, batches, evaluation_batches
from r2m_jax.data.records import Record

SIZE, PATCH = 64, 8
POINTS = MEAN_FACE * 60 + [64, 66]


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(embedded_photographs()[0].pixels[:140, :128])


@pytest.fixture
def landmarked(picture, tmp_path):
    picture.save(tmp_path / "face.png")
    np.save(tmp_path / "face.npy", POINTS)
    return Record(str(tmp_path / "face.png"), 0, landmarks=str(tmp_path / "face.npy"))


def dots(points, size):
    """An image with a small white disc about each point, brighter than all else."""
    y, x = np.mgrid[: size[1], : size[0]]
    distance = np.min([np.hypot(x - px, y - py) for px, py in points], axis=0)
    return Image.fromarray((255 * np.clip(3 - distance, 0, 1)).astype(np.uint8)).convert("RGB")


@pytest.mark.parametrize("size", [(128, 128), (120, 180), (200, 90)])
@pytest.mark.parametrize("draws", [{}, {"flip": True}, {"degrees": 9.0}, {"flip": True, "degrees": -7.0}])
def test_points_follow_the_pixels_they_are_on(size, draws):
    points = np.array([[size[0] / 2 - 12.0, size[1] / 2 + 10.0], [size[0] / 2 + 15.0, size[1] / 2 + 4.0]])
    neutral = Draws(False, 0.0, 1, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0)._replace(**draws)
    image = host.apply(resize_and_crop(dots(points, size), SIZE), neutral)
    moved = after_augmentation(after_resizing(points, size, SIZE), neutral, SIZE)
    for point in moved:
        y, x = np.mgrid[:SIZE, :SIZE]
        near = image[..., 0].astype(float) * (np.hypot(x - point[0], y - point[1]) < 5)
        centre = (np.array([(near * x).sum(), (near * y).sum()])) / near.sum()
        np.testing.assert_allclose(centre, point, atol=0.35)


def test_shares_of_patches_add_up_to_the_mask(rng):
    mask = rng.random((24, 32)) < 0.4
    shares = patch_shares(mask, 8)
    assert shares.shape == (12,)
    assert shares.sum() * 64 == pytest.approx(mask.sum(), rel=1e-6)
    assert shares[5] == pytest.approx(mask[8:16, 8:16].mean())  # the second row of four


def test_the_ellipse_has_its_area():
    mask = inside_ellipse((200, 300), ALIGNED_FACE)
    assert mask.mean() == pytest.approx(np.pi * 0.36 * 0.47, abs=2e-3)
    assert np.nonzero(mask)[0].mean() == pytest.approx(0.53 * 200 - 0.5, abs=0.5)
    assert np.nonzero(mask)[1].mean() == pytest.approx(0.5 * 300 - 0.5, abs=0.5)


def test_a_face_is_the_same_from_68_and_from_81_landmarks():
    np.testing.assert_array_equal(inside_face(POINTS, (128, 128)), inside_face(with_forehead(POINTS), (128, 128)))
    assert inside_face(POINTS, (128, 128))[20:30, 60:70].any()  # the forehead


def test_the_canonical_blend_changes_the_inside_alone(picture):
    image = resize_and_crop(picture, SIZE)
    inside = inside_ellipse((SIZE, SIZE), ALIGNED_FACE)
    blended = canonical_self_blend(image, inside)
    np.testing.assert_array_equal(blended, canonical_self_blend(image, inside))
    changed = (blended != image).any(axis=-1)
    assert changed[inside].mean() > 0.5
    assert changed[~inside].mean() < 0.3
    assert blended[inside].mean() > image[inside].mean() + 3
    np.testing.assert_array_equal(canonical_self_blend(image, np.zeros_like(inside)), image)


def test_landmarks_decide_where_the_face_is(picture, landmarked):
    rng = np.random.default_rng(0)
    by_landmarks = Pairs(SIZE, PATCH, "landmarks")(picture, landmarked, rng)
    inside = inside_face(after_resizing(POINTS, picture.size, SIZE), (SIZE, SIZE))
    np.testing.assert_allclose(by_landmarks["foreground"], patch_shares(inside, PATCH))
    plain = Record(landmarked.path, 0)
    ellipse = Pairs(SIZE, PATCH, "ellipse")(picture, landmarked, rng)["foreground"]
    np.testing.assert_array_equal(Pairs(SIZE, PATCH, "face")(picture, plain, rng)["foreground"], ellipse)
    assert (ellipse != by_landmarks["foreground"]).any()
    with pytest.raises(InputError, match="no landmarks in the index"):
        Pairs(SIZE, PATCH, "landmarks")(picture, plain, rng)


def test_regions_never_depend_on_a_manipulation_mask(picture, landmarked, tmp_path):
    Image.new("L", picture.size, 255).save(tmp_path / "mask.png")
    masked = Record(landmarked.path, 1, landmarks=landmarked.landmarks, mask=str(tmp_path / "mask.png"))
    for rule in ("face", "landmarks", "ellipse", "centre"):
        one, other = (Pairs(SIZE, PATCH, rule)(picture, r, np.random.default_rng(0)) for r in (landmarked, masked))
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_the_foreground_is_mirrored_with_the_image(picture, landmarked):
    from dataclasses import replace

    always = replace(preset("flip"), flip=1.0)
    straight, mirrored = (
        Pairs(SIZE, PATCH, "landmarks", policy=p)(picture, landmarked, np.random.default_rng(0)) for p in (None, always)
    )
    np.testing.assert_array_equal(mirrored["image"][0], straight["image"][0, :, ::-1])
    grids = [made["foreground"].reshape(8, 8) for made in (straight, mirrored)]
    np.testing.assert_allclose(grids[1], grids[0][:, ::-1], atol=0.15)  # corners of the hull are whole pixels


def test_drawn_blends_differ_and_come_from_the_generator(picture, landmarked):
    pairs = Pairs(SIZE, PATCH, "face", blends=3, drawn=True)
    one, two = (pairs(picture, landmarked, np.random.default_rng(7))["image"] for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert one.shape == (4, SIZE, SIZE, 3)
    np.testing.assert_array_equal(one[0], resize_and_crop(picture, SIZE))
    assert (one[1] != one[2]).any()
    assert (one[1] != one[0]).any()


def test_batches_hold_what_was_prepared_in_order(landmarked, picture):
    records = [landmarked, Record(landmarked.path, 1), landmarked]
    pairs = Pairs(SIZE, PATCH, "face", policy=preset("df40"))
    made = []
    for workers in (0, 2):
        decoding = Decoding(SIZE, workers, prepare=pairs)
        with batches(RecordSource(records), batch_size=2, seed=1, epochs=2, decoding=decoding) as stream:
            made.append(list(stream))
    for one, other in zip(*made, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    assert made[0][0]["image"].shape == (2, 2, SIZE, SIZE, 3)
    plain = Decoding(SIZE, 0, prepare=Pairs(SIZE, PATCH, "face"))
    with evaluation_batches(RecordSource(records), batch_size=2, decoding=plain) as stream:
        last = list(stream)[-1]
    assert list(last["valid"]) == [True, False]
    expected = Pairs(SIZE, PATCH, "face")(picture, landmarked, np.random.default_rng(0))
    np.testing.assert_array_equal(last["image"][0], expected["image"])
    np.testing.assert_array_equal(last["foreground"][0], expected["foreground"])
    assert (last["image"][1] == 0).all()


def test_landmarks_fit_though_large_images_may_be_shrunk_in_the_decoder(picture, tmp_path):
    picture.resize((1024, 1120)).save(tmp_path / "face.jpg")
    np.save(tmp_path / "face.npy", POINTS * 8)
    record = Record(str(tmp_path / "face.jpg"), 0, landmarks=str(tmp_path / "face.npy"))
    made = []
    for exact in (True, False):
        decoding = Decoding(SIZE, 0, exact=exact, prepare=Pairs(SIZE, PATCH, "landmarks"))
        with evaluation_batches(RecordSource([record]), batch_size=1, decoding=decoding) as stream:
            made.append(next(stream)["foreground"])
    np.testing.assert_array_equal(*made)
    assert 5 < made[0].sum() < 50


@pytest.mark.parametrize(
    ("content", "named"), [(np.zeros((5, 2)), r"\[5, 2\]"), (np.full((68, 2), np.nan), "finite"), (None, "no NumPy")]
)
def test_broken_landmarks_are_named(tmp_path, content, named):
    path = tmp_path / "points.npy"
    path.write_text("not an array") if content is None else np.save(path, content)
    with pytest.raises(InputError, match=rf"points\.npy.*{named}"):
        read_landmarks(path)
    with pytest.raises(InputError, match="absent"):
        read_landmarks(tmp_path / "absent.npy")
