import math

import numpy as np
import pytest

from r2m_jax import InputError
from r2m_jax.data.records import Record
from r2m_jax.evaluation.plots import violins
from r2m_jax.evaluation.probe import KINDS, LEVELS, OTHER, OWN, REAL, cosines, own_images, probe

TRAINED_ON = {"FS": "FS", "FR": "FR", "EFS": ["pixart", "VQGAN"]}


@pytest.fixture
def records():
    kinds = [("", ""), ("FS", "simswap"), ("FR", "fomm"), ("EFS", "pixart"), ("EFS", "VQGAN")]
    return [Record(f"{i}", int(bool(f)), family=f, method=m) for i, (f, m) in enumerate(kinds * 6)]


@pytest.fixture
def features(records, rng):
    """What the paper describes: a cue that only the own specialist sees, and an average that keeps what is shared."""
    shared = rng.normal(size=(len(records), 16))
    cue = np.zeros((3, len(records), 16))
    for row, methods in enumerate((["simswap"], ["fomm"], ["pixart", "VQGAN"])):
        own = np.asarray([r.method in methods for r in records])
        cue[row, own] = 3 * rng.normal(size=(own.sum(), 16))
    return shared + cue, shared


def test_cosines_are_those_of_scikit_learn_and_ignore_scale(rng):
    from sklearn.metrics.pairwise import paired_cosine_distances

    a, b = rng.normal(size=(2, 40, 8)), rng.normal(size=(40, 8))
    found = cosines(a, b)
    for row in range(2):
        np.testing.assert_allclose(found[row], 1 - paired_cosine_distances(a[row], b), atol=1e-12)
    np.testing.assert_allclose(cosines(a * rng.uniform(0.1, 9, (2, 40, 1)), 1e-3 * b), found, atol=1e-12)
    rotation = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    np.testing.assert_allclose(cosines(a @ rotation, b @ rotation), found, atol=1e-12)


def test_the_papers_pattern_is_found_where_it_was_put(features, records):
    features, average = features
    found = probe(features, average, records, TRAINED_ON)
    assert list(found.found) == list(TRAINED_ON)
    for name, kinds in found.found.items():
        assert [kinds[kind].count for kind in KINDS] == ([6, 12, 12] if name == "EFS" else [6, 6, 18])
        assert kinds[REAL].mean == pytest.approx(1)
        assert kinds[OTHER].mean == pytest.approx(1)
        assert found.own_drop()[name] == pytest.approx(1 - kinds[OWN].mean)
        assert 0.1 < found.own_drop()[name] < 0.9
    same = probe(np.stack([features[0]] * 3), features[0], records, TRAINED_ON)
    assert list(same.own_drop().values()) == pytest.approx([0, 0, 0])


def test_statistics_are_numpys(features, records):
    found = probe(*features, records, TRAINED_ON)
    rows = found.rows()
    assert len(rows) == 9
    values = found.samples()["FR"][OTHER]
    row = next(r for r in rows if (r["specialist"], r["images_of"]) == ("FR", OTHER))
    assert row["images"] == len(values)
    assert row["mean"] == pytest.approx(np.mean(values))
    assert row["sd"] == pytest.approx(np.std(values, ddof=1))
    assert [row[f"q{q:02d}"] for q in (5, 25, 50, 75, 95)] == pytest.approx(np.quantile(values, LEVELS).tolist())
    svg = violins(found.samples(), title="Similarity", label="cosine")
    assert all(kind in svg for kind in KINDS)


def test_a_kind_without_images_has_no_mean(features, records):
    features, _ = features
    fakes = [i for i, r in enumerate(records) if r.label]
    found = probe(features[:, fakes], features[0, fakes], [records[i] for i in fakes], TRAINED_ON)
    assert found.found["FS"][REAL].count == 0
    assert math.isnan(found.found["FS"][REAL].mean)
    assert all(math.isnan(value) for value in found.own_drop().values())


def test_real_images_are_never_a_specialists_own():
    odd = [Record("a", 0, family="FS"), Record("b", 1, family="FS"), Record("c", 1, method="FS")]
    assert own_images(odd, {"FS"}).tolist() == [False, True, True]


def test_what_has_no_cosine_is_refused(features, records):
    features, average = features
    for broken, message in (
        (np.where(np.arange(16) == 0, np.nan, features), "NaN"),
        (features * 0, "zero"),
        (features[:2], "for 3 specialists"),
        (features[:, :-1], "images"),
    ):
        with pytest.raises(InputError, match=message):
            probe(broken, average, records, TRAINED_ON)
    with pytest.raises(InputError, match="those of the average"):
        probe(features, average[:, :-1], records, TRAINED_ON)
    with pytest.raises(InputError, match="'FE' was trained on"):
        probe(features, average, records, {"FS": "FS", "FR": "FR", "FE": "FE"})
