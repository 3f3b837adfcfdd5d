import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2m_jax import InputError
from r2m_jax.models import apply_detector
from r2m_jax.training import adam_coupled_l2, image_inputs, init_state, lora, matching, train_step
from r2m_jax.trees import flatten

HALF = (0.5, 0.5, 0.5)
TARGETS = (r"backbone/layers/attn/(q|v)/kernel",)


@pytest.fixture
def adapted(detector):
    return lora.attach(detector.params, TARGETS, 4, jax.random.key(0))


def test_fresh_adapters_change_nothing(detector, adapted, rng):
    images = jnp.asarray(rng.normal(size=(2, 32, 32, 3)), jnp.float32)
    logits = apply_detector(detector.config)
    np.testing.assert_array_equal(lora.adapted(logits, 8.0)(adapted, images), logits(detector.params, images))
    assert set(lora.fold(adapted, 8.0)) == {"backbone", "head"}


def test_training_moves_the_adapters_and_the_fold_is_what_was_trained(detector, adapted, rng):
    images = rng.integers(0, 255, (8, 32, 32, 3)).astype(np.uint8)
    batch = {"image": images, "label": np.arange(8) % 2}
    logits = apply_detector(detector.config)
    trainable = matching(["head/.*", "lora/.*"], adapted)
    optimizer = adam_coupled_l2(1e-2, 0.0)
    state = init_state(adapted, optimizer, 0, trainable)
    step = jax.jit(train_step(lora.adapted(logits, 8.0), optimizer, image_inputs(HALF, HALF), trainable=trainable))
    for _ in range(3):
        state, _ = step(state, batch)
    folded = lora.fold(state.params, 8.0)
    before, after = flatten(detector.params), flatten(folded)
    moved = {path for path in before if (np.asarray(before[path]) != np.asarray(after[path])).any()}
    assert moved == {f"backbone/layers/attn/{name}/kernel" for name in "qv"} | {"head/kernel", "head/bias"}
    for name in "qv":
        path = f"backbone/layers/attn/{name}/kernel"
        change = np.asarray(after[path], np.float64) - np.asarray(before[path], np.float64)
        sizes = np.linalg.svd(change, compute_uv=False)  # of every layer
        assert (sizes[:, 3] > 1e-4).all()
        assert (sizes[:, 4] < 1e-3 * sizes[:, 0]).all()  # rank 4
    pixels = jnp.asarray(rng.normal(size=(2, 32, 32, 3)), jnp.float32)
    np.testing.assert_allclose(
        logits(folded, pixels), lora.adapted(logits, 8.0)(state.params, pixels), rtol=1e-6, atol=1e-6
    )


def test_targets_that_take_no_adapter_are_named(detector):
    with pytest.raises(InputError, match="matches none of the parameters"):
        lora.attach(detector.params, ["backbone/nothing"], 4, jax.random.key(0))
    with pytest.raises(InputError, match=r"attn/q/bias .* takes no adapter of rank 4"):
        lora.attach(detector.params, ["backbone/layers/attn/q/bias"], 4, jax.random.key(0))
    with pytest.raises(InputError, match="takes no adapter of rank 65"):
        lora.attach(detector.params, TARGETS, 65, jax.random.key(0))
