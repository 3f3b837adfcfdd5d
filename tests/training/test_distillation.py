"""Distillation's limits, and zeros that stay zero."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from r2m_jax.training import OptimizerRecipe, Output, build_optimizer, cross_entropy, keep_zeros
from r2m_jax.training.distillation import Taught, attach_map, distilling, feature_loss, mapped, soft_loss, without_map
from r2m_jax.training.inputs import Lesson

LOGITS = arrays(np.float32, (5, 2), elements=st.floats(-8, 8, width=32))
LABELS = jnp.asarray([0, 1, 1, 0, 1])


def lesson(logits, features=None):
    return Lesson(jnp.zeros((5, 1, 1, 3)), jax.random.key(0), taught=Taught(logits, features))


@settings(max_examples=12)
@given(student=LOGITS, teacher=LOGITS, temperature=st.floats(0.5, 8))
def test_the_soft_loss_is_the_divergence(student, teacher, temperature):
    from scipy.special import rel_entr, softmax

    expected = rel_entr(
        softmax(teacher.astype(np.float64) / temperature, 1), softmax(student.astype(np.float64) / temperature, 1)
    ).sum(1).mean()  # fmt: skip
    got = soft_loss(jnp.asarray(student), jnp.asarray(teacher), temperature)
    np.testing.assert_allclose(got, temperature**2 * expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(soft_loss(jnp.asarray(teacher), jnp.asarray(teacher), temperature), 0, atol=1e-6)
    # Teacher's answers read at leisure keep the difference of logits alone.
    apart = np.stack([np.zeros(5, np.float32), teacher[:, 1] - teacher[:, 0]], axis=1)
    np.testing.assert_allclose(soft_loss(jnp.asarray(student), jnp.asarray(apart), temperature), got, atol=1e-4)


def test_the_weights_choose_the_terms(rng):
    student, teacher = (jnp.asarray(rng.normal(size=(5, 2)), jnp.float32) for _ in range(2))
    plain = cross_entropy(student, LABELS)
    alone = distilling(soft=0.0, hard=1.0)
    assert alone(Output(student), lesson(teacher), LABELS) == plain
    both = distilling(temperature=3.0, soft=0.25, hard=0.75)(Output(student), lesson(teacher), LABELS)
    np.testing.assert_allclose(both, 0.25 * soft_loss(student, teacher, 3.0) + 0.75 * plain, rtol=1e-6)
    assert distilling(hard=0.0)(Output(teacher), lesson(teacher), LABELS) == 0


def test_a_hot_teacher_is_matched_in_logits(rng):
    """Hinton et al., section 2.1: at a high temperature the gradient is that of matching centred logits."""
    student, teacher = (jnp.asarray(rng.normal(size=(5, 2)), jnp.float32) for _ in range(2))

    def matching(logits):
        centred = [x - x.mean(axis=1, keepdims=True) for x in (logits, teacher)]
        return ((centred[0] - centred[1]) ** 2).sum(axis=1).mean() / (2 * 2)  # two classes

    expected = jax.grad(matching)(student)
    errors = [
        np.abs(jax.grad(soft_loss)(student, teacher, temperature) - expected).max() for temperature in (4.0, 64.0)
    ]
    assert errors[1] < min(errors[0], 1e-3)


def test_probabilities_that_underflow_leave_everything_finite():
    teacher = jnp.asarray([[-1e4, 1e4]] * 5)
    assert jax.nn.softmax(teacher)[0, 0] == 0
    value, slope = jax.value_and_grad(soft_loss)(jnp.asarray([[1e3, -1e3]] * 5), teacher, 1.0)
    assert np.isfinite(value)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("likeness", ["mse", "cosine"])
def test_features_that_a_map_carries_over_cost_nothing(likeness, rng):
    features = jnp.asarray(rng.normal(size=(5, 7)), jnp.float32)
    params = attach_map({"head": {}}, 7, 4, jax.random.key(0))
    theirs = mapped(params, features)
    np.testing.assert_allclose(feature_loss(mapped(params, features), theirs, likeness), 0, atol=1e-6)
    other = jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)
    worse, slope = jax.value_and_grad(feature_loss)(theirs, other, likeness)
    assert worse > 0.1
    assert feature_loss(theirs - 0.1 * slope, other, likeness) < worse
    assert np.isfinite(jax.grad(feature_loss)(jnp.zeros((5, 4)), other, likeness)).all()
    assert without_map(params) == {"head": {}}
    loss = distilling(soft=0.0, hard=0.0, features=2.0, likeness=likeness)
    logits = jnp.zeros((5, 2))
    np.testing.assert_allclose(loss(Output(logits, theirs), lesson(logits, other), LABELS), 2 * worse, rtol=1e-6)


@pytest.mark.parametrize("more", [{"name": "adam"}, {"name": "sgd", "momentum": 0.9, "accumulate": 2}])
def test_zeros_stay_zero_and_the_rest_moves_as_if_they_were_not_there(more, rng):
    weights = rng.normal(size=(6, 5)).astype(np.float32)
    weights[rng.random((6, 5)) < 0.6] = 0
    recipe = OptimizerRecipe(learning_rate=0.1, weight_decay=0.01, clip_norm=1.0, **more)
    thinned = {"a/kernel": jnp.asarray(weights), "a/bias": jnp.zeros(5)}
    places = np.nonzero(weights)
    packed = {"a/kernel": jnp.asarray(weights[places]), "a/bias": jnp.zeros(5)}
    sparse, dense = keep_zeros(build_optimizer(recipe, 8)), build_optimizer(recipe, 8)
    states = [sparse.init(thinned), dense.init(packed)]
    for _ in range(4):
        gradient = rng.normal(size=(6, 5)).astype(np.float32)
        bias = jnp.asarray(rng.normal(size=5), jnp.float32)
        updates, states[0] = sparse.update({"a/kernel": jnp.asarray(gradient), "a/bias": bias}, states[0], thinned)
        thinned = optax.apply_updates(thinned, updates)
        updates, states[1] = dense.update(
            {"a/kernel": jnp.asarray(gradient[places]), "a/bias": bias}, states[1], packed
        )
        packed = optax.apply_updates(packed, updates)
    got = np.asarray(thinned["a/kernel"])
    assert (got[weights == 0] == 0).all()
    np.testing.assert_allclose(got[places], packed["a/kernel"], rtol=1e-5)
    np.testing.assert_allclose(thinned["a/bias"], packed["a/bias"], rtol=1e-5)
    assert (np.asarray(thinned["a/bias"]) != 0).all()
