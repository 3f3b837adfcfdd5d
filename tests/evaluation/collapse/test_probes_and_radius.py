"""Probes trained with SAM, and the radius from which on they collapse."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from r2m_jax import InputError
from r2m_jax.evaluation.collapse import (
    ProbeData,
    ProbeTraining,
    RadiusSearch,
    critical_radius,
    sam_train,
    trajectory,
)
from r2m_jax.evaluation.collapse.probes import batches, cross_entropy, heads, margins, rank_auc
from r2m_jax.training.sam import Sharpness, sharpness_aware

SHORT = ProbeTraining(steps=40, batch_size=10, learning_rate=0.05)
SEARCH = RadiusSearch(least=0.01, most=100.0, points=9, seeds=3)


def classes(gap, *, n=60, tested=600, d=8, seed=0, shift=0.0):
    """Two Gaussian classes whose means differ by ``gap`` along one axis, with a common offset."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n + tested) % 2
    x = rng.normal(size=(n + tested, d)) + shift
    x[:, 0] += gap * (labels - 0.5)
    x = x.astype(np.float32)
    return ProbeData(x[:n], labels[:n], x[n:], labels[n:])


@pytest.fixture(scope="module")
def found():
    """Gaps of easy, middling and impossible problems to their radii; one compiled program."""
    return {gap: critical_radius(classes(gap, shift=2.0), SEARCH, SHORT) for gap in (0.0, 1.0, 6.0)}


@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_training_is_that_of_the_trainer(rho):
    """The same steps by `r2m_jax.training.sam`, one after another."""
    data = classes(1.0)
    order = batches(len(data.labels), SHORT, seed=3)
    start = jax.tree.map(lambda leaf: leaf[0], heads(8, 1))
    x, y = jnp.asarray(data.features), jnp.asarray(data.labels)
    found, _ = sam_train(start, x, y, jnp.asarray(order[:, None]), jnp.float32(rho), SHORT)

    def gradient(head, batch, key):
        return jax.value_and_grad(lambda h: (cross_entropy(h, *batch), batch[1]), has_aux=True)(head)

    step = jax.jit(sharpness_aware(gradient, Sharpness(rho=rho)))
    optimizer = optax.sgd(SHORT.learning_rate, momentum=SHORT.momentum)
    head, state = start, optimizer.init(start)
    for chosen in order:
        _, descent = step(head, (x[chosen], y[chosen]), jax.random.key(0))
        updates, state = optimizer.update(descent, state)
        head = optax.apply_updates(head, updates)
    for name in head:
        np.testing.assert_allclose(found[name], head[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [0.25, 8.0])
def test_scaling_law_of_sam(wide, scale):
    """Features × s, start / s, rate / s², radius / s: the same logits all along, where there is no bias."""
    data = classes(1.0)
    order = jnp.asarray(batches(len(data.labels), SHORT, seed=0))
    x, y = jnp.asarray(data.features, jnp.float64), jnp.asarray(data.labels)
    w = jnp.asarray(np.random.default_rng(0).normal(size=8))

    def train(x, w, rate, rho):
        def loss(w, chosen):
            margin = x[chosen] @ w
            return jnp.mean(jax.nn.softplus(margin) - y[chosen] * margin)

        def step(w, chosen):
            g = jax.grad(loss)(w, chosen)
            return w - rate * jax.grad(loss)(w + rho * g / jnp.linalg.norm(g), chosen), x @ w

        return jax.lax.scan(step, w, order)[1]

    plain = train(x, w, 0.05, 0.5)
    np.testing.assert_allclose(plain, train(scale * x, w / scale, 0.05 / scale**2, 0.5 / scale), rtol=1e-8, atol=1e-10)


def test_two_logits_are_one_with_another_radius(wide):
    """A head of two opposite columns takes the margin's steps at twice the rate and √2 times its radius."""
    data = classes(1.0)
    training = ProbeTraining(steps=30, batch_size=10, learning_rate=0.05, momentum=0.0)
    order = jnp.asarray(batches(len(data.labels), training, seed=0))
    x, y = jnp.asarray(data.features, jnp.float64), jnp.asarray(data.labels)
    half = jnp.asarray(np.random.default_rng(0).normal(size=(8, 1)))
    start = {"kernel": jnp.concatenate([-half, half], 1), "bias": jnp.zeros(2)}
    head, _ = sam_train(start, x, y, order[:, None], jnp.asarray(0.4), training)
    rows, w = jnp.concatenate([x, jnp.ones((len(x), 1))], 1), jnp.concatenate([2 * half[:, 0], jnp.zeros(1)])

    def loss(w, chosen):
        margin = rows[chosen] @ w
        return jnp.mean(jax.nn.softplus(margin) - y[chosen] * margin)

    def step(w, chosen):
        g = jax.grad(loss)(w, chosen)
        return w - 0.1 * jax.grad(loss)(w + 0.4 * np.sqrt(2) * g / jnp.linalg.norm(g), chosen), None

    np.testing.assert_allclose(margins(head, x), rows @ jax.lax.scan(step, w, order)[0], rtol=1e-8, atol=1e-10)


def test_every_sample_is_seen_before_one_is_again():
    training = ProbeTraining(steps=12, batch_size=5)
    order = batches(15, training, seed=1)
    assert order.shape == (12, 5)
    for first in range(0, 12, 3):
        assert sorted(order[first : first + 3].ravel()) == list(range(15))
    assert batches(3, training, seed=0).shape == (12, 3)


@pytest.mark.parametrize("decimals", [0, 6])
def test_auc_is_scikit_learns(decimals):
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 101), np.round(rng.normal(size=101), decimals).astype(np.float32)
    found = rank_auc(jnp.asarray(scores), *(jnp.flatnonzero(jnp.asarray(labels) == k) for k in (0, 1)))
    assert float(found) == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)


