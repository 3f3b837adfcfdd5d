import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open

from r2m_jax import InputError, load_detector, save_detector
from r2m_jax.checkpoints.convert import convert
from r2m_jax.checkpoints.directory import cast
from r2m_jax.checkpoints.provenance import sha256
from r2m_jax.export import check_images, compare
from r2m_jax.jobs import export as job
from r2m_jax.jobs.export import export
from r2m_jax.models import init_head
from r2m_jax.progress import Reporter
from r2m_jax.trees import flatten

QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (5, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def expected(base, images) -> np.ndarray:
    """Logits by the documented path: the model's own processor."""
    detector = load_detector(base)
    logits = np.asarray(detector(detector.preprocess([Image.fromarray(image) for image in images])))
    return logits[:, 1] - logits[:, 0]


@pytest.fixture(scope="module")
def program(base, tmp_path_factory):
    return export(base, tmp_path_factory.mktemp("program") / "fs.stablehlo", format="stablehlo", reporter=QUIET)


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def documented(which: str) -> str:
    """The Python block of docs/how-to.md that reads a file called ``which``."""
    text = (Path(__file__).parents[2] / "docs" / "how-to.md").read_text(encoding="utf-8")
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if which in block]
    return block


def run_without_the_package(script: str, folder: Path) -> list[float]:
    """What a script prints in a process where r2m_jax cannot be imported."""
    code = f"import sys; sys.modules['r2m_jax'] = None\n{script}"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert result.returncode == 0, result.stderr
    return [float(number) for number in re.findall(r"\d\.[\d.e+-]+", result.stdout)]


def test_the_documented_script_runs_a_program_with_jax_alone(program, images, expected, tmp_path):
    (tmp_path / "fs.stablehlo").write_bytes(program.artifact.read_bytes())
    np.save(tmp_path / "faces.npy", images)
    printed = run_without_the_package(documented("fs.stablehlo"), tmp_path)
    np.testing.assert_allclose(printed, sigmoid(expected), atol=1e-5)


def test_a_program_is_for_every_platform_and_any_batch(program, images, expected):
    loaded = jax.export.deserialize(bytearray(program.artifact.read_bytes()))
    assert set(loaded.platforms) == {"cpu", "cuda", "tpu"}
    assert str(loaded.in_avals[0]) == "uint8[batch,32,32,3]"
    for count in (1, 3):
        probability, logit = loaded.call(images[:count])
        np.testing.assert_allclose(logit, expected[:count], atol=1e-5)
        np.testing.assert_allclose(probability, sigmoid(expected[:count]), atol=1e-6)


def test_the_record_says_what_was_made_and_checked(program, base):
    record = json.loads(program.record.read_text())
    assert program.record.name == "fs.stablehlo.json"
    assert record["artifact"]["sha256"] == sha256(program.artifact)
    assert {Path(item["path"]).name: item["sha256"] for item in record["inputs"]}["model.safetensors"] == sha256(
        base / "model.safetensors"
    )
    assert record["takes"]["images"]["shape"] == ["batch", 32, 32, 3]
    assert record["check"]["images"] == 16
    assert record["check"]["probability"] == program.difference.probability < 1e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_program_of_normalised_images_in_fixed_batches(base, images, expected, tmp_path, dtype):
    made = export(base, tmp_path / "out", format="stablehlo", dtype=dtype, batch=5, normalised=True, reporter=QUIET)
    assert made.artifact == tmp_path / "out" / "model.stablehlo"
    assert (tmp_path / "out" / "r2m.json").exists()
    loaded = jax.export.deserialize(bytearray(made.artifact.read_bytes()))
    assert str(loaded.in_avals[0]) == "float32[5,32,32,3]"
    inputs = load_detector(base).preprocess([Image.fromarray(image) for image in images])
    probability, _ = loaded.call(inputs)
    np.testing.assert_allclose(probability, sigmoid(expected), atol=2e-2)
    # The parameters are most of this file, two bytes each.
    parameters = sum(leaf.size for leaf in flatten(load_detector(base).params).values())
    assert 2 * parameters < made.size < 3 * parameters


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_one_safetensors_file_is_enough_to_convert_it_back(base, tmp_path, dtype):
    made = export(base, tmp_path / "fs.safetensors", format="safetensors", dtype=dtype, reporter=QUIET)
    report = convert(str(made.artifact), tmp_path / "back")
    assert report.inferred == []
    original, back = load_detector(base), load_detector(tmp_path / "back", dtype=None)
    stored = flatten(cast(jax.tree.map(np.asarray, original.params), dtype))
    for path, leaf in flatten(back.params).items():
        np.testing.assert_array_equal(np.asarray(leaf), stored[path], err_msg=path)
    assert back.processor.to_dict() == original.processor.to_dict()
    assert back.config.to_dict() == original.config.to_dict()
    with safe_open(made.artifact, framework="numpy") as file:
        assert json.loads(file.metadata()["r2m"])["classes"] == ["real", "fake"]
    assert made.artifact.stat().st_mode & 0o777 == made.record.stat().st_mode & 0o777


