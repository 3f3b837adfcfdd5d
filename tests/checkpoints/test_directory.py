import json
import shutil
import stat

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from r2m_jax import InputError, load_detector, save_detector
from r2m_jax.checkpoints.directory import cast, open_weights
from r2m_jax.trees import flatten


@pytest.fixture
def saved(detector, tmp_path):
    save_detector(detector, tmp_path / "model", provenance={"kind": "test"})
    return tmp_path / "model"


def leaves_equal(a, b):
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    for path in a:
        assert a[path].dtype == b[path].dtype, path
        np.testing.assert_array_equal(np.asarray(a[path]), np.asarray(b[path]), err_msg=path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shard_bytes", [10**9, 50_000])
def test_round_trip_is_bit_exact(detector, tmp_path, dtype, shard_bytes):
    stored = detector.replace_params(jax.tree.map(jnp.asarray, cast(detector.params, dtype)))
    save_detector(stored, tmp_path / "a", max_shard_bytes=shard_bytes)
    loaded = load_detector(tmp_path / "a", dtype=None)
    leaves_equal(stored.params, loaded.params)
    save_detector(loaded, tmp_path / "b", max_shard_bytes=shard_bytes)
    for file in sorted(path.name for path in (tmp_path / "a").iterdir()):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    sharded = (tmp_path / "a" / "model.safetensors.index.json").exists()
    assert sharded == (shard_bytes == 50_000)


def test_transformers_reads_the_directory(detector, tmp_path, rng):
    torch = pytest.importorskip("torch", reason="torch is the reference implementation (extra `dev`)")
    from transformers import CLIPVisionModel

    save_detector(detector, tmp_path / "model", max_shard_bytes=50_000)
    model = CLIPVisionModel.from_pretrained(tmp_path / "model").eval()
    images = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        reference = model(torch.tensor(np.moveaxis(images, -1, 1))).pooler_output.numpy()
    np.testing.assert_allclose(detector.features(images), reference, atol=2e-5 * np.abs(reference).max())


def test_shards_stay_below_their_limit(detector, tmp_path):
    save_detector(detector, tmp_path / "model", max_shard_bytes=50_000)
    shards = sorted((tmp_path / "model").glob("model-*.safetensors"))
    assert len(shards) > 3
    for shard in shards:
        arrays = load_file(shard)
        assert sum(a.nbytes for a in arrays.values()) <= 50_000 or len(arrays) == 1


def test_lazy_slices_read_only_rows(saved):
    tensor = open_weights(saved)["vision_model.encoder.layers.1.mlp.fc1.weight"]
    assert tensor.shape == (128, 64)
    whole = tensor.read()
    np.testing.assert_array_equal(tensor.read(slice(10, 20)), whole[10:20])
    np.testing.assert_array_equal(tensor.rows(100, 128).read(slice(3, 9)), whole[103:109])


def test_provenance_and_preprocessing_travel_with_the_model(detector, saved, rng):
    from PIL import Image

    loaded = load_detector(saved)
    assert loaded.provenance == {"kind": "test"}
    image = Image.fromarray(rng.integers(0, 256, (50, 70, 3), dtype=np.uint8))
    np.testing.assert_array_equal(loaded.preprocess(image), detector.preprocess([image]))
    assert loaded.preprocess([image, image]).shape == (2, 32, 32, 3)
    from transformers import CLIPImageProcessorPil

    theirs = CLIPImageProcessorPil.from_pretrained(saved)(image, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(loaded.preprocess(image)[0], np.moveaxis(theirs[0], 0, -1))


def test_directory_without_a_head_warns_and_answers_one_half(detector, saved):
    weights = saved / "model.safetensors"
    save_file({k: v for k, v in load_file(weights).items() if not k.startswith("head")}, weights)
    with pytest.warns(UserWarning, match="has no head"):
        bare = load_detector(saved)
    np.testing.assert_array_equal(bare(np.zeros((2, 32, 32, 3), np.float32)), np.zeros((2, 2)))
    leaves_equal(bare.params["backbone"], detector.params["backbone"])


def rewrite(saved, change):
    weights = load_file(saved / "model.safetensors")
    change(weights)
    save_file(weights, saved / "model.safetensors")


FC1 = "vision_model.encoder.layers.2.mlp.fc1.weight"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda w: w.pop(FC1), r"lacks encoder.layers.2.mlp.fc1.weight"),
        (lambda w: w.pop("head.bias"), r"lacks head.bias"),
        (lambda w: w.update({"surprise": np.zeros(3, np.float32)}), "surprise"),
        (lambda w: w.update({FC1: w[FC1][:-1].copy()}), r"fc1.weight has shape \(127, 64\).*\(128, 64\)"),
        (lambda w: w.update({FC1: np.full_like(w[FC1], np.nan)}), "mlp/fc1/kernel holds 8192 values"),
        (lambda w: w.update({FC1: w[FC1].astype(np.int32)}), "int32"),
        (lambda w: w.update({FC1: w[FC1].astype(np.float16)}), "float16"),
    ],
)
def test_damaged_weights(saved, change, named):
    rewrite(saved, change)
    with pytest.raises(InputError, match=named):
        load_detector(saved)


