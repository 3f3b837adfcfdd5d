from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r2m_jax import InputError
from r2m_jax.parallel import data_mesh
from r2m_jax.training import Hook, Interrupted, compiled, feature_inputs, fit, init_state, train_step
from r2m_jax.training.run_state import RunStates, load_params, save_params


def logits(params, features):
    return features @ params["head"]["kernel"]


def beginning():
    """The state of the fixture below; `fit` consumes what it is given."""
    params = {"head": {"kernel": jax.random.normal(jax.random.key(1), (8, 2))}}
    return init_state(params, optax.adam(1e-2), 0, average=True)


@pytest.fixture
def parts():
    """A linear model on eight features, split over two devices, and a stream of twelve batches."""
    rng = np.random.default_rng(0)
    step = train_step(logits, optax.adam(1e-2), feature_inputs, average=0.9)
    state = beginning()
    mesh = data_mesh(jax.devices()[:2])
    stream = [
        {
            "feature": rng.normal(size=(4, 8)).astype(np.float32),
            "label": np.asarray([0, 1, 0, 1], np.int32),
            "index": np.arange(4 * n, 4 * n + 4, dtype=np.int32),
        }
        for n in range(12)
    ]
    return compiled(step, state, mesh), state, mesh, stream


def test_windows_cover_every_step_once_and_close_before_hooks(parts):
    step, state, mesh, stream = parts
    seen, hooked = [], []

    def hook(number, state):
        assert seen[-1][-1] == number
        hooked.append(number)
        return False

    def on_window(window):
        seen.append(list(range(window.first, window.last + 1)))
        assert window.margin.shape == window.label.shape == window.index.shape == (len(window.loss), 4)

    end = fit(step, state, stream, mesh=mesh, window=5, on_window=on_window, hooks=[Hook(4, hook), Hook(7, hook)])
    assert [n for window in seen for n in window] == list(range(1, 13))
    assert hooked == [4, 7, 8, 12, 12]  # the one of seven steps once more after the last
    assert int(end.step) == 12


def test_a_hook_ends_the_run_and_the_others_still_run(parts):
    step, state, mesh, stream = parts
    ran = []
    hooks = [Hook(3, lambda n, s: n == 6), Hook(3, lambda n, s: ran.append(n) or False)]
    assert int(fit(step, state, stream, mesh=mesh, hooks=hooks).step) == 6
    assert ran == [3, 6]


def test_a_stopped_run_goes_on_bit_for_bit(parts, tmp_path):
    step, state, mesh, stream = parts
    losses = {}
    note = lambda name: lambda window: losses.setdefault(name, []).extend(window.loss.tolist())  # noqa: E731
    whole = fit(step, beginning(), stream, mesh=mesh, on_window=note("whole"))
    asked = []

    def stop():
        asked.append(1)
        return len(asked) == 5

    with RunStates(tmp_path / "states", 1) as states:
        with pytest.raises(Interrupted) as stopped:
            fit(
                step, state, stream, mesh=mesh, on_window=note("parts"), stop=stop,
                on_stop=lambda number, state: states.save(state, {"next": number}),
            )  # fmt: skip
        assert stopped.value.step == 5
    with RunStates(tmp_path / "states", 1) as states:
        assert states.latest == 5
        again, notes = states.load(beginning(), mesh)
    end = fit(step, again, stream[notes["next"] :], mesh=mesh, on_window=note("parts"))
    assert losses["whole"] == losses["parts"]
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(end), strict=True):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def test_nan_names_step_and_records(parts):
    step, state, mesh, stream = parts
    stream[6]["feature"][2] = np.nan
    saved = []
    run = partial(fit, step, state, mesh=mesh, window=5, hooks=[Hook(1, lambda n, s: saved.append(n) or False)])
    with pytest.raises(InputError, match=r"the loss is nan at step 7 \(records 24, 25, 26, 27\); try a lower"):
        run(stream)
    assert saved == [1, 2, 3, 4, 5, 6]  # nothing is done with a state that is not finite


def test_the_average_follows_the_parameters(parts):
    step, state, mesh, stream = parts
    by_hand = np.asarray(state.params["head"]["kernel"], np.float64)
    steps = []
    hook = Hook(1, lambda n, s: steps.append(np.asarray(s.params["head"]["kernel"], np.float64)) or False)
    end = fit(step, state, stream, mesh=mesh, hooks=[hook])
    for number, params in enumerate(steps):
        decay = min(0.9, (1 + number) / (10 + number))
        by_hand = decay * by_hand + (1 - decay) * params
    np.testing.assert_allclose(end.averaged()["head"]["kernel"], by_hand, rtol=1e-5)
    assert not np.allclose(end.params["head"]["kernel"], by_hand, rtol=1e-3)


def test_states_keep_the_last_move_between_meshes_and_name_what_does_not_fit(parts, tmp_path):
    step, state, mesh, stream = parts
    hooks = []
    with RunStates(tmp_path / "states", 2) as states:
        hooks.append(Hook(3, lambda n, s: states.save(s, {"n": n}) or False))
        end = fit(step, state, stream, mesh=mesh, hooks=hooks)
    assert sorted(int(p.name) for p in (tmp_path / "states").iterdir()) == [9, 12]
    elsewhere = data_mesh(jax.devices()[:8], fsdp=4)
    with RunStates(tmp_path / "states", 2) as states:
        again, notes = states.load(state, elsewhere)
        assert notes == {"n": 12}
        np.testing.assert_array_equal(again.params["head"]["kernel"], end.params["head"]["kernel"])
        assert len(again.params["head"]["kernel"].sharding.device_set) == 8
        other = init_state({"head": {"kernel": jnp.zeros((9, 2))}}, optax.adam(1e-2), 0, average=True)
        with pytest.raises(
            InputError, match=r"another model or optimiser: average/head/kernel is \[8, 2\] there and \[9, 2\] in"
        ):
            states.load(other, mesh)
    with RunStates(tmp_path / "none", 2) as states, pytest.raises(InputError, match="holds no saved state"):
        states.load(state, mesh)


def test_best_parameters_are_kept_one_at_a_time(tmp_path):
    for value in (1.0, 2.0):
        save_params(tmp_path / "best", {"head": {"kernel": jnp.full((3, 2), value)}})
    found = load_params(tmp_path / "best", {"head": {"kernel": jnp.zeros((3, 2))}})
    np.testing.assert_array_equal(found["head"]["kernel"], np.full((3, 2), 2.0))
