import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from sklearn import metrics as sklearn
from sklearn.calibration import calibration_curve

from r2m_jax import InputError
from r2m_jax.data.records import Record
from r2m_jax.evaluation import metrics
from r2m_jax.evaluation.metrics import clips, summary, video_auc

VALUES = [0.0, 0.1, 0.25, 0.4, 0.5, 0.500001, 0.75, 0.9, 1.0]


def sets(least: int = 2):
    """Labels and probabilities with both classes, few values (ties) or many."""
    value = st.one_of(st.sampled_from(VALUES), st.floats(0, 1, width=32))
    return (
        st.lists(st.tuples(st.integers(0, 1), value), min_size=least, max_size=60)
        .filter(lambda rows: len({label for label, _ in rows}) == 2)
        .map(lambda rows: (np.asarray([a for a, _ in rows]), np.asarray([b for _, b in rows])))
    )


def rows_of(golden):
    """A golden case as records and probabilities; only the path says which video a frame is of."""
    records = [Record(path, label) for path, _, label in golden["rows"]]
    return records, np.asarray([score for _, score, _ in golden["rows"]])


@pytest.fixture(scope="module")
def golden(shared_data):
    return json.loads((shared_data.parent / "golden" / "deepfakebench_metrics.json").read_text())


NAMES = {"frame_auc": "auc", "eer": "eer", "ap": "ap", "acc": "acc", "video_auc": "video_auc"}


@pytest.mark.parametrize(
    ("case", "peer", "key"),
    [
        ("distinct_folders", "deepfakebench", "bench"),
        ("distinct_folders", "df40", "df40"),
        ("ties", "deepfakebench", "bench"),
    ],
)
def test_summary_is_what_the_peers_code_computes(golden, case, peer, key):
    records, scores = rows_of(golden[case])
    found = summary(records, scores, video_key=key)
    for ours, theirs in NAMES.items():
        assert found[ours] == pytest.approx(golden[case][peer][theirs], abs=1e-12), ours
    if case == "distinct_folders":
        effort = golden[case]["effort"]
        assert found["video_eer"] == pytest.approx(effort["video_eer"], abs=1e-12)
        grouped = clips(records, key)
        means = grouped.means(scores)
        assert metrics.accuracy(grouped.labels, means) == pytest.approx(effort["video_acc"], abs=1e-12)


def test_colliding_folders_fail_as_the_peers_do_but_say_so(golden):
    case = golden["colliding_folders"]
    records, scores = rows_of(case)
    assert "All-NaN" in case["deepfakebench"]["error"]
    with pytest.warns(UserWarning, match="'bench' goes by folder names .* 6 of 6 .* '000' with 4 real and 4 fake") as w:
        found = summary(records, scores, video_key="bench")
    assert len(w) == 1
    assert math.isnan(found["video_auc"])
    assert math.isnan(found["video_eer"])
    with pytest.warns(UserWarning, match="video_auc is the AUC of the frames, 0.864583, as in DF40") as w:
        found = summary(records, scores, video_key="df40")
    assert len(w) == 1
    assert found["video_auc"] == found["frame_auc"]
    for ours, theirs in NAMES.items():
        assert found[ours] == pytest.approx(case["df40"][theirs], abs=1e-12), ours
    with pytest.warns(UserWarning, match="goes by folder names"):
        assert video_auc(records, scores, "df40") == found["frame_auc"]
    with pytest.warns(UserWarning, match="goes by folder names"):
        assert math.isnan(video_auc(records, scores, "bench"))


def test_the_clip_key_keeps_colliding_folders_apart(golden, rng):
    """The same frames with the video stated: DeepfakeBench's result once the folders have distinct names."""
    records, _ = rows_of(golden["colliding_folders"])
    scores = rng.random(len(records))
    stated = [Record(r.path, r.label, video=r.path.split("/")[-2]) for r in records]
    renamed = [Record(f"{r.label}{r.path.split('/')[-2]}/{n}.png", r.label) for n, r in enumerate(records)]
    ours, theirs = summary(stated, scores), summary(renamed, scores, video_key="bench")
    assert ours == theirs
    assert ours["videos"] == 12
    assert ours["video_auc"] not in (1.0, ours["frame_auc"])


