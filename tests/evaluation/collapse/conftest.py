"""Small problems: a linear head on random features, and a two-layer network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture
def wide():
    with jax.enable_x64(True):
        yield


def linear_problem(seed=0, n=40, d=6, classes=2, dtype=np.float64):
    rng = np.random.default_rng(seed)
    head = {"kernel": rng.normal(size=(d, classes)).astype(dtype), "bias": rng.normal(size=classes).astype(dtype)}
    return (
        jax.tree.map(jnp.asarray, head),
        jnp.asarray(rng.normal(size=(n, d)).astype(dtype)),
        rng.integers(0, classes, n),
    )


def network_problem(seed=0, n=24):
    """Not convex: its Hessian has eigenvalues of both signs."""
    rng = np.random.default_rng(seed)
    params = {"a": rng.normal(size=(4, 5)), "b": rng.normal(size=(5, 3)), "c": rng.normal(size=3)}

    def loss(params, example):
        x, y = example
        return -jax.nn.log_softmax(jnp.tanh(x @ params["a"]) @ params["b"] + params["c"])[y]

    batch = (jnp.asarray(rng.normal(size=(n, 4))), jnp.asarray(rng.integers(0, 3, n)))
    return loss, jax.tree.map(jnp.asarray, params), batch


def nll(head, example):
    x, y = example
    return -jax.nn.log_softmax(x @ head["kernel"] + head["bias"])[y]


@pytest.fixture
def problems():
    return linear_problem, network_problem, nll
