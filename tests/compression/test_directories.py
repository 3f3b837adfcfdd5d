"""What r2m compress makes is a model directory for everything that takes one."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from r2m_jax import InputError, load_detector
from r2m_jax.checkpoints.compressed import open_tensors
from r2m_jax.checkpoints.sources import open_source
from r2m_jax.checkpoints.tensors import safetensors_files
from r2m_jax.compression import sparsity
from r2m_jax.compression.measures import size
from r2m_jax.jobs.compress import compress
from r2m_jax.jobs.export import export
from r2m_jax.jobs.merge import merge
from r2m_jax.progress import Reporter
from r2m_jax.recipes import load_recipe
from r2m_jax.recipes.compressing import CompressRecipe
from r2m_jax.recipes.merging import MergeRecipe
from r2m_jax.trees import flatten

pytestmark = pytest.mark.integration

QUIET = Reporter(quiet=True)
FC1 = "vision_model.encoder.layers.1.mlp.fc1.weight"


@pytest.fixture(scope="module")
def made(model, specialist, tmp_path_factory):
    """``made(method, of=…, **settings)``: a compressed model, once."""
    folder, known = tmp_path_factory.mktemp("made"), {}

    def run(method, of=None, **settings):
        key = (method, str(of), str(settings))
        if key not in known:
            out = folder / str(len(known))
            recipe = {"model": of or specialist, "method": method, "out": out, **settings}
            known[key] = compress(CompressRecipe(**recipe), reporter=QUIET)
        return known[key]

    return run


def _leaves(directory):
    return {path: np.asarray(leaf) for path, leaf in flatten(load_detector(directory).params).items()}


@pytest.mark.parametrize(("method", "bits"), [("int8", 8), ("int4", 4)])
def test_integers_come_back_to_half_a_scale(made, specialist, method, bits):
    outcome = made(method)
    before, after = _leaves(specialist), _leaves(outcome.directory)
    for path, leaf in before.items():
        if path.endswith("kernel") and "head" not in path:
            axes = tuple(range(1, leaf.ndim - 1)) if path.startswith("backbone/layers") else tuple(range(leaf.ndim - 1))
            scale = np.abs(leaf).max(axis=axes, keepdims=True) / (2 ** (bits - 1) - 0.5)
            assert (np.abs(after[path] - leaf) <= scale * 0.5001).all(), path
            assert not np.array_equal(after[path], leaf), path
        elif "position" not in path:
            np.testing.assert_array_equal(after[path], leaf, err_msg=path)
    converted = open_source(str(outcome.directory)).tensors[FC1].read()
    np.testing.assert_array_equal(converted.T, after["backbone/layers/mlp/fc1/kernel"][1])
    assert outcome.report["change"]["logit"] > 0
    assert outcome.report["times_less"]["bytes"] > (2.5 if bits == 8 else 3.5)  # biases weigh in a tiny model
    assert json.loads((outcome.directory / "r2m.json").read_text())["kind"] == "specialist"


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("int4", {}),
        ("int8", {"granularity": "tensor"}),
        ("low-rank", {"rank": 8}),
        ("prune", {"rate": 0.9, "sparse": True}),
        ("task-vector", {"bits": 5}),
    ],
)
def test_rows_are_those_of_the_whole(made, model, method, settings):
    settings = settings | ({"base": model} if method == "task-vector" else {})
    tensor = open_tensors(made(method, **settings).directory)[FC1]
    whole = tensor.read()
    assert whole.shape == tensor.shape == (128, 64)
    np.testing.assert_allclose(tensor.read(slice(10, 23)), whole[10:23], atol=1e-6)
    np.testing.assert_array_equal(tensor.rows(100, 128).read(slice(3, 9)), tensor.read(slice(103, 109)))
    out = np.empty((4, 64), np.float32)
    tensor.read_into(out, slice(3, 7))
    np.testing.assert_allclose(out, whole[3:7], atol=1e-6)


def test_pruned_models_are_zero_where_they_say(made, specialist):
    dense, packed = made("prune", rate=0.6), made("prune", rate=0.6, sparse=True)
    before, after = _leaves(specialist), _leaves(dense.directory)
    assert sparsity(load_detector(dense.directory).params) == pytest.approx(0.6, abs=1e-3)
    assert dense.report["zeros"] == pytest.approx(0.6, abs=1e-3)
    for path, leaf in after.items():
        np.testing.assert_array_equal(leaf[leaf != 0], before[path][leaf != 0], err_msg=path)
        np.testing.assert_array_equal(_leaves(packed.directory)[path], leaf, err_msg=path)
    sizes = dense.report["size"]["after"], packed.report["size"]["after"]
    assert sizes[0]["parameters"] == sizes[1]["parameters"] == sum(leaf.size for leaf in after.values())
    assert sizes[0]["nonzero"] == sizes[1]["nonzero"] == sum(np.count_nonzero(leaf) for leaf in after.values())
    assert sizes[0]["bytes"] == pytest.approx(dense.report["size"]["before"]["bytes"], rel=0.01)
    assert sizes[1]["bytes"] < 0.6 * sizes[0]["bytes"]
    assert sizes[0]["zipped"] < 0.7 * dense.report["size"]["before"]["zipped"]


@pytest.mark.parametrize("first", [("prune", {"rate": 0.6}), ("prune", {"rate": 0.6, "sparse": True}),
                                   ("low-rank", {"rank": 0.25}), ("heads", {"keep": 2})])  # fmt: skip
def test_integers_of_what_is_compressed_already(made, first):
    method, settings = first
    start = made(method, **settings)
    both = made("int8", of=start.directory)
    before, after = _leaves(start.directory), _leaves(both.directory)
    for path, leaf in before.items():
        assert (after[path][leaf == 0] == 0).all(), path
        np.testing.assert_allclose(after[path], leaf, atol=0.05 * np.abs(leaf).max(), err_msg=path)
    assert both.report["size"]["after"]["bytes"] < 0.6 * start.report["size"]["after"]["bytes"]
    assert both.report["size"]["after"]["parameters"] == start.report["size"]["after"]["parameters"]


@pytest.mark.parametrize(
    ("method", "settings", "key", "value"),
    [
        ("channels", {"rate": 0.25}, "intermediate_size", 96),
        ("heads", {"keep": 2}, "kept_attention_heads", 2),
        ("layers", {"keep": 2}, "num_hidden_layers", 2),
    ],
)
def test_towers_that_shrink(made, method, settings, key, value):
    outcome = made(method, measure={"batches": [2], "runs": 2, "warm_up": 1}, **settings)
    for when in ("before", "after"):
        (taken,), memory = (outcome.report["time"][when][what] for what in ("latency", "memory"))
        assert 0 < taken["low"] <= taken["median"] <= taken["high"]
        assert memory["2"]["arguments"] > 4 * outcome.report["size"][when]["parameters"]
    assert getattr(load_detector(outcome.directory).config, key) == value
    assert outcome.report["times_less"]["bytes"] > 1.05
    assert outcome.report["flops"]["before"] / outcome.report["flops"]["after"] > 1.05
    assert np.isfinite(outcome.report["change"]["logit"])


@pytest.mark.parametrize(("method", "settings"), [("channels", {"rate": 0.25}), ("layers", {"keep": 2})])
def test_transformers_reads_narrower_and_shallower_towers(made, method, settings):
    torch = pytest.importorskip("torch", reason="torch is the reference implementation (extra `dev`)")
    from transformers import CLIPVisionModel

    folder = made(method, **settings).directory
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = CLIPVisionModel.from_pretrained(folder)(torch.tensor(np.moveaxis(images, -1, 1))).pooler_output
    ours = load_detector(folder).features(images)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-5 * np.abs(theirs.numpy()).max())


def test_convolutional_networks(made, tmp_path):
    from r2m_jax.checkpoints import image_processor, load_convolutional, save_convolutional
    from r2m_jax.models.convolutional import ConvolutionalDetector, Plan, init_convolutional

    plan = Plan((8, "pool", 16, "pool"), hidden=(32,), image_size=32)
    detector = ConvolutionalDetector.create(plan, init_convolutional(plan, jax.random.key(0)), image_processor(32))
    save_convolutional(detector, tmp_path / "student", provenance={"kind": "student"})
    small = made("int8", of=made("prune", of=tmp_path / "student", rate=0.6).directory)
    before, after = flatten(detector.params), flatten(load_convolutional(small.directory).params)
    assert after.keys() == before.keys()
    for path, leaf in before.items():
        left, pruned = np.asarray(after[path]), path.endswith("kernel") and "head" not in path
        assert (left == 0).sum() >= (round(0.6 * left.size) if pruned else 0), path
        np.testing.assert_allclose(left[left != 0], leaf[left != 0], atol=np.abs(leaf).max() / 250, err_msg=path)
    assert small.report["times_less"]["bytes"] > 3
    assert small.report["change"]["logit"] > 0
    with pytest.raises(InputError, match="convolutional"):
        made("channels", of=tmp_path / "student", rate=0.5)


def _merged(base, models, out):
    recipe = {"base": base, "models": models, "method": "r2m", "parameters": {"rank": 0.5}, "out": out}
    return merge(load_recipe(MergeRecipe, "merge", None, (), recipe), reporter=QUIET).directory


def test_merges_take_quantised_models_as_what_they_stand_for(made, model, specialist, tmp_path):
    task, small = made("task-vector", base=model).directory, made("int8").directory
    for name, folder in (("task", task), ("small", small)):
        dense = tmp_path / f"{name}-dense"
        shutil.copytree(specialist, dense)
        save_file({key: t.read() for key, t in open_tensors(folder).items()}, dense / "model.safetensors")
        streamed = _leaves(_merged(model, {"a": folder, "b": specialist}, tmp_path / f"{name}-out"))
        expected = _leaves(_merged(model, {"a": dense, "b": specialist}, tmp_path / f"{name}-expected"))
        for path, leaf in expected.items():
            np.testing.assert_allclose(streamed[path], leaf, atol=1e-6, err_msg=path)


def test_task_vectors_are_nearer_than_weights_of_as_many_bits(made, model, specialist):
    outcome = made("task-vector", base=model, bits=4)
    before, task, plain = _leaves(specialist), _leaves(outcome.directory), _leaves(made("int4").directory)
    error = [sum(np.square(leaf - before[path]).sum() for path, leaf in each.items()) for each in (task, plain)]
    assert error[0] < 1e-2 * error[1]
    entries = json.loads((outcome.directory / "compression.json").read_text())["tensors"]
    same = "vision_model.embeddings.class_embedding"
    assert entries[same]["as"] == "difference"
    assert f"{same}.difference" not in entries
    assert size(outcome.directory).parameters == sum(leaf.size for leaf in before.values())


def test_a_base_that_changed_or_moved_is_refused(made, model, specialist, tmp_path):
    for folder in (model, specialist):
        shutil.copytree(folder, tmp_path / folder.name)
    recipe = CompressRecipe(
        model=tmp_path / "specialist", method="task-vector", base=tmp_path / "model", out=tmp_path / "small"
    )
    outcome = compress(recipe, reporter=QUIET)
    shutil.move(tmp_path, tmp_path.with_name("moved"))  # both together: the way from one to the other stays
    moved = tmp_path.with_name("moved")
    load_detector(moved / outcome.directory.name)
    weights = load_file(moved / "model" / "model.safetensors")
    save_file(weights | {FC1: weights[FC1] + 1}, moved / "model" / "model.safetensors")
    with pytest.raises(InputError, match="another base"):
        load_detector(moved / "small")
    shutil.rmtree(moved / "model")
    with pytest.raises(InputError, match="which is not there"):
        load_detector(moved / "small")


def test_damage_is_named(made, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(made("int8").directory, folder)
    record, weights = (folder / "compression.json").read_text(), load_file(folder / "model.safetensors")
    assert (folder / "compression.json") in safetensors_files(folder)
    for change, message in (
        (lambda r: r["tensors"][FC1].update(bits=11), "unknown"),
        (lambda r: r["tensors"][FC1].update({"as": "magic"}), "unknown"),
        (lambda r: r["tensors"][FC1].update(shape=[128, 65]), r"integers has shape \(128, 64\)"),
        (lambda r: r.update(format=9), "format 9"),
        (
            lambda r: r["tensors"].update({"x": {"as": "integers", "bits": 8, "shape": [1], "dtype": "float32"}}),
            "lacks",
        ),
    ):
        content = json.loads(record)
        change(content)
        (folder / "compression.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=message):
            load_detector(folder)
    (folder / "compression.json").write_text(record)
    save_file(weights | {f"{FC1}.scale": np.full(128, np.nan, np.float32)}, folder / "model.safetensors")
    with pytest.raises(InputError, match="NaN"):
        load_detector(folder)


def test_what_cannot_be_compressed_leaves_nothing(model, tmp_path):
    for settings, message in (
        ({"method": "heads", "keep": 4}, "4 heads"),
        ({"method": "int8", "only": ["nowhere"]}, "no tensor"),
        ({"method": "low-rank", "rank": 64}, "no matrix"),
    ):
        with pytest.raises(InputError, match=message):
            compress(CompressRecipe(model=model, out=tmp_path / "out", **settings), reporter=QUIET)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["dynamic", "static"])
def test_int8_graphs_say_what_the_model_says(specialist, tmp_path, how):
    onnx = pytest.importorskip("onnx", reason="ONNX is written with jax2onnx and onnx (extra `export`)")
    pytest.importorskip("jax2onnx", reason="ONNX is written with jax2onnx and onnx (extra `export`)")
    made = export(specialist, tmp_path / "model.onnx", format="onnx", int8=how, reporter=QUIET)
    assert 0 < made.difference.probability < made.tolerance  # integers differ, but little
    assert made.difference.images == 16
    assert made.times is not None
    assert min(made.times.float32, made.times.int8) > 0
    graph = onnx.load(made.artifact)
    kinds = {tensor.data_type for tensor in graph.graph.initializer if len(tensor.dims) == 2}
    assert onnx.TensorProto.INT8 in kinds
    assert [entry.key for entry in graph.metadata_props] == ["r2m"]
    record = json.loads(made.record.read_text())
    assert record["recipe"]["int8"] == how
    assert record["check"]["tolerance"] == made.tolerance
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.json"]
