"""Merges in flight together on two cores, which batched LAPACK calls do not survive (jax 0.10.2 on the CPU)."""

import os
import subprocess
import sys

import pytest

CODE = """
import os
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # before jax sizes its thread pool
import jax
from functools import partial
from r2m_jax import load_detector, tiny_base
from r2m_jax.merging import r2m

base = load_detector(tiny_base()).params["backbone"]
keys = jax.random.split(jax.random.key(0), 3)
thetas = [jax.tree.map(lambda x: x + 0.01 * jax.random.normal(key, x.shape), base) for key in keys]
merges = [jax.jit(partial(r2m, **kw)) for kw in ({}, {"centering": "uncentered"}, {"origin": "theta_avg"})]
for _ in range(2):
    jax.block_until_ready([merge(base, thetas) for merge in merges])
print("done")
"""


@pytest.mark.integration
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="pinning a process to two cores needs Linux")
def test_three_merges_at_once_on_two_cores():
    result = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        timeout=240,  # it takes half a minute; before matrices were taken one at a time it never ended
    )
    assert result.stdout == "done\n", result.stderr
