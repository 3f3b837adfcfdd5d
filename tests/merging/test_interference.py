"""Against NumPy on flattened vectors and full SVDs, and against cases whose answer is known."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2m_jax import InputError
from r2m_jax.merging.interference import GRID, compare, squared_singular_values
from r2m_jax.merging.pieces import count_pieces
from r2m_jax.trees import flatten, unflatten

SHAPES = {
    "layers/attn/q/kernel": (3, 12, 12),
    "layers/attn/q/bias": (3, 12),
    "layers/mlp/fc1/kernel": (3, 12, 20),
    "layers/norm1/scale": (3, 12),
    "position": (5, 12),
}
NAMES = ("FS", "FR", "EFS")


def tree(rng, scale=1.0, shapes=SHAPES):
    return unflatten({path: (scale * rng.normal(size=shape)).astype(np.float32) for path, shape in shapes.items()})


def plus(a, b, factor=1.0):
    a, b = flatten(a), flatten(b)
    return unflatten({path: (a[path] + factor * b[path]).astype(np.float32) for path in a})


def three(seed=0, shared=0.05):
    rng = np.random.default_rng(seed)
    theta0, common = tree(rng), tree(rng, shared)
    return theta0, [plus(theta0, plus(common, tree(rng, scale))) for scale in (0.1, 0.13, 0.3)]


def vector(theta, theta0, paths=None, layer=None):
    """τ of some leaves in float64, flattened in order of path."""
    flat, origin = flatten(theta), flatten(theta0)
    leaves = [flat[p].astype(np.float64) - origin[p] for p in (paths or sorted(flat))]
    return np.concatenate([(leaf if layer is None else leaf[layer]).ravel() for leaf in leaves])


def conflict_share(taus, kept):
    """Coordinate by coordinate, as one would count by hand."""
    counted = conflicts = 0
    for column, mask in zip(taus.T, kept.T, strict=True):
        signs = [np.sign(value) for value, keep in zip(column, mask, strict=True) if keep and value]
        counted += len(signs) >= 2
        conflicts += len(set(signs)) == 2
    return conflicts / counted


def check(part, taus, kept):
    norms = np.linalg.norm(taus, axis=1)
    np.testing.assert_allclose(part.norms, norms, rtol=1e-12)
    np.testing.assert_allclose(part.cosines, taus @ taus.T / np.outer(norms, norms), atol=1e-12)
    total = norms.sum() ** 2
    assert part.interference == pytest.approx(1 - np.sum(taus.sum(axis=0) ** 2) / total, abs=1e-12)
    assert part.orthogonal == pytest.approx(1 - np.sum(norms**2) / total, abs=1e-12)
    assert part.sign_conflicts == pytest.approx(conflict_share(taus, np.ones_like(kept)))
    assert part.kept_sign_conflicts == pytest.approx(conflict_share(taus, kept))
    np.testing.assert_allclose(part.kept, kept.mean(axis=1))
    assert part.size == taus.shape[1]


@settings(max_examples=8)
@given(seed=st.integers(0, 10_000), density=st.sampled_from([0.05, 0.2, 0.7, 1.0]))
def test_every_part_against_flattened_vectors(seed, density):
    theta0, thetas = three(seed)
    report = compare(theta0, thetas, NAMES, density=density)
    taus = np.stack([vector(theta, theta0) for theta in thetas])
    magnitudes = np.abs(taus).astype(np.float32)
    keep = max(1, int(density * taus.shape[1]))
    least = np.sort(magnitudes, axis=1)[:, -keep]
    check(report.whole, taus, magnitudes >= least[:, None])
    stacked = [path for path in sorted(SHAPES) if path.startswith("layers/")]
    parts = [(part, stacked, part.layer) for part in report.layers]
    parts += [(part, [part.path], part.layer) for part in report.entries]
    assert len(report.layers) == 3
    assert len(report.entries) == 4 * 3 + 1
    for part, paths, layer in parts:
        taus = np.stack([vector(theta, theta0, paths, layer) for theta in thetas])
        kept = np.abs(taus).astype(np.float32) >= least[:, None]
        if kept.sum(axis=0).max() >= 2:
            check(part, taus, kept)


def test_spectra_against_full_svd():
    theta0, thetas = three()
    report = compare(theta0, thetas, NAMES)
    matrices = [part for part in report.entries if part.spectra]
    assert [part.where for part in matrices[:4]] == [
        "layers/attn/q/kernel, layer 0",
        "layers/attn/q/kernel, layer 1",
        "layers/attn/q/kernel, layer 2",
        "layers/mlp/fc1/kernel, layer 0",
    ]
    assert len(matrices) == 6
    for part in matrices:
        for theta, spectrum in zip(thetas, part.spectra, strict=True):
            matrix = (flatten(theta)[part.path].astype(float) - flatten(theta0)[part.path])[part.layer]
            energy = np.linalg.svd(matrix, compute_uv=False) ** 2
            share = energy / energy.sum()
            assert spectrum.stable_rank == pytest.approx(
                np.linalg.norm(matrix) ** 2 / np.linalg.norm(matrix, 2) ** 2, rel=1e-9
            )
            assert spectrum.effective_rank == pytest.approx(np.exp(-np.sum(share * np.log(share))), rel=1e-9)
            assert spectrum.leading == pytest.approx(share[0])
            assert spectrum.tenth == pytest.approx(share[:1].sum())  # 10 % of 12 directions
            assert spectrum.seventy == pytest.approx(share[:8].sum())  # 70 % of 12 directions


@settings(max_examples=20)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), seed=st.integers(0, 1000))
def test_squared_singular_values(rows, columns, seed):
    matrices = np.random.default_rng(seed).normal(size=(2, rows, columns))
    expected = np.linalg.svd(matrices, compute_uv=False) ** 2
    np.testing.assert_allclose(squared_singular_values(matrices), expected, atol=1e-12 * expected.max())


@pytest.mark.parametrize(
    ("second", "interference", "conflicts", "cosine"),
    [(1.0, 0.0, 0.0, 1.0), (-1.0, 1.0, 1.0, -1.0), (-0.5, 1 - 0.5**2 / 1.5**2, 1.0, -1.0)],
)
def test_parallel_and_opposite_specialists(second, interference, conflicts, cosine):
    rng = np.random.default_rng(1)
    theta0 = unflatten({path: np.zeros(shape) for path, shape in SHAPES.items()})
    tau = tree(rng)
    thetas = [tau, unflatten({path: second * leaf for path, leaf in flatten(tau).items()})]
    report = compare(theta0, thetas, ("a", "b"))
    for part in (report.whole, *report.layers, *report.entries):
        assert part.interference == pytest.approx(interference, abs=1e-12)
        assert part.sign_conflicts == conflicts
        assert part.cosines[0, 1] == pytest.approx(cosine)


def test_rank_one_and_orthogonal_matrices():
    """A rank-one update uses one direction, an orthogonal one all twelve alike."""
    rng = np.random.default_rng(2)
    theta0 = {"attn": {"kernel": np.zeros((12, 12))}}
    line = np.outer(rng.normal(size=12), rng.normal(size=12))
    turned, _ = np.linalg.qr(rng.normal(size=(12, 12)))
    report = compare(theta0, [{"attn": {"kernel": line}}, {"attn": {"kernel": turned}}], ("line", "turned"))
    one, all_twelve = report.entries[0].spectra
    assert (one.stable_rank, one.effective_rank, one.leading) == pytest.approx((1, 1, 1))
    assert (all_twelve.stable_rank, all_twelve.effective_rank) == pytest.approx((12, 12))
    np.testing.assert_allclose(report.energy_curves[1], GRID, atol=1e-9)
    np.testing.assert_allclose(report.energy_curves[0][5:], 1)  # from 1/12 of the directions on


def test_unchanged_leaves_are_nan_and_trimming_keeps_no_zeros():
    """Only one leaf was trained, less than the density keeps: zeros must not count as kept, nor as agreeing."""
    theta0, thetas = three()
    only = [flatten(theta0) | {"position": flatten(t)["position"]} for t in thetas]
    report = compare(theta0, [unflatten(flat) for flat in only], NAMES, density=0.9)
    still = next(part for part in report.entries if part.path == "layers/attn/q/kernel")
    assert np.isnan(still.cosines).all()
    assert np.isnan([still.interference, still.sign_conflicts, still.spectra[0].stable_rank]).all()
    assert not still.kept.any()
    assert report.whole.kept_sign_conflicts == report.whole.sign_conflicts
    assert np.isnan(report.energy_curves).all()
    assert json.loads(json.dumps(report.as_json(), allow_nan=False))["layers"][0]["interference"] is None


def test_layers_that_are_not_stacked_and_reduced_precision():
    """``layers/3/…`` is one layer's leaf, a stack of matrices within a layer counts once, bfloat16 is read exactly."""
    rng = np.random.default_rng(3)
    shapes = {"layers/3/attn/kernel": (8, 8), "layers/11/mlp/kernel": (2, 8, 8), "head": (4,)}
    theta0 = unflatten({p: jnp.asarray(rng.normal(size=s), jnp.bfloat16) for p, s in shapes.items()})
    theta = unflatten({p: jnp.asarray(rng.normal(size=s), jnp.bfloat16) for p, s in shapes.items()})
    report = compare(theta0, [theta], ["one"])
    assert [part.where for part in report.layers] == ["layer 3", "layer 11"]
    assert [part.where for part in report.entries] == ["head", "layers/11/mlp/kernel", "layers/3/attn/kernel"]
    tau = np.asarray(flatten(theta)["head"], np.float64) - np.asarray(flatten(theta0)["head"], np.float64)
    assert report.entries[0].norms[0] == pytest.approx(np.linalg.norm(tau), rel=1e-14)
    assert report.whole.interference == pytest.approx(0)


def test_json_has_every_number_and_no_nan():
    theta0, thetas = three()
    done = []
    report = compare(theta0, thetas, NAMES, advance=done.append)
    assert sum(done) == count_pieces(theta0) == len(report.entries) == 13
    data = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert data["entries"][0]["cosines"][0][1] == pytest.approx(report.entries[0].cosines[0, 1])
    assert len(data["layers"]) == 3


def test_mistakes_are_named():
    theta0, thetas = three()
    with pytest.raises(InputError, match="no specialists"):
        compare(theta0, [], [])
    with pytest.raises(InputError, match="3 specialists need as many different names, not a, a, b"):
        compare(theta0, thetas, ["a", "a", "b"])
    with pytest.raises(InputError, match="density=0"):
        compare(theta0, thetas, NAMES, density=0)
    with pytest.raises(InputError, match="specialist FR lacks"):
        compare(theta0, [thetas[0], {"position": thetas[1]["position"]}, thetas[2]], NAMES)
    thetas[2]["position"][0, 0] = np.nan
    with pytest.raises(InputError, match="specialist EFS: position holds 1 values"):
        compare(theta0, thetas, NAMES)
