import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

from r2m_jax import InputError
from r2m_jax.data.records import Record
from r2m_jax.evaluation import ScoreTable
from r2m_jax.evaluation.comparison import LOWER_IS_BETTER, TITLES, compare
from r2m_jax.evaluation.protocols import METRICS, NAMES, protocol


def scored(seed=0, models=("good", "poor"), noise=(0.7, 2.5)):
    """Two families on two domains, two frames a clip, scores around the label with each model's noise."""
    rng = np.random.default_rng(seed)
    records = [
        Record(
            f"{family}/{domain}/{i}", int(bool(family)), family, family and f"m{family}", domain, f"{family}{i // 2}"
        )
        for domain in ("ff", "cdf")
        for family in ("", "FS", "FR")
        for i in range(12)
    ]
    labels = np.asarray([record.label for record in records])
    table = ScoreTable(records)
    for model, spread in zip(models, noise, strict=True):
        table.add(model, (2.0 * labels - 1 + spread * rng.normal(size=len(labels))).astype(np.float32))
    return table


def test_every_number_is_that_of_the_columns_images():
    table = scored()
    formed = protocol("df40-seen", table.records)
    comparison = compare(table, formed, resamples=200)
    for name, mask in formed.masks(table.records).items():
        labels = table.labels[mask]
        for model in table.models:
            p = table.probabilities(model)[mask]
            metrics = comparison.cells[model][name].metrics
            assert metrics["frame_auc"] == pytest.approx(roc_auc_score(labels, p))
            assert metrics["ap"] == pytest.approx(average_precision_score(labels, p))
            assert metrics["macc"] == pytest.approx(balanced_accuracy_score(labels, p > 0.5))
            assert metrics["images"] == mask.sum()
            low, high = comparison.cells[model][name].intervals["frame_auc"]
            assert 0 <= low <= metrics["frame_auc"] <= high <= 1
    aucs = {name: cell.metrics["frame_auc"] for name, cell in comparison.cells["good"].items()}
    assert comparison.columns() == ["FS FF", "FR FF", "FF mean", "FS CDF", "FR CDF", "CDF mean", "mean"]
    row = dict(zip(comparison.columns(), comparison.values("frame_auc")["good"], strict=True))
    assert row["CDF mean"] == pytest.approx((aucs["FS CDF"] + aucs["FR CDF"]) / 2)
    assert row["mean"] == pytest.approx(np.mean(list(aucs.values())))


def test_tests_are_against_the_best_or_a_named_model():
    table = scored(noise=(0.5, 3.0))
    formed = protocol("families", table.records)
    best = compare(table, formed, resamples=300)
    assert set(best.references.values()) == {"good"}
    assert best.cells["good"]["FS"].against is None
    test = best.cells["poor"]["FS"].against
    assert test.high < 0
    assert test.p_value < 0.05
    other = compare(table, formed, resamples=300, reference="poor").cells["good"]["FS"].against
    assert (other.low, other.high) == pytest.approx((-test.high, -test.low))
    assert other.p_value == pytest.approx(test.p_value)
    with pytest.raises(InputError, match="reference 'none' is not among the models good, poor"):
        compare(table, formed, reference="none")


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 5), st.floats(-3, 3))
def test_ranks_are_all_that_aucs_depend_on(seed, gain, offset):
    table = scored(seed)
    formed = protocol("families", table.records)
    changed = ScoreTable(table.records)
    for model, logits in table.logits.items():
        changed.add(model, gain * logits.astype(float) + offset)
    plain, moved = (compare(t, formed, resamples=0) for t in (table, changed))
    assert moved.values("frame_auc") == plain.values("frame_auc")
    assert moved.values("eer") == plain.values("eer")


def test_a_model_and_its_copy_do_not_differ():
    table = scored(models=("one", "two"), noise=(1.0, 1.0))
    twin = ScoreTable(table.records, {"one": table.logits["one"], "two": table.logits["one"]})
    comparison = compare(twin, protocol("families", twin.records), resamples=200, reference="one")
    for cell in comparison.cells["two"].values():
        assert cell.against.difference == cell.against.low == cell.against.high == 0
        assert cell.against.p_value == 1


def test_json_holds_everything_and_no_nan():
    table = scored()
    # Folders alone mix the classes here, which leaves DeepfakeBench without a video AUC.
    records = [
        Record(f"same/{i}.png", r.label, r.family, r.method, r.domain, r.video) for i, r in enumerate(table.records)
    ]
    table = ScoreTable(records, table.logits)
    comparison = compare(table, protocol("families", records), video_key="bench", resamples=100)
    assert math.isnan(comparison.cells["good"]["FS"].metrics["video_auc"])
    assert len(comparison.notes) == 2  # one a column, not one a model
    assert all("real and fake images" in note for note in comparison.notes)
    found = json.loads(json.dumps(comparison.as_json(), allow_nan=False))
    cell = found["models"]["good"]["columns"]["FS"]
    assert cell["video_auc"] is None
    assert cell["frame_auc"] == comparison.cells["good"]["FS"].metrics["frame_auc"]
    assert set(cell["intervals"]) == {"frame_auc"}
    assert {*METRICS, "macc"} <= cell.keys()
    assert found["columns"]["FS"]["counts"]["real"] == 24
    assert "| good | – | – | – |" in comparison.table("video_auc").markdown()


def test_small_errors_are_best():
    table = scored(noise=(0.5, 3.0))
    comparison = compare(table, protocol("families", table.records), resamples=0)
    assert comparison.table("eer").is_best("good", 0)
    assert comparison.table("frame_auc").is_best("good", 0)
    assert not comparison.references
    metrics = comparison.cells["good"]["FS"].metrics
    assert set(TITLES) <= metrics.keys()
    assert metrics.keys() >= LOWER_IS_BETTER
    for name in NAMES:
        formed = protocol(name, table.records) if name not in ("df40-p3", "ufd") else None
        assert formed is None or set(formed.metrics) <= set(TITLES)


def test_an_empty_table_is_refused():
    table = scored()
    with pytest.raises(InputError, match="no model"):
        compare(ScoreTable(table.records), protocol("families", table.records))
