"""Optimisers against torch's, and what recipes add to them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pydantic import ValidationError

from r2m_jax import InputError
from r2m_jax.training.optimizers import OptimizerRecipe, build_optimizer, build_schedule

TORCH = {
    "adam": ("Adam", {"lr": 1e-2, "weight_decay": 5e-4}),
    "adamw": ("AdamW", {"lr": 1e-2, "weight_decay": 5e-2}),
    "sgd": ("SGD", {"lr": 1e-2, "weight_decay": 5e-4, "momentum": 0.9, "nesterov": True}),
}


def run(recipe: OptimizerRecipe, start: dict, gradients: list[dict], steps: int | None = None) -> dict:
    optimizer = build_optimizer(recipe, steps or len(gradients))
    params = {path: jnp.asarray(leaf) for path, leaf in start.items()}
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update({p: jnp.asarray(g) for p, g in gradient.items()}, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.fixture
def gradients(rng):
    return [{"a": rng.normal(size=(7, 3)), "b": rng.normal(size=4)} for _ in range(50)]


@pytest.fixture
def start(rng):
    return {"a": rng.normal(size=(7, 3)), "b": rng.normal(size=4)}


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("clip", [None, 2.0])
def test_fifty_steps_are_torchs(name, clip, start, gradients):
    torch = pytest.importorskip("torch", reason="torch.optim is the reference (extra `dev`)")
    kind, settings = TORCH[name]
    theirs = {path: torch.nn.Parameter(torch.tensor(leaf)) for path, leaf in start.items()}
    reference = getattr(torch.optim, kind)(theirs.values(), **settings)
    for gradient in gradients:
        for path, leaf in gradient.items():
            theirs[path].grad = torch.tensor(leaf)
        if clip:
            torch.nn.utils.clip_grad_norm_(theirs.values(), clip)
        reference.step()
    ours = {"learning_rate" if key == "lr" else key: value for key, value in settings.items()}
    with jax.enable_x64(True):  # in float64, so that only a difference in kind can show
        params = run(OptimizerRecipe(name=name, clip_norm=clip, **ours), start, gradients)
    for path in start:
        # torch clips by norm / (norm + 1e-6), optax by norm.
        np.testing.assert_allclose(params[path], theirs[path].detach().numpy(), atol=1e-6 if clip else 1e-11)


def test_the_defaults_are_df40s():
    recipe = OptimizerRecipe()
    assert (recipe.name, recipe.learning_rate, recipe.weight_decay) == ("adam", 1e-5, 5e-4)
    assert (recipe.b1, recipe.b2, recipe.eps, recipe.schedule) == (0.9, 0.999, 1e-8, "constant")


def test_accumulated_gradients_equal_their_mean(start, gradients):
    recipe = OptimizerRecipe(learning_rate=1e-2, schedule="cosine", warmup=0.2)
    two = run(recipe.model_copy(update={"accumulate": 2}), start, gradients)
    means = [{p: (a[p] + b[p]) / 2 for p in a} for a, b in zip(gradients[::2], gradients[1::2], strict=True)]
    once = run(recipe, start, means)
    for path in start:
        np.testing.assert_allclose(two[path], once[path], atol=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_schedules_rise_and_end_where_they_say(schedule):
    rate = build_schedule(OptimizerRecipe(learning_rate=2.0, schedule=schedule, warmup=0.1), 100)
    assert [float(rate(step)) for step in (0, 5, 10)] == pytest.approx([0.0, 1.0, 2.0])
    middle, end = {"constant": (2.0, 2.0), "cosine": (1.0, 0.0), "linear": (1.0, 0.0)}[schedule]
    assert [float(rate(step)) for step in (55, 100)] == pytest.approx([middle, end], abs=1e-6)


def test_groups_have_their_own_rate(start, gradients):
    recipe = OptimizerRecipe(name="sgd", learning_rate=0.1, weight_decay=0.0, groups={"a": 0.1, ".*": 3.0})
    grouped, plain = run(recipe, start, gradients), run(recipe.model_copy(update={"groups": {}}), start, gradients)
    for path, factor in (("a", 0.1), ("b", 3.0)):
        np.testing.assert_allclose(grouped[path] - start[path], factor * (plain[path] - start[path]), atol=1e-5)
    with pytest.raises(InputError, match="'heads' matches no trained parameter"):
        run(recipe.model_copy(update={"groups": {"heads": 1.0}}), start, gradients)


@pytest.mark.parametrize("settings", [{"name": "lion"}, {"learning_rate": 0}, {"b1": 1.0}, {"warm_up": 0.1}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValidationError):
        OptimizerRecipe(**settings)
