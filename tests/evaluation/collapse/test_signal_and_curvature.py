"""Gradients and curvature against explicit Jacobians and Hessians in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from r2m_jax import InputError
from r2m_jax.evaluation.collapse import (
    exact_trace,
    gsnr,
    hessian_product,
    hutchinson,
    lanczos,
    linear_moments,
    linear_top,
    linear_trace,
    moments,
    per_sample_gradients,
    phases,
    power_iteration,
    stable_rank,
)
from r2m_jax.evaluation.collapse.gradients import Moments


def explicit_hessian(loss, params, batch):
    flat, unravel = ravel_pytree(params)
    return np.asarray(jax.jit(jax.hessian(lambda v: jax.vmap(loss, (None, 0))(unravel(v), batch).mean()))(flat))


def test_per_sample_gradients_are_the_rows_of_the_jacobian(wide, problems):
    _, network, _ = problems
    loss, params, batch = network()
    flat, unravel = ravel_pytree(params)
    wanted = jax.jit(jax.jacrev(lambda v: jax.vmap(loss, (None, 0))(unravel(v), batch)))(flat)
    found = jax.jit(lambda p: per_sample_gradients(loss, p, batch))(params)
    np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-14)
    covariance = np.cov(np.asarray(found), rowvar=False, ddof=0)
    assert float(moments(found).variance) == pytest.approx(np.trace(covariance), rel=1e-10)


@pytest.mark.parametrize("classes", [2, 4])
def test_closed_forms_of_a_linear_head(wide, problems, classes):
    linear, _, nll = problems
    head, x, y = linear(classes=classes)
    wanted = jax.jit(lambda h: moments(per_sample_gradients(nll, h, (x, y))))(head)
    found = jax.jit(linear_moments)(head, x, jnp.asarray(y))
    np.testing.assert_allclose(found[:2], wanted[:2], rtol=1e-10)
    hessian = explicit_hessian(nll, head, (x, jnp.asarray(y)))
    assert float(jax.jit(linear_trace)(head, x)) == pytest.approx(np.trace(hessian), rel=1e-10)
    if classes == 2:
        assert float(jax.jit(linear_top)(head, x)) == pytest.approx(np.linalg.eigvalsh(hessian)[-1], rel=1e-10)
    else:
        with pytest.raises(InputError, match="two classes, not of 4"):
            linear_top(head, x)


@pytest.mark.parametrize("n", [3, 5, 9, 30])
def test_the_gram_matrix_has_the_same_top(wide, problems, n):
    """Fewer samples than features and more: two ways to one number."""
    linear, _, nll = problems
    head, x, y = linear(n=n, d=7)
    hessian = explicit_hessian(nll, head, (x, jnp.asarray(y)))
    assert float(jax.jit(linear_top)(head, x)) == pytest.approx(np.linalg.eigvalsh(hessian)[-1], rel=1e-9)


@pytest.mark.integration
def test_iterations_against_the_explicit_hessian(wide, problems):
    _, network, _ = problems
    loss, params, batch = network()
    hessian = explicit_hessian(loss, params, batch)
    values = np.linalg.eigvalsh(hessian)
    assert values[0] < 0 < values[-1]
    product, size = hessian_product(lambda p: jax.vmap(loss, (None, 0))(p, batch).mean(), params)
    key = jax.random.key(0)
    vector = jax.random.normal(key, (size,))
    np.testing.assert_allclose(product(vector), hessian @ np.asarray(vector), rtol=1e-9, atol=1e-12)
    found = jax.jit(lambda k: power_iteration(product, size, k, tolerance=1e-9, most=5000))(key)
    assert bool(found.converged)
    assert float(found.value) == pytest.approx(values[-1], rel=1e-5)
    np.testing.assert_allclose(jax.jit(lambda k: lanczos(product, size, k, steps=size))(key), values, atol=1e-9)
    assert float(jax.jit(lambda k: lanczos(product, size, k, steps=12))(key)[-1]) == pytest.approx(values[-1], rel=1e-4)
    assert float(exact_trace(product, size)) == pytest.approx(np.trace(hessian), rel=1e-9)


@pytest.mark.parametrize("values", [[-9.0, -1.0, 2.0, 3.0], [-5.0, -4.0, -1.0], [0.0, 0.0, 0.0], [1.0, 4.0]])
def test_the_largest_eigenvalue_is_signed(wide, values):
    """Of matrices whose largest magnitude is negative, that are zero, or whose Krylov space is small."""
    matrix = jnp.diag(jnp.asarray(values))
    found = power_iteration(lambda v: matrix @ v, len(values), jax.random.key(1), tolerance=1e-10, most=5000)
    assert float(found.value) == pytest.approx(max(values), abs=1e-4)
    np.testing.assert_allclose(lanczos(lambda v: matrix @ v, len(values), jax.random.key(1)), sorted(values), atol=1e-8)


def test_lanczos_of_repeated_eigenvalues(wide):
    """The Krylov space of one vector has two dimensions here; the rest needs fresh directions."""
    values = np.array([1.0] * 4 + [2.0] * 4)
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))
    matrix = jnp.asarray((basis * values) @ basis.T)
    np.testing.assert_allclose(lanczos(lambda v: matrix @ v, 8, jax.random.key(0)), values, atol=1e-7)


def test_hutchinson_is_unbiased_and_knows_its_error(wide):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(12, 12))
    matrix = jnp.asarray(a + a.T)
    runs = jax.vmap(lambda k: hutchinson(lambda v: matrix @ v, 12, k, tolerance=0.0))(
        jax.random.split(jax.random.key(0), 200)
    )
    assert (np.asarray(runs.samples) == 100).all()
    distances = (np.asarray(runs.value) - np.trace(matrix)) / np.asarray(runs.error)
    assert abs(distances.mean()) < 0.25  # standard error of the mean: 0.07
    assert 0.8 < distances.std() < 1.25
    # Signs give the trace of a diagonal matrix exactly, so drawing stops at once.
    exact = hutchinson(lambda v: jnp.arange(5.0) * v, 5, jax.random.key(0))
    assert (float(exact.value), float(exact.error), int(exact.samples)) == (10.0, 0.0, 10)


def test_plug_in_is_biased_and_the_other_is_not(wide):
    """Noise around a known mean, drawn many times: mean numerators against ‖μ‖²."""
    rng = np.random.default_rng(0)
    n, p, mean = 10, 50, np.full(50, 0.3)
    drawn = [moments(jnp.asarray(mean + rng.normal(size=(n, p)))) for _ in range(400)]
    noise = np.array([float(m.variance) * n / (n - 1) for m in drawn])
    ratios = [gsnr(m) for m in drawn]
    plug_in = np.array([float(r.plug_in) for r in ratios]) * noise
    unbiased = np.array([float(r.unbiased) for r in ratios]) * noise
    assert unbiased.mean() == pytest.approx(mean @ mean, rel=0.03)
    assert plug_in.mean() == pytest.approx(mean @ mean + p / n, rel=0.03)


@given(st.floats(0.01, 100), st.integers(0, 30))
def test_gsnr_does_not_see_the_scale(scale, seed):
    rows = np.random.default_rng(seed).normal(0.2, 1, size=(9, 4)).astype(np.float32)
    a, b = gsnr(moments(jnp.asarray(rows))), gsnr(moments(jnp.asarray(scale * rows)))
    np.testing.assert_allclose(a.plug_in, b.plug_in, rtol=1e-4)
    assert float(a.unbiased) <= float(a.plug_in)


def test_no_gradient_is_no_signal():
    nothing = gsnr(Moments(jnp.zeros(()), jnp.zeros(()), 5))
    assert (float(nothing.plug_in), float(nothing.unbiased)) == (0.0, 0.0)
    assert float(stable_rank(jnp.zeros(()), jnp.zeros(()))) == 0.0
    with pytest.raises(InputError, match="two samples"):
        moments(jnp.zeros((1, 3)))


def test_phases_of_a_drawn_trajectory():
    low, rise, decay = [0.1, 0.12, 0.09, 0.11, 0.1], [0.3, 0.6, 1.2], [0.8, 0.5, 0.1]
    found = phases(np.array(low + rise + decay))
    assert found.number.tolist() == [1] * 5 + [2] * 3 + [3] * 3
    assert (found.left_first, found.start) == (5, 0.1)
    # Two values above are no rise that holds.
    assert phases(np.array([*low, 0.5, 0.5, *low])).left_first is None
    for bad in ([], [0.1, np.nan], [-1.0]):
        with pytest.raises(InputError, match="0 or more"):
            phases(np.array(bad))
