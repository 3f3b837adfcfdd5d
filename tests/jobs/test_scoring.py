import jax
import numpy as np
import pytest
from PIL import Image

from r2m_jax import InputError, save_detector
from r2m_jax.checkpoints import image_processor
from r2m_jax.data.pipeline import RecordSource
from r2m_jax.data.records import Record
from r2m_jax.jobs import scoring
from r2m_jax.jobs.scoring import score_models
from r2m_jax.models import Detector
from r2m_jax.progress import Reporter

QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def detectors(tiny_config):
    """Three models: two alike at 32 px, one of them with another normalisation, and one at 16 px."""
    from r2m_jax.models import init_backbone, init_head

    def make(seed, size, **normalisation):
        params = {
            "backbone": init_backbone(tiny_config, jax.random.key(seed)),
            "head": init_head(64, jax.random.key(9)),
        }
        return Detector.create(tiny_config, params, image_processor(size, **normalisation))

    half = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    return {"a": make(1, 32), "b": make(2, 32, **half), "small": make(3, 16), "c": make(4, 32)}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(19):
        Image.fromarray(rng.integers(0, 255, (40, 36, 3)).astype(np.uint8)).save(folder / f"{number}.png")
    return [Record(str(folder / f"{number}.png"), number % 2) for number in range(19)]


@pytest.fixture
def decoded(monkeypatch):
    """How often each record's image was decoded."""
    counts = {}

    class Counting(RecordSource):
        def image(self, index, shortest=None):
            counts[index] = counts.get(index, 0) + 1
            return super().image(index, shortest)

    monkeypatch.setattr(scoring, "RecordSource", Counting)
    return counts


def alone(detector, records):
    images = [Image.open(record.path) for record in records]
    inputs = detector.preprocess(images)
    for image in images:
        image.close()
    both = np.asarray(detector(inputs))
    return both[:, 1] - both[:, 0], np.asarray(detector.features(inputs))


def test_many_models_in_one_pass_a_size_are_each_alone(detectors, records, decoded):
    found = score_models(detectors, records, reporter=QUIET, batch_size=8, features=True)
    assert found.passes == 2
    assert set(decoded.values()) == {2}  # one decoding per input size, not per model
    assert found.table.models == list(detectors)
    assert found.table.records == records
    for name, detector in detectors.items():
        logits, features = alone(detector, records)
        np.testing.assert_allclose(found.table.logits[name], logits, atol=2e-3)
        np.testing.assert_allclose(found.features[name], features, atol=5e-3)


def test_a_budget_too_small_for_all_takes_more_passes_and_changes_nothing(detectors, records, decoded, tmp_path):
    for name, detector in detectors.items():
        save_detector(detector, tmp_path / name)
    models = {name: tmp_path / name for name in detectors if name != "small"}
    roomy = score_models(models, records, reporter=QUIET, batch_size=8)
    size = (tmp_path / "a" / "model.safetensors").stat().st_size
    budget = -(-2 * size * jax.local_device_count() // 2**20)
    tight = score_models(models, records, reporter=QUIET, batch_size=8, memory=budget)
    least = score_models(models, records, reporter=QUIET, batch_size=8, memory=1)
    assert (roomy.passes, tight.passes, least.passes) == (1, 2, 3)
    assert set(decoded.values()) == {6}
    for name in models:
        np.testing.assert_array_equal(tight.table.logits[name], roomy.table.logits[name])
        np.testing.assert_array_equal(least.table.logits[name], roomy.table.logits[name])


def test_images_that_cannot_be_read_are_left_out_and_counted(detectors, records, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    holed = [*records[:3], Record(str(tmp_path / "broken.png"), 1), *records[3:]]
    models = {"a": detectors["a"], "small": detectors["small"]}
    found = score_models(models, holed, reporter=QUIET, batch_size=8)
    whole = score_models(models, records, reporter=QUIET, batch_size=8)
    assert found.left_out == 1
    assert list(found.unreadable) == [str(tmp_path / "broken.png")]
    assert found.table.records == records
    for name in models:
        np.testing.assert_allclose(found.table.logits[name], whole.table.logits[name], atol=1e-5)
    with pytest.raises(InputError, match=r"broken\.png cannot be read"):
        score_models(models, holed, reporter=QUIET, batch_size=8, strict=True)
    with pytest.raises(InputError, match="none of the 1 images can be read"):
        score_models(models, holed[3:4], reporter=QUIET, batch_size=8)


def test_models_that_cannot_score_are_named(detectors, records, tiny_hf_dir, tmp_path):
    good = detectors["a"]
    broken = good.replace_params(jax.tree.map(lambda leaf: leaf * np.nan, good.params))
    with pytest.raises(InputError, match=r"bad gives NaN or infinite scores \(first for .*0\.png\)"):
        score_models({"good": good, "bad": broken}, records, reporter=QUIET, batch_size=8)
    for headless in (tiny_hf_dir, Detector.create(good.config, {"backbone": good.params["backbone"]}, good.processor)):
        with pytest.raises(InputError, match="base has no trained head"):
            score_models({"base": headless}, records, reporter=QUIET, batch_size=8)
    with pytest.raises(InputError, match=r"x=.* is no directory"):
        score_models({"x": tmp_path / "nothing"}, records, reporter=QUIET)
    with pytest.raises(InputError, match="no model to score with"):
        score_models({}, records, reporter=QUIET)
    wide = image_processor(32)
    wide.size = {"shortest_edge": 40}
    with pytest.raises(InputError, match="a resizes images to 40 px and crops 32 x 32"):
        score_models({"a": Detector.create(good.config, good.params, wide)}, records, reporter=QUIET)
