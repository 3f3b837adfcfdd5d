import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2m_jax import InputError
from r2m_jax.checkpoints.compressed import pack, unpack
from r2m_jax.compression import (
    Factors,
    apply_masks,
    best,
    by_patterns,
    calibrate,
    channel_importance,
    dequantise,
    dequantise_tree,
    factorise,
    factorise_tree,
    head_importance,
    integer_conv,
    integer_dense,
    integer_detector,
    keep_channels,
    keep_heads,
    keep_layers,
    kernels,
    layer_importance,
    magnitude_masks,
    multiply_tree,
    quantise,
    quantise_activations,
    quantise_tree,
    sparsity,
    weights,
    zero_masks,
)
from r2m_jax.merging.ranks import Energy
from r2m_jax.models import apply_detector
from r2m_jax.trees import flatten, unflatten

# A few shapes, for each is compiled anew.
FLOATS = st.sampled_from([(1, 6), (5, 3), (2, 2, 3, 4)]).flatmap(
    lambda shape: hnp.arrays(np.float32, shape, elements=st.floats(-1e3, 1e3, width=32))
)
RATES = st.floats(0, 1)


@given(FLOATS, RATES)
def test_masks_prune_the_least_and_exactly_so_many(kernel, rate):
    # few distinct values, so that there are ties
    kernel = np.round(kernel / 100)
    mask = magnitude_masks({"conv": {"kernel": kernel}}, rate)["conv"]["kernel"]
    pruned, kept = np.abs(kernel[~mask]), np.abs(kernel[mask])
    assert pruned.size == round(rate * kernel.size)
    assert not pruned.size or not kept.size or pruned.max() <= kept.min()
    if pruned.size:
        ties = np.flatnonzero(np.abs(kernel).reshape(-1) == pruned.max())
        places = mask.reshape(-1)[ties]
        assert (np.diff(places.astype(int)) >= 0).all()  # the first in memory go first


def test_masks_are_those_of_torch(rng):
    torch = pytest.importorskip("torch", reason="torch is the reference implementation (extra `dev`)")
    from torch.nn.utils import prune

    layer = torch.nn.Conv2d(3, 7, 3)
    kernel = layer.weight.detach().numpy().copy()
    for rate in (0.6, 0.75, 0.9):
        prune.l1_unstructured(layer, "weight", amount=rate)
        ours = magnitude_masks({"conv.weight": kernel}, rate)["conv.weight"]
        np.testing.assert_array_equal(ours, layer.weight_mask.numpy().astype(bool))
        prune.remove(layer, "weight")
        layer.weight.data = torch.tensor(kernel)


def test_layers_of_a_stack_are_tensors_of_their_own(params):
    masks = flatten(magnitude_masks(params, 0.75))
    assert not [path for path in masks if "head" in path or "embeddings" in path or "norm" in path or "bias" in path]
    assert sum(path.endswith("kernel") for path in masks) == len(masks) == 6
    for mask in masks.values():
        np.testing.assert_array_equal((~mask).sum(axis=(1, 2)), round(0.75 * mask[0].size))
    together = flatten(magnitude_masks(params, 0.75, scope="global"))
    total = sum(mask.size for mask in together.values())
    assert sum((~mask).sum() for mask in together.values()) == round(0.75 * total)
    assert len({(~mask).mean() for mask in together.values()}) > 1


def test_masks_stay_with_a_pruned_model(params):
    masks = magnitude_masks(params, 0.6)
    pruned = jax.jit(apply_masks)(params, masks)
    assert sparsity(pruned) == pytest.approx(0.6, abs=1e-4)
    again = zero_masks(pruned)
    for path, mask in flatten(masks).items():
        np.testing.assert_array_equal(flatten(again)[path], mask, err_msg=path)
    np.testing.assert_array_equal(pruned["head"]["kernel"], params["head"]["kernel"])
    with pytest.raises(InputError, match=r"rate=1\.5"):
        magnitude_masks(params, 1.5)
    with pytest.raises(InputError, match="no tensor"):
        magnitude_masks(params, 0.5, select=by_patterns(kernels, ["nowhere"], []))


