from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r2m_jax import InputError
from r2m_jax.data.pipeline import training_batches
from r2m_jax.models import apply_detector
from r2m_jax.parallel import data_mesh, replicate, shard_batch
from r2m_jax.training import (
    Sharpness,
    adam_coupled_l2,
    cross_entropy,
    everything,
    fit,
    image_inputs,
    init_state,
    matching,
    train_step,
    warmup_cosine,
)
from r2m_jax.trees import flatten

HALF = (0.5, 0.5, 0.5)


@pytest.fixture
def images(rng):
    """Sixteen noise images; the fakes are brighter."""
    labels = np.arange(16) % 2
    noise = rng.integers(0, 200, (16, 32, 32, 3))
    return (noise + 50 * labels[:, None, None, None]).astype(np.uint8), labels.astype(np.int32)


def make_step(detector, optimizer):
    return train_step(apply_detector(detector.config), optimizer, image_inputs(HALF, HALF))


def test_coupled_adam_is_torch_adam(rng):
    torch = pytest.importorskip("torch", reason="torch.optim.Adam is the reference (extra `dev`)")
    start = rng.normal(size=(7, 3)).astype(np.float32)
    theirs = torch.nn.Parameter(torch.tensor(start))
    reference = torch.optim.Adam([theirs], lr=1e-2, weight_decay=5e-4)
    optimizer = adam_coupled_l2(1e-2, 5e-4)
    ours = jnp.asarray(start)
    state = optimizer.init(ours)
    for _ in range(50):
        gradient = rng.normal(size=(7, 3)).astype(np.float32)
        theirs.grad = torch.tensor(gradient)
        reference.step()
        updates, state = optimizer.update(jnp.asarray(gradient), state, ours)
        ours = optax.apply_updates(ours, updates)
    np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-6)


def test_cross_entropy_by_hand(rng):
    logits, labels = rng.normal(size=(5, 2)), np.asarray([0, 1, 1, 0, 1])
    by_hand = np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(5), labels])
    np.testing.assert_allclose(cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(labels)), by_hand, rtol=1e-6)


def test_schedule_warms_up_and_ends_at_zero():
    schedule = warmup_cosine(1.0, 100)
    values = [float(schedule(step)) for step in (0, 5, 10, 55, 100)]
    np.testing.assert_allclose(values, [0.0, 0.5, 1.0, 0.5, 0.0], atol=1e-6)


def test_training_learns_and_keeps_the_start(detector, images):
    x, y = images
    optimizer = adam_coupled_l2(3e-3)
    batches, steps = training_batches(x, y, batch_size=8, passes=15, seed=0)
    seen = []
    state = init_state(detector.params, optimizer, seed=0)
    before = np.asarray(detector.params["head"]["kernel"])
    step = jax.jit(make_step(detector, optimizer), donate_argnums=0)
    mesh = data_mesh(jax.devices()[:1])
    end = fit(step, state, batches, mesh=mesh, on_window=lambda w: seen.extend(w.loss))
    assert len(seen) == steps == 30
    assert np.mean(seen[-5:]) < 0.5 * np.mean(seen[:5])
    assert int(end.step) == 30
    np.testing.assert_array_equal(detector.params["head"]["kernel"], before)


def test_a_run_repeats_bit_for_bit_and_another_seed_does_not(detector, images):
    def run(seed):
        optimizer = adam_coupled_l2(1e-3)
        batches, _ = training_batches(*images, batch_size=8, passes=2, seed=seed)
        state = init_state(detector.params, optimizer, seed)
        end = fit(jax.jit(make_step(detector, optimizer)), state, batches, mesh=data_mesh(jax.devices()[:1]))
        return flatten(end.params)

    a, b, c = run(0), run(0), run(1)
    assert all(np.array_equal(a[path], b[path]) for path in a)
    assert not all(np.array_equal(a[path], c[path]) for path in a)


