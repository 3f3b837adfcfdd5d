"""Loss surfaces and rank agreement."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import spearmanr

from r2m_jax import InputError
from r2m_jax.evaluation.collapse import agreement, landscape, spearman
from r2m_jax.evaluation.collapse.surface import direction
from r2m_jax.evaluation.plots import contours


def test_directions_are_as_long_as_the_filters():
    rng = np.random.default_rng(0)
    params = {
        "conv": jnp.asarray(rng.normal(size=(3, 3, 2, 4))),
        "dense": jnp.asarray(rng.normal(size=(5, 2))).at[:, 1].set(0),
        "bias": jnp.ones(2),
    }
    found = direction(params, jax.random.key(0))
    lengths = jnp.sqrt((found["conv"] ** 2).sum((0, 1, 2)))
    np.testing.assert_allclose(lengths, jnp.sqrt((params["conv"] ** 2).sum((0, 1, 2))), rtol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(found["dense"], axis=0), [jnp.linalg.norm(params["dense"][:, 0]), 0])
    assert not found["bias"].any()


def test_a_quadratic_has_a_parabolic_surface():
    """‖w + a u + b v‖² from the lengths and angles of the directions alone."""
    w = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)), jnp.float32)}
    found = landscape(lambda p: (p["kernel"] ** 2).sum(), w, seeds=(3, 4), points=11, reach=0.5)
    u, v = (np.asarray(direction(w, jax.random.key(seed))["kernel"]).ravel() for seed in (3, 4))
    x = np.asarray(w["kernel"]).ravel()
    a, b = np.meshgrid(found.axis, found.axis, indexing="ij")
    wanted = x @ x + a**2 * (u @ u) + b**2 * (v @ v) + 2 * (a * (x @ u) + b * (x @ v) + a * b * (u @ v))
    np.testing.assert_allclose(found.losses, wanted, rtol=1e-4)
    assert found.losses[5, 5] == pytest.approx(x @ x, rel=1e-6)
    border = np.ones((11, 11), bool)
    border[1:-1, 1:-1] = False
    assert found.rise == pytest.approx(wanted[border].mean() - x @ x, rel=1e-3)


def test_surfaces_that_cannot_be_made():
    w = {"kernel": jnp.ones((2, 2))}
    for wrong in ({"points": 10}, {"points": 1}, {"seeds": (1, 1)}):
        with pytest.raises(InputError, match="odd number"):
            landscape(lambda p: p["kernel"].sum(), w, **wrong)
    with pytest.raises(InputError, match="NaN or infinite"):
        landscape(lambda p: jnp.log(p["kernel"].sum() - 100), w, points=3)


def test_contours_are_drawn():
    axis = np.linspace(-1, 1, 5)
    svg = contours(axis, axis[:, None] ** 2 + axis**2, title="t", label="loss")
    assert svg.startswith("<svg")
    assert contours(axis, np.ones((5, 5)), title="flat", label="loss").startswith("<svg")
    with pytest.raises(InputError, match="shape"):
        contours(axis, np.ones((5, 4)), title="t", label="loss")
    with pytest.raises(InputError, match="rising order"):
        contours(axis, np.ones((5, 5)), title="t", label="loss", low=2.0, high=1.0)


numbers = arrays(np.float64, 7, elements=st.integers(-3, 3).map(float))


@given(numbers, numbers)
def test_spearman_is_scipys(a, b):
    if len(np.unique(a)) == 1 or len(np.unique(b)) == 1:
        assert np.isnan(spearman(a, b))
    else:
        assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)


def test_infinite_radii_are_the_highest():
    assert spearman(np.array([1.0, 2.0, np.inf]), np.array([1.0, 2.0, 3.0])) == pytest.approx(1)
    with pytest.raises(InputError, match="NaN"):
        spearman(np.array([1.0, np.nan]), np.array([1.0, 2.0]))


def test_agreement_of_groups_and_members():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(6, 12))
    same = agreement(a, np.exp(a), draw="members", resamples=200)
    assert (same.value, same.groups) == (pytest.approx(1), 6)
    assert (same.low, same.high) == (pytest.approx(1), pytest.approx(1))
    for draw in ("members", "groups"):
        found = agreement(a, rng.normal(size=(6, 12)), draw=draw, resamples=300)
        assert found.low < found.value < found.high
        assert found.low < 0 < found.high
    # Groups in which nothing can be ranked do not count, and nothing is made of none.
    b = a.copy()
    b[0] = 1
    assert agreement(a, b, draw="groups").groups == 5
    nothing = agreement(a, np.ones_like(a), draw="groups")
    assert np.isnan([nothing.value, nothing.low, nothing.high]).all()
