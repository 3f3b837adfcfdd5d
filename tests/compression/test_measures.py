import re

import numpy as np
import pytest

from r2m_jax import InputError
from r2m_jax.compression.measures import Size, flops, latencies, latency, memory, rates
from r2m_jax.evaluation.plots import pareto
from r2m_jax.export.quantised import refuse_int8
from r2m_jax.recipes import load_recipe
from r2m_jax.recipes.compressing import CompressRecipe


def test_time_and_memory_of_known_functions():
    calls = []

    def called(name):
        def function(x):
            calls.append((name, len(x)))
            return x * 2

        return function

    functions = {"a": called("a"), "b": called("b")}
    found = latencies(functions, lambda batch: np.ones(batch, np.float32), (1, 3), runs=4, warm_up=2)
    assert calls == [("a", 1), ("b", 1)] * 6 + [("a", 3), ("b", 3)] * 6  # in turns
    assert found.keys() == functions.keys()
    for each in found.values():
        assert [(one.batch, one.runs) for one in each] == [(1, 4), (3, 4)]
        assert all(0 <= one.low <= one.median <= one.high for one in each)
    assert [one.batch for one in latency(functions["a"], np.ones, (2, 5), runs=3)] == [2, 5]
    planned = memory(lambda x: x @ x.T, np.ones((100, 50), np.float32))
    assert planned.arguments == 100 * 50 * 4
    assert planned.results == 100 * 100 * 4
    assert planned.resident > 10**7


def test_operations_and_rates_of_known_things():
    assert flops(lambda x, y: x @ y, np.ones((10, 20), np.float32), np.ones((20, 30), np.float32)) == 2 * 10 * 20 * 30
    found = rates(Size(100, 100, 400, 380), Size(100, 25, 400, 95))
    assert found == {"parameters": 1, "nonzero": 4, "bytes": 1, "zipped": 4}
    with pytest.raises(InputError, match="nothing but zeros"):
        rates(Size(1, 1, 4, 4), Size(1, 0, 4, 4))


def test_fronts_over_sizes_have_plain_numbers_on_a_logarithmic_axis():
    svg = pareto(["a", "b", "c"], [10, 100, 1000], [0.8, 0.9, 0.85], title="Size", labels=("MB", "AUC"), log_x=True)
    shown = set(re.findall(r">([\d.]+)</text>", svg))
    assert {"10", "100", "1000"} <= shown
    assert "mathdefault" not in svg
    with pytest.raises(InputError, match="MB of b is 0"):
        pareto(["a", "b"], [10, 0], [0.8, 0.9], title="Size", labels=("MB", "AUC"), log_x=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "prune"}, "prune needs rate"),
        ({"method": "int8", "rate": 0.5}, "int8 takes no rate"),
        ({"method": "heads", "rate": 0.5, "keep": 2}, "either rate"),
        ({"method": "low-rank", "rank": 1.5}, "rank"),
        ({"method": "prune", "rate": 0.5, "only": ["("]}, "no regular expression"),
        ({"method": "task-vector"}, "needs base"),
    ],
)
def test_recipes_that_cannot_be(settings, message):
    with pytest.raises(InputError, match=message):
        load_recipe(CompressRecipe, "compress", None, (), {"model": "m", "out": "o", **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("full", "onnx", "float32", False), "choose one of dynamic, static"),
        (("static", "stablehlo", "float32", False), "is for --format onnx"),
        (("static", "onnx", "float16", False), "leave out --dtype"),
        (("static", "onnx", "float32", True), "leave out --no-normalise"),
    ],
)
def test_int8_exports_that_cannot_be(settings, message):
    with pytest.raises(InputError, match=message):
        refuse_int8(*settings)
