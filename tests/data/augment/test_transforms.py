"""Transforms: the host against the formulas, the device against the host and Pillow, keys and sharding."""

import io
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from PIL import Image
from scipy import fft, ndimage
from skimage import data

from r2m_jax.data.augment import Draws, device, host, preset
from r2m_jax.data.augment.jpeg import round_trip, tables
from r2m_jax.data.augment.principal import pca_shift

BATCH = 6
NEUTRAL = Draws(
    flip=np.zeros(BATCH, bool),
    degrees=np.zeros(BATCH, np.float32),
    blur_size=np.ones(BATCH, np.int32),
    gain=np.ones(BATCH, np.float32),
    offset=np.zeros(BATCH, np.float32),
    pca=np.zeros(BATCH, np.float32),
    hue=np.zeros(BATCH, np.float32),
    saturation=np.zeros(BATCH, np.float32),
    value=np.zeros(BATCH, np.float32),
    jpeg_quality=np.zeros(BATCH, np.int32),
)


def _spread(low: float, high: float) -> np.ndarray:
    return np.linspace(low, high, BATCH, dtype=np.float32)


CASES = {
    "neutral": (NEUTRAL, 0, 0),
    "flip": (NEUTRAL._replace(flip=np.arange(BATCH) % 2 == 0), 0, 0),
    "rotation": (NEUTRAL._replace(degrees=_spread(-10, 10)), 1, 1e-3),
    "blur": (NEUTRAL._replace(blur_size=np.array([1, 3, 5, 7, 3, 5], np.int32)), 0, 0),
    # no round decimals: where x·gain + 255·offset is a whole number, the last bit of float32 decides
    "brightness/contrast": (NEUTRAL._replace(gain=_spread(0.9071, 1.0937), offset=_spread(0.0973, -0.0911)), 1, 1e-3),
    "FancyPCA": (NEUTRAL._replace(pca=_spread(-0.3, 0.3)), 1, 1e-3),
    "HSV": (NEUTRAL._replace(hue=_spread(-20, 20), saturation=_spread(30, -30), value=_spread(-7, 20)), 1, 2e-3),
    "JPEG": (NEUTRAL._replace(jpeg_quality=np.array([0, 40, 49, 75, 90, 100], np.int32)), 0, 0),
}
"""Parameters, greatest difference in grey levels, greatest share of differing values."""


def _pillow(image: np.ndarray, quality: int, subsampling: str) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling=subsampling)
    return np.asarray(Image.open(file))


@pytest.fixture(scope="module")
def pictures() -> dict[str, np.ndarray]:
    """Six images [64, 96, 3] each of a photograph, of noise, and of grey noise."""
    rng = np.random.default_rng(0)
    photo = data.astronaut()[:384, 50:434].reshape(6, 64, 4, 96, 3)[:, :, 0]
    noise = rng.integers(0, 256, (BATCH, 64, 96, 3), dtype=np.uint8)
    return {"photograph": np.ascontiguousarray(photo), "noise": noise, "grey": np.repeat(noise[..., :1], 3, -1)}


@pytest.mark.parametrize("kind", ["photograph", "noise", "grey"])
@pytest.mark.parametrize("name", CASES)
def test_the_device_does_what_the_host_does(name, kind, pictures):
    draws, greatest, share = CASES[name]
    images = pictures[kind]
    expected = np.stack([host.apply(image, Draws(*(d[i] for d in draws))) for i, image in enumerate(images)])
    with jax.numpy_dtype_promotion("strict"):
        out = np.asarray(device.apply_batch(images, draws))
    difference = np.abs(out.astype(int) - expected)
    assert difference.max() <= greatest
    assert (difference > 0).mean() <= share
    assert name == "neutral" or (expected != images).mean() > 0.1


@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4"])
@pytest.mark.parametrize("size", [(64, 96), (37, 53), (38, 50)])
def test_jpeg_is_pillow_s_at_every_quality(subsampling, size, pictures):
    program = jax.jit(jax.vmap(partial(round_trip, subsampling=subsampling), (None, 0)))
    qualities = np.arange(40, 101, dtype=np.int32)
    for kind in ("photograph", "noise"):
        image = np.ascontiguousarray(pictures[kind][2, : size[0], : size[1]])
        expected = np.stack([_pillow(image, int(quality), subsampling) for quality in qualities])
        np.testing.assert_array_equal(program(image, qualities), expected)
        np.testing.assert_array_equal(host.jpeg(image, 77, subsampling), expected[77 - 40])


@pytest.mark.integration
def test_jpeg_is_pillow_s_on_real_faces(shared_data):
    program = jax.jit(jax.vmap(partial(round_trip, subsampling="4:2:0"), (None, 0)))
    qualities = np.arange(40, 101, dtype=np.int32)
    for path in sorted((shared_data / "faces_ffhq" / "images").iterdir())[:4]:
        image = np.asarray(Image.open(path).convert("RGB").resize((224, 224)))
        expected = np.stack([_pillow(image, int(quality), "4:2:0") for quality in qualities])
        np.testing.assert_array_equal(program(image, qualities), expected)


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 51, 90, 100])
def test_quantisation_tables_are_those_in_a_file_of_pillow_s(quality):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", quality=quality)
    written = Image.open(file).quantization
    for table, index in zip(tables(jnp.int32(quality)), (0, 1), strict=True):
        np.testing.assert_array_equal(np.ravel(table), written[index])


