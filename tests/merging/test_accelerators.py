"""What merges do otherwise on accelerators, run on a CPU."""

import jax
import numpy as np
import pytest

from r2m_jax.merging import r2m, statistics
from r2m_jax.merging.spectral import wide_arithmetic


@pytest.mark.parametrize(("layers", "shape"), [(3, (37, 211)), (4, (5,))])
@pytest.mark.parametrize("at_once", [1, 5, 1024])
def test_sums_do_not_depend_on_how_much_a_step_takes(layers, shape, at_once, rng, monkeypatch):
    monkeypatch.setattr(statistics, "_stretches_at_once", lambda: at_once)
    theta0 = rng.normal(size=(layers, *shape)).astype(np.float32)
    thetas = (theta0[:, None] + 0.1 * rng.normal(size=(layers, 3, *shape))).astype(np.float32)
    weights = np.asarray([0.5, 0.3, 0.2])
    with wide_arithmetic():
        gram = np.asarray(jax.jit(lambda *given: statistics.measure_plain(*given).gram)(theta0, thetas, weights))
    taus = (thetas.astype(np.float64) - theta0[:, None]).reshape(layers, 3, -1)
    mean = np.einsum("i,lid->ld", weights, taus)
    vectors = np.concatenate([taus - mean[:, None], mean[:, None]], axis=1)
    wanted = vectors @ vectors.swapaxes(1, 2)
    np.testing.assert_allclose(gram, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("kernel", ["matmul", "randomized"])
def test_merges_in_memory_take_every_kernel(kernel, rng):
    m, n = 32, 48

    def specialist(base):
        u, v = (np.linalg.qr(rng.normal(size=(side, m)))[0] for side in (m, n))
        update = (u * 10 ** np.linspace(0, -4, m)) @ v.T
        return {"attn/q/kernel": (base["attn/q/kernel"] + update).astype(np.float32)}

    base = {"attn/q/kernel": np.zeros((m, n), np.float32)}
    thetas = [specialist(base) for _ in range(3)]
    wanted = np.asarray(r2m(base, thetas, rank=0.25, kernel="gram").params["attn/q/kernel"])
    # Lowered outside of the wide arithmetic that it is traced in.
    found = np.asarray(r2m(base, thetas, rank=0.25, kernel=kernel).params["attn/q/kernel"])
    assert np.linalg.norm(found - wanted) <= 1e-5 * np.linalg.norm(wanted)
