import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPVisionConfig

from r2m_jax import InputError
from r2m_jax.models import (
    PRESETS,
    TowerOptions,
    apply_tower,
    init_backbone,
    interpolate_positions,
    parameter_shapes,
    preset_name,
    vision_config,
)
from r2m_jax.models.positions import bicubic_weights
from r2m_jax.trees import count_parameters


# Counts of the vision towers: L/14 from the peers' own checkpoints (303,179,776); the others from the sizes in
# Table 20 of the CLIP paper, summed by hand.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("ViT-B/32", 87_456_000),
        ("ViT-B/16", 85_799_424),
        ("ViT-L/14", 303_179_776),
        ("ViT-L/14-336", 303_507_456),
    ],
)
def test_preset_sizes(name, parameters):
    config = vision_config(name)
    assert count_parameters(parameter_shapes(config)["backbone"]) == parameters
    assert preset_name(config) == name


def test_presets_are_told_apart_from_other_shapes(tiny_config):
    assert preset_name(tiny_config) is None
    with pytest.raises(InputError, match=r"ViT-H/99.*ViT-B/32"):
        vision_config("ViT-H/99")
    assert len(PRESETS) == 4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_act": "relu"}, "relu"),
        ({"image_size": 33}, "33"),
        ({"image_size": [32, 48]}, "image_size"),
    ],
)
def test_configs_that_cannot_be_built(tiny_config, change, named):
    config = CLIPVisionConfig(**tiny_config.to_diff_dict() | change)
    with pytest.raises(InputError, match=named):
        apply_tower(config)


def test_hidden_states_come_in_the_order_asked(tiny_config, rng):
    backbone = init_backbone(tiny_config, jax.random.key(0))
    apply = jax.jit(apply_tower(tiny_config), static_argnums=2)
    images = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)
    every = apply(backbone, images, (0, 1, 2, 3)).hidden
    some = apply(backbone, images, (-1, 0, 2)).hidden
    np.testing.assert_array_equal(some, every[jnp.asarray([3, 0, 2])])
    assert apply(backbone, images).hidden.shape[0] == 0


@pytest.mark.parametrize(("asked", "named"), [((4,), "4"), ((-5,), "-5"), ((3, -1), "twice")])
def test_hidden_states_that_do_not_exist(tiny_config, asked, named):
    with pytest.raises(InputError, match=named):
        apply_tower(tiny_config)(init_backbone(tiny_config, jax.random.key(0)), jnp.zeros((1, 32, 32, 3)), asked)


def test_images_that_do_not_divide_into_patches(detector):
    with pytest.raises(InputError, match="36x32"):
        detector.features(np.zeros((1, 36, 32, 3), np.float32))


def test_attention_implementation_follows_platform_and_dtype():
    assert TowerOptions().attention_implementation(64) == "xla"
    assert TowerOptions(attention="cudnn").attention_implementation(64) == "cudnn"
    # On this CPU even 16-bit compute stays with XLA.
    assert TowerOptions(dtype=jnp.bfloat16).attention_implementation(64) == "xla"


def test_a_batch_is_its_images(detector, rng):
    images = rng.normal(size=(5, 32, 32, 3)).astype(np.float32)
    together = detector(images)
    apart = jnp.concatenate([detector(image[None]) for image in images])
    np.testing.assert_allclose(together, apart, rtol=1e-5, atol=1e-6)


@given(source=st.integers(1, 30), target=st.integers(1, 60))
def test_bicubic_weights_keep_constants(source, target):
    np.testing.assert_allclose(bicubic_weights(source, target).sum(axis=1), 1.0, atol=1e-12)


def test_positions_are_untouched_at_their_own_size(rng):
    position = jnp.asarray(rng.normal(size=(17, 6)), jnp.float32)
    np.testing.assert_array_equal(interpolate_positions(position, (4, 4)), position)
    np.testing.assert_array_equal(interpolate_positions(position, (7, 5))[0], position[0])
