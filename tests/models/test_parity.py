"""The tower against transformers on torch: same weights, same images, same numbers.

Run with ``-s`` to see the differences, which are relative to the largest value of the reference.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is the reference implementation (extra `dev`)")

from transformers import CLIPVisionConfig, CLIPVisionModel  # noqa: E402

from r2m_jax.checkpoints.names import assemble, disassemble, stored_name, tower_name  # noqa: E402
from r2m_jax.checkpoints.tensors import LazyTensor  # noqa: E402
from r2m_jax.models import TowerOptions, apply_tower, parameter_shapes, vision_config  # noqa: E402
from r2m_jax.trees import flatten  # noqa: E402

TOLERANCE = 2e-5


def backbone_of(model):
    tensors = {tower_name(name): LazyTensor.of(p.detach().numpy()) for name, p in model.named_parameters()}
    return assemble(tensors, {"backbone": parameter_shapes(model.config)["backbone"]}, "torch model")["backbone"]


def random_model(config):
    torch.manual_seed(0)
    return CLIPVisionModel(config).eval()


def to_torch(images):
    return torch.tensor(np.moveaxis(images, -1, 1))


def relative(ours, reference):
    reference = reference.detach().numpy()
    return float(np.abs(np.asarray(ours) - reference).max() / np.abs(reference).max())


def compare(model, images, name, **kwargs):
    with torch.no_grad():
        reference = model(to_torch(images), output_hidden_states=True, **kwargs)
    depth = model.config.num_hidden_layers
    apply = jax.jit(apply_tower(model.config), static_argnums=2)
    ours = apply(backbone_of(model), images, tuple(range(depth + 1)))
    pooled = relative(ours.pooled, reference.pooler_output)
    hidden = [relative(ours.hidden[i], reference.hidden_states[i]) for i in range(depth + 1)]
    print(f"\n{name}: pooled {pooled:.1e}, worst of {depth + 1} hidden states {max(hidden):.1e}")
    assert pooled <= TOLERANCE
    assert max(hidden) <= TOLERANCE


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("size", [(32, 32), (48, 48), (40, 24), (16, 16)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_tiny_random(tiny_config, rng, activation, size):
    config = CLIPVisionConfig(**tiny_config.to_diff_dict() | {"hidden_act": activation})
    images = rng.normal(size=(3, *size, 3)).astype(np.float32)
    compare(random_model(config), images, f"tiny {activation} {size}", interpolate_pos_encoding=size != (32, 32))


def test_gradients_of_every_parameter(tiny_config, rng):
    model = random_model(tiny_config)
    images = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)
    weights = rng.normal(size=(2, 64)).astype(np.float32)
    (model(to_torch(images)).pooler_output * torch.tensor(weights)).sum().backward()
    apply = apply_tower(tiny_config)
    ours = jax.grad(lambda p: (apply(p, images).pooled * weights).sum())(jax.tree.map(jnp.asarray, backbone_of(model)))
    tensors = disassemble({"backbone": ours})
    worst = 0.0
    for name, parameter in model.named_parameters():
        mine = tensors[stored_name(tower_name(name))].read()
        if name.endswith("k_proj.bias"):
            # Softmax is blind to a shift of all keys, so this gradient is zero up to rounding on both sides.
            assert np.abs(mine).max() < 1e-4
            assert parameter.grad.abs().max() < 1e-4
            continue
        worst = max(worst, relative(mine, parameter.grad))
    print(f"\ngradients: worst of {len(tensors)} tensors {worst:.1e}")
    assert len(tensors) == len(list(model.named_parameters()))
    assert worst <= TOLERANCE


@pytest.mark.integration
@pytest.mark.parametrize("size", [(224, 224), (160, 192)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_real_clip_b16(clip_b16, rng, size):
    model = CLIPVisionModel.from_pretrained(clip_b16).eval()
    images = rng.normal(size=(2, *size, 3)).astype(np.float32)
    compare(model, images, f"CLIP B/16 {size}", interpolate_pos_encoding=size != (224, 224))


@pytest.mark.integration
@pytest.mark.parametrize("name", ["ViT-L/14", "ViT-B/32"])
def test_published_shapes_with_random_weights(rng, name):
    images = rng.normal(size=(1, 224, 224, 3)).astype(np.float32)
    compare(random_model(vision_config(name)), images, f"{name} random")


def test_bfloat16_compute_stays_close(tiny_config, rng):
    backbone = backbone_of(random_model(tiny_config))
    images = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)
    exact = apply_tower(tiny_config)(backbone, images).pooled
    coarse = apply_tower(tiny_config, TowerOptions(dtype=jnp.bfloat16))(backbone, images).pooled
    assert coarse.dtype == jnp.bfloat16
    cosine = (exact * coarse).sum(-1) / jnp.linalg.norm(exact, axis=-1) / jnp.linalg.norm(coarse.astype(float), axis=-1)
    assert float(cosine.min()) > 0.999


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_rematerialisation_changes_nothing(tiny_config, rng, remat):
    backbone = jax.tree.map(jnp.asarray, backbone_of(random_model(tiny_config)))
    images = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)

    def gradient(options):
        apply = apply_tower(tiny_config, options)
        return flatten(jax.grad(lambda p: apply(p, images).pooled.sum())(backbone))

    plain, recomputed = gradient(TowerOptions()), gradient(TowerOptions(remat=remat))
    for path, value in plain.items():
        np.testing.assert_allclose(recomputed[path], value, rtol=1e-5, atol=1e-5, err_msg=path)
