from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from r2m_jax import InputError
from r2m_jax.merging import (
    attention_and_mlp,
    average_heads,
    explain,
    merge_detectors,
    r2m,
    task_arithmetic,
    weight_averaging,
)
from r2m_jax.merging.diagnostics import as_json
from r2m_jax.merging.ranks import kept_rank
from r2m_jax.merging.spectral import discarded_tail, spectrum
from r2m_jax.trees import flatten

SHAPES = {
    "layers": {
        "attn": {"q": {"kernel": (3, 12, 12), "bias": (3, 12)}},
        "mlp": {"fc1": {"kernel": (3, 12, 20), "bias": (3, 20)}, "fc2": {"kernel": (3, 20, 12)}},
        "norm1": {"scale": (3, 12)},
    },
    "position": (5, 12),
}


def random_tree(seed, scale=1.0, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(scale * rng.normal(size=shape), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def add(a, b):
    return jax.tree.map(jnp.add, a, b)


def specialists(theta0, scales=(0.1, 0.13, 0.3), shared=0.05):
    common = random_tree(99, shared)
    return [add(theta0, add(common, random_tree(index + 1, scale))) for index, scale in enumerate(scales)]


def update_error(params, theta0, reference_vector):
    """Relative error of θ* - θ₀, the quantity a merge is judged by."""
    start = reference.vector(theta0)
    ours = reference.vector(params) - start
    return np.linalg.norm(ours - (reference_vector - start)) / np.linalg.norm(reference_vector - start)


def close(a, b, rtol=1e-5, atol=1e-6):
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_allclose(a[path], b[path], rtol=rtol, atol=atol, err_msg=path)


@pytest.mark.parametrize("eta", ["eff", "eq6"])
@pytest.mark.parametrize("origin", ["theta0", "theta_avg"])
@pytest.mark.parametrize(("centering", "k"), [("centered", 1), ("centered", 2), ("uncentered", 1), ("uncentered", 3)])
@pytest.mark.parametrize("rank", [pytest.param(rank, marks=pytest.mark.integration) for rank in (0.1, 0.3)] + [0.7])
def test_r2m_against_float64(rank, centering, k, origin, eta):
    theta0 = random_tree(0)
    thetas = specialists(theta0)
    switches = {"rank": rank, "alpha": 0.5, "k": k, "centering": centering, "origin": origin, "eta": eta}
    ours = jax.jit(partial(r2m, **switches))(theta0, thetas)
    # θ* is stored in float32 beside θ₀ of size 1, which by itself rounds an update of 0.1 to about 3e-7.
    assert update_error(ours.params, theta0, reference.r2m(theta0, thetas, **switches)) < 5e-6


def test_diagnostics_are_what_they_say():
    theta0 = random_tree(0)
    thetas = specialists(theta0)
    result = r2m(theta0, thetas)
    tau = np.stack([reference.vector(theta) for theta in thetas]) - reference.vector(theta0)
    mean, d = tau.mean(axis=0), result.diagnostics
    norms = np.linalg.norm(tau, axis=1)
    np.testing.assert_allclose(d.task_norms, norms, rtol=1e-5)
    np.testing.assert_allclose(d.cosines, tau @ tau.T / np.outer(norms, norms), atol=1e-5)
    spectrum = np.linalg.svd(tau - mean, compute_uv=False)
    np.testing.assert_allclose(d.singular_values[:2], spectrum[:2], rtol=1e-5)
    core = np.asarray(d.core_coefficients) @ tau
    np.testing.assert_allclose(d.core_ratio, np.linalg.norm(core) / np.linalg.norm(mean), rtol=1e-5)
    moved = reference.vector(result.params) - reference.vector(theta0)
    np.testing.assert_allclose(d.update_ratio, np.linalg.norm(moved) / np.linalg.norm(mean), rtol=1e-5)
    assert as_json(d)["no_difference"] is False


def test_weight_averaging_is_the_mean():
    theta0 = random_tree(0)
    thetas = specialists(theta0)
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 3, *thetas)
    close(weight_averaging(theta0, thetas), mean)
    close(task_arithmetic(theta0, thetas, alpha=1.0), mean)
    weighted = jax.tree.map(lambda a, b, c: 0.5 * a + 0.25 * b + 0.25 * c, *thetas)
    close(weight_averaging(theta0, thetas, weights=[2, 1, 1]), weighted)


def test_task_arithmetic_sum_and_mean():
    theta0 = random_tree(0)
    thetas = specialists(theta0)
    close(
        task_arithmetic(theta0, thetas, alpha=0.25, reduce="sum"),
        task_arithmetic(theta0, thetas, alpha=0.75, reduce="mean"),
    )
    by_hand = jax.tree.map(lambda o, *t: o + 0.25 * sum(x - o for x in t), theta0, *thetas)
    close(task_arithmetic(theta0, thetas, alpha=0.25, reduce="sum"), by_hand)


METHODS = {
    "weight averaging": weight_averaging,
    "task arithmetic": partial(task_arithmetic, alpha=0.5, reduce="sum"),
    "r2m": lambda *a: r2m(*a).params,
    "r2m uncentered": lambda *a: r2m(*a, centering="uncentered").params,
    "r2m from average": lambda *a: r2m(*a, origin="theta_avg").params,
}


@pytest.mark.parametrize("name", METHODS)
def test_order_of_specialists_does_not_matter(name):
    theta0 = random_tree(0)
    thetas = specialists(theta0)
    close(METHODS[name](theta0, thetas), METHODS[name](theta0, thetas[::-1]), atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_scaling_task_vectors_scales_the_update(name):
    theta0 = random_tree(0)
    thetas = specialists(theta0)
    stretched = [jax.tree.map(lambda o, t: o + 4 * (t - o), theta0, theta) for theta in thetas]
    plain, scaled = METHODS[name](theta0, thetas), METHODS[name](theta0, stretched)
    close(jax.tree.map(lambda o, t: o + 4 * (t - o), theta0, plain), scaled, atol=2e-5)


def test_unstacking_layers_changes_nothing():
    def unstacked(tree):
        flat = flatten(tree)
        per_layer = {
            f"layer{i}_{path}": leaf[i] for path, leaf in flat.items() if path.startswith("layers") for i in range(3)
        }
        return per_layer | {path: leaf for path, leaf in flat.items() if not path.startswith("layers")}

    theta0 = random_tree(0)
    thetas = specialists(theta0)
    close(unstacked(r2m(theta0, thetas).params), r2m(unstacked(theta0), [unstacked(t) for t in thetas]).params)


def test_alpha_zero_leaves_the_core_alone():
    theta0 = random_tree(0)
    thetas = specialists(theta0)
    result = r2m(theta0, thetas, alpha=0.0)
    c = result.diagnostics.core_coefficients
    close(result.params, jax.tree.map(lambda o, *t: o + sum(c[i] * (t[i] - o) for i in range(3)), theta0, *thetas))
    # All N directions of an uncentred core hold the whole mean.
    whole = r2m(theta0, thetas, alpha=0.0, k=3, centering="uncentered").params
    close(whole, weight_averaging(theta0, thetas), atol=1e-5)


@pytest.mark.parametrize("centering", ["centered", "uncentered"])
@pytest.mark.parametrize("case", ["one", "equal", "equal and unmoved"])
def test_nothing_to_tell_apart_gives_the_average(case, centering):
    theta0 = random_tree(0)
    thetas = {"one": specialists(theta0)[:1], "equal": specialists(theta0)[:1] * 3, "equal and unmoved": [theta0] * 3}
    result = r2m(theta0, thetas[case], centering=centering)
    close(result.params, thetas[case][0])
    chex.assert_tree_all_finite(result)
    assert bool(result.diagnostics.no_difference)
    assert "weight averaging" in explain(result.diagnostics, ["A"] * len(thetas[case]))[0]


def test_two_specialists_have_no_residual_and_it_is_not_blown_up():
    theta0 = random_tree(0)
    thetas = specialists(theta0)[:2]
    result = r2m(theta0, thetas)
    assert bool(result.diagnostics.residual_is_noise)
    assert float(result.diagnostics.eta) == 0.0
    close(result.params, r2m(theta0, thetas, alpha=0.0).params)
    assert any("two specialists" in sentence for sentence in explain(result.diagnostics, ["A", "B"]))


def test_balanced_specialists_are_reported_as_degenerate():
    # Equal lengths and equal cosines put the mean at right angles to every difference: the core of eq. 2 vanishes.
    theta0 = jax.tree.map(jnp.zeros_like, random_tree(0))
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(reference.vector(theta0).size, 4)))[0].T
    thetas = []
    for row in basis[:3] + 0.5 * basis[3]:
        position, flat = 0, {}
        for path, leaf in flatten(theta0).items():
            flat[path] = jnp.asarray(row[position : position + leaf.size].reshape(leaf.shape), jnp.float32)
            position += leaf.size
        thetas.append(jax.tree.unflatten(jax.tree.structure(theta0), list(flat.values())))
    result = r2m(theta0, thetas)
    assert float(result.diagnostics.core_ratio) < 0.01
    assert any("stays close to its origin" in s for s in explain(result.diagnostics, ["A", "B", "C"]))
    assert float(r2m(theta0, thetas, centering="uncentered").diagnostics.core_ratio) > 0.5


