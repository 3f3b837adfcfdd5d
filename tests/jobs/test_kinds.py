"""CoRIT models through the commands that take any kind of model."""

import csv
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from r2m_jax import InputError, load_detector
from r2m_jax.checkpoints import load_corit, save_corit
from r2m_jax.cli.info import describe as facts_of
from r2m_jax.data.index import read_index
from r2m_jax.data.pairs import by_content
from r2m_jax.data.records import Record
from r2m_jax.evaluation.refinement import kept_shares, tinted
from r2m_jax.jobs import kinds
from r2m_jax.jobs.export import export
from r2m_jax.jobs.predict import PredictRequest, predict
from r2m_jax.jobs.scoring import score_models
from r2m_jax.models.corit import CoritDetector, CoritSettings, init_corit_head
from r2m_jax.progress import Reporter

QUIET = Reporter(quiet=True)


@pytest.fixture(scope="session")
def corit(base, tmp_path_factory):
    """``corit(**switches)``: the directory of a CoRIT model on the random base, with a random head."""
    made = {}

    def make(**switches):
        settings = CoritSettings(**switches)
        if settings not in made:
            origin = load_detector(base)
            head = init_corit_head(origin.config, settings.resolved(origin.config), jax.random.key(3))
            params = {"backbone": origin.params["backbone"], "head": head}
            made[settings] = tmp_path_factory.mktemp("corit") / "model"
            save_corit(CoritDetector.create(origin.config, params, origin.processor, settings), made[settings])
        return made[settings]

    return make


def rows_of(model, *paths, **options):
    found = []
    predict(PredictRequest(model, [str(p) for p in paths], workers=0), emit=found.append, reporter=QUIET, **options)
    return found


@pytest.mark.integration
def test_a_prediction_is_what_an_evaluation_says(corit, index, tmp_path):
    records = [Record(r.path, r.label) for r in read_index(index)[:3]]
    scored = score_models({"corit": corit()}, records, reporter=QUIET, batch_size=8, workers=0)
    rows = rows_of(corit(), *(r.path for r in records), explain=tmp_path / "pictures")
    np.testing.assert_allclose([row.logit for row in rows], scored.table.logits["corit"], atol=1e-5)
    # The pictures' table: every layer and region of every file, and no patch kept that a region has not.
    with (tmp_path / "pictures" / "explanations.csv").open() as file:
        told = list(csv.DictReader(file))
    assert len(told) == 3 * 3 * 3
    assert {line["region"] for line in told} == {"foreground", "boundary", "background"}
    for line in told:
        assert 0 <= int(line["kept"]) <= int(line["patches"])
    for name, row in zip(dict.fromkeys(line["file"] for line in told), rows, strict=True):
        lines = [line for line in told if line["file"] == name]
        assert sum(int(line["patches"]) for line in lines) == 3 * 16  # a partition, in every layer
        assert float(lines[0]["logit"]) == pytest.approx(row.logit, abs=1e-4)
        with Image.open(tmp_path / "pictures" / name) as picture:
            assert picture.format == "PNG"


def test_drawn_blends_are_of_the_content(corit, index, tmp_path):
    model, path = corit(cgp="random"), read_index(index)[0].path
    shutil.copy(path, tmp_path / "renamed.png")
    one, other, again = rows_of(model, path, read_index(index)[1].path, tmp_path / "renamed.png")
    assert one.logit == again.logit != other.logit
    with Image.open(path) as picture:
        changed = np.array(picture)
        same = by_content(picture).random(4)
    np.testing.assert_array_equal(by_content(Image.fromarray(changed)).random(4), same)
    changed[0, 0, 0] ^= 1
    assert (by_content(Image.fromarray(changed)).random(4) != same).all()