def test_at_quality_100_a_grey_block_s_error_is_that_of_rounding_its_dct():
    block = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    image = np.repeat(block[..., None], 3, -1)
    expected = fft.idctn(np.round(fft.dctn(block - 128.0, norm="ortho")), norm="ortho") + 128
    assert np.abs(np.asarray(round_trip(image, jnp.int32(100), "4:4:4"))[..., 0] - expected.clip(0, 255)).max() < 1.01


def test_the_host_rotates_about_half_the_width_and_height_counter_clockwise(pictures):
    image = pictures["photograph"][0]
    angle = np.deg2rad(7.0)
    cosine, sine = np.cos(angle), np.sin(angle)
    matrix = np.array([[cosine, sine], [-sine, cosine]])  # (row, column) of the source from those of the result
    centre = np.array([32.0, 48.0])
    planes = [
        ndimage.affine_transform(p.astype(float), matrix, centre - matrix @ centre, order=1, mode="mirror")
        for p in np.moveaxis(image, -1, 0)
    ]
    assert np.abs(host.rotate(image, 7.0) - np.stack(planes, -1)).max() <= 0.51


def test_the_host_blurs_with_opencv_s_kernels(pictures):
    kernels = {3: [1, 2, 1], 5: [1, 4, 6, 4, 1], 7: [8, 28, 56, 72, 56, 28, 8]}
    for size, kernel in kernels.items():
        weights = np.array(kernel) / sum(kernel)
        image = pictures["photograph"][1]
        expected = image.astype(float)
        for axis in (0, 1):
            expected = ndimage.correlate1d(expected, weights, axis, mode="mirror")
        np.testing.assert_array_equal(host.gaussian_blur(image, size), np.floor(expected + 0.5))


def test_brightness_and_contrast_cut_after_limiting():
    image = np.array([[[0, 1, 255], [100, 200, 37]]], np.uint8)
    expected = np.trunc(np.clip(image * 1.07 - 0.03 * 255, 0, 255))
    np.testing.assert_array_equal(host.brightness_contrast(image, 1.07, -0.03), expected)


def test_fancy_pca_adds_rows_of_the_eigenvectors_times_eigenvalues(pictures):
    image = pictures["photograph"][3]
    values, vectors = np.linalg.eigh(np.cov(image.reshape(-1, 3) / 255, rowvar=False))
    values, vectors = values[::-1], vectors[:, ::-1]
    vectors = vectors * np.where(vectors[0] < 0, -1, 1)
    covariance = np.cov(image.reshape(-1, 3) / 255, rowvar=False)
    np.testing.assert_allclose(pca_shift(covariance, np), vectors.T @ values, atol=1e-5)
    expected = np.clip(image + 255 * 0.2 * (vectors.T @ values), 0, 255).astype(np.uint8)
    assert (host.fancy_pca(image, 0.2) != expected).mean() < 1e-3


def test_a_hue_shift_of_a_third_of_the_circle_permutes_pure_colours():
    image = np.zeros((8, 32, 3), np.uint8)
    image[..., 0] = 255
    np.testing.assert_array_equal(host.hue_saturation_value(image, 60, 0, 0)[0, 0], [0, 255, 0])
    np.testing.assert_array_equal(host.hue_saturation_value(image, -60, 0, 0)[0, 0], [0, 0, 255])


def test_the_host_leaves_its_input_and_depends_on_the_generator_alone(pictures):
    image = pictures["photograph"][0]
    before = image.copy()
    outs = [host.augment(image, np.random.default_rng((3, i)), preset("df40")) for i in (0, 1, 0)]
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(outs[0], outs[2])
    assert (outs[0] != outs[1]).any()


def test_a_sample_depends_neither_on_its_batch_nor_on_the_sharding(pictures):
    policy = preset("df40")
    images = np.concatenate([pictures["photograph"], pictures["noise"], pictures["grey"]])[:16]
    key = jax.random.key(5)
    keys = device.image_keys(key, jnp.arange(100, 116))
    expected = np.asarray(device.augment_batch(keys, images, policy))
    draws = jax.tree.map(np.asarray, device.draw_batch(keys, policy))
    applied = np.stack([host.apply(image, Draws(*(d[i] for d in draws))) for i, image in enumerate(images)])
    assert np.abs(expected.astype(int) - applied).mean() < 0.01

    backwards = device.image_keys(key, jnp.arange(115, 99, -1))
    np.testing.assert_array_equal(device.augment_batch(backwards, images[::-1], policy)[::-1], expected)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    sharded = jax.device_put(keys, sharding), jax.device_put(images, sharding)
    with jax.numpy_dtype_promotion("strict"):
        program = device.augment_batch.lower(*sharded, policy).compile()
    out = program(*sharded)
    assert out.sharding.is_equivalent_to(sharding, out.ndim)
    np.testing.assert_array_equal(out, expected)
    for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert name not in program.as_text()