def test_negated_specialists_are_named():
    theta0 = random_tree(0)
    sentences = explain(r2m(theta0, specialists(theta0, (0.1, 0.1, 0.6))).diagnostics, ["FS", "FR", "EFS"])
    assert any("moves away from FS and FR" in sentence for sentence in sentences)


@given(
    values=st.lists(st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e6, -1e6]), min_size=3, max_size=3),
    rank=st.sampled_from([0.0, 0.3, 1.0]),
    centering=st.sampled_from(["centered", "uncentered"]),
)
@settings(max_examples=25)
def test_never_nan(values, rank, centering):
    shapes = {"attn": {"kernel": (2, 4, 6)}, "bias": (3,)}
    theta0 = random_tree(0, shapes=shapes)
    thetas = [add(theta0, random_tree(i + 1, value, shapes)) for i, value in enumerate(values)]
    chex.assert_tree_all_finite(r2m(theta0, thetas, rank=rank, centering=centering))


def test_compiles_once_for_one_structure():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def merge(theta0, thetas):
        return r2m(theta0, thetas, rank=0.7, alpha=0.5)

    theta0 = random_tree(0)
    merge(theta0, specialists(theta0))
    merge(random_tree(5), specialists(theta0, (0.2, 0.3, 0.4)))


def test_sharded_inputs_give_the_same_result():
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    mesh = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    theta0 = random_tree(0)
    thetas = specialists(theta0)

    def place(leaf):
        spec = PartitionSpec(*[None] * (leaf.ndim - 1), "model" if leaf.shape[-1] % 4 == 0 else None)
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    sharded = jax.jit(r2m)(jax.tree.map(place, theta0), [jax.tree.map(place, theta) for theta in thetas])
    close(sharded.params, r2m(theta0, thetas).params)