@pytest.mark.parametrize("metadata", ["{", "[1]", '{"config": {}}', '{"config": {}, "preprocessing": {}}'])
def test_a_damaged_description_is_refused(base, tmp_path, metadata):
    from safetensors.numpy import load_file, save_file

    save_file(load_file(base / "model.safetensors"), tmp_path / "x.safetensors", metadata={"r2m": metadata})
    with pytest.raises(InputError, match=r"x\.safetensors.*(config and preprocessing|no CLIP vision tower)"):
        convert(str(tmp_path / "x.safetensors"), tmp_path / "back")


@pytest.mark.integration
@pytest.mark.parametrize(("dtype", "bytes_each"), [("float32", 4), ("bfloat16", 2), ("float16", 2)])
def test_onnx_runtime_scores_as_transformers_does(base, images, tmp_path, dtype, bytes_each):
    torch = pytest.importorskip("torch", reason="torch is the reference implementation (extra `dev`)")
    onnxruntime = pytest.importorskip("onnxruntime", reason="runs the artifact (extra `export`)")
    from transformers import CLIPVisionModel

    made = export(base, tmp_path / "fs.onnx", format="onnx", dtype=dtype, reporter=QUIET)
    detector = load_detector(base)
    pixels = np.moveaxis(detector.preprocess([Image.fromarray(image) for image in images]), -1, 1)
    with torch.no_grad():
        pooled = CLIPVisionModel.from_pretrained(base).eval()(torch.tensor(np.ascontiguousarray(pixels))).pooler_output
    logits = pooled.numpy() @ np.asarray(detector.params["head"]["kernel"]) + np.asarray(
        detector.params["head"]["bias"]
    )
    session = onnxruntime.InferenceSession(made.artifact, providers=["CPUExecutionProvider"])
    for count in (1, 5):
        probability, logit = session.run(["probability", "logit"], {"images": images[:count]})
        np.testing.assert_allclose(
            probability, sigmoid(logits[:count, 1] - logits[:count, 0]), atol=1e-5 if dtype == "float32" else 2e-2
        )
        np.testing.assert_allclose(probability, sigmoid(logit), atol=1e-6)
    assert json.loads(session.get_modelmeta().custom_metadata_map["r2m"])["classes"] == ["real", "fake"]
    parameters = sum(leaf.size for leaf in flatten(detector.params).values())
    assert bytes_each * parameters < made.size < (bytes_each + 1) * parameters
    np.save(tmp_path / "faces.npy", images)
    printed = run_without_the_package(documented("fs.onnx"), tmp_path)
    np.testing.assert_allclose(printed, session.run(["probability"], {"images": images})[0], atol=1e-6)


@pytest.mark.integration
def test_the_command_checks_on_a_folder(r2m, base, index, tmp_path):
    arguments = ("export", base, "--format", "safetensors", "--out", tmp_path / "fs.safetensors")
    result = r2m(*arguments, "--check", index.parent)
    assert f"written    {tmp_path / 'fs.safetensors'}" in result.stdout
    assert "144 images" in result.stdout
    again = r2m(*arguments, check=False)
    assert again.returncode == 2
    assert "already exists" in again.stderr
    assert r2m(
        "export", base, "--format", "onnx", "--out", tmp_path / "x.onnx", "--batch", "few", check=False
    ).stderr == ("error: --batch few is no number of images; give 1 or more, or dynamic.\n")