@given(sets())
def test_metrics_are_those_of_scikit_learn(case):
    labels, scores = case
    called = scores > 0.5
    assert metrics.auc(labels, scores) == sklearn.roc_auc_score(labels, scores)
    assert metrics.average_precision(labels, scores) == sklearn.average_precision_score(labels, scores)
    assert metrics.accuracy(labels, scores) == pytest.approx(sklearn.accuracy_score(labels, called), abs=1e-15)
    assert metrics.class_accuracy(labels, scores) == pytest.approx(
        sklearn.balanced_accuracy_score(labels, called), abs=1e-15
    )
    assert metrics.f1(labels, scores) == pytest.approx(sklearn.f1_score(labels, called, zero_division=0), abs=1e-15)
    fpr, tpr, _ = sklearn.roc_curve(labels, scores, drop_intermediate=True)
    fnr = 1 - tpr
    assert metrics.eer(labels, scores) == fpr[np.nanargmin(np.absolute(fnr - fpr))]


@given(sets())
def test_interpolated_eer_is_the_root_on_the_curve(case):
    labels, scores = case
    fpr, tpr, _ = sklearn.roc_curve(labels, scores, drop_intermediate=False)
    found = metrics.eer_interpolated(labels, scores)
    # Where the curve jumps, the root finder stops at the jump.
    assert found == pytest.approx(brentq(lambda x: 1 - x - np.interp(x, fpr, tpr), -1e-9, 1 + 1e-9), abs=1e-6)
    # FNR = FPR does not care which class is called positive; DeepfakeBench's version does.
    assert found == pytest.approx(metrics.eer_interpolated(1 - labels, -scores), abs=1e-12)


@given(sets())
def test_oracle_accuracy_is_the_best_of_all_thresholds(case):
    labels, scores = case
    cuts = [-1.0, *scores]
    assert metrics.oracle_accuracy(labels, scores) == pytest.approx(
        max(np.mean((scores > cut) == labels) for cut in cuts), abs=1e-12
    )


@given(sets(), st.one_of(st.sampled_from([0.0, 0.01, 0.1, 0.25, 0.29, 0.5, 0.999]), st.floats(0, 0.999)))
def test_threshold_is_the_smallest_within_the_rate(case, fpr):
    labels, scores = case
    real, fake = scores[labels == 0], scores[labels == 1]
    threshold = metrics.threshold_at_fpr(labels, scores, fpr)
    assert np.mean(real > threshold) <= fpr
    assert np.mean(real > np.nextafter(threshold, -np.inf)) > fpr
    assert metrics.tpr_at_fpr(labels, scores, fpr) == np.mean(fake > threshold)
    rates, hits, _ = sklearn.roc_curve(labels, scores, drop_intermediate=False)
    assert metrics.tpr_at_fpr(labels, scores, fpr) == pytest.approx(hits[rates <= fpr].max(), abs=1e-15)


def test_threshold_counts_rates_as_they_are_measured():
    """29 of 100 is a rate of 0.29, though 0.29 * 100 is 28.999…; ties at the threshold are called real."""
    scores = np.arange(100) / 100
    assert metrics.threshold_at_fpr(np.zeros(100, int), scores, 0.29) == scores[70]
    assert metrics.threshold_at_fpr([0] * 4, [0.1, 0.9, 0.9, 0.9], 0.25) == 0.9
    assert metrics.threshold_at_fpr([0] * 4, [0.1, 0.9, 0.9, 0.9], 0.75) == 0.1
    for bad in (-0.1, 1.0, math.nan):
        with pytest.raises(InputError, match="not in"):
            metrics.threshold_at_fpr([0, 1], [0.1, 0.2], bad)
    with pytest.raises(InputError, match="2 images without a real one"):
        metrics.threshold_at_fpr([1, 1], [0.1, 0.2], 0.1)