def test_output_has_the_dtypes_of_the_origin():
    theta0 = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), random_tree(0))
    for name, method in METHODS.items():
        merged = method(theta0, specialists(random_tree(0)))
        assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype(jnp.bfloat16)}, name


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda o, t: r2m(o, t, rank=1.5), "rank=1.5"),
        (lambda o, t: r2m(o, t, rank=-1), "rank=-1"),
        (lambda o, t: r2m(o, t, k=3), "k=3"),
        (lambda o, t: r2m(o, t, k=0), "k=0"),
        (lambda o, t: r2m(o, t, centering="both"), "centering='both'"),
        (lambda o, t: r2m(o, []), "at least one specialist"),
        (lambda o, t: r2m(o, [*t, {"position": t[0]["position"]}]), "specialist 3 lacks"),
        (lambda o, t: task_arithmetic(o, t, reduce="max"), "reduce='max'"),
        (lambda o, t: weight_averaging(o, t, weights=[1, 2]), "3 specialists"),
        (lambda o, t: weight_averaging(o, t, weights=[1, -1, 1]), "≥ 0"),
        (lambda o, t: average_heads([]), "no heads"),
    ],
)
def test_bad_input(call, named):
    theta0 = random_tree(0)
    with pytest.raises(InputError, match=named):
        call(theta0, specialists(theta0))


def test_heads_are_averaged_and_never_shifted(detector):
    other = jax.tree.map(lambda leaf: leaf + 1, detector.params)
    merged = merge_detectors(weight_averaging, detector.params, [detector.params, other])
    close(merged["head"], jax.tree.map(lambda leaf: leaf + 0.5, detector.params["head"]))
    assert merged.keys() == {"backbone", "head"}


def test_selection_of_block_matrices(detector):
    chosen = {path for path, leaf in flatten(detector.params["backbone"]).items() if attention_and_mlp(path, leaf)}
    assert chosen == {f"layers/attn/{x}/kernel" for x in ("q", "k", "v", "out")} | {
        f"layers/mlp/{x}/kernel" for x in ("fc1", "fc2")
    }


@pytest.mark.parametrize(("m", "n"), [(6, 9), (9, 6), (7, 7)])
@pytest.mark.parametrize("rank", [0, 1, 4, 6])
def test_discarded_tail_is_the_eckart_young_optimum(rng, m, n, rank):
    matrices = rng.normal(size=(2, m, n))
    tail = discarded_tail(jnp.asarray(matrices, jnp.float32), rank)
    exact = np.linalg.svd(matrices, compute_uv=False)
    np.testing.assert_allclose(spectrum(jnp.asarray(matrices, jnp.float32)), exact, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(tail, axis=(1, 2)), np.sqrt((exact[:, rank:] ** 2).sum(1)), rtol=1e-5)
    assert np.linalg.matrix_rank(matrices - np.asarray(tail, np.float64), tol=1e-4).max() <= rank


@pytest.mark.parametrize(
    ("rank", "expected"), [(0.0, 0), (1e-9, 1), (0.1, 1), (0.5, 5), (0.7, 7), (1.0, 10), (3, 3), (99, 10), (0, 0)]
)
def test_kept_rank(rank, expected):
    assert kept_rank(rank, 10, 20) == kept_rank(rank, 20, 10) == expected