def test_what_differs_is_not_kept(base, tmp_path, monkeypatch):
    monkeypatch.setitem(job.TOLERANCES, "bfloat16", 0.0)
    (tmp_path / "fs.safetensors").write_text("an earlier one")
    with pytest.raises(InputError, match=r"was not kept.*--dtype float32"):
        export(
            base, tmp_path / "fs.safetensors", format="safetensors", dtype="bfloat16", overwrite=True, reporter=QUIET
        )
    with pytest.raises(InputError, match="was not kept"):
        export(base, tmp_path / "folder", format="safetensors", dtype="bfloat16", reporter=QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["fs.safetensors"]
    assert (tmp_path / "fs.safetensors").read_text() == "an earlier one"
    made = export(
        base, tmp_path / "wide", format="safetensors", dtype="bfloat16", tolerance=0.5, overwrite=True, reporter=QUIET
    )
    assert made.tolerance == 0.5
    with pytest.raises(InputError, match="--tolerance 2 is no difference of probabilities"):
        export(base, tmp_path / "x", format="safetensors", tolerance=2, reporter=QUIET)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"format": "tflite", "out": "x.tflite"}, "litert-torch.*--format onnx"),
        ({"format": "coreml"}, "--format coreml is unknown; choose one of stablehlo, onnx, safetensors"),
        ({"dtype": "int8"}, "--dtype int8 is unknown"),
        ({"batch": 0}, "--batch 0"),
        ({"format": "safetensors", "batch": 2}, "no program"),
        ({"format": "safetensors", "normalised": True}, "no program"),
        ({"out": "x.onnx"}, "x.onnx is no name for --format stablehlo"),
        ({"out": "taken.stablehlo"}, "taken.stablehlo already exists"),
        ({"out": "."}, "already exists"),
        ({"check": Path("/nowhere")}, "/nowhere is not a folder"),
    ],
)
def test_what_does_not_fit(base, tmp_path, settings, says):
    (tmp_path / "taken.stablehlo").touch()
    settings = {"format": "stablehlo", "out": "out", **settings}
    with pytest.raises(InputError, match=says):
        export(base, tmp_path / settings.pop("out"), reporter=QUIET, **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["taken.stablehlo"]


def test_a_model_without_a_head_is_refused(detector, tmp_path):
    save_detector(detector.replace_params(detector.params | {"head": init_head(64)}), tmp_path / "base")
    with pytest.raises(InputError, match="zero head"):
        export(tmp_path / "base", tmp_path / "x.safetensors", format="safetensors", reporter=QUIET)


@given(
    st.lists(st.floats(-20, 20), min_size=1, max_size=40).map(np.asarray),
    st.one_of(st.none(), st.integers(1, 50)),
    st.data(),
)
def test_the_largest_difference_is_found_wherever_it_is(logits, batch, data):
    place, shift = data.draw(st.integers(0, len(logits) - 1)), data.draw(st.floats(-5, 5))
    said = logits.copy()
    said[place] += shift
    sizes = []

    def run(numbers):
        sizes.append(len(numbers))
        return sigmoid(said[numbers]), said[numbers]

    *_, found = compare(run, [np.arange(len(logits))], logits, batch=batch)
    assert found.images == len(logits)
    assert found.logit == pytest.approx(abs(said[place] - logits[place]), abs=1e-12)
    assert found.probability == pytest.approx(abs(sigmoid(said[place]) - sigmoid(logits[place])), abs=1e-12)
    assert set(sizes) == {batch} if batch else len(logits) <= 2 or len(set(sizes)) > 1


def test_scores_that_are_none_are_refused():
    images, logits = np.zeros((3, 1)), np.zeros(3)
    with pytest.raises(InputError, match="NaN"):
        list(compare(lambda part: (np.full(len(part), 0.5), np.full(len(part), np.nan)), [images], logits, batch=None))
    with pytest.raises(InputError, match="shape"):
        list(compare(lambda part: (np.zeros((len(part), 2)), np.zeros((len(part), 2))), [images], logits, batch=3))


def test_the_built_in_images_differ_and_stay_the_same():
    images = check_images(24)
    np.testing.assert_array_equal(images, check_images(24))
    assert len({image.tobytes() for image in images}) == len(images) >= 8
