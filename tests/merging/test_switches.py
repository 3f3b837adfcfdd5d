"""Switches of R²M by identities: each is checked against merges that do not use it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from r2m_jax import InputError
from r2m_jax.merging import ByPattern, Energy, cart, explain, norm_matched_heads, r2m, task_arithmetic, weight_averaging
from r2m_jax.trees import flatten, unflatten

SHAPES = {
    "layers/attn/q/kernel": (3, 12, 12), "layers/attn/k/kernel": (3, 12, 12), "layers/attn/v/kernel": (3, 12, 12),
    "layers/attn/q/bias": (3, 12), "layers/mlp/fc1/kernel": (3, 12, 20), "position": (5, 12),
}  # fmt: skip


def tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return unflatten({p: jnp.asarray(scale * rng.normal(size=s), jnp.float32) for p, s in SHAPES.items()})


@pytest.fixture(scope="module")
def models():
    theta0, common = tree(0), tree(9, 0.05)
    return theta0, [jax.tree.map(lambda a, b, c: a + b + c, theta0, common, tree(n, 0.1 * n)) for n in (1, 2, 3)]


def close(a, b, rtol=1e-5, atol=2e-6):
    for path, leaf in flatten(a).items():
        np.testing.assert_allclose(leaf, flatten(b)[path], rtol=rtol, atol=atol, err_msg=path)


def part(model, path, layer):
    leaf = flatten(model)[path]
    return unflatten({f"one/{path.removeprefix('layers/')}": leaf[layer] if path.startswith("layers") else leaf})


@pytest.mark.parametrize("centering", ["centered", "uncentered"])
def test_scope_leaf_merges_every_layer_of_every_leaf_by_itself(models, centering):
    theta0, thetas = models
    whole = flatten(r2m(theta0, thetas, scope="leaf", centering=centering).params)
    for path in SHAPES:
        for layer in range(3 if path.startswith("layers") else 1):
            alone = r2m(part(theta0, path, layer), [part(t, path, layer) for t in thetas], centering=centering).params
            (leaf,) = flatten(alone).values()
            ours = whole[path][layer] if path.startswith("layers") else whole[path]
            np.testing.assert_allclose(ours, leaf, rtol=1e-5, atol=2e-6, err_msg=f"{path} {layer}")


def test_scope_block_merges_every_block_by_itself(models):
    theta0, thetas = models
    whole = flatten(r2m(theta0, thetas, scope="block").params)
    for layer in range(3):

        def block(model, layer=layer):
            return unflatten(
                {p.removeprefix("layers/"): x[layer] for p, x in flatten(model).items() if p.startswith("layers")}
            )

        for path, leaf in flatten(r2m(block(theta0), [block(t) for t in thetas]).params).items():
            np.testing.assert_allclose(whole[f"layers/{path}"][layer], leaf, rtol=1e-5, atol=2e-6, err_msg=path)


def test_norms_matched_leaf_by_leaf_against_float64(models):
    theta0, thetas = models
    ours = r2m(theta0, thetas, norm_matching="leaf", centering="uncentered", rank=0.5)
    wanted = reference.r2m(theta0, thetas, rank=0.5, alpha=0.5, centering="uncentered", per_leaf=True)
    start = reference.vector(theta0)
    error = np.linalg.norm(reference.vector(ours.params) - wanted) / np.linalg.norm(wanted - start)
    assert error < 5e-6


@pytest.mark.parametrize("method", [r2m, partial(r2m, centering="uncentered", k=2), cart, weight_averaging])
def test_a_specialist_of_weight_two_counts_as_two(models, method):
    theta0, (a, b, c) = models
    weighted, doubled = method(theta0, [a, b, c], weights=(2.0, 1.0, 1.0)), method(theta0, [a, a, b, c])
    if method is cart:  # a sum over specialists, whose weights add up to their number
        doubled = cart(theta0, [a, a, b, c], scale=3 / 4)
        weighted = cart(theta0, [a, b, c], weights=(2.0, 1.0, 1.0), scale=1.0)
    close(getattr(weighted, "params", weighted), getattr(doubled, "params", doubled))


def test_task_arithmetic_takes_weights_and_variants(models):
    theta0, thetas = models
    close(task_arithmetic(theta0, thetas, variant="original"), task_arithmetic(theta0, thetas, reduce="sum"))
    close(task_arithmetic(theta0, thetas, variant="paper"), weight_averaging(theta0, thetas))
    close(task_arithmetic(theta0, thetas, weights=(2, 1, 1)), weight_averaging(theta0, thetas, weights=(2, 1, 1)))


def test_fused_qkv_is_the_truncation_of_the_matrices_side_by_side(models):
    theta0, thetas = models

    def fused(model):
        flat = flatten(model)
        joined = jnp.concatenate([flat[f"layers/attn/{x}/kernel"] for x in "kqv"], axis=-1)
        rest = {path: leaf for path, leaf in flat.items() if "attn" not in path or "bias" in path}
        return unflatten(rest | {"layers/attn/all/kernel": joined})

    ours = flatten(r2m(theta0, thetas, fused_qkv=True, rank=0.3).params)
    wanted = flatten(r2m(fused(theta0), [fused(t) for t in thetas], rank=0.3).params)
    joined = np.concatenate([ours[f"layers/attn/{x}/kernel"] for x in "kqv"], axis=-1)
    np.testing.assert_allclose(joined, wanted["layers/attn/all/kernel"], rtol=1e-5, atol=2e-6)
    apart = flatten(r2m(theta0, thetas, rank=0.3).params)
    assert np.abs(apart["layers/attn/q/kernel"] - ours["layers/attn/q/kernel"]).max() > 1e-4


def test_settings_by_pattern(models):
    theta0, thetas = models
    mixed = flatten(
        cart(theta0, thetas, rank=ByPattern(0.3, ((r"mlp", 5),)), scale=ByPattern(1.0, ((r"attn/q", 2.0),)))
    )
    close({"x": mixed["layers/mlp/fc1/kernel"]}, {"x": flatten(cart(theta0, thetas, rank=5))["layers/mlp/fc1/kernel"]})
    twice = flatten(cart(theta0, thetas, rank=0.3, scale=2.0))
    close({"x": mixed["layers/attn/q/kernel"]}, {"x": twice["layers/attn/q/kernel"]})
    close({"x": mixed["layers/attn/k/kernel"]}, {"x": flatten(cart(theta0, thetas, rank=0.3))["layers/attn/k/kernel"]})


def test_all_energy_is_full_rank(models):
    theta0, thetas = models
    close(cart(theta0, thetas, rank=Energy(1.0), scale=7.0), weight_averaging(theta0, thetas), atol=1e-5)
    close(r2m(theta0, thetas, rank=Energy(0.0)).params, r2m(theta0, thetas, rank=0).params)


@pytest.mark.integration
@pytest.mark.parametrize("kernel", ["gram", "svd", "matmul"])
def test_kernels_agree(models, kernel):
    theta0, thetas = models
    close(r2m(theta0, thetas, rank=0.5, kernel=kernel).params, r2m(theta0, thetas, rank=0.5).params, atol=1e-5)


@pytest.mark.parametrize("devices", [3, *(pytest.param(n, marks=pytest.mark.integration) for n in (2, 8))])
def test_spread_over_devices_it_is_the_same(models, devices):
    from r2m_jax.parallel import data_mesh

    theta0, thetas = models
    mesh = data_mesh(jax.devices()[:devices])
    close(r2m(theta0, thetas, mesh=mesh).params, r2m(theta0, thetas).params)
    close(cart(theta0, thetas, mesh=mesh), cart(theta0, thetas))


def test_a_stack_of_specialists_is_as_good_as_a_list(models):
    theta0, thetas = models
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *thetas)
    close(r2m(theta0, stacked).params, r2m(theta0, thetas).params, rtol=0, atol=0)
    with pytest.raises(InputError, match="lacks position"):
        r2m(theta0, {"layers": stacked["layers"]})


def test_buffers_can_be_donated(models):
    theta0, thetas = models
    wanted = r2m(theta0, thetas).params
    donated = jax.jit(r2m, donate_argnums=0)(jax.tree.map(jnp.copy, theta0), thetas)
    close(donated.params, wanted)


def test_the_paper_says_what_it_is(models):
    theta0, thetas = models
    close(r2m(theta0, thetas, variant="paper").params, r2m(theta0, thetas).params, rtol=0, atol=0)
    assert explain(r2m(theta0, thetas, variant="paper").diagnostics, ["a", "b", "c"])
    with pytest.raises(InputError, match="variant='paper' has centering='centered', not 'uncentered'"):
        r2m(theta0, thetas, variant="paper", centering="uncentered")
    with pytest.raises(InputError, match="scope='layer' is unknown; R²M takes global or leaf or block"):
        r2m(theta0, thetas, scope="layer")


def test_heads_of_one_norm_before_they_are_averaged():
    rng = np.random.default_rng(0)
    heads = [{"kernel": jnp.asarray(rng.normal(size=(6, 2)), jnp.float32), "bias": jnp.ones(2)} for _ in range(3)]
    loud = [jax.tree.map(lambda leaf, by=by: by * leaf, head) for by, head in zip((1.0, 4.0, 0.5), heads, strict=True)]
    norms = [np.linalg.norm(head["kernel"]) for head in loud]
    for name in ("kernel", "bias"):
        wanted = np.mean([np.mean(norms) / n * h[name] for n, h in zip(norms, loud, strict=True)], axis=0)
        np.testing.assert_allclose(norm_matched_heads(loud)[name], wanted, rtol=1e-5)
    with pytest.raises(InputError, match="head 1 is all zero"):
        norm_matched_heads([heads[0], jax.tree.map(jnp.zeros_like, heads[1])])
