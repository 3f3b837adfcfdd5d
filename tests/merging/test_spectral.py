"""Truncation by every kernel against float64 SVDs, judged by what it leaves (Eckart and Young), on hard cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2m_jax import InputError
from r2m_jax.merging.ranks import ByPattern, Energy, parse_rank, setting_at
from r2m_jax.merging.spectral import discarded_tail, one_by_one, spectrum


def matrix(name, m=48, n=80):
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(size, min(m, n))))[0] for size in (m, n))
    values = {
        "flat": np.linspace(1.1, 0.9, min(m, n)),
        "decaying": 10 ** np.linspace(0, -4, min(m, n)),
        "rank deficient": np.where(np.arange(min(m, n)) < 5, 1.0, 0.0),
        "clustered": np.repeat([1.0, 0.999, 0.5, 0.01], min(m, n) // 4),
        "tiny": 1e-18 * 10 ** np.linspace(0, -3, min(m, n)),
        "huge": 1e18 * 10 ** np.linspace(0, -3, min(m, n)),
        "zero": np.zeros(min(m, n)),
    }[name]
    return (u * values) @ v.T


CASES = ["flat", "decaying", "rank deficient", "clustered", "tiny", "huge", "zero"]


@pytest.mark.parametrize("shape", [(48, 80), (80, 48)])
@pytest.mark.parametrize(
    "kernel", ["gram", *(pytest.param(k, marks=pytest.mark.integration) for k in ("svd", "matmul"))]
)
@pytest.mark.parametrize("name", CASES)
def test_what_is_left_is_the_least_there_can_be(name, kernel, shape):
    stored = jnp.asarray(matrix(name, *shape), jnp.float32)
    exact = np.asarray(stored, np.float64)
    values = np.linalg.svd(exact, compute_uv=False)
    for kept in (0, 4, 14, 33, 48):
        tail = np.asarray(discarded_tail(stored, kept, kernel), np.float64)
        optimum = np.linalg.norm(values[kept:])
        assert np.isfinite(tail).all()
        # W itself is stored in float32; what float32 numbers of its size cannot tell apart is no error of the method.
        assert np.linalg.norm(tail) <= (1 + 1e-6) * optimum + 2e-7 * np.linalg.norm(values)
        left = np.linalg.svd(exact - tail, compute_uv=False)
        assert (left[kept:] <= 1e-6 * max(values[0], 1e-300)).all()


@pytest.mark.parametrize("kept", [1, 4, 12])
def test_a_range_finder_finds_decaying_spectra(kept):
    stored = jnp.asarray(matrix("decaying"), jnp.float32)
    values = np.linalg.svd(np.asarray(stored, np.float64), compute_uv=False)
    tail = np.asarray(discarded_tail(stored, kept, "randomized"), np.float64)
    assert np.linalg.norm(tail) <= (1 + 1e-6) * np.linalg.norm(values[kept:]) + 2e-7 * np.linalg.norm(values)


def test_bfloat16_matrices_are_truncated_as_their_values():
    stored = jnp.asarray(matrix("decaying"), jnp.bfloat16)
    np.testing.assert_array_equal(discarded_tail(stored, 5), discarded_tail(stored.astype(jnp.float32), 5))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 0.999, 1.0])
def test_a_share_of_energy_is_kept_by_the_fewest_components(share):
    stored = jnp.asarray(matrix("decaying"), jnp.float32)
    energy = np.linalg.svd(np.asarray(stored, np.float64), compute_uv=False) ** 2
    kept = int(np.searchsorted(np.cumsum(energy) / energy.sum(), share - 1e-12)) + (share > 0)
    tail = np.asarray(discarded_tail(stored, Energy(share)), np.float64)
    np.testing.assert_allclose(np.linalg.norm(tail) ** 2, energy[kept:].sum(), rtol=1e-4, atol=1e-12 * energy.sum())


def test_spectrum_of_graded_matrices():
    stored = jnp.asarray(matrix("decaying"), jnp.float32)
    exact = np.linalg.svd(np.asarray(stored, np.float64), compute_uv=False)
    np.testing.assert_allclose(spectrum(stored), exact, rtol=1e-5)
    np.testing.assert_array_equal(spectrum(jnp.zeros((3, 4, 5))), np.zeros((3, 4)))


@pytest.mark.parametrize("count", [1, 5, 8, 11])
def test_a_mesh_takes_any_number_of_matrices(count):
    from r2m_jax.parallel import data_mesh

    mesh = data_mesh(jax.devices())
    items = jnp.arange(count * 6, dtype=jnp.float32).reshape(count, 2, 3)
    spread = jax.jit(lambda x: one_by_one(lambda one: one.sum(axis=0), x, mesh=mesh))(items)
    np.testing.assert_array_equal(spread, items.sum(axis=1))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda x: discarded_tail(x, 5, "qr"), "kernel='qr' is unknown"),
        (lambda x: discarded_tail(x, 40, "randomized"), "up to half of 48, not 40"),
        (lambda x: discarded_tail(x, Energy(0.5), "matmul"), "finds no spectrum, which energy:0.5 needs"),
        (lambda x: Energy(1.5), "energy:1.5 is no share"),
        (lambda x: parse_rank("energy:much"), "'energy:much' is no ratio"),
        (lambda x: parse_rank("half"), "'half' is no ratio"),
    ],
)
def test_refusals(call, named):
    with pytest.raises(InputError, match=named):
        call(jnp.ones((48, 80)))


def test_ranks_as_users_write_them():
    assert [parse_rank(text) for text in ("0.7", "100", "energy:0.9", 3, 0.5)] == [0.7, 100, Energy(0.9), 3, 0.5]
    setting = ByPattern(0.7, ((r"mlp", 0.5), (r"layers\.1\d", 0.3)))
    paths = ("layers.3.mlp.fc1", "layers.12.mlp.fc1", "layers.12.attn.q", "layers.3.attn.q")
    assert [setting_at(setting, path) for path in paths] == [0.5, 0.5, 0.3, 0.7]
