"""ViTs in transformers' layout: against its torch model, in files of both ages, and through a merge."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is the reference implementation (extra `dev`)")
from transformers import ViTConfig, ViTForImageClassification, ViTModel  # noqa: E402

from r2m_jax import InputError, load_detector, merging, save_detector  # noqa: E402
from r2m_jax.checkpoints.convert import convert  # noqa: E402
from r2m_jax.checkpoints.names import VIT, stored_name, tower_name, tower_places  # noqa: E402
from r2m_jax.jobs.merge import merge  # noqa: E402
from r2m_jax.models.corit import CoritSettings, corit_features  # noqa: E402
from r2m_jax.progress import Reporter  # noqa: E402
from r2m_jax.recipes import load_recipe  # noqa: E402
from r2m_jax.recipes.merging import MergeRecipe  # noqa: E402
from r2m_jax.trees import flatten  # noqa: E402

SIZES = {
    "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
SQUASHING = {
    "image_processor_type": "ViTImageProcessor", "do_resize": True, "do_rescale": True, "do_normalize": True,
    "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.5, 0.5], "size": {"height": 32, "width": 32}, "resample": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def network():
    """A random ImageNet classifier; its norms and biases are random too, so that none can hide in another's place."""
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(**SIZES, num_labels=7)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def source(network, tmp_path_factory):
    """As the hub has it: with a prefix, names from before transformers 5, and a processor that squashes."""
    folder = tmp_path_factory.mktemp("vit") / "hub"
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(SQUASHING))
    return folder


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit") / "model"
    report = convert(str(source), folder)
    assert report.kind == "model directory, vit names"
    assert report.left_out == [(f"classifier.{part}", "classifier of 7 classes") for part in ("bias", "weight")]
    return folder


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).normal(size=(3, 32, 32, 3)).astype(np.float32)


def class_tokens(model, images):
    with torch.no_grad():
        return model(torch.tensor(np.moveaxis(images, -1, 1).copy())).last_hidden_state[:, 0].numpy()


def test_a_converted_vit_computes_what_transformers_does(network, converted, images):
    detector = load_detector(converted)
    assert type(detector.config) is ViTConfig
    np.testing.assert_allclose(detector.features(images), class_tokens(network.vit, images), atol=1e-5)
    # Its processing crops instead of squashing, with the normalisation that it had.
    assert dict(detector.processor.size) == {"shortest_edge": 32}
    assert list(detector.processor.image_mean) == SQUASHING["image_mean"]


def test_transformers_loads_what_is_written(network, converted, images):
    back, found = ViTModel.from_pretrained(converted, add_pooling_layer=False, output_loading_info=True)
    assert not found["missing_keys"]
    assert found["unexpected_keys"] == {"head.weight", "head.bias"}
    np.testing.assert_array_equal(class_tokens(back.eval(), images), class_tokens(network.vit, images))


def test_newer_names_without_a_config(network, images, converted, tmp_path):
    """A training checkpoint of transformers 5: names of modules, nothing beside it."""
    names = list(network.state_dict())
    assert "vit.layers.1.attention.o_proj.weight" in names
    torch.save(network.state_dict(), tmp_path / "vit.pth")
    report = convert(str(tmp_path / "vit.pth"), tmp_path / "model")
    assert any("activation gelu and layer-norm epsilon 1e-12" in said for said in report.inferred)
    assert any("mean = std = 0.5" in said for said in report.inferred)
    one, other = load_detector(tmp_path / "model"), load_detector(converted)
    for path, leaf in flatten(one.params).items():
        np.testing.assert_array_equal(leaf, flatten(other.params)[path], err_msg=path)
    np.testing.assert_allclose(one.features(images), other.features(images), atol=1e-6)


def test_every_name_has_a_stored_one_and_comes_back():
    names = list(tower_places(12, VIT))
    stored = [stored_name(name) for name in names]
    assert len(set(stored)) == len(names) == 12 * 16 + 6
    assert [tower_name(name) for name in stored] == names
    assert [tower_name(f"vit.{name}") for name in names] == names
    assert "vit.encoder.layer.3.attention.attention.query.weight" in stored
    assert "vit.encoder.layer.3.intermediate.dense.bias" in stored


@pytest.mark.parametrize("change", [{"qkv_bias": False}, {"hidden_act": "relu"}, {"image_size": [32, 16]}])
def test_vits_that_cannot_be_built(source, tmp_path, change):
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((source / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=next(iter(change))):
        convert(str(tmp_path), tmp_path / "out")


def test_corit_with_all_off_reads_the_class_token(converted, images):
    detector = load_detector(converted)
    settings = CoritSettings(rsi=False, rrm=False, hri=False)
    z = corit_features(detector.config, settings)(detector.params["backbone"], images[:, None], jnp.zeros((3, 16)))
    np.testing.assert_allclose(z, detector.features(images), atol=1e-5)


@pytest.mark.integration
def test_specialists_merge_as_the_library_does(converted, tmp_path):
    origin = load_detector(converted)
    thetas = []
    for number, name in enumerate(("fs", "fr")):
        key = jax.random.key(number)
        moved = jax.tree.map(lambda leaf, key=key: leaf + 0.02 * jax.random.normal(key, leaf.shape), origin.params)
        save_detector(origin.replace_params(moved), tmp_path / name)
        thetas.append(moved["backbone"])
    models = {name: str(tmp_path / name) for name in ("fs", "fr")}
    whole = {"base": str(converted), "models": models, "method": "r2m"}
    merge(load_recipe(MergeRecipe, "merge", None, [f"out={tmp_path / 'out'}"], whole), reporter=Reporter(quiet=True))
    found = load_detector(tmp_path / "out")
    assert type(found.config) is ViTConfig
    theta0 = origin.params["backbone"]
    expected = flatten(merging.r2m(theta0, thetas).params)
    for path, leaf in flatten(found.params["backbone"]).items():
        np.testing.assert_allclose(leaf, expected[path], atol=2e-6, err_msg=path)
    assert not ViTModel.from_pretrained(tmp_path / "out", add_pooling_layer=False, output_loading_info=True)[1][
        "missing_keys"
    ]
