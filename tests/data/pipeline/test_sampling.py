from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2m_jax import InputError
from r2m_jax.data.pipeline.sampling import in_order, plan
from r2m_jax.data.records import Record

MIXED = [Record(f"r{i}", 0) for i in range(10)] + [
    Record(f"{method}{i}", 1, method=method) for method, count in (("a", 50), ("b", 7), ("c", 1)) for i in range(count)
]


def epoch(order, number):
    return [order.record(number, index) for index in range(order.length)]


@given(count=st.integers(1, 300), seed=st.integers(0, 2**32 - 1), number=st.integers(0, 1000))
def test_a_natural_epoch_is_a_permutation(count, seed, number):
    order = plan([Record("", i % 2) for i in range(count)], "natural", seed)
    assert sorted(epoch(order, number)) == list(range(count))


def test_a_large_epoch_is_a_permutation_without_order():
    count = 2**16 + 5000
    order = plan([Record("", 0)] * count, "natural", 7)
    drawn = np.array(epoch(order, 1))
    assert (np.sort(drawn) == np.arange(count)).all()
    assert abs(np.corrcoef(drawn, np.arange(count))[0, 1]) < 0.015  # 4 standard deviations
    for distance in (1, 2, 4):
        assert abs(np.corrcoef(drawn[distance:], drawn[:-distance])[0, 1]) < 0.015


def test_epochs_and_seeds_give_different_orders():
    one, other = plan(MIXED, "natural", 1), plan(MIXED, "natural", 2)
    orders = [epoch(one, 0), epoch(one, 1), epoch(other, 0), epoch(other, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert epoch(plan(MIXED, "natural", 1), 1) == orders[1]


def test_the_shuffle_leaves_no_place_favoured():
    """Of 20 records over 2000 epochs each stands at the first place 100 times: 4 standard deviations are 39."""
    order = plan([Record("", 0)] * 20, "natural", 5)
    first = Counter(order.record(number, 0) for number in range(2000))
    assert len(first) == 20
    assert all(60 < count < 140 for count in first.values())
    follows = Counter((order.record(number, 4), order.record(number, 5)) for number in range(4000))
    assert len(follows) > 350  # of 380 ordered pairs, 10.5 expected of each


@pytest.mark.parametrize("seed", [0, 9])
def test_balanced_holds_both_classes_equal_in_every_even_stretch(seed):
    order = plan(MIXED, "balanced", seed)
    drawn = [order.record(*divmod(place, order.length)) for place in range(4 * order.length)]
    for start in range(0, len(drawn), 2):
        assert sum(MIXED[number].label for number in drawn[start : start + 2]) == 1
    reals = Counter(number for number in drawn if not MIXED[number].label)
    fakes = Counter(number for number in drawn if MIXED[number].label)
    assert (len(reals), len(fakes)) == (10, 58)  # all of them come
    assert max(reals.values()) - min(reals.values()) <= 1  # and none before its turn
    assert max(fakes.values()) - min(fakes.values()) <= 1


def test_per_method_holds_half_real_and_every_method_equal():
    order = plan(MIXED, "per_method", 3)
    drawn = [MIXED[order.record(*divmod(place, order.length))] for place in range(600)]
    for start in range(0, 600, 6):
        assert Counter(record.method for record in drawn[start : start + 6]) == {"": 3, "a": 1, "b": 1, "c": 1}
    assert {record.path for record in drawn} == {record.path for record in MIXED}


def test_the_place_of_a_class_in_a_pair_is_random():
    order = plan(MIXED, "balanced", 0)
    first = sum(MIXED[order.record(*divmod(place, order.length))].label for place in range(0, 800, 2))
    assert 140 < first < 260  # 200 expected, 6 standard deviations


def test_substitutes_are_of_the_same_group():
    order = plan(MIXED, "per_method", 0)
    for index in range(order.length):
        method = MIXED[order.record(2, index)].method
        assert {MIXED[order.substitute(2, index, attempt)].method for attempt in range(5)} == {method}
    assert order.substitute(2, 0, 1) == order.substitute(2, 0, 1)


def test_in_order_keeps_the_order():
    assert epoch(in_order(7), 0) == list(range(7))


@pytest.mark.parametrize(
    ("records", "sampling", "seed", "named"),
    [
        ([], "natural", 0, "no image"),
        ([Record("a", 0)], "balanced", 0, "no fake"),
        ([Record("a", 1)], "per_method", 0, "no real"),
        ([Record("a", 1)], "uniform", 0, "'uniform' is unknown"),
        ([Record("a", 1)], "natural", -1, "seed -1"),
    ],
)
def test_what_cannot_be_sampled(records, sampling, seed, named):
    with pytest.raises(InputError, match=named):
        plan(records, sampling, seed)
