"""Against closed forms, explicit Jacobians and full SVDs in float64, and inequalities the paper proves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from r2m_jax import InputError
from r2m_jax.merging import theory

SHAPES = {"attn": {"q": {"kernel": (2, 6, 5)}}, "bias": (7,)}


def tree(rng, scale=1.0, shapes=SHAPES):
    return jax.tree.map(
        lambda shape: np.asarray(scale * rng.normal(size=shape), np.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def specialists(seed, count=3, scale=0.2):
    rng = np.random.default_rng(seed)
    theta0 = tree(rng)
    lengths = scale * rng.uniform(0.5, 2, size=count)
    return theta0, [jax.tree.map(np.add, theta0, tree(rng, length)) for length in lengths]


def task_matrix(theta0, thetas):
    return np.stack([reference.vector(theta) for theta in thetas]) - reference.vector(theta0)


# Features: a small network, and the same in NumPy.
WIDTH = {"w": (4, 5), "b": (5,)}


def network(params, batch):
    return jnp.tanh(batch @ params["w"] + params["b"])


def quadratic(params, batch):
    z = batch @ params["w"] + params["b"]
    return z + 0.5 * z**2


@pytest.fixture
def images(rng):
    batches = [rng.normal(size=(n, 4)).astype(np.float32) for n in (6, 3)]
    labels = [np.array([0, 1, 1, 0, 0, 1]), np.array([1, 0, 1])]
    return batches, labels


def weights_of(labels):
    together = np.concatenate(labels)
    return np.where(together == 1, 1 / (together == 1).sum(), -1 / (together == 0).sum())


def test_remainder_of_quadratic_features_is_their_square(rng, images):
    """z + z²/2 has the remainder (xΔw + Δb)²/2 exactly."""
    batches, labels = images
    theta0, theta = tree(rng, shapes=WIDTH), tree(rng, shapes=WIDTH)
    x = np.concatenate(batches).astype(float)
    z0 = x @ theta0["w"] + theta0["b"]
    dz = x @ (theta["w"].astype(float) - theta0["w"]) + (theta["b"].astype(float) - theta0["b"])
    change, linear, remainder = dz + z0 * dz + dz**2 / 2, dz + z0 * dz, dz**2 / 2
    found = theory.local_linearity(quadratic, theta0, {"theta": theta}, batches)["theta"]
    step = np.sqrt(sum(np.sum((theta[k].astype(float) - theta0[k]) ** 2) for k in WIDTH))
    sizes = [np.sqrt(np.mean(np.sum(part**2, axis=1))) for part in (change, linear, remainder)]
    np.testing.assert_allclose([found.step, found.change, found.linear, found.remainder], [step, *sizes], rtol=1e-5)
    assert found.relative == pytest.approx(sizes[2] / sizes[0], rel=1e-5)
    assert found.constant == pytest.approx(sizes[2] / step**2, rel=1e-5)

    w = weights_of(labels)
    found = theory.separation_linearity(quadratic, theta0, {"theta": theta}, batches, labels)["theta"]
    norms = [np.linalg.norm(w @ part) for part in (change, linear, remainder)]
    np.testing.assert_allclose([found.change, found.linear, found.remainder], norms, rtol=1e-5)


def test_linear_features_leave_no_remainder_and_no_change_is_nan(rng, images):
    theta0 = tree(rng, shapes=WIDTH)
    theta = jax.tree.map(lambda leaf: leaf + 1, theta0)
    found = theory.local_linearity(lambda p, x: x @ p["w"], theta0, {"same": theta0, "moved": theta}, images[0])
    assert found["moved"].relative < 1e-6
    assert np.isnan(found["same"].relative)
    assert found["same"].change == 0


def test_the_remainder_grows_with_the_square_of_the_step(rng, images):
    theta0, direction = tree(rng, shapes=WIDTH), tree(rng, 0.1, WIDTH)
    theta = jax.tree.map(np.add, theta0, direction)
    assert theory.remainder_order(network, theta0, theta, images[0]) == pytest.approx(2, abs=0.1)
    far = jax.tree.map(lambda a, d: a + 1000 * d, theta0, direction)  # tanh saturates: |JΔθ| dominates, order 1
    assert theory.remainder_order(network, theta0, far, images[0]) == pytest.approx(1, abs=0.1)


def explicit_response(theta0, batches, labels):
    """H as a matrix [d, D], leaves in sorted order."""
    jacobian = jax.jacobian(lambda p: jnp.concatenate([network(p, b) for b in batches]))(
        jax.tree.map(jnp.asarray, theta0)
    )
    parts = [np.asarray(jacobian[k], float).reshape(9, 5, -1) for k in sorted(WIDTH)]
    return np.einsum("n,ndp->dp", weights_of(labels), np.concatenate(parts, axis=2))


def test_separation_response_and_its_norm_against_the_explicit_jacobian(rng, images):
    batches, labels = images
    theta0 = tree(rng, shapes=WIDTH)
    explicit = explicit_response(theta0, batches, labels)
    steps = [tree(rng, shapes=WIDTH) for _ in range(3)]
    found = [theory.separation_response(network, theta0, step, batches, labels) for step in steps]
    for response, step in zip(found, steps, strict=True):
        flat = np.concatenate([step[k].ravel() for k in sorted(WIDTH)])
        np.testing.assert_allclose(response, explicit @ flat, atol=2e-6)
    total = jax.tree.map(lambda *leaves: sum(leaves), *steps)  # Σ Jτᵢ = J Στᵢ
    np.testing.assert_allclose(
        theory.separation_response(network, theta0, total, batches, labels), sum(found), atol=5e-6
    )
    norm = theory.response_norm(network, theta0, batches, labels, steps=60)
    assert norm == pytest.approx(np.linalg.norm(explicit, 2), rel=1e-4)
    assert theory.response_norm(lambda p, x: 0 * network(p, x), theta0, batches, labels) == 0


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 6), centre=st.booleans())
def test_recovery_against_the_svd_of_the_whole_task_matrix(seed, count, centre):
    theta0, thetas = specialists(seed, count)
    matrix = task_matrix(theta0, thetas)
    gram = theory.task_gram(theta0, thetas)
    np.testing.assert_allclose(gram, matrix @ matrix.T, rtol=1e-10, atol=1e-12)
    mean = matrix.mean(axis=0)
    rows = matrix - mean if centre else matrix
    np.testing.assert_allclose(theory.centred(gram), (matrix - mean) @ (matrix - mean).T, atol=1e-10)
    _, sigma, vt = np.linalg.svd(rows, full_matrices=False)
    found = theory.recovery(gram, centre=centre)
    np.testing.assert_allclose(found.singular_values, sigma, atol=1e-6 * sigma[0])
    assert found.shared == pytest.approx(abs(vt[0] @ mean) / np.linalg.norm(mean), abs=1e-6)
    v = found.coefficients @ matrix / found.singular_values[0]
    np.testing.assert_allclose(np.abs(v @ vt[0]), 1, rtol=1e-6)
    assert v @ mean >= -1e-9
    assert found.gamma_floor <= found.gamma
    assert found.gap == pytest.approx(sigma[0] - sigma[1], rel=1e-5)


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), noise=st.floats(0.001, 1.0))
def test_gamma_bounds_the_angle_to_a_planted_axis(seed, noise):
    rng = np.random.default_rng(seed)
    axis = rng.normal(size=40)
    centre = np.eye(5) - 1 / 5
    a = centre @ rng.normal(size=5)
    z = centre @ (noise * rng.normal(size=(5, 40)))
    matrix = np.outer(a, axis) + z
    v = np.linalg.svd(matrix)[2][0]
    sine = np.sqrt(max(1 - (v @ axis) ** 2 / (axis @ axis), 0))
    signal, disturbance = np.linalg.norm(a) * np.linalg.norm(axis), np.linalg.norm(z, 2)
    assert sine <= theory.gamma(signal, disturbance) + 1e-9
    # What can be told without knowing the axis is never more pessimistic than the truth's floor.
    assert theory.recovery(matrix @ matrix.T, centre=False).gamma_floor <= theory.gamma(signal, disturbance) + 1e-9


def test_balanced_specialists_share_nothing_with_the_centred_axis():
    """Equal norms and cosines: the mean is orthogonal to every difference (spec 4.1, fact 1)."""
    gram = 0.5 * np.eye(3) + 0.5
    balanced = theory.recovery(gram)
    assert balanced.shared == pytest.approx(0, abs=1e-7)
    assert balanced.gamma > 1e6  # two equal singular values: no axis stands out
    assert min(balanced.coefficients) < 0 < max(balanced.coefficients)
    together = theory.recovery(gram, centre=False)
    assert together.shared == pytest.approx(1)
    np.testing.assert_allclose(together.coefficients, 1 / np.sqrt(3))


def test_two_specialists_equal_ones_and_one():
    theta0, thetas = specialists(0, 2)
    assert theory.recovery(theory.task_gram(theta0, thetas)).gamma == 0
    same = theory.task_gram(theta0, [thetas[0]] * 3)
    assert np.isnan(theory.recovery(same).shared)
    assert theory.kappa_weights(same) == 0
    assert theory.recovery(same[:1, :1], centre=False).shared == pytest.approx(1)
    tail = theory.truncation_tail(theta0, thetas[:1], 0.5)
    assert (tail.tail_energy, tail.mean_norm, tail.constant) == (0, 0, 1)


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), rank=st.sampled_from([0.0, 0.1, 0.5, 0.7, 1.0]))
def test_r3_bounds_the_response_when_the_core_responds_along_u(seed, rank):
    """κ, tail energy and the bound against explicit vectors, and eq. 12 itself with H v along u."""
    theta0, thetas = specialists(seed, 4)
    matrix = task_matrix(theta0, thetas)
    delta = matrix - matrix.mean(axis=0)
    v = np.linalg.svd(delta, full_matrices=False)[2][0]
    off = np.linalg.norm(delta - np.outer(delta @ v, v), axis=1)
    kappa = np.mean(off / np.linalg.norm(delta, axis=1))
    assert theory.kappa_weights(theory.task_gram(theta0, thetas)) == pytest.approx(kappa, rel=1e-6)
    assert theory.kappa(delta, v) == pytest.approx(kappa)
    c = np.array([0.5, -1.0, 2.0, 0.1])
    assert theory.kappa_weights(theory.task_gram(theta0, thetas), c) == pytest.approx(theory.kappa(delta, c @ matrix))

    kept = []
    for row in delta:  # leaves in order of path: the stack of matrices, then the bias
        leaf = reference.truncated("attn/q/kernel", row[:60].reshape(2, 6, 5), rank)
        kept.append(np.concatenate([leaf.ravel(), row[60:]]))
    kept = np.stack(kept)
    tail = theory.truncation_tail(theta0, thetas, rank)
    np.testing.assert_allclose(tail.norms, np.linalg.norm(delta, axis=1))
    np.testing.assert_allclose(tail.tails, np.linalg.norm(delta - kept, axis=1), atol=1e-7)
    norms = np.linalg.norm(kept, axis=1)
    assert tail.mean_norm == pytest.approx(norms.mean())
    assert tail.tail_energy == pytest.approx(np.mean(tail.tails / tail.norms))

    rng = np.random.default_rng(seed)
    u = rng.normal(size=3)
    h = np.outer(u, v) + rng.normal(size=(3, 67)) @ (np.eye(67) - np.outer(v, v))
    core = v * (v @ matrix.mean(axis=0))
    residual = np.mean(norms.mean() * kept / norms[:, None], axis=0)
    eta = 0.5 * np.linalg.norm(core)
    measured = theory.off_axis(h @ (eta * residual), h @ core, u)
    bound = theory.off_axis_bound(
        kappa, tail.tail_energy, eta, np.linalg.norm(h, 2), tail.mean_norm, np.linalg.norm(h @ core)
    )
    assert measured <= tail.constant * bound * (1 + 1e-9)


def test_off_axis_of_known_vectors():
    u = np.array([2.0, 0, 0])
    assert theory.off_axis(np.array([5.0, 3, 4]), np.array([0, 10.0, 0]), u) == pytest.approx(0.5)
    assert theory.kappa(np.array([[3.0, 4, 0], [0, 0, 0]]), u) == pytest.approx(0.4)  # (4/5 + 0)/2


def test_angles_are_exact_near_zero_and_half_a_turn():
    small = 1e-9
    rows = np.array([[1, 0], [np.cos(small), np.sin(small)], [-1, 0], [0, 2], [0, 0]])
    found = theory.angles(rows)
    assert found[0, 1] == pytest.approx(np.degrees(small), rel=1e-6)
    np.testing.assert_allclose(found[0, [0, 2, 3]], [0, 180, 90])
    assert np.isnan(found[4]).all()


def head(w):
    return {"kernel": np.stack([-np.asarray(w) / 2, np.asarray(w) / 2], axis=1), "bias": np.zeros(2)}


def tasks(rng, axes, count=300):
    features, labels = [], []
    for axis in axes:
        y = rng.integers(0, 2, size=count)
        features.append(rng.normal(size=(count, len(axis))) + np.outer(y, axis))
        labels.append(y)
    return features, labels


def share_of_pairs(labels, scores):
    """AUC as Mann and Whitney count it: fake above real, ties half."""
    above = scores[labels == 1][:, None] - scores[labels == 0][None]
    return np.mean((above > 0) + 0.5 * (above == 0))


def test_proposition_holds_where_its_premise_does(rng):
    """One axis of separation and heads along it, of different lengths: one head is as good as each."""
    axis = np.array([2.0, 0, 0, 0, 0, 0])
    features, labels = tasks(rng, [axis, 2 * axis, 1.5 * axis])
    found = theory.proposition_1(features, labels, [head(c * axis) for c in (0.5, 1, 3)])
    assert found.epsilon < 0.15
    assert all(found.same_side)
    np.testing.assert_allclose(found.head_angles, 0, atol=1e-6)
    np.testing.assert_allclose(found.head_scales, [1, 2, 6])
    np.testing.assert_allclose(found.head_errors, 0, atol=1e-12)
    np.testing.assert_allclose(found.rank_correlations, 1)
    assert found.auc_loss == pytest.approx(0, abs=1e-12)


def test_proposition_in_numbers_where_it_fails(rng):
    axes = np.array([[3.0, 0, 0], [0, 2.0, 0], [-2.0, 1, 0]])
    features, labels = tasks(rng, axes)
    heads = [head(axis + 0.1 * rng.normal(size=3)) for axis in axes]
    found = theory.proposition_1(features, labels, heads)
    deltas = [x[y == 1].mean(axis=0) - x[y == 0].mean(axis=0) for x, y in zip(features, labels, strict=True)]
    cosine = deltas[0] @ deltas[1] / np.linalg.norm(deltas[0]) / np.linalg.norm(deltas[1])
    assert found.separation_angles[0, 1] == pytest.approx(np.degrees(np.arccos(cosine)))
    assert not all(found.same_side)
    assert found.epsilon / (1 - found.epsilon) == pytest.approx(found.sines.max())
    w = np.stack([h["kernel"][:, 1] - h["kernel"][:, 0] for h in heads])
    mean = w.mean(axis=0)
    for task, (x, y) in enumerate(zip(features, labels, strict=True)):
        np.testing.assert_allclose(found.aucs[task], [share_of_pairs(y, x @ row) for row in w])
        assert found.mean_head_aucs[task] == pytest.approx(share_of_pairs(y, x @ mean))
        assert found.rank_correlations[task] == pytest.approx(spearmanr(x @ w[task], x @ mean).statistic)
        rest = w[task] - (w[task] @ mean) * mean / (mean @ mean)
        assert found.head_errors[task] == pytest.approx(np.linalg.norm(rest) / np.linalg.norm(w[task]))
    assert found.auc_loss == pytest.approx(max(found.aucs[i, i] - found.mean_head_aucs[i] for i in range(3)))
    assert found.auc_loss > 0.05


def test_ties_count_half(rng):
    """Scores rounded to a few values, as a saturated head gives."""
    x = rng.integers(0, 3, size=(80, 2)).astype(float)
    y = rng.integers(0, 2, size=80)
    found = theory.proposition_1([x], [y], [head([1.0, 0.0])])
    assert found.aucs[0, 0] == pytest.approx(share_of_pairs(y, x[:, 0]))


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), count=st.integers(1, 5))
def test_common_axis_is_the_best_of_many(seed, count):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, 4)) * rng.uniform(0.1, 10, size=(count, 1))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    axis = theory.common_axis(vectors)
    others = rng.normal(size=(200, 4))
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    assert np.sum((unit @ axis) ** 2) >= ((unit @ others.T) ** 2).sum(axis=0).max()
    assert (unit @ axis).sum() >= 0


def test_separation_and_head_vector_and_mistakes(rng):
    x, y = rng.normal(size=(5, 3)), np.array([1, 0, 0, 1, 1])
    np.testing.assert_allclose(theory.separation(x, y), x[[0, 3, 4]].mean(axis=0) - x[[1, 2]].mean(axis=0))
    kernel = rng.normal(size=(3, 2))
    np.testing.assert_allclose(theory.head_vector({"kernel": kernel}), kernel[:, 1] - kernel[:, 0])
    with pytest.raises(InputError, match="two logits"):
        theory.head_vector({"kernel": rng.normal(size=(3, 4))})
    with pytest.raises(InputError, match="labels must be 0"):
        theory.separation(x, np.array([1, 1, 1, 1, 1]))
    with pytest.raises(InputError, match="labels must be 0"):
        theory.separation(x, np.array([0, 1, 2, 1, 1]))
    with pytest.raises(InputError, match="differ"):
        theory.proposition_1([x], [y, y], [head([1, 0, 0])])
    with pytest.raises(InputError, match="rank=2"):
        theory.truncation_tail({"a": x}, [{"a": x}], 2)