@given(sets(), st.sampled_from([1, 2, 5, 15]))
def test_calibration_error_is_the_distance_to_the_reliability_curve(case, bins):
    labels, scores = case
    share, expected = calibration_curve(labels, scores, n_bins=bins, strategy="uniform")
    edges = np.linspace(0, 1, bins + 1)
    held = np.bincount([int(np.sum(edges[1:-1] < score)) for score in scores])
    weights = held[held > 0] / len(scores)
    found = metrics.expected_calibration_error(labels, scores, bins)
    assert found == pytest.approx(np.sum(weights * np.abs(share - expected)), abs=1e-12)


def test_calibration_error_of_probabilities_that_hold(rng):
    scores = rng.random(200_000)
    labels = (rng.random(200_000) < scores).astype(int)
    assert metrics.expected_calibration_error(labels, scores) < 0.01
    assert metrics.expected_calibration_error(labels, 1 - scores) == pytest.approx(0.5, abs=0.01)


@settings(max_examples=30)  # three summaries each
@given(sets(), st.randoms(use_true_random=False))
def test_summary_does_not_depend_on_the_order_or_on_a_repetition(case, random):
    labels, scores = case
    places = [f"{label}/{number % 5}/{number}.png" for number, label in enumerate(labels)]
    records = [Record(p, int(label), video=p.split("/")[1]) for p, label in zip(places, labels, strict=True)]
    found = summary(records, scores)
    order = list(range(len(labels)))
    random.shuffle(order)
    shuffled = summary([records[i] for i in order], scores[order])
    twice = summary(records * 2, np.tile(scores, 2))
    assert list(found) == [*metrics.METRICS, "images", "real", "fake", "videos"]
    counts = ("images", "real", "fake")
    # Means of shuffled clips differ in the last digit, which can break a tie of clips; their metrics are left out.
    for key in found.keys() - {"video_auc", "video_eer"}:
        assert shuffled[key] == pytest.approx(found[key], abs=1e-12), key
        assert twice[key] == pytest.approx(found[key] * (2 if key in counts else 1), abs=1e-12), key


def test_an_image_without_a_video_is_a_clip():
    records = [Record(f"{n}.png", n % 2) for n in range(6)] + [Record("film.mp4", 1, frame=n) for n in range(2)]
    scores = np.asarray([0.2, 0.4, 0.3, 0.6, 0.5, 0.1, 0.9, 0.7])
    grouped = clips(records)
    assert grouped.index.tolist() == [0, 1, 2, 3, 4, 5, 6, 6]
    assert grouped.labels.tolist() == [0, 1, 0, 1, 0, 1, 1]
    assert grouped.means(scores)[-1] == pytest.approx(0.8)
    stills = summary(records[:6], scores[:6])
    assert stills["video_auc"] == stills["frame_auc"]


def test_bench_folders():
    r"""`\` separates where it occurs; the label is int(mean); frames of a film lie in a folder named after it."""
    records = [
        Record("a\\v0\\0.png", 1), Record("b/v0/1.png", 2), Record("c/v1/0.png", 0), Record("c/v1/1.png", 1),
        Record("films/v0.mp4", 1, frame=3),
    ]  # fmt: skip
    grouped = clips(records, "bench")
    assert (grouped.names, grouped.labels.tolist(), grouped.mixed) == (["v0", "v1"], [1, 0], [1])
    assert grouped.index.tolist() == [0, 0, 1, 1, 0]
    with pytest.raises(InputError, match=r"x\.png names no folder"):
        clips([Record("x.png", 0)], "df40")