def test_wrong_places(tmp_path, saved):
    with pytest.raises(InputError, match="nowhere does not exist"):
        load_detector(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is a file"):
        load_detector(saved / "config.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty/config.json cannot be read"):
        load_detector(tmp_path / "empty")


@pytest.mark.parametrize("keep", [0, 4, 100, 5_000, 100_000])
def test_truncated_safetensors(saved, keep):
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        load_detector(saved)


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("config.json", "{", "not valid JSON"),
        ("config.json", "[]", "no JSON object"),
        ("config.json", "{}", "hidden_size"),
        ("config.json", '{"hidden_size": "wide", "patch_size": 8}', "not a valid CLIPVisionConfig"),
        ("preprocessor_config.json", "{}", "image_mean"),
    ],
)
def test_damaged_json(saved, file, content, named):
    (saved / file).write_text(content)
    with pytest.raises(InputError, match=named):
        load_detector(saved)


def test_unsupported_activation(saved):
    config = json.loads((saved / "config.json").read_text()) | {"hidden_act": "relu"}
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="'relu' is not supported"):
        load_detector(saved)


def test_missing_preprocessing_is_no_silent_default(saved):
    (saved / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match="normalisation is unknown"):
        load_detector(saved)


@pytest.mark.parametrize("broken", ["missing shard", "missing tensor", "outside"])
def test_damaged_shard_index(detector, tmp_path, broken):
    save_detector(detector, tmp_path / "m", max_shard_bytes=50_000)
    index = tmp_path / "m" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    if broken == "missing shard":
        next((tmp_path / "m").glob("model-00002*")).unlink()
    elif broken == "missing tensor":
        content["weight_map"]["ghost"] = "model-00001-of-" + next(iter(content["weight_map"].values()))[-17:]
    else:
        content["weight_map"]["head.bias"] = "../elsewhere.safetensors"
    index.write_text(json.dumps(content))
    expected = {"missing shard": "cannot be read", "missing tensor": "ghost", "outside": "elsewhere"}[broken]
    with pytest.raises(InputError, match=expected):
        load_detector(tmp_path / "m")


def test_saving_never_leaves_half_a_model(detector, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="already exists"):
        save_detector(detector, tmp_path / "taken")
    broken = jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].set(jnp.inf), detector.params)
    with pytest.raises(InputError, match="NaN or infinite"):
        save_detector(detector.replace_params(broken), tmp_path / "broken")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]
    save_detector(detector, tmp_path / "taken", overwrite=True)
    assert not (tmp_path / "taken" / "mine.txt").exists()
    assert stat.S_IMODE((tmp_path / "taken").stat().st_mode) & 0o500 == 0o500
    shutil.rmtree(tmp_path / "taken")
    assert list(tmp_path.iterdir()) == []


def test_parameters_of_another_shape_are_refused(detector):
    params = {**detector.params, "head": {"kernel": jnp.zeros((64, 3)), "bias": jnp.zeros(2)}}
    with pytest.raises(InputError, match=r"head/kernel of shape \(64, 3\) instead of \(64, 2\)"):
        detector.replace_params(params)