def test_patterns_widen_and_narrow():
    leaf = np.zeros((4, 4))
    assert kernels("encoder.layers.0.mlp.fc1.weight", leaf)
    assert not kernels("embeddings.patch_embedding.weight", leaf)
    assert weights("vision_model.embeddings.position_embedding.weight", leaf)
    assert not weights("head.weight", leaf)
    assert not weights("encoder.layers.0.mlp.fc1.bias", np.zeros(4))
    assert by_patterns(kernels, [r"^head\."], [])("head.weight", leaf)
    assert not by_patterns(kernels, [], ["fc1"])("encoder.layers.0.mlp.fc1.weight", leaf)


@given(FLOATS, st.integers(2, 8), st.booleans())
@settings(max_examples=40)
def test_no_value_is_further_than_half_a_scale(tensor, bits, by_channel):
    stored = quantise(tensor, bits, (tensor.ndim - 1,) if by_channel else ())
    scale = np.asarray(stored.scale, np.float64)
    error = np.abs(tensor.astype(np.float64) - np.asarray(stored.values, np.float64) * scale)
    assert (error <= scale * (0.5 + 1e-4)).all()
    assert stored.scale.size == (tensor.shape[-1] if by_channel else 1)
    values = np.asarray(stored.values)
    assert values.min() >= -(2 ** (bits - 1))
    assert values.max() <= 2 ** (bits - 1) - 1
    assert (values[tensor == 0] == 0).all()  # what was pruned stays pruned


def test_integers_are_those_of_torch(rng):
    torch = pytest.importorskip("torch", reason="torch is the reference implementation (extra `dev`)")
    weight = rng.normal(size=(40, 30)).astype(np.float32)
    scale = float(np.abs(weight).max() / 127.5)  # of MinMaxObserver(per_tensor_symmetric, qint8)
    theirs = torch.clamp(torch.round(torch.tensor(weight) / scale), -128, 127).numpy()
    ours = quantise(weight)
    assert float(ours.scale.item()) == pytest.approx(scale, rel=1e-6)
    assert np.abs(np.asarray(ours.values, int) - theirs).max() <= 1  # where a quotient ends in .5 but for rounding
    assert (np.asarray(ours.values) == theirs).mean() > 0.999


