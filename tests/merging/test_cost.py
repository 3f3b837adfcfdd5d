import itertools
from dataclasses import astuple, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2m_jax.checkpoints.tensors import LazyTensor
from r2m_jax.merging.cart import Cart
from r2m_jax.merging.chunks import plan
from r2m_jax.merging.cost import (
    Operations,
    applying,
    basis_operations,
    columns,
    deal,
    gram_products,
    measuring,
    tail_products,
    work,
)
from r2m_jax.merging.engine import measure
from r2m_jax.merging.estimate import Machine, Share, estimate, memory, passes
from r2m_jax.merging.r2m import R2M
from r2m_jax.merging.ranks import Energy
from r2m_jax.merging.spectral import discarded, wide_arithmetic
from r2m_jax.merging.task_arithmetic import TaskArithmetic

MACHINE = Machine(
    name="round numbers", devices=2, cores=2, devices_are_cores=True, products=1e9, wide_products=1e9, cubes=1e-9,
    squares=1e-8, moved=1e9, read=1e9, written=1e9, hashed=1e9, compiled=0.5, compiled_truncating=0.5, memory=1e9,
)  # fmt: skip

costs = st.lists(st.floats(0, 1e6), max_size=40)


@given(costs, st.integers(1, 12))
def test_a_deal_gives_every_item_to_one_worker(items, workers):
    dealt = deal(items, workers)
    assert sorted(itertools.chain(*dealt.shares)) == list(range(len(items)))
    np.testing.assert_allclose(dealt.loads, [sum(items[item] for item in share) for share in dealt.shares])
    assert len(dealt.loads) == workers
    # Whoever ends last took an item when nobody had less than it (Graham 1966).
    mean, largest = sum(items) / workers, max(items, default=0.0)
    assert max(dealt.loads) <= (mean + largest * (1 - 1 / workers)) * (1 + 1e-9)
    assert 0 < dealt.balance <= 1 + 1e-9


@given(st.lists(st.integers(1, 30), min_size=1, max_size=7), st.integers(1, 3))
def test_a_deal_ends_within_a_third_of_the_best(items, workers):
    ways = itertools.product(range(workers), repeat=len(items))
    best = min(max(sum(c for c, w in zip(items, way, strict=True) if w == at) for at in range(workers)) for way in ways)
    assert 3 * max(deal(items, workers).loads) <= 4 * best


def test_operations_of_a_small_matrix_counted_by_hand():
    # 8 × 12 in four blocks of 2 rows: (1 + 2 + 3 + 4) products of 2 × 12 by 12 × 2, each 2·2·2·12 operations.
    assert gram_products(8, 12) == 10 * 96
    # Rank .7 keeps int(5.6) = 5 of 8; the other 3 are fewer. Bᵀ·W and B·(BᵀW): 2·3·8·12 each.
    assert columns(8, 12, 0.7) == columns(12, 8, 0.7) == 3
    assert tail_products(8, 12, 0.7) == 2 * 2 * 3 * 8 * 12
    found = basis_operations(12, 8, 0.7)
    assert (found.wide_products, found.cubes, found.squares) == (960, 512, 64)
    # Two specialists: two tails, and inner products of five vectors of 96 numbers.
    assert measuring((8, 12), 0.7, 2).products == 2 * 1152 + 25 * 2 * 96
    assert applying((8, 12), 0.7, 2).products == 2 * 1152
    assert measuring((96,), None, 2).products == 9 * 2 * 96
    # What keeps all or nothing needs no basis; a share of the energy may keep any number.
    assert basis_operations(8, 12, 1.0) == basis_operations(8, 12, 0.0) == Operations()
    assert columns(8, 12, Energy(0.9)) == 8
    assert work(8, 12) == 960 + 9 * 512


def test_products_are_those_of_the_compiled_programs():
    """XLA counts a loop's body once: one basis, all tails, hardly any inner products; the rest is elementwise work."""
    m, n, count, rank = 256, 1024, 3, 0.7
    with wide_arithmetic():
        shapes = [jax.ShapeDtypeStruct((1, *more, m, n), np.float32) for more in ((), (count,))]
        run = jax.jit(lambda *arrays: measure(jnp.full(count, 1 / count), rank, *arrays))
        counted = run.lower(*shapes).compile().cost_analysis()["flops"]
    expected = basis_operations(m, n, rank).wide_products + count * tail_products(m, n, rank)
    assert expected <= counted <= 1.06 * expected
    flat = jax.ShapeDtypeStruct((m, n), np.float32)
    basis = jax.ShapeDtypeStruct((m, columns(m, n, rank)), np.float32)
    tail = jax.jit(lambda matrix, found: discarded(matrix, found, False)).lower(flat, basis).compile()
    assert tail.cost_analysis()["flops"] == pytest.approx(tail_products(m, n, rank), rel=0.01)


