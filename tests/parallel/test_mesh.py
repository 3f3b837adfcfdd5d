import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from r2m_jax import InputError
from r2m_jax.models import apply_detector
from r2m_jax.parallel import data_mesh, distribute, replicate, shard_batch, shardings
from r2m_jax.training import compiled, image_inputs, init_state, train_step
from r2m_jax.trees import flatten

HALF = (0.5, 0.5, 0.5)


def test_large_leaves_are_split_along_their_longest_axis_and_layers_stay_whole():
    tree = {
        "stack": jnp.zeros((8, 64, 256)), "kernel": jnp.zeros((512, 64)), "odd": jnp.zeros((129, 129)),
        "bias": jnp.zeros(64), "layers": jnp.zeros((16, 33, 33)),
    }  # fmt: skip
    found = {name: place.spec for name, place in shardings(data_mesh(fsdp=4), tree).items()}
    assert found == {
        "stack": P(None, None, "fsdp"), "kernel": P("fsdp", None), "odd": P(), "bias": P(), "layers": P(),
    }  # fmt: skip
    assert {place.spec for place in shardings(data_mesh(), tree).values()} == {P()}
    with pytest.raises(InputError, match="8 devices do not divide into groups of 3"):
        data_mesh(fsdp=3)


@pytest.mark.parametrize("fsdp", [2, 8])
def test_fsdp_trains_as_one_device_and_holds_a_share(detector, rng, fsdp):
    images = rng.integers(0, 255, (16, 32, 32, 3)).astype(np.uint8)
    batch = {"image": images, "label": (np.arange(16) % 2).astype(np.int32)}
    optimizer = optax.sgd(0.05, momentum=0.9)
    results = []
    for mesh in (data_mesh(jax.devices()[:1]), data_mesh(fsdp=fsdp)):
        state = init_state(detector.params, optimizer, 0)
        step = compiled(train_step(apply_detector(detector.config), optimizer, image_inputs(HALF, HALF)), state, mesh)
        state, losses = distribute(mesh, state), []
        for _ in range(3):
            state, metrics = step(state, shard_batch(mesh, batch))
            losses.append(float(metrics.loss))
        results.append((losses, state))
    (alone, one), (shared, many) = results
    np.testing.assert_allclose(shared, alone, rtol=1e-5)
    kernel = many.params["backbone"]["layers"]["mlp"]["fc1"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // fsdp
    moments = [leaf for leaf in jax.tree.leaves(many.optimizer) if leaf.shape == kernel.shape]
    assert len(moments) == 1
    assert all(leaf.addressable_shards[0].data.size == leaf.size // fsdp for leaf in moments)
    gathered = flatten(replicate(data_mesh(fsdp=fsdp), many.params))
    for path, value in flatten(one.params).items():
        np.testing.assert_allclose(gathered[path], value, rtol=1e-5, atol=1e-6, err_msg=path)