@given(st.integers(2, 8), st.integers(1, 5), st.integers(1, 20), st.randoms(use_true_random=False))
def test_packed_integers_come_back(bits, rows, count, random):
    values = np.array(
        [[random.randrange(-(2 ** (bits - 1)), 2 ** (bits - 1)) for _ in range(count)] for _ in range(rows)], np.int8
    )
    packed = pack(values, bits)
    assert packed.shape == (rows, -(-bits * count // 8))
    np.testing.assert_array_equal(unpack(packed, bits, count), values)


@given(hnp.arrays(np.float32, 12, elements=st.floats(-50, 50, width=32)))
@settings(max_examples=50)
def test_activations_have_an_exact_zero_and_half_a_scale_of_error(x):
    given_ = quantise_activations(jnp.asarray(x))
    scale, zero = float(given_.scale), int(given_.zero)
    assert -128 <= zero <= 127
    back = scale * (np.asarray(given_.values, np.float64) - zero)
    assert (np.abs(back - x) <= scale * 1.001).all()
    assert (back[x == 0] == 0).all()


def _activations(x) -> np.ndarray:
    """What the integers of activations stand for."""
    stored = quantise_activations(jnp.asarray(x))
    return float(stored.scale) * (np.asarray(stored.values, np.float64) - int(stored.zero))


@pytest.mark.parametrize("by_channel", [True, False])
def test_integer_products_are_float_products_of_what_integers_stand_for(rng, by_channel):
    x, w = rng.normal(size=(3, 5, 24)).astype(np.float32), rng.normal(size=(24, 10)).astype(np.float32)
    kernel = quantise(w, 8, (1,) if by_channel else ())
    expected = _activations(x) @ np.asarray(dequantise(kernel), np.float64)
    found = jax.jit(integer_dense)(x, kernel)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    bounds = jnp.array([x.min(), x.max()])
    np.testing.assert_allclose(integer_dense(x, kernel, bounds), found, rtol=1e-6)
    clipped = integer_dense(np.clip(10 * x, *bounds), kernel, bounds)
    np.testing.assert_allclose(integer_dense(10 * x, kernel, bounds), clipped, rtol=1e-6)


@pytest.mark.parametrize(("groups", "strides"), [(1, (1, 1)), (2, (2, 2))])
def test_integer_convolutions(rng, groups, strides):
    x = rng.normal(size=(2, 7, 6, 4)).astype(np.float32)
    w = rng.normal(size=(3, 3, 4 // groups, 8)).astype(np.float32)
    kernel = quantise(w, 8, (3,))
    scale = np.abs(x).max() / 127
    expected = jax.lax.conv_general_dilated(
        np.round(x / scale) * scale, np.asarray(dequantise(kernel)), strides, "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups, precision="highest",
    )  # fmt: skip
    found = integer_conv(x, kernel, strides=strides, padding="SAME", groups=groups)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.integration
def test_an_integer_detector_says_nearly_the_same(tiny_config, params, rng):
    images = rng.normal(size=(4, 32, 32, 3)).astype(np.float32)
    quantised = quantise_tree(params)
    weight_only = apply_detector(tiny_config)(dequantise_tree(quantised), images)
    run = jax.jit(integer_detector(tiny_config))
    dynamic = run(quantised, images)
    ranges = calibrate(tiny_config, quantised, images, batch_size=3)
    static = run(quantised, images, ranges)
    size = np.abs(weight_only).max()
    np.testing.assert_allclose(dynamic, weight_only, atol=0.1 * size)
    np.testing.assert_allclose(static, weight_only, atol=0.1 * size)
    assert np.abs(dynamic - weight_only).max() > 0  # products are of integers
    # Without integers it is the detector itself: the unrolled blocks are the scanned ones.
    np.testing.assert_allclose(run(params, images), apply_detector(tiny_config)(params, images), atol=1e-5 * size)
    assert ranges["mlp/fc1"].shape == (3, 2)


@given(FLOATS, st.integers(1, 4))
@settings(max_examples=15)
def test_factors_are_smaller_or_none_and_best_of_their_rank(kernel, rank):
    made = factorise(kernel, rank)
    matrix = kernel.reshape(-1, kernel.shape[-1]).astype(np.float64)
    m, n = matrix.shape
    smaller = min(rank, m, n) * (m + n) < m * n
    assert (made is not None) == smaller
    if made is not None:
        values = np.linalg.svd(matrix, compute_uv=False)
        least = np.sqrt((values[rank:] ** 2).sum())
        error = np.linalg.norm(made.product().reshape(m, n) - matrix)
        assert error == pytest.approx(least, abs=1e-5 * max(values[0], 1e-3))


def test_full_rank_is_exact_and_energy_is_kept(rng):
    low = (rng.normal(size=(60, 5)) @ rng.normal(size=(5, 40))).astype(np.float32)
    exact = factorise(low, 5)
    assert isinstance(exact, Factors)
    np.testing.assert_allclose(exact.product(), low, atol=1e-5 * np.abs(low).max())
    by_energy = factorise(low, Energy(0.9))
    assert by_energy is not None
    assert by_energy.left.shape[1] <= 5
    assert np.linalg.norm(low - by_energy.product()) ** 2 <= 0.1 * np.linalg.norm(low) ** 2
    torch_layout = factorise(low.T.reshape(40, 10, 3, 2), 5, output=0)
    assert torch_layout is not None
    np.testing.assert_allclose(torch_layout.product().reshape(40, 60), low.T, atol=1e-4)


def test_trees_of_factors(params):
    made = factorise_tree(params, 0.25)
    kernel = made["backbone"]["layers"]["mlp"]["fc1"]["kernel"]
    assert isinstance(kernel, tuple)
    assert len(kernel) == 3
    assert kernel[0].left.shape == (64, 16)
    whole = multiply_tree(made)
    assert flatten(whole).keys() == flatten(params).keys()
    np.testing.assert_array_equal(whole["head"]["kernel"], params["head"]["kernel"])
    stays = factorise_tree(params, 0.9)["backbone"]["layers"]["attn"]["q"]["kernel"]
    np.testing.assert_array_equal(stays, params["backbone"]["layers"]["attn"]["q"]["kernel"])


def _set(params, path, where, value=0.0):
    flat = {key: np.array(leaf) for key, leaf in flatten(params).items()}
    flat[path][where] = value
    return unflatten(flat)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(7).normal(size=(2, 32, 32, 3)).astype(np.float32)


def test_removing_dead_channels_changes_nothing(tiny_config, params, images):
    alive = np.sort(np.random.default_rng(3).permuted(np.tile(np.arange(128), (3, 1)), axis=1)[:, :80], axis=1)
    dead = np.ones((3, 128), bool)
    np.put_along_axis(dead, alive, False, axis=1)
    where = np.nonzero(dead)
    half = tuple(each[: len(where[0]) // 2] for each in where)
    broken = _set(params, "backbone/layers/mlp/fc2/kernel", half)
    rest = tuple(each[len(where[0]) // 2 :] for each in where)
    broken = _set(broken, "backbone/layers/mlp/fc1/kernel", (rest[0], slice(None), rest[1]))
    broken = _set(broken, "backbone/layers/mlp/fc1/bias", rest)
    places = best(channel_importance(broken["backbone"]), 80)
    np.testing.assert_array_equal(places, alive)
    config, smaller = keep_channels(tiny_config, broken, places)
    assert config.intermediate_size == 80
    assert tiny_config.intermediate_size == 128
    expected = apply_detector(tiny_config)(broken, images)
    np.testing.assert_allclose(apply_detector(config)(smaller, images), expected, atol=1e-5)


def test_removing_dead_heads_changes_nothing(tiny_config, params, images):
    broken = _set(params, "backbone/layers/attn/out/kernel", (slice(None), slice(16, 32)))
    broken = _set(broken, "backbone/layers/attn/v/kernel", (slice(None), slice(None), slice(48, 64)))
    broken = _set(broken, "backbone/layers/attn/v/bias", (slice(None), slice(48, 64)))
    importance = head_importance(tiny_config, broken["backbone"])
    np.testing.assert_allclose(importance[:, [1, 3]], 0, atol=1e-6)
    attention = broken["backbone"]["layers"]["attn"]
    values = np.vstack([attention["v"]["kernel"][2], attention["v"]["bias"][2]])[:, :16]
    assert importance[2, 0] == pytest.approx(np.linalg.norm(values @ attention["out"]["kernel"][2][:16]), rel=1e-5)
    config, smaller = keep_heads(tiny_config, broken, best(importance, 2))
    assert smaller["backbone"]["layers"]["attn"]["q"]["kernel"].shape == (3, 64, 32)
    expected = apply_detector(tiny_config)(broken, images)
    np.testing.assert_allclose(apply_detector(config)(smaller, images), expected, atol=1e-5)


def test_removing_a_layer_that_does_nothing_changes_nothing(tiny_config, params, images):
    idle = params
    for name in ("attn/out", "mlp/fc2"):
        for leaf in ("kernel", "bias"):
            idle = _set(idle, f"backbone/layers/{name}/{leaf}", 1)
    importance = layer_importance(tiny_config, idle["backbone"], images, batch_size=1)
    assert importance[1] == pytest.approx(0, abs=1e-5)
    places = best(importance, 2)
    np.testing.assert_array_equal(places, [0, 2])
    config, smaller = keep_layers(tiny_config, idle, places)
    expected = apply_detector(tiny_config)(idle, images)
    np.testing.assert_allclose(apply_detector(config)(smaller, images), expected, atol=1e-5)
    for wrong in ([2, 1], [0, 3], []):
        with pytest.raises(InputError, match="ascending"):
            keep_layers(tiny_config, params, wrong)