@pytest.fixture(scope="module")
def model():
    shapes = {"embed.weight": (100, 16), "norm.weight": (16,)}
    for layer in range(5):
        shapes |= {f"layers.{layer}.attn.{name}.weight": (16, 16) for name in "qkvo"}
        shapes |= {f"layers.{layer}.mlp.up.weight": (48, 16), f"layers.{layer}.mlp.bias": (48,)}
    return {name: LazyTensor.of(np.zeros(shape, np.float32)) for name, shape in shapes.items()}


def bytes_of(model):
    return sum(4 * np.prod(leaf.shape) for leaf in model.values())


@pytest.mark.parametrize("method", [R2M(rank=0.5), Cart(rank=0.5), TaskArithmetic(alpha=0.5), None])
@pytest.mark.parametrize(("processes", "budget"), [(1, 2**12), (3, 2**20), (40, 2**20)])
def test_however_a_merge_is_cut_it_is_the_same_work(model, method, processes, budget):
    models = [model] * 4
    whole = passes(method, plan(method or TaskArithmetic(alpha=0.5), model, models[1:]), models)
    cuts = [
        plan(
            method or TaskArithmetic(alpha=0.5), model, models[1:], memory=budget, processes=processes, process=process
        )
        for process in range(processes)
    ]
    each = [passes(method, cut, models) for cut in cuts]
    for number, one in enumerate(whole):
        parts = [found[number] for found in each]
        assert {part.name for part in parts} == {one.name}
        np.testing.assert_allclose(np.sum([astuple(part.all) for part in parts], axis=0), astuple(one.all))
    bases = 20 * 3 * 4 * 16 * 8 + 5 * 3 * 4 * 16 * 8 if isinstance(method, R2M) else 0  # kept between the passes
    assert whole[0].all.read == 4 * bytes_of(model)
    assert whole[-1].all.read == 4 * bytes_of(model) + bases
    assert whole[-1].all.written == bytes_of(model)
    assert [one.name for one in whole] == {"R2M": ["measure", "merge"], "NoneType": ["count", "merge"]}.get(
        type(method).__name__, ["merge"]
    )
    # A chunk and the next one of four models, in float32 where the budget counts float64; one matrix at the least.
    needed = max(memory(cut, models, 2).host for cut in cuts)
    assert needed <= 1.25 * max(budget, 8 * 4 * 48 * 16) + 1024


def test_a_chunk_takes_as_long_as_the_device_with_most_of_it():
    basis, rest = Operations(products=1e9), Operations(moved=0.25e9)
    assert Share(1, 3, basis, rest).seconds(MACHINE) == 2 + 0.25  # three matrices on two devices, and one piece
    assert Share(3, 3, basis, rest).seconds(MACHINE) == 2 * (3 + 0.25)
    assert Share(3, 0, Operations(), rest).seconds(MACHINE) == 1.5 * 0.25
    assert Share(3, 0, Operations(), rest).seconds(replace(MACHINE, devices_are_cores=False)) == 3 * 0.25


@given(st.floats(0.1, 10))
def test_a_machine_so_many_times_faster_takes_so_much_less(speed):
    model = {"layers.0.mlp.weight": LazyTensor.of(np.zeros((12, 20), np.float32))}
    method = R2M(rank=0.5)
    todo = [passes(method, plan(method, model, [model] * 2), [model] * 3)]
    quick = replace(
        MACHINE,
        **{name: getattr(MACHINE, name) * speed for name in ("products", "wide_products", "moved", "read", "written")},
        hashed=MACHINE.hashed * speed,
        **{name: getattr(MACHINE, name) / speed for name in ("cubes", "squares", "compiled", "compiled_truncating")},
    )
    assert estimate(todo, quick).seconds == pytest.approx(estimate(todo, MACHINE).seconds / speed)


def test_more_processes_take_less_time_until_the_leaves_run_out(model):
    method, models = R2M(rank=0.5), [model] * 4
    seconds, balances = [], []
    for processes in (1, 2, 5, 200):
        cuts = [plan(method, model, models[1:], processes=processes, process=each) for each in range(processes)]
        found = estimate(
            [passes(method, cut, models) for cut in cuts], replace(MACHINE, compiled=1e-9, compiled_truncating=1e-9)
        )
        seconds.append(found.seconds)
        balances.append(found.balance)
    assert seconds == sorted(seconds, reverse=True)
    assert 0.8 < balances[0] <= 1  # five layers on two devices
    assert balances[-1] < 0.2  # 31 leaves for 200