def test_labels_above_one_are_fake():
    labels, scores = np.asarray([0, 3, 0, 1, 2]), np.asarray([0.1, 0.7, 0.6, 0.2, 0.9])
    records = [Record(f"v{n}/0.png", int(label)) for n, label in enumerate(labels)]
    ones = [Record(r.path, min(r.label, 1)) for r in records]
    for key in ("clip", "bench"):
        assert summary(records, scores, video_key=key) == summary(ones, scores, video_key=key)
    assert metrics.auc(labels, scores) == sklearn.roc_auc_score(labels >= 1, scores)


@pytest.mark.parametrize("key", ["clip", "bench", "df40"])
@pytest.mark.parametrize(("label", "missing"), [(0, "fake"), (1, "real")])
def test_a_class_that_is_absent_is_named_once(label, missing, key):
    records = [Record(f"v/{n}.png", label, video="v") for n in range(4)]
    with pytest.warns(UserWarning, match=f"no {missing} images among 4") as caught:
        found = summary(records, np.asarray([0.1, 0.2, 0.8, 0.9]), video_key=key)
    assert len(caught) == 1
    defined = {key for key, value in found.items() if not math.isnan(value)}
    assert defined == {"acc", "ece", "images", "real", "fake", "videos"}
    assert (found["acc"], found["images"], found["videos"]) == (0.5, 4, 1)
    for name in ("average_precision", "eer", "eer_interpolated", "oracle_accuracy", "f1", "class_accuracy"):
        with pytest.warns(UserWarning, match=f"no {missing} images among 2") as caught:
            assert math.isnan(getattr(metrics, name)([label, label], [0.1, 0.2]))
        assert len(caught) == 1
        assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=f"no {missing} images among 1"):
        assert math.isnan(metrics.tpr_at_fpr([label], [0.1], 0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(metrics.auc([label], [0.1]))
        assert math.isnan(video_auc(records, np.zeros(4), key))


def test_no_images_at_all():
    with pytest.warns(UserWarning, match="there are no images"):
        found = summary([], np.zeros(0))
    assert all(math.isnan(found[key]) for key in metrics.METRICS)
    assert found["images"] == found["videos"] == 0
    for name in ("accuracy", "expected_calibration_error"):
        with pytest.warns(UserWarning, match="no images"):
            assert math.isnan(getattr(metrics, name)([], []))


def test_scores_that_mean_nothing_are_refused():
    records = [Record(f"{n}.png", n % 2) for n in range(4)]
    with pytest.raises(InputError, match=r"2 of 4 probabilities are NaN or infinite, first that of 1\.png"):
        summary(records, np.asarray([0.1, math.nan, 0.2, math.inf]))
    with pytest.raises(InputError, match=r"from -3 to 2, outside \[0, 1\]"):
        summary(records, np.asarray([-3.0, 2, 0, 0]))
    with pytest.raises(InputError, match=r"shape \(4,\) and scores of shape \(3,\)"):
        summary(records, np.zeros(3))
    with pytest.raises(InputError, match="1 of 2 scores"):
        metrics.eer([0, 1], [0.1, -math.inf])
    with pytest.raises(InputError, match="over 0 bins"):
        metrics.expected_calibration_error([0, 1], [0.1, 0.2], bins=0)


def test_means_over_sets_weigh_sets_alike(rng):
    parts = [(np.arange(size) % 3 // 2, rng.random(size)) for size in (9, 30, 300)]
    called = [(labels, scores > 0.5) for labels, scores in parts]
    assert metrics.mean_average_precision(parts) == pytest.approx(
        np.mean([sklearn.average_precision_score(*part) for part in parts])
    )
    assert metrics.mean_accuracy(parts) == pytest.approx(
        np.mean([(sklearn.recall_score(*c) + sklearn.recall_score(*c, pos_label=0)) / 2 for c in called])
    )
    with pytest.warns(UserWarning, match="no real images among 1"):
        assert math.isnan(metrics.mean_average_precision([*parts, ([1], [0.5])]))
    with pytest.raises(InputError, match="at least one set"):
        metrics.mean_accuracy([])
