"""CoRIT against NumPy written from the equations, against the plain tower, and under what must change nothing."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from jax.sharding import NamedSharding, PartitionSpec

from r2m_jax import InputError
from r2m_jax.models import TowerOptions, apply_tower, init_backbone
from r2m_jax.models.corit import (
    CoritDetector,
    CoritSettings,
    apply_corit,
    apply_corit_head,
    corit_features,
    gradient_proxy,
    init_corit_head,
    partition,
    pool,
    random_partition,
    refine,
    regions_of,
    salient,
)
from r2m_jax.models.corit.regions import otsu
from r2m_jax.parallel import data_mesh, replicate

B, N, K = 8, 16, 3


@pytest.fixture(scope="session")
def backbone(tiny_config):
    # Larger than a fresh tower, whose blocks hardly change their input.
    return jax.tree.map(
        lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(leaf.size), leaf.shape),
        init_backbone(tiny_config, jax.random.key(3)),
    )


@pytest.fixture(scope="session")
def forward(tiny_config):
    """``forward(settings)``, compiled once for all tests."""

    @cache
    def build(settings):
        return jax.jit(apply_corit(tiny_config, settings))

    return build


@pytest.fixture(scope="session")
def streams():
    rng = np.random.default_rng(5)
    images = rng.normal(size=(B, 1, 32, 32, 3))
    return np.concatenate([images, images + 0.3 * rng.normal(size=images.shape)], axis=1).astype(np.float32)


@pytest.fixture(scope="session")
def regions():
    owner = np.random.default_rng(6).permuted(np.tile(np.arange(N) % K, (B, 1)), axis=1)
    return owner[:, None] == np.arange(K)[:, None]


# The reference: float64 NumPy, token by token, from equations 17 to 23 and the spec's defaults.


def by_hand(original, blended, regions, gamma, maximum=False):
    """T of one image after injection, given the tokens of both streams and T̂; masks beside it."""
    proxy = original - blended
    pooled, masks = [], []
    for region in regions:
        members = np.flatnonzero(region)
        anchor = proxy[members].mean(axis=0) if len(members) else np.zeros(proxy.shape[1])
        direction = anchor / (np.linalg.norm(anchor) + 1e-6)
        scores = {i: float(proxy[i] @ direction) for i in members}
        limit = gamma * np.mean(list(scores.values())) if scores else 0.0
        kept = [i for i in members if scores[i] > limit] or list(members)
        masks.append([i in kept for i in range(len(region))])
        if not kept:
            pooled.append(np.zeros(proxy.shape[1]))
        elif maximum:
            pooled.append(original[kept].max(axis=0))
        else:
            pooled.append(original[kept].sum(axis=0) / (len(kept) + 1e-6))
    return np.array(pooled), np.array(masks)


def block64(layer, x, heads):
    """A pre-norm block with quick-GELU in float64."""

    def norm(x, p):
        centred = x - x.mean(axis=-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]

    def linear(x, p):
        return x @ p["kernel"] + p["bias"]

    def split(x):
        return x.reshape(len(x), heads, -1).transpose(1, 0, 2)

    normed = norm(x, layer["norm1"])
    q, k, v = (split(linear(normed, layer["attn"][name])) for name in "qkv")
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    x = x + linear((weights @ v).transpose(1, 0, 2).reshape(x.shape), layer["attn"]["out"])
    hidden = linear(norm(x, layer["norm2"]), layer["mlp"]["fc1"])
    return x + linear(hidden / (1 + np.exp(-1.702 * hidden)), layer["mlp"]["fc2"])


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_every_block_agrees_with_numpy_in_float64(tiny_config, backbone, forward, streams, regions, pooling):
    settings = CoritSettings(gamma=0.4, pooling=pooling)
    found = forward(settings)(backbone, streams, regions)
    layers = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), backbone["layers"])
    plain = apply_tower(tiny_config)
    for image in range(2):
        embedded = [np.asarray(plain(backbone, s[None], (0,)).hidden[0, 0], np.float64) for s in streams[image]]
        shares = regions[image] / (regions[image].sum(axis=1, keepdims=True) + 1e-6)
        both = [np.concatenate([x, shares @ x[1:]]) for x in embedded]
        for number in range(tiny_config.num_hidden_layers):
            layer = jax.tree.map(lambda leaf, at=number: leaf[at], layers)
            both = [block64(layer, x, tiny_config.num_attention_heads) for x in both]
            patches = [x[1 : 1 + N] for x in both]
            original, mask = by_hand(*patches, regions[image], 0.4, pooling == "max")
            np.testing.assert_array_equal(found.masks[number, image], mask)
            # The self-blended stream pools its own tokens under the masks of the image.
            inside = [patches[1][m] for m in mask]
            other = [p.max(axis=0) if pooling == "max" else p.sum(axis=0) / (len(p) + 1e-6) for p in inside]
            both = [np.concatenate([x[: 1 + N], x[1 + N :] + r]) for x, r in zip(both, (original, other), strict=True)]
            tokens = np.concatenate([both[0][:1], both[0][1 + N :]])
            np.testing.assert_allclose(found.tokens[number, image], tokens, atol=1e-5 * np.abs(tokens).max())


@given(
    arrays.arrays(np.float32, (2, 2, 9, 5), elements=st.floats(-4, 4, width=32)),
    st.integers(0, 2**32 - 1),
    st.floats(-2, 2, width=32),
)
def test_refinement_keeps_within_regions_and_never_empties_one(patches, seed, gamma):
    regions = np.random.default_rng(seed).random((2, 3, 9)) < 0.5
    found = refine(gradient_proxy(patches), regions, gamma)
    assert not (np.asarray(found.mask) & ~regions).any()
    np.testing.assert_array_equal(np.asarray(found.mask).any(axis=-1), regions.any(axis=-1))
    pooled = np.asarray(pool(found.mask, patches))
    assert np.isfinite(pooled).all()
    assert (pooled[~np.broadcast_to(regions.any(axis=-1)[:, None], (2, 2, 3))] == 0).all()


@given(st.integers(0, 2**32 - 1), st.sampled_from(["mean", "max", "deviation", "cosine"]))
def test_the_length_of_the_proxy_does_not_matter_to_relative_thresholds(seed, threshold):
    rng = np.random.default_rng(seed)
    proxy = rng.normal(size=(1, 9, 5)) + 1.0
    regions = np.ones((1, 1, 9), bool)
    masks = [np.asarray(refine(factor * proxy, regions, 0.3, threshold).mask) for factor in (1.0, 64.0)]
    # A projection at the threshold to the last digits may fall on either side.
    assert (masks[0] != masks[1]).sum() <= 1
    assert masks[0].any()


def test_thresholds_by_hand():
    # Along the region's direction: 3, 1, 2, 6; the last patch is another region's.
    proxy = jnp.asarray([[[3.0, 0.0], [1.0, 0.0], [2.0, 0.0], [6.0, 0.0], [-9.0, 0.0]]])
    regions = jnp.asarray([[[True] * 4 + [False]]])

    def kept(gamma, threshold):
        return [bool(m) for m in refine(proxy, regions, gamma, threshold).mask[0, 0]]

    assert kept(0.7, "mean") == [True, False, False, True, False]  # above 2.1
    assert kept(1.5, "absolute") == [True, False, True, True, False]
    assert kept(0.45, "max") == [True, False, False, True, False]  # above 2.7
    assert kept(1.0, "deviation") == [False, False, False, True, False]  # above 3 + 1.87
    assert kept(0.9, "cosine") == [True, True, True, True, False]
    empty = refine(proxy, regions, 1.0, "max")
    assert bool(empty.empty[0, 0])
    np.testing.assert_array_equal(empty.mask, regions)


def test_an_image_equal_to_its_blend_keeps_whole_regions(backbone, forward, streams, regions):
    twice = np.repeat(streams[:, :1], 2, axis=1)
    found = forward(CoritSettings(gamma=0.0))(backbone, twice, regions)
    assert np.isfinite(np.asarray(found.features)).all()
    assert np.asarray(found.empty).all()
    whole = forward(CoritSettings(rrm=False))(backbone, twice[:, :1], regions)
    np.testing.assert_allclose(found.features, whole.features, atol=1e-5)


def test_a_threshold_far_below_everything_is_no_refinement(backbone, forward, streams, regions):
    found = forward(CoritSettings(gamma=-1e30))(backbone, streams, regions)
    for plain in (CoritSettings(rrm=False), CoritSettings(cgp="off")):
        whole = forward(plain)(backbone, streams[:, :1], regions)
        np.testing.assert_allclose(found.features, whole.features, atol=1e-5)
        np.testing.assert_array_equal(found.masks, whole.masks)


def test_region_tokens_that_only_read_leave_the_tower_as_it_is(tiny_config, backbone, forward, streams, regions):
    settings = CoritSettings(attention="read_only", feature_norm="none", gamma=0.4)
    found = forward(settings)(backbone, streams, regions)
    plain = apply_tower(tiny_config)(backbone, streams[:, 0], (1, 2, 3))
    np.testing.assert_allclose(found.tokens[:, :, 0], plain.hidden[:, :, 0], atol=2e-5)
    full = forward(CoritSettings(feature_norm="none", gamma=0.4))(backbone, streams, regions)
    assert np.abs(np.asarray(full.tokens[:, :, 0] - plain.hidden[:, :, 0])).max() > 1e-2


@pytest.mark.parametrize("settings", [CoritSettings(rsi=False, hri=False), CoritSettings(regions=(), hri=False)])
def test_without_regions_and_layers_it_is_a_linear_probe(tiny_config, backbone, forward, streams, regions, settings):
    found = forward(settings)(backbone, streams[:, :1], regions)
    pooled = apply_tower(tiny_config)(backbone, streams[:, 0]).pooled
    np.testing.assert_allclose(found.features, pooled, atol=1e-5)


def test_features_are_the_tokens_of_two_layers_in_order(tiny_config, backbone, forward, streams, regions):
    settings = CoritSettings(feature_norm="none", gamma=0.4)
    found = forward(settings)(backbone, streams, regions)
    assert settings.resolved(tiny_config).fusion_layer == 2
    expected = np.concatenate([np.asarray(found.tokens[layer]).reshape(B, -1) for layer in (1, 2)], axis=1)
    np.testing.assert_array_equal(found.features, expected)
    last = forward(CoritSettings(feature_norm="none", gamma=0.4, hri=False))(backbone, streams, regions)
    np.testing.assert_allclose(last.features, expected[:, expected.shape[1] // 2 :], atol=1e-5)
    unit = forward(CoritSettings(feature_norm="unit_rms", gamma=0.4))(backbone, streams, regions)
    sizes = (np.asarray(unit.features).reshape(B, 2 * (1 + K), -1) ** 2).mean(axis=-1)
    np.testing.assert_allclose(sizes, 1.0, atol=1e-4)


def test_the_order_of_images_and_of_regions_does_not_matter(backbone, forward, streams, regions):
    apply = forward(CoritSettings(gamma=0.4, feature_norm="none"))
    found = np.asarray(apply(backbone, streams, regions).features)
    order = np.random.default_rng(1).permutation(B)
    moved = apply(backbone, streams[order], regions[order]).features
    np.testing.assert_allclose(moved, found[order], atol=2e-5)
    turned = np.asarray(apply(backbone, streams, regions[:, [2, 0, 1]]).features).reshape(B, 2, 1 + K, -1)
    np.testing.assert_allclose(turned[:, :, [0, 2, 3, 1]], found.reshape(turned.shape), atol=2e-5)


def test_one_image_under_vmap_is_the_image_in_the_batch(backbone, forward, streams, regions, tiny_config):
    settings = CoritSettings(gamma=0.4)
    apply = apply_corit(tiny_config, settings)
    alone = jax.jit(jax.vmap(lambda s, r: apply(backbone, s[None], r[None]).features[0]))(streams[:2], regions[:2])
    np.testing.assert_allclose(alone, forward(settings)(backbone, streams, regions).features[:2], atol=2e-5)


def test_eight_devices_give_what_one_gives(backbone, forward, streams, regions):
    apply = forward(CoritSettings(gamma=0.4))
    mesh = data_mesh()
    assert mesh.size == 8
    split = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    placed = [jax.device_put(each, split) for each in (streams, regions)]
    found = apply(replicate(mesh, backbone), *placed)
    assert len(found.features.sharding.device_set) == 8
    expected = apply(backbone, streams, regions)
    np.testing.assert_array_equal(found.masks, expected.masks)
    np.testing.assert_allclose(found.features, expected.features, atol=2e-5)


def test_several_draws_are_compared_with_by_their_mean():
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(2, 4, 5, 3)).astype(np.float32)
    mean = tokens[:, 1:].mean(axis=1, keepdims=True)
    np.testing.assert_allclose(
        gradient_proxy(tokens), gradient_proxy(np.concatenate([tokens[:, :1], mean], 1)), atol=1e-6
    )
    lengths = np.linalg.norm(np.asarray(gradient_proxy(tokens, "unit")), axis=-1)
    np.testing.assert_allclose(lengths, 1.0, atol=1e-4)


@pytest.mark.integration
@pytest.mark.parametrize(
    "settings",
    [
        CoritSettings(cgp="random", draws=2),
        CoritSettings(rule="saliency"),
        CoritSettings(rule="random", regions=("a", "b")),
        CoritSettings(start="zeros", proxy="unit", threshold="cosine"),
        CoritSettings(start="class_token", regions=("foreground",), pooling="max"),
    ],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_every_switch_gives_finite_features_of_the_width_it_says(tiny_config, backbone, streams, settings, dtype):
    images = np.concatenate([streams, streams[:, 1:] * 0.9], axis=1)[:, : settings.streams]
    foreground = np.random.default_rng(2).random((B, N)).astype(np.float32)
    apply = corit_features(tiny_config, settings, TowerOptions(dtype=dtype))
    found = np.asarray(jax.jit(apply)(backbone, images, foreground))
    assert found.shape == (B, settings.width(tiny_config))
    assert found.dtype == np.float32
    assert np.isfinite(found).all()


@given(arrays.arrays(np.float32, (3, 7, 5), elements=st.floats(0, 1, width=32)))
def test_every_patch_is_in_one_region(foreground):
    parts = np.asarray(partition(foreground))
    assert parts.shape == (3, 3, 35)
    assert (parts.sum(axis=1) == 1).all()


def test_regions_of_a_disc():
    y, x = np.mgrid[:16, :16] - 7.5
    disc = np.clip(5.5 - np.hypot(x, y), 0, 1).astype(np.float32)
    inside, boundary, outside = np.asarray(partition(disc[None]))[0].reshape(3, 16, 16)
    assert inside[8, 8]
    assert outside[0, 0]
    edge = (disc > 0.1) & (disc < 0.9)
    assert boundary[edge].all()
    assert (boundary & (disc == 0)).any()
    assert (boundary & (disc == 1)).any()
    # A face of nine patches would vanish under a wide boundary: it stays thin.
    small = np.zeros((1, 16, 16), np.float32)
    small[0, 7:10, 7:10] = 1
    small[0, [6, 10], 7:10] = 0.5
    inside, boundary, _ = np.asarray(partition(small))[0]
    assert (inside.sum(), boundary.sum()) == (9, 6)


def test_random_regions_are_equal_and_fixed():
    parts = random_partition(256, 3, 0)
    assert sorted(parts.sum(axis=1)) == [85, 85, 86]
    assert (parts.sum(axis=0) == 1).all()
    np.testing.assert_array_equal(parts, random_partition(256, 3, 0))
    assert (parts != random_partition(256, 3, 1)).any()


def test_salient_patches_are_those_that_stand_out(rng):
    tokens = 0.1 * rng.normal(size=(2, 16, 8))
    tokens[:, [5, 6]] += 3.0
    found = np.asarray(salient(tokens.astype(np.float32))).reshape(2, 16)
    assert found[:, [5, 6]].all()
    assert found.sum() == 4
    with pytest.raises(InputError, match="square"):
        salient(jnp.zeros((1, 15, 8)))


def test_otsu_splits_as_scikit_image_does(rng):
    from skimage.filters import threshold_otsu

    values = np.concatenate([rng.normal(0, 1, 300), rng.normal(6, 1, 100)]).astype(np.float32)
    # theirs is a histogram's: as fine as its bins
    assert float(otsu(jnp.asarray(values))) == pytest.approx(threshold_otsu(values, nbins=4096), abs=0.5)
    assert (values > float(otsu(jnp.asarray(values)))).sum() == pytest.approx(100, abs=2)


def test_cross_attention_by_hand(tiny_config, rng):
    settings = CoritSettings(fusion="cross_attention")
    head = init_corit_head(tiny_config, settings, jax.random.key(4))
    features = rng.normal(size=(3, settings.width(tiny_config))).astype(np.float32)
    q, k, v = (np.asarray(head[name], np.float64) for name in ("query", "key", "value"))
    for row, found in zip(features.astype(np.float64), apply_corit_head(head, features), strict=True):
        early, late = row.reshape(2, 1 + K, 64)
        scores = (late @ q) @ (early @ k).T / 8.0
        weights = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        fused = (weights @ (early @ v)).ravel()
        np.testing.assert_allclose(found, fused @ head["kernel"] + head["bias"], atol=1e-4)


def test_training_the_head_with_sam_obeys_its_scaling_law(rng):
    """Features times s, start over s, rate over s², radius over s: the same logits at every step (no bias, SGD)."""
    from r2m_jax.training import Sharpness, sharpness_aware

    x, y = rng.normal(size=(32, 6)).astype(np.float32), rng.integers(0, 2, 32)

    def loss(params, batch, key):
        logits = batch["x"] @ params["w"]
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["y"][:, None], axis=1)
        return -picked.mean(), logits

    def trajectory(s):
        step = sharpness_aware(jax.value_and_grad(loss, has_aux=True), Sharpness(rho=0.3 / s))
        params = {"w": jnp.asarray(np.random.default_rng(3).normal(size=(6, 2)) / s, jnp.float32)}
        batch, out = {"x": jnp.asarray(x * s), "y": jnp.asarray(y)}, []
        for _ in range(10):
            (_, logits), gradient = step(params, batch, jax.random.key(0))
            out.append(np.asarray(logits))
            params = {"w": params["w"] - 0.5 / s**2 * gradient["w"]}
        return np.stack(out)

    np.testing.assert_allclose(trajectory(4.0), trajectory(1.0), atol=2e-5)
    assert np.abs(trajectory(1.0)[-1] - trajectory(1.0)[0]).max() > 0.1


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"pooling": "sum"}, "sum"),
        ({"regions": ("foreground", "sky")}, "sky"),
        ({"regions": ("foreground", "foreground")}, "twice"),
        ({"gamma": float("nan")}, "nan"),
        ({"draws": 2}, "draws=2"),
        ({"fusion": "cross_attention", "hri": False}, "hri"),
    ],
)
def test_settings_that_make_no_sense(settings, named):
    with pytest.raises(InputError, match=named):
        CoritSettings(**settings)


def test_what_does_not_fit_the_tower_is_refused(tiny_config, backbone, streams, regions):
    with pytest.raises(InputError, match="fusion_layer=3"):
        CoritSettings(fusion_layer=3).resolved(tiny_config)
    assert CoritSettings(fusion_layer=3, hri=False).resolved(tiny_config)
    apply = apply_corit(tiny_config, CoritSettings())
    with pytest.raises(InputError, match="1 self-blended"):
        apply(backbone, streams[:, :1], regions)
    with pytest.raises(InputError, match="regions have shape"):
        apply(backbone, streams, regions[:, :2])
    with pytest.raises(InputError, match="user"):
        regions_of(CoritSettings(rule="user"), jnp.zeros((1, 4, 4)))
    wrong = {"backbone": backbone, "head": {"kernel": jnp.zeros((64, 2)), "bias": jnp.zeros(2)}}
    with pytest.raises(InputError, match="head/kernel"):
        CoritDetector.create(tiny_config, wrong, None, CoritSettings())
