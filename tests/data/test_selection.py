"""Frame selection against exact arithmetic and DeepfakeBench's description."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2m_jax.data.records import Record
from r2m_jax.data.selection import deduplicate, frame_indices, natural_key, select_frames
from r2m_jax.errors import InputError


@given(st.integers(0, 500), st.integers(1, 64), st.sampled_from(["even", "bench", "df40"]))
def test_indices_are_distinct_ordered_and_as_many_as_asked(length, n, how):
    indices = list(frame_indices(length, n, how))
    assert len(indices) == min(n, length)
    assert indices == sorted(set(indices))
    assert all(0 <= i < length for i in indices)


@given(st.integers(2, 400), st.integers(2, 64))
def test_even_is_the_floor_of_an_exact_linspace(length, n):
    if n < length:
        step = Fraction(length - 1, n - 1)
        assert list(frame_indices(length, n)) == [math.floor(i * step) for i in range(n)]


def test_of_32_stored_frames_bench_covers_the_first_quarter():
    assert list(frame_indices(32, 8, "bench")) == list(range(8))
    assert list(frame_indices(32, 8, "even")) == [0, 4, 8, 13, 17, 22, 26, 31]
    assert list(frame_indices(32, 1, "even")) == [0]


def test_natural_order():
    names = ["seed0188.png", "10.png", "2.png", "seed19.png", "002.png", "a.png"]
    assert sorted(names, key=natural_key) == ["002.png", "2.png", "10.png", "a.png", "seed19.png", "seed0188.png"]


@given(st.lists(st.text(st.characters(codec="ascii"), min_size=1), unique=True), st.randoms())
def test_natural_order_does_not_depend_on_the_input(names, random):
    shuffled = list(names)
    random.shuffle(shuffled)
    assert sorted(names, key=natural_key) == sorted(shuffled, key=natural_key)


@given(st.permutations([f"a/{i}.png" for i in range(12)]), st.integers(1, 15))
def test_only_df40_depends_on_the_order_of_the_list(paths, n):
    ordered = [f"a/{i}.png" for i in range(12)]
    for how in ("even", "bench"):
        assert select_frames(paths, n, how) == select_frames(ordered, n, how)
    assert select_frames(paths, n, "df40") == list(paths)[:n]


def test_no_number_is_everything_in_order():
    assert select_frames(["b", "a"], None) == ["b", "a"]
    assert select_frames([], 8) == []


def test_refusals():
    with pytest.raises(InputError, match="choose one of even, bench, df40"):
        select_frames(["a"], 1, "odd")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 1"):
        select_frames(["a"], 0)


def test_deduplicate_keeps_the_first_of_each_and_other_splits():
    a, b = Record("a", 0, video="x", split="train"), Record("a", 0, video="y", split="train")
    c = Record("a", 0, split="test")
    assert deduplicate([a, b, c, a]) == [a, c]