def test_easy_problems_hold_longer_than_hard_ones(found):
    none, middling, easy = (found[gap].brackets for gap in (0.0, 1.0, 6.0))
    for name in ("auc", "loss"):
        assert none[name].median <= middling[name].median <= easy[name].median
    assert none["auc"].outcome == "never learns"
    assert easy["auc"].outcome == "holds"
    assert middling["loss"].outcome == "collapses"
    assert found[6.0].auc[0].min() > 0.99
    assert none["auc"].words() == "< 0.01"
    assert easy["auc"].words() == "> 100"


def test_brackets_hold_the_first_collapse(found):
    """Ends lie between neighbours of the grid, 2^-bisections apart in log ρ; retraining at them agrees."""
    result = found[1.0]
    bracket = result.brackets["loss"]
    step = np.log(SEARCH.grid[2] / SEARCH.grid[1])
    collapsed = result.loss >= np.log(2)
    data = classes(1.0, shift=2.0)
    for seed in range(3):
        if not np.isfinite(bracket.high[seed]) or bracket.low[seed] == 0:
            continue
        first = int(collapsed[1:, seed].argmax()) + 1
        assert SEARCH.grid[first - 1] <= bracket.low[seed] * (1 + 1e-5)
        assert bracket.high[seed] <= SEARCH.grid[first] * (1 + 1e-5)
        assert np.log(bracket.high[seed] / bracket.low[seed]) == pytest.approx(step / 2**6, rel=1e-2)
        start = jax.tree.map(lambda leaf, s=seed: leaf[s], heads(8, 3))
        order = jnp.asarray(batches(60, SHORT, seed)[:, None])
        x, y = jnp.asarray(data.features), jnp.asarray(data.labels)
        low, high = (
            float(cross_entropy(sam_train(start, x, y, order, jnp.float32(rho), SHORT)[0], x, y))
            for rho in (bracket.low[seed], bracket.high[seed])
        )
        assert low < np.log(2) + 1e-4
        assert high > np.log(2) - 1e-4
    assert bracket.by_seed == pytest.approx(np.sqrt(bracket.low * bracket.high))


def test_separable_data_give_numbers(found):
    easy = found[6.0]
    for values in (easy.auc, easy.train_auc, easy.loss):
        assert np.isfinite(values).all()
    path = trajectory(classes(30.0), rho=0.0, points=20, training=SHORT)
    assert np.isfinite(path.gsnr.plug_in).all()
    assert np.isfinite(path.critical.bounds[0])
    assert path.auc[-1] == 1


def test_trajectories_are_of_one_training():
    data = classes(2.0, shift=1.0)
    path = trajectory(data, rho=0.1, points=20, training=SHORT)
    assert path.steps.tolist() == list(range(0, 40, 2))
    assert path.gap < 1e-8
    assert (np.asarray(path.decomposition.left)[path.phases.number == 1].min()) == pytest.approx(path.critical.radius)
    assert path.everywhere.radius <= path.critical.radius
    assert path.critical.unstable.tolist() == (path.critical.bounds < 0.1).tolist()
    # Its end is that of the training, and its start the head of the seed.
    order = jnp.asarray(batches(60, SHORT, 0)[:, None])
    start = jax.tree.map(lambda leaf: leaf[0], heads(8, 1))
    x, y = jnp.asarray(data.features), jnp.asarray(data.labels)
    head, _ = sam_train(start, x, y, order, jnp.float32(0.1), SHORT)
    np.testing.assert_allclose(path.head["kernel"], head["kernel"], rtol=1e-5, atol=1e-7)
    assert path.loss[0] == pytest.approx(float(cross_entropy(start, x, y)), rel=1e-5)


@pytest.mark.integration
def test_plain_training_tends_to_scikit_learns_solution():
    """Overlapping classes, thousands of full-batch steps: the loss of the regression without a penalty."""
    data = classes(1.0, n=200)
    fitted = LogisticRegression(C=np.inf, tol=1e-10, max_iter=5000).fit(data.features, data.labels)
    wanted = -np.log(fitted.predict_proba(data.features)[np.arange(200), data.labels]).mean()
    long = ProbeTraining(steps=3000, batch_size=200, learning_rate=0.1)
    path = trajectory(data, rho=0.0, points=100, training=long)
    assert path.loss[-1] == pytest.approx(wanted, rel=1e-3)
    assert path.gsnr.plug_in[-1] < 1e-3 * path.gsnr.plug_in[0]


def test_mistakes_are_named():
    x, y = np.zeros((4, 2), np.float32), np.array([0, 1, 0, 1])
    with pytest.raises(InputError, match="one class only"):
        ProbeData(x, np.zeros(4, int), x, y)
    with pytest.raises(InputError, match="one, 0 or 1, each"):
        ProbeData(x, y[:3], x, y)
    with pytest.raises(InputError, match="to test on are NaN"):
        ProbeData(x, y, x + np.nan, y)
    with pytest.raises(InputError, match="radii"):
        RadiusSearch(least=0.0)
    with pytest.raises(InputError, match="margin"):
        RadiusSearch(margin=0.5)
    with pytest.raises(InputError, match="learning rate"):
        ProbeTraining(learning_rate=0.0)
    with pytest.raises(InputError, match="do not fit"):
        trajectory(classes(1.0), points=41, training=SHORT)
