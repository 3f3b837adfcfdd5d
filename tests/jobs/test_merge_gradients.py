"""Settings that change with depth, as a recipe of ``r2m merge`` has them."""

import jax
import numpy as np
import pytest

from r2m_jax import InputError, load_detector, save_detector
from r2m_jax.jobs.merge import merge
from r2m_jax.progress import Reporter
from r2m_jax.recipes import load_recipe
from r2m_jax.recipes.merging import MergeRecipe
from r2m_jax.recipes.sweeping import SweepRecipe
from r2m_jax.trees import flatten


@pytest.fixture
def models(base, tmp_path):
    origin = load_detector(base)
    for number, name in enumerate(("fs", "fr", "efs")):
        keys = iter(jax.random.split(jax.random.key(number), 100))
        moved = jax.tree.map(lambda x, keys=keys: x + 0.02 * jax.random.normal(next(keys), x.shape), origin.params)
        save_detector(origin.replace_params(moved), tmp_path / name)
    return {name: str(tmp_path / name) for name in ("fs", "fr", "efs")}


@pytest.fixture
def merged(base, models, tmp_path):
    def run(out, method, **parameters):
        settings = {"base": str(base), "models": models, "method": method, "parameters": parameters}
        recipe = load_recipe(MergeRecipe, "merge", None, [f"out={tmp_path / out}"], settings)
        made = merge(recipe, reporter=Reporter(quiet=True))
        return flatten(load_detector(made.directory).params["backbone"])

    return run


def test_alpha_over_three_layers(merged, base, models):
    found = merged("out", "task_arithmetic", alpha=[0.5, 1.5])
    origin, *thetas = (flatten(load_detector(path).params["backbone"]) for path in (base, *models.values()))
    for path, alpha in (
        ("layers/mlp/fc1/kernel", np.array([0.5, 1.0, 1.5])[:, None, None]),
        ("embeddings/position", 0.5),
        ("pre_norm/scale", 0.5),
        ("post_norm/bias", 1.5),
    ):
        mean = np.mean([np.asarray(theta[path]) - origin[path] for theta in thetas], axis=0)
        np.testing.assert_allclose(found[path] - origin[path], alpha * mean, atol=1e-6, err_msg=path)


@pytest.mark.integration
def test_ranks_over_layers_are_ranks_by_layer(merged):
    by_layer = [{"filter": f"layers\\.{i}\\.mlp", "value": rank} for i, rank in enumerate((0.2, 0.5, 0.8))]
    found = merged("a", "cart", rank=[{"filter": "mlp", "value": [0.2, 0.8]}, {"value": 0.3}])
    wanted = merged("b", "cart", rank=[*by_layer, {"value": 0.3}])
    other = merged("c", "cart", rank=0.3)
    for path, leaf in wanted.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)
    assert not np.array_equal(found["layers/mlp/fc1/kernel"], other["layers/mlp/fc1/kernel"])


@pytest.mark.parametrize(
    ("method", "parameters", "says"),
    [
        ("cart", {"rank": [0.3, 1.5]}, "rank=1.5 is no ratio"),
        ("cart", {"rank": [100.0, 200.0]}, "rank=100.0 is no ratio"),
        ("r2m", {"alpha": []}, "alpha"),
        ("r2m", {"alpha": [0.1, float("nan")]}, "alpha"),
        ("ties", {"scale": [0.1, 0.2]}, "ties takes one scale"),
        ("ties", {"density": [0.1, 0.2]}, "density"),
    ],
)
def test_lists_that_do_not_fit(base, tmp_path, method, parameters, says):
    settings = {"base": str(base), "models": {"a": "a"}, "method": method, "parameters": parameters}
    with pytest.raises(InputError, match=says):
        load_recipe(MergeRecipe, "merge", None, [f"out={tmp_path}"], settings)


def test_lists_need_a_base_and_one_rank_in_a_sweep(base, tmp_path):
    settings = {"base": "missing", "models": {"a": "a"}, "parameters": {"alpha": [0.1, 0.2]}}
    with pytest.raises(InputError, match=r"missing.config.json cannot be read"):
        load_recipe(MergeRecipe, "merge", None, [f"out={tmp_path}"], settings)
    sweep = {"base": str(base), "models": {"a": "a", "b": "b"}, "data": {"index": "x"}, "out": "y"}
    for rank in ([[0.1, 0.2]], [[{"value": [0.1, 0.2]}]]):
        with pytest.raises(InputError, match="a sweep takes one rank for all layers"):
            load_recipe(
                SweepRecipe, "sweep", None, (), sweep | {"grid": [{"method": "cart", "parameters": {"rank": rank}}]}
            )
    filtered = [[{"filter": "mlp", "value": 0.5}, {"value": 0.2}]]
    grid = [{"method": "cart", "parameters": {"rank": filtered, "scale": [[0.5, 1.0], 1.0]}}]
    assert len(load_recipe(SweepRecipe, "sweep", None, (), sweep | {"grid": grid}).candidates()) == 2