@pytest.mark.parametrize("devices", [2, 8])
def test_split_over_devices_equals_one_device(detector, images, devices):
    optimizer = optax.sgd(0.1)
    step = jax.jit(make_step(detector, optimizer))
    batch = {"image": images[0], "label": images[1]}
    results = []
    for count in (1, devices):
        mesh = data_mesh(jax.devices()[:count])
        state = replicate(mesh, init_state(detector.params, optimizer, 0))
        placed = shard_batch(mesh, batch)
        assert len(placed["image"].sharding.device_set) == count
        results.append(step(state, placed))
    (one, one_metrics), (many, many_metrics) = results
    np.testing.assert_allclose(one_metrics.loss, many_metrics.loss, rtol=1e-5)
    np.testing.assert_allclose(one_metrics.gradient_norm, many_metrics.gradient_norm, rtol=1e-5)
    for path, value in flatten(one.params).items():
        np.testing.assert_allclose(flatten(many.params)[path], value, rtol=1e-5, atol=1e-6, err_msg=path)


def test_bad_runs_stop_with_a_sentence(detector, images):
    optimizer = optax.sgd(1e30)
    state = init_state(detector.params, optimizer, 0)
    batches, _ = training_batches(*images, batch_size=8, passes=3, seed=0)
    run = partial(fit, jax.jit(make_step(detector, optimizer)), state, mesh=data_mesh(jax.devices()[:1]))
    with pytest.raises(InputError, match=r"the loss is .* at step 2"):
        run(batches, window=2)
    with pytest.raises(InputError, match="does not divide over 8 devices"):
        shard_batch(data_mesh(), {"image": images[0][:12]})


def test_only_what_is_trainable_moves_and_has_moments(detector, images):
    pixels, labels = images
    optimizer = adam_coupled_l2(1e-2, 0.0)
    trainable = matching(["head/.*", "backbone/.*norm.*"], detector.params)
    state = init_state(detector.params, optimizer, 0, trainable)
    step = train_step(apply_detector(detector.config), optimizer, image_inputs(HALF, HALF), trainable=trainable)
    after, _ = jax.jit(step)(state, {"image": pixels, "label": labels})
    before, now = flatten(detector.params), flatten(after.params)
    assert before.keys() == now.keys()
    moved = {path for path in before if (np.asarray(before[path]) != np.asarray(now[path])).any()}
    assert moved == {path for path in before if path.startswith("head/") or "norm" in path}
    moments = jax.tree.leaves(state.optimizer)
    assert sum(leaf.size for leaf in moments) < 3 * sum(before[path].size for path in moved)


def test_training_the_named_leaves_equals_training_all_of_them(detector, images):
    pixels, labels = images
    optimizer = adam_coupled_l2(1e-3, 5e-4)
    params, logits = [], apply_detector(detector.config)
    for trainable in (everything, matching([".*"], detector.params)):
        step = jax.jit(train_step(logits, optimizer, image_inputs(HALF, HALF), trainable=trainable))
        state = init_state(detector.params, optimizer, 0, trainable)
        for _ in range(2):
            state, _ = step(state, {"image": pixels, "label": labels})
        params.append(flatten(state.params))
    for path in params[0]:
        np.testing.assert_array_equal(params[0][path], params[1][path])


def test_sam_of_radius_zero_trains_as_without_and_more_moves_elsewhere(detector, images):
    pixels, labels = images
    optimizer = adam_coupled_l2(1e-3, 0.0)

    def trained(sharpness):
        step = train_step(apply_detector(detector.config), optimizer, image_inputs(HALF, HALF), sharpness=sharpness)
        state, metrics = jax.jit(step)(init_state(detector.params, optimizer, 0), {"image": pixels, "label": labels})
        return flatten(state.params), float(metrics.loss)

    plain, zero, far = trained(None), trained(Sharpness(rho=0.0)), trained(Sharpness(rho=0.5))
    assert plain[1] == zero[1] == far[1]
    for path in plain[0]:
        np.testing.assert_array_equal(plain[0][path], zero[0][path])
    assert any((np.asarray(plain[0][path]) != np.asarray(far[0][path])).any() for path in plain[0])


def test_patterns_that_match_nothing_are_refused(detector):
    with pytest.raises(InputError, match="matches no parameter; paths look like backbone"):
        matching(["heads/.*"], detector.params)
    with pytest.raises(InputError, match="is not a regular expression"):
        matching(["head/("], detector.params)
    with pytest.raises(InputError, match="no parameter is to be trained"):
        init_state(detector.params, adam_coupled_l2(1e-3), 0, lambda path: False)
