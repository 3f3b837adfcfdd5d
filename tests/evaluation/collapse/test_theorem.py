"""Theorem 1, its corollary and the stability bound."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from r2m_jax import InputError
from r2m_jax.evaluation.collapse import critical, decompose, decompose_linear, linear_moments, radius
from r2m_jax.evaluation.collapse.probes import cross_entropy

positive = st.floats(1e-3, 1e3)


@pytest.mark.parametrize("seed", range(5))
def test_both_sides_are_equal_in_float64(wide, problems, seed):
    linear, _, nll = problems
    head, x, y = linear(seed)
    found = jax.jit(decompose_linear)(head, x, jnp.asarray(y))
    assert float(found.right) == pytest.approx(float(found.left), rel=1e-10)
    assert float(found.trace_by_14) == pytest.approx(float(found.trace), rel=1e-10)
    assert float(found.variance_by_15) == pytest.approx(float(found.variance), rel=1e-10)
    # The general way shares no formula with the closed one but the definitions.
    general = jax.jit(lambda h: decompose(nll, h, (x, jnp.asarray(y)), jax.random.key(0)))(head)
    np.testing.assert_allclose(found, general, rtol=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_both_sides_are_equal_in_float32(problems, seed):
    linear, _, _ = problems
    head, x, y = linear(seed, dtype=np.float32)
    found = decompose_linear(head, x, jnp.asarray(y))
    assert found.left.dtype == jnp.float32
    assert float(found.right) == pytest.approx(float(found.left), rel=1e-5)


@pytest.mark.integration
def test_both_sides_of_a_network(wide, problems):
    _, network, _ = problems
    loss, params, batch = network(seed=3)
    found = jax.jit(lambda p: decompose(loss, p, batch, jax.random.key(0)))(params)
    assert float(found.trace) > 0
    assert float(found.right) == pytest.approx(float(found.left), rel=1e-10)
    # R by its definition E ∇²p / p, one sample after another.
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    traces = []
    for index in range(len(batch[1])):
        example = jax.tree.map(lambda leaf, i=index: leaf[i], batch)

        def p(v, example=example):
            return jnp.exp(-loss(unravel(v), example))

        traces.append(float(jnp.trace(jax.hessian(p)(flat)) / p(flat)))
    assert float(found.residual) == pytest.approx(np.mean(traces), rel=1e-8)


def test_scikit_learns_optimum_has_no_signal(wide):
    """At the optimum of the unregularised loss the gradient, hence GSNR and the bound, vanish; not so beside it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4))
    y = (x @ [1.0, -1.0, 0.5, 0] + rng.logistic(size=300) > 0).astype(int)
    fitted = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000).fit(x, y)
    half = {
        "kernel": np.stack([-fitted.coef_[0], fitted.coef_[0]], 1) / 2,
        "bias": np.r_[-1, 1] * fitted.intercept_ / 2,
    }
    head = jax.tree.map(jnp.asarray, half)
    found = decompose_linear(head, jnp.asarray(x), jnp.asarray(y))
    assert float(found.gsnr) < 1e-9
    assert float(found.left) < 1e-4
    # A well-specified model at its optimum: tr R is near 0, as Remark 2 says.
    assert abs(float(found.residual)) < 0.1 * float(found.trace)
    beside = decompose_linear(jax.tree.map(lambda leaf: 0.5 * leaf, head), jnp.asarray(x), jnp.asarray(y))
    assert float(beside.gsnr) > 1e-3
    predicted = fitted.predict_proba(x)[np.arange(300), y]
    assert float(cross_entropy(head, jnp.asarray(x), jnp.asarray(y))) == pytest.approx(
        -np.log(predicted).mean(), rel=1e-9
    )


@given(positive, positive, positive, positive)
def test_the_radius_rises_with_gsnr(geometric, misfit, a, b):
    low, high = sorted((a, b))
    with jax.enable_x64(True):
        less, more = (float(radius(jnp.float64(g), geometric, misfit)) for g in (low, high))
        slope = float(jax.grad(lambda g: radius(g, geometric, misfit))(jnp.float64(a)))
    assert less <= more
    assert more <= geometric * misfit
    # Equation 48.
    assert slope == pytest.approx(0.5 * geometric * misfit / np.sqrt(a / (1 + a)) / (1 + a) ** 2, rel=1e-9)


def test_limits_of_the_corollary():
    with jax.enable_x64(True):
        assert float(radius(jnp.float64(0), 3.0, 2.0)) == 0
        assert float(radius(jnp.float64(jnp.inf), 3.0, 2.0)) == 6
        small = jnp.float64(1e-10)
        assert float(radius(small, 3.0, 2.0)) == pytest.approx(6 * np.sqrt(1e-10), rel=1e-9)


@pytest.mark.parametrize("rho", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("seed", range(3))
def test_convex_losses_descend_at_any_radius(wide, problems, rho, seed):
    """What makes (8) sufficient only: the perturbed gradient of a linear head never turns against its own batch's."""
    linear, _, _ = problems
    head, x, y = linear(seed)
    gradient = jax.grad(cross_entropy)
    plain = jax.flatten_util.ravel_pytree(gradient(head, x, jnp.asarray(y)))[0]
    flat, unravel = jax.flatten_util.ravel_pytree(head)
    there = gradient(unravel(flat + rho * plain / jnp.linalg.norm(plain)), x, jnp.asarray(y))
    assert float(plain @ jax.flatten_util.ravel_pytree(there)[0]) >= float(plain @ plain) * (1 - 1e-12)


def test_the_bottleneck_is_the_least_bound_that_counts():
    norms, tops = np.array([4.0, 1.0, 3.0, 0.1]), np.array([2.0, 1.0, 10.0, 1.0])
    found = critical(norms, tops, rho=0.5, counts=np.array([True, True, True, False]))
    assert (found.radius, found.step) == (pytest.approx(0.3), 2)
    assert found.bounds == pytest.approx([2, 1, 0.3, 0.1])
    assert found.unstable.tolist() == [False, False, True, True]
    assert critical(norms, tops).step == 3
    flat = critical(norms, np.zeros(4))
    assert flat.radius == np.inf
    with pytest.raises(InputError, match="diverged"):
        critical(np.array([np.nan]), np.array([1.0]))
    with pytest.raises(InputError, match="do not fit"):
        critical(norms, tops, counts=np.zeros(4, bool))


def test_separable_data_at_saturation_has_no_nan(problems):
    """Logits of hundreds: probabilities are 0 and 1 to the last bit."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 5)).astype(np.float32)
    x[:, 0] += np.where(np.arange(30) < 15, -9, 9)
    y = jnp.asarray((np.arange(30) >= 15).astype(np.int32))
    for scale in (1.0, 30.0, 1e4):
        head = {"kernel": jnp.zeros((5, 2)).at[0, 1].set(scale), "bias": jnp.zeros(2)}
        found = decompose_linear(head, jnp.asarray(x), y)
        assert all(np.isfinite(leaf) for leaf in found)
        assert not np.isnan([found.left, found.geometric, found.misspecification]).any()
        assert np.isfinite(linear_moments(head, jnp.asarray(x), y)[:2]).all()
