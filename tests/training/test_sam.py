"""SAM against NumPy written from the papers, and the identities that hold for it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r2m_jax import InputError
from r2m_jax.training.sam import Sharpness, perturbation, sharpness_aware

KEY = jax.random.key(0)


def loss(params, batch, key):
    """Logistic regression; the key drops inputs, as augmentation would."""
    kept = jax.random.bernoulli(key, 0.8, batch["x"].shape)
    logits = (batch["x"] * kept) @ params["w"] + params["b"]
    return optax.losses.sigmoid_binary_cross_entropy(logits, batch["y"]).mean(), logits


gradient = jax.value_and_grad(loss, has_aux=True)


@pytest.fixture
def problem(rng):
    batch = {"x": rng.normal(size=(24, 5)).astype(np.float32), "y": rng.integers(0, 2, 24).astype(np.float32)}
    params = {"w": rng.normal(size=5).astype(np.float32), "b": np.float32(0.3)}
    return jax.tree.map(jnp.asarray, params), jax.tree.map(jnp.asarray, batch)


def numpy_gradient(w, b, x, y):
    error = 1 / (1 + np.exp(-(x @ w + b))) - y
    return x.T @ error / len(y), error.mean()


@pytest.mark.parametrize("adaptive", [False, True])
def test_steps_equal_those_by_hand_in_float64(problem, adaptive):
    params, batch = problem
    kept = np.asarray(jax.random.bernoulli(KEY, 0.8, batch["x"].shape))
    x, y = np.asarray(batch["x"], np.float64) * kept, np.asarray(batch["y"], np.float64)
    w, b = np.asarray(params["w"], np.float64), float(params["b"])
    ours = sharpness_aware(gradient, Sharpness(rho=0.1, adaptive=adaptive))
    for _ in range(20):
        gw, gb = numpy_gradient(w, b, x, y)
        tw, tb = (np.abs(w) + 0.01, abs(b) + 0.01) if adaptive else (1.0, 1.0)
        norm = np.sqrt((tw * gw) @ (tw * gw) + (tb * gb) ** 2)
        gw, gb = numpy_gradient(w + 0.1 * tw**2 * gw / norm, b + 0.1 * tb**2 * gb / norm, x, y)
        w, b = w - 0.5 * gw, b - 0.5 * gb
        _, step = ours(params, batch, KEY)
        params = jax.tree.map(lambda p, g: p - 0.5 * g, params, step)
    np.testing.assert_allclose(params["w"], w, atol=1e-6)
    np.testing.assert_allclose(params["b"], b, atol=1e-6)


def test_radius_zero_is_the_plain_gradient_bit_for_bit(problem):
    params, batch = problem
    for adaptive in (False, True):
        ours = jax.jit(sharpness_aware(gradient, Sharpness(rho=0.0, adaptive=adaptive)))(params, batch, KEY)
        plain = jax.jit(gradient)(params, batch, KEY)
        for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_perturbation_has_the_radius_in_its_norm(problem, adaptive):
    params, batch = problem
    _, found = gradient(params, batch, KEY)
    sharpness = Sharpness(rho=0.2, adaptive=adaptive)
    step = perturbation(params, found, sharpness)
    if adaptive:
        step = jax.tree.map(lambda s, w: s / (jnp.abs(w) + 0.01), step, params)
    assert float(optax.tree.norm(step)) == pytest.approx(0.2, rel=1e-5)


def test_a_zero_gradient_stays_zero(problem):
    params, _ = problem
    for adaptive in (False, True):
        step = perturbation(params, optax.tree.zeros_like(params), Sharpness(adaptive=adaptive))
        assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(step))


def test_loss_and_aux_are_those_at_the_given_parameters(problem):
    params, batch = problem
    (value, logits), _ = sharpness_aware(gradient, Sharpness(rho=0.5))(params, batch, KEY)
    expected, there = loss(params, batch, KEY)
    assert float(value) == float(expected)
    np.testing.assert_array_equal(logits, there)


def test_parts_are_perturbed_apart(problem):
    """m-SAM is the mean of SAM on the parts; for one part it is SAM."""
    params, batch = problem
    _, ours = sharpness_aware(gradient, Sharpness(rho=0.3, parts=3))(params, batch, KEY)
    one = sharpness_aware(gradient, Sharpness(rho=0.3))
    steps = [
        one(params, jax.tree.map(lambda leaf, k=k: leaf[8 * k : 8 * k + 8], batch), key)[1]
        for k, key in enumerate(jax.random.split(KEY, 3))
    ]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 3, *steps)
    for name in ours:
        np.testing.assert_allclose(ours[name], mean[name], rtol=1e-5)
    with pytest.raises(InputError, match="a batch of 24 does not divide into 5 parts"):
        sharpness_aware(gradient, Sharpness(parts=5))(params, batch, KEY)


def test_agrees_with_optax(problem):
    """optax's SAM, opaque, over plain gradient descent; it normalises by the same global norm."""
    params, batch = problem
    start = params
    ours = sharpness_aware(gradient, Sharpness(rho=0.05))
    for _ in range(5):
        _, step = ours(params, batch, KEY)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, step)
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    reference = optax.contrib.sam(optax.sgd(0.1), adversary, opaque_mode=True)
    state, theirs = reference.init(start), start
    for _ in range(5):
        _, plain = gradient(theirs, batch, KEY)
        updates, state = reference.update(plain, state, theirs, grad_fn=lambda p, _: gradient(p, batch, KEY)[1])
        theirs = optax.apply_updates(theirs, updates)
    for name in params:
        np.testing.assert_allclose(params[name], theirs[name], atol=1e-6)


@pytest.mark.parametrize("settings", [{"rho": -0.1}, {"rho": float("nan")}, {"eta": -1.0}, {"parts": 0}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(InputError, match="SAM needs"):
        Sharpness(**settings)
