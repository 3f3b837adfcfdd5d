"""Agreement with mergekit 0.1.5, whose results lie in golden/mergekit.npz (golden/make_mergekit.py makes them)."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from r2m_jax.merging import task_arithmetic, ties, weight_averaging

GOLDEN = Path(__file__).parent / "golden"


def maker():
    spec = importlib.util.spec_from_file_location("make_mergekit", GOLDEN / "make_mergekit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


made = maker()


def per_tensor_ties(base, specialists):
    """mergekit trims every tensor by itself; ours, given one tensor at a time, does the same."""
    return {
        name: ties({name: base[name]}, [{name: each[name]} for each in specialists], density=made.DENSITY)[name]
        for name in base
    }


@pytest.mark.parametrize(
    ("method", "ours"),
    [
        ("linear", lambda base, thetas: weight_averaging(base, thetas, weights=made.METHODS["linear"]["weight"])),
        ("task_arithmetic", lambda base, thetas: task_arithmetic(base, thetas, alpha=made.ALPHA, reduce="sum")),
        ("ties", jax.jit(per_tensor_ties)),
    ],
)
def test_agreement_with_mergekit(method, ours):
    base, *specialists = made.towers()
    merged = ours(base, specialists)
    with np.load(GOLDEN / "mergekit.npz") as golden:
        theirs = {name.removeprefix(f"{method}/"): golden[name] for name in golden.files if name.startswith(method)}
    assert theirs.keys() == base.keys()
    moved = np.sqrt(sum(np.square(theirs[name] - base[name]).sum() for name in base))
    apart = np.sqrt(sum(np.square(theirs[name] - np.asarray(merged[name])).sum() for name in base))
    assert moved > 0.1
    assert apart < 1e-5 * moved
