from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from r2m_jax import InputError
from r2m_jax.merging import cart, task_arithmetic, ties, weight_averaging
from r2m_jax.merging.ties import kth_largest
from r2m_jax.trees import flatten

SHAPES = {
    "layers": {
        "attn": {"q": {"kernel": (3, 12, 12), "bias": (3, 12)}},
        "mlp": {"fc1": {"kernel": (3, 12, 20)}, "fc2": {"kernel": (3, 20, 12)}},
    },
    "position": (5, 12),
}


def tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(scale * rng.normal(size=shape), jnp.float32),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


@pytest.fixture(scope="module")
def models():
    theta0, common = tree(0), tree(9, 0.05)
    thetas = [
        jax.tree.map(lambda a, b, c: a + b + c, theta0, common, tree(n, s)) for n, s in ((1, 0.1), (2, 0.13), (3, 0.3))
    ]
    return theta0, thetas


def error(params, theta0, wanted):
    start = reference.vector(theta0)
    return np.linalg.norm(reference.vector(params) - wanted) / np.linalg.norm(wanted - start)


def close(a, b, **tolerance):
    for path, leaf in flatten(a).items():
        np.testing.assert_allclose(leaf, flatten(b)[path], err_msg=path, **({"rtol": 1e-5, "atol": 1e-6} | tolerance))


@pytest.mark.parametrize("variant", ["original", "paper"])
@pytest.mark.parametrize(("density", "scale"), [(0.1, 1.0), (0.2, 0.5), (0.7, 1.0), (1.0, 2.0)])
def test_ties_against_float64(models, density, scale, variant):
    ours = jax.jit(partial(ties, density=density, scale=scale, variant=variant))(*models)
    assert error(ours, models[0], reference.ties(*models, density=density, scale=scale, variant=variant)) < 5e-6


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("rank", [0.1, 0.3, 0.7, 1.0, 0.0])
def test_cart_against_float64(models, rank, reduce):
    ours = jax.jit(partial(cart, rank=rank, scale=1.5, reduce=reduce))(*models)
    assert error(ours, models[0], reference.cart(*models, rank=rank, scale=1.5, reduce=reduce)) < 5e-6


def test_where_they_are_weight_averaging(models):
    theta0, thetas = models
    mean = weight_averaging(theta0, thetas)
    for scale in (0.5, 2.0):
        close(cart(theta0, thetas, rank=1.0, scale=scale), mean)
    # No conflict and nothing trimmed: one specialist's direction at three lengths.
    direction = tree(5, 0.1)
    same_signs = [jax.tree.map(lambda a, b, s=s: a + s * b, theta0, direction) for s in (0.5, 1.0, 2.0)]
    close(ties(theta0, same_signs, density=1.0), weight_averaging(theta0, same_signs))


def test_the_order_of_specialists_does_not_matter(models):
    theta0, thetas = models
    for method in (ties, cart, partial(ties, variant="paper")):
        close(method(theta0, thetas), method(theta0, thetas[::-1]), atol=5e-6)


@pytest.mark.parametrize("count", [1, 2])
def test_few_or_equal_specialists_are_defined(models, count):
    theta0, thetas = models
    close(cart(theta0, thetas[:1] * count), thetas[0])
    close(ties(theta0, thetas[:1] * count, density=1.0), thetas[0])
    close(ties(theta0, [theta0] * count), theta0)


def test_ties_keeps_what_is_largest_over_the_whole_model(models):
    theta0, thetas = models
    moved = task_arithmetic(theta0, [ties(theta0, thetas[:1], density=0.2)])
    changed = sum(int((a != b).sum()) for a, b in zip(flatten(moved).values(), flatten(theta0).values(), strict=True))
    size = sum(leaf.size for leaf in flatten(theta0).values())
    assert changed == int(0.2 * size)


@settings(max_examples=40)
@given(
    rows=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=30),
        elements=st.floats(-(2.0**90), 2.0**90, width=32, allow_subnormal=False) | st.sampled_from([0.0, 1.0, -1.0]),
    ),
    share=st.floats(0, 1),
    cut=st.integers(0, 30),
)
def test_kth_largest_is_exact(rows, share, cut):
    count = rows.shape[1]
    k = min(count, 1 + int(share * count))
    parts = [jnp.asarray(part) for part in (rows[:, :cut], rows[:, cut:]) if part.shape[1]]
    found = np.asarray(kth_largest(parts, k))
    np.testing.assert_array_equal(found, np.sort(np.abs(rows), axis=1)[:, count - k])


def test_settings_out_of_range(models):
    for call, says in (
        (partial(ties, density=0.0), "density=0.0 is no share"),
        (partial(ties, variant="mine"), "variant='mine' is unknown"),
        (partial(cart, reduce="max"), "reduce='max' is unknown"),
        (partial(cart, rank=1.5), "rank=1.5 is no ratio"),
    ):
        with pytest.raises(InputError, match=says):
            call(*models)
    with pytest.raises(InputError, match="nothing to merge"):
        ties(models[0], [])


def test_sharded_specialists_give_the_same(models):
    from jax.sharding import NamedSharding, PartitionSpec

    theta0, thetas = models
    mesh = jax.make_mesh((4,), ("x",), devices=jax.devices()[:4], axis_types=(jax.sharding.AxisType.Auto,))

    def place(leaf):
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(None, "x") if leaf.ndim > 2 else PartitionSpec()))

    placed = jax.tree.map(place, (theta0, thetas))
    for method in (partial(ties, density=0.3), task_arithmetic):
        close(jax.jit(method)(*placed), method(theta0, thetas))
