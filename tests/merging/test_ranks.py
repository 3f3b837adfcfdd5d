"""Settings that change with depth."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2m_jax import InputError
from r2m_jax.merging import ByPattern, Gradient, task_arithmetic
from r2m_jax.merging.ranks import every_value, over_layers, setting_at

numbers = st.floats(-10, 10)


@pytest.mark.parametrize(
    ("anchors", "layers", "wanted"),
    [
        # By hand from mergekit's rule: t = layer/(layers - 1), anchors at t = 0, 1/(n - 1) … 1.
        ([0.3, 0.5, 0.7], 5, [0.3, 0.4, 0.5, 0.6, 0.7]),
        ([0.0, 1.0], 3, [0.0, 0.5, 1.0]),
        ([0.0, 1.0, 0.0], 4, [0.0, 2 / 3, 2 / 3, 0.0]),
        ([0.2, 0.9], 1, [0.9]),  # a single layer is at t = 1
        ([0.4], 3, [0.4, 0.4, 0.4]),
        ([1.0, 0.0, 0.0, 1.0], 2, [1.0, 1.0]),
    ],
)
def test_values_over_layers(anchors, layers, wanted):
    np.testing.assert_allclose(over_layers(anchors, layers), wanted, atol=1e-12)


@given(anchors=st.lists(numbers, min_size=1, max_size=6), layers=st.integers(2, 40), scale=numbers, shift=numbers)
def test_ends_bounds_mirror_and_affine_maps(anchors, layers, scale, shift):
    found = over_layers(anchors, layers)
    assert (found[0], found[-1]) == (anchors[0], anchors[-1])
    assert min(anchors) - 1e-12 <= found.min() <= found.max() <= max(anchors) + 1e-12
    np.testing.assert_allclose(over_layers(anchors[::-1], layers), found[::-1], atol=1e-9)
    moved = over_layers([scale * a + shift for a in anchors], layers)
    np.testing.assert_allclose(moved, scale * found + shift, atol=1e-9)


def test_a_gradient_knows_the_layer_from_any_name():
    gradient = Gradient((0.0, 1.0), 5)
    for path, wanted in (
        ("encoder.layers.3.mlp.fc1.weight", 0.75),
        ("layers/1/attn/kernel", 0.25),
        ("layers/attn/q/kernel[4]", 1.0),
        ("embeddings.class_embedding", 0.0),
        ("pre_layrnorm.weight", 0.0),
        ("post_layernorm.weight", 1.0),
        ("post_norm/scale", 1.0),
    ):
        assert gradient.at(path) == pytest.approx(wanted), path
    with pytest.raises(InputError, match=r"a leaf per layer, which layers/attn/q/kernel is not"):
        gradient.at("layers/attn/q/kernel")
    with pytest.raises(InputError, match="beyond the 5"):
        gradient.at("layers.5.mlp.weight")


def test_a_gradient_within_a_pattern():
    setting = ByPattern(0.7, (("mlp", Gradient((0.2, 0.4), 3)),))
    assert setting_at(setting, "layers.1.mlp.weight") == pytest.approx(0.3)
    assert setting_at(setting, "layers.1.attn.weight") == 0.7
    assert every_value(setting) == [0.7, 0.2, 0.4]


def test_a_merge_whose_alpha_grows_with_depth():
    keys = jax.random.split(jax.random.key(0), 2)
    origin = {"layers": {"fc": {"kernel": jax.random.normal(keys[0], (3, 4, 4))}}, "position": np.ones(4, np.float32)}
    theta = jax.tree.map(lambda leaf: leaf + 1, origin)
    merged = task_arithmetic(origin, [theta], alpha=Gradient((0.0, 1.0), 3))
    moved = merged["layers"]["fc"]["kernel"] - origin["layers"]["fc"]["kernel"]
    np.testing.assert_allclose(moved, np.broadcast_to(np.array([0.0, 0.5, 1.0])[:, None, None], (3, 4, 4)), atol=1e-6)
    np.testing.assert_array_equal(merged["position"], origin["position"])  # before the layers
