"""Cameras and codecs: what they change, and that they repeat."""

import io

import av
import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn

from r2m_jax.data.embedded import cut_patches, embedded_photographs
from r2m_jax.data.forge.camera import CAMERAS, find_camera, record
from r2m_jax.data.forge.codec import h264, jpeg
from r2m_jax.errors import InputError


@pytest.fixture(scope="module")
def patches() -> np.ndarray:
    return cut_patches(embedded_photographs(), 64, 30, 0)[0]


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


@pytest.mark.parametrize("name", CAMERAS)
@pytest.mark.parametrize("shape", [(64, 64), (37, 51)])
def test_every_camera_keeps_the_shape_and_repeats(name, shape, patches):
    image = patches[0][: shape[0], : shape[1]]
    taken = CAMERAS[name].record(image, np.random.default_rng(5))
    assert taken.shape == image.shape
    assert taken.dtype == np.uint8
    assert (taken != image).any()
    np.testing.assert_array_equal(taken, CAMERAS[name].record(image, np.random.default_rng(5)))


def test_cameras_differ_in_what_they_keep(patches):
    """Peak signal-to-noise ratio against the original: video at 40 loses more than at 23, a webcam than a still."""

    def loss(name: str) -> float:
        taken = [CAMERAS[name].record(image, np.random.default_rng(1)) for image in patches]
        return float(((np.array(taken).astype(float) - patches) ** 2).mean())

    assert loss("still") < loss("webcam")
    assert loss("c23") < loss("c40")
    assert loss("still") < loss("night")


def test_an_unknown_camera_is_refused_by_name():
    with pytest.raises(InputError, match="no camera 'webcan'; did you mean 'webcam'"):
        find_camera("webcan")


def test_jpeg_is_pillows(patches):
    file = io.BytesIO()
    Image.fromarray(patches[0]).save(file, "JPEG", quality=60, subsampling=2)
    np.testing.assert_array_equal(jpeg(patches[0], 60, "4:2:0"), np.array(Image.open(file)))


def test_h264_gives_back_every_frame_and_predicts(patches):
    frames = h264(list(patches[:3]), crf=10)
    assert len(frames) == 3
    for frame, image in zip(frames, patches[:3], strict=True):
        assert np.abs(frame.astype(int) - image).mean() < 12
    assert "libx264" in av.codecs_available
    still = h264([patches[0]] * 2, crf=40)
    assert np.abs(still[1].astype(int) - still[0]).mean() < 3
