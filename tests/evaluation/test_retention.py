import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from r2m_jax import InputError
from r2m_jax.evaluation.retention import (
    TradeOff,
    drop,
    drop_matrix,
    gain,
    gain_matrix,
    non_dominated,
    reference,
    trade_off,
)

# AUCs of R²M's tables 1 and 2 (arXiv 2509.24367), and its DROP and GAIN of tables A.2 and A.3, as printed.
SEEN = ["FS-ff", "FR-ff", "EFS-ff", "FS-cdf", "FR-cdf", "EFS-cdf"]
UNSEEN = ["DeepFaceLab", "HeyGen", "MidJourney", "WhichIsReal", "StarGAN", "StarGANv2", "StyleCLIP", "CollabDiff"]
SPECIALISTS = {
    "FS": [0.995, 0.912, 0.766, 0.959, 0.690, 0.603, 0.892, 0.573, 0.334, 0.364, 0.887, 0.640, 0.608, 0.596],
    "FR": [0.923, 0.999, 0.742, 0.505, 0.915, 0.099, 0.812, 0.546, 0.603, 0.228, 0.697, 0.433, 0.053, 0.141],
    "EFS": [0.676, 0.814, 0.999, 0.618, 0.621, 0.989, 0.709, 0.398, 0.561, 0.694, 0.901, 0.777, 0.952, 0.997],
}
MERGED = {
    "CART": [0.976, 0.994, 0.995, 0.851, 0.874, 0.907, 0.943, 0.608, 0.559, 0.497, 0.975, 0.780, 0.813, 0.955],
    "R2M": [0.977, 0.992, 0.996, 0.902, 0.912, 0.942, 0.946, 0.617, 0.551, 0.492, 0.973, 0.778, 0.860, 0.974],
}
DROPS = {"CART": [0.019, 0.005, 0.004, 0.108, 0.041, 0.082], "R2M": [0.018, 0.007, 0.003, 0.057, 0.003, 0.047]}
GAINS = {
    "CART": [0.051, 0.035, -0.044, -0.197, 0.074, 0.003, -0.139, -0.042],
    "R2M": [0.054, 0.044, -0.052, -0.202, 0.072, 0.001, -0.092, -0.023],
}
AUCS = {name: dict(zip([*SEEN, *UNSEEN], row, strict=True)) for name, row in (SPECIALISTS | MERGED).items()}


@pytest.mark.parametrize("model", list(MERGED))
def test_the_papers_drops_and_gains_follow_from_its_aucs(model):
    drops = drop(AUCS, model, list(SPECIALISTS), SEEN)
    assert [drops[c] for c in SEEN] == pytest.approx(DROPS[model], abs=1e-9)
    assert drops["max"] == max(drops[c] for c in SEEN)
    assert drops["mean"] == pytest.approx(np.mean(DROPS[model]))
    gains = gain(AUCS, model, list(SPECIALISTS), UNSEEN)
    assert [gains[c] for c in UNSEEN] == pytest.approx(GAINS[model], abs=1e-9)
    assert gains["min"] == pytest.approx(min(GAINS[model]))
    own = dict(zip(SEEN, ["FS", "FR", "EFS"] * 2, strict=True))
    assert drop(AUCS, model, list(SPECIALISTS), SEEN, against=own) == pytest.approx(drops)  # each leads its own columns


def test_the_papers_comparison_with_single_specialists():
    """§4.2 (iii): above the specialists' average of 0.600, and above the strongest single one, EFS, by 0.025."""
    single = gain(AUCS, "R2M", list(SPECIALISTS), UNSEEN, against="single")
    assert single["mean"] == pytest.approx(0.025, abs=5e-4)
    assert single["CollabDiff"] == pytest.approx(0.974 - 0.997)
    assert gain(AUCS, "R2M", list(SPECIALISTS), UNSEEN, against="mean")["mean"] == pytest.approx(
        0.774 - 0.600, abs=1e-3
    )


def test_r2m_dominates_in_the_papers_trade_off():
    points = trade_off(AUCS, list(MERGED), list(SPECIALISTS), seen=SEEN, unseen=UNSEEN)
    assert points["R2M"] == TradeOff(
        pytest.approx(np.mean(DROPS["R2M"])), pytest.approx(0.057), pytest.approx(np.mean(GAINS["R2M"]))
    )
    front = non_dominated(
        np.asarray([p.mean_drop for p in points.values()]), np.asarray([p.mean_gain for p in points.values()])
    )
    assert front.tolist() == [False, True]
    with pytest.raises(InputError, match="seen and unseen"):
        trade_off(AUCS, list(MERGED), list(SPECIALISTS), seen=SEEN, unseen=SEEN[:1])


aucs = arrays(np.float64, st.tuples(st.integers(1, 4), st.just(3), st.integers(1, 3)), elements=st.floats(0, 1))


@given(aucs, aucs.map(lambda a: a[..., :1]))
def test_readings_are_ordered_and_carry_resamples(specialists, models):
    models = np.broadcast_to(models, (*models.shape[:2], specialists.shape[2]))
    best, mean = drop_matrix(models, specialists), drop_matrix(models, specialists, "mean")
    assert best.shape == models.shape
    assert (best >= mean - 1e-12).all()
    single = drop_matrix(models, specialists, "single")
    assert (best >= single).all()
    assert single.mean() >= mean.mean() - 1e-12
    np.testing.assert_array_equal(gain_matrix(models, specialists), -best)
    for resample in range(specialists.shape[2]):
        one = drop_matrix(models[..., resample], specialists[..., resample])
        np.testing.assert_array_equal(one, best[..., resample])
    assert (drop_matrix(specialists, specialists) >= 0).all()
    for row in range(len(specialists)):
        np.testing.assert_array_equal(reference(specialists, [row] * 3), specialists[row])


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12),
    st.floats(0.1, 10),
)
def test_the_front_is_what_survives_being_beaten(points, scale):
    x, y = (np.asarray(v, np.float64) for v in zip(*points, strict=True))
    front = non_dominated(x, y)
    for i, kept in enumerate(front):
        beaten = any(x[j] <= x[i] and y[j] >= y[i] and (x[j], y[j]) != (x[i], y[i]) for j in range(len(x)))
        assert kept == (not beaten)
    np.testing.assert_array_equal(front, non_dominated(scale * x, y - 7))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: drop(AUCS, "TIES", ["FS"], SEEN), "no AUC of model 'TIES'"),
        (lambda: drop(AUCS, "R2M", ["FS"], ["FE"]), "column 'FE'"),
        (lambda: drop({"a": {"x": np.nan}, "b": {"x": 1.0}}, "a", ["b"], ["x"]), "lacks a class"),
        (lambda: drop(AUCS, "R2M", [], SEEN), "at least one"),
        (lambda: drop(AUCS, "R2M", ["FS"], ["mean"]), "called 'mean'"),
        (lambda: drop(AUCS, "R2M", ["FS"], SEEN, against={"FS-ff": "FR"}), "no specialist of its own"),
        (lambda: reference(np.ones((2, 2)), "worst"), "no reading"),
        (lambda: reference(np.ones((2, 2)), [0, 2]), "do not name"),
        (lambda: drop_matrix(np.ones((1, 3)), np.ones((2, 2))), "columns of shape"),
        (lambda: drop_matrix(np.full((1, 2), np.nan), np.ones((2, 2))), "2 AUCs of models are NaN"),
    ],
)
def test_what_has_no_drop_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