def test_info_tells_every_switch(corit, base):
    found = facts_of(corit(gamma=0.5), base)
    assert found["method"] == "CoRIT"
    assert found["switches"]["gamma"] == 0.5
    assert found["switches"]["fusion_layer"] == 2
    assert found["sizes"] == facts_of(base)["sizes"]
    assert found["task vector"]["norm"] == "0"  # the tower is the base's


def test_what_is_known_before_loading(corit, base):
    plain, first, other = (kinds.describe(path) for path in (base, corit(), corit(gamma=0.5)))
    assert (plain.kind, first.kind) == ("plain", "corit")
    assert plain.prepare is None
    assert first.prepare == other.prepare  # pictures are prepared once for both
    assert first.alike != other.alike  # but not computed by one function
    assert first.alike == kinds.describe(corit()).alike
    held = kinds.describe(load_corit(corit()))
    assert (held.alike, held.bytes, held.size) == (first.alike, first.bytes, first.size)
    assert first.load().width == 512
    with pytest.raises(InputError, match="x=nowhere is no directory"):
        kinds.describe("nowhere", name="x")


def test_what_cannot_be_drawn_or_written_is_said(corit, index, tmp_path):
    with pytest.raises(InputError, match="rsi is off"):
        rows_of(corit(rsi=False), read_index(index)[0].path, explain=tmp_path / "pictures")
    with pytest.raises(InputError, match="a corit model, for which no single file is written"):
        export(corit(), tmp_path / "x.safetensors", format="safetensors", reporter=QUIET)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.integration
@pytest.mark.parametrize(
    ("format", "switches"),
    [
        ("stablehlo", {"fusion": "cross_attention", "cgp": "random", "draws": 2, "threshold": "deviation"}),
        ("onnx", {}),
        ("onnx", {"rule": "saliency", "pooling": "max", "attention": "read_only", "cgp": "random"}),
    ],
)
def test_a_program_takes_streams_and_foreground(corit, index, tmp_path, format, switches):
    if format == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime", reason="runs the artifact (extra `export`)")
    model = corit(**switches)
    made = export(model, tmp_path / f"x.{format}", format=format, reporter=QUIET)
    streams = load_corit(model).settings.streams
    takes = json.loads(made.record.read_text())["takes"]
    assert takes["images"]["shape"] == ["batch", streams, 32, 32, 3]
    assert takes["foreground"]["shape"] == ["batch", 16]
    assert json.loads(made.record.read_text())["switches"]["cgp"] == switches.get("cgp", "canonical")
    found = kinds.describe(model)
    pairs = []
    for record in read_index(index)[:3]:
        with Image.open(record.path) as picture:
            pairs.append(found.prepare(picture, Record("", 0), by_content(picture)))
    inputs = [np.stack([pair[name] for pair in pairs]) for name in ("image", "foreground")]
    if format == "onnx":
        session = onnxruntime.InferenceSession(made.artifact, providers=["CPUExecutionProvider"])
        assert [taken.name for taken in session.get_inputs()] == ["images", "foreground"]
        logits = session.run(["logit"], dict(zip(["images", "foreground"], inputs, strict=True)))[0]
    else:
        logits = jax.export.deserialize(bytearray(made.artifact.read_bytes())).call(*inputs)[1]
    expected = [row.logit for row in rows_of(model, *(record.path for record in read_index(index)[:3]))]
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_shares_and_colours_of_masks():
    regions = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]], bool)
    masks = np.array([[[1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]]], bool)
    np.testing.assert_array_equal(kept_shares(regions, masks), [[0.5, 1.0, np.nan]])
    image = np.full((4, 4, 3), 200, np.uint8)
    out = tinted(image, masks[0], ["#ff0000", "#00ff00", "#0000ff"])
    assert out[0, 0].argmax() == 0  # the first patch is kept by the first region
    assert np.ptp(out[0, 3]) == pytest.approx(0)  # the second by none: grey, and dark
    assert out[0, 3, 0] < 0.5 * 200 / 255
    assert out[3, 0].argmax() == out[3, 3].argmax() == 1
