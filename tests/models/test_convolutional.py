"""Convolutional networks: counts of the authors', torch's numbers, adapters, plans."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2m_jax import InputError
from r2m_jax.models import apply_head
from r2m_jax.models.convolutional import (
    PLANS,
    Block,
    ConvolutionalDetector,
    Plan,
    apply_backbone,
    apply_convolutional,
    convolutional_shapes,
    init_convolutional,
    learning_layers,
    parse_plan,
    plan_name,
    trained_parameters,
)
from r2m_jax.trees import count_parameters, flatten

TINY = Plan((4, "pool", Block(6, 2, 8), 6, "pool"), hidden=(10,), image_size=18)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # of the authors' modules, counted by torch
        ("vgg-4.5m", 4_590_786), ("vgg-1.8m", 1_800_066), ("vgg-1.34m", 1_340_418), ("vgg-0.9m", 902_146),
        ("vgg-0.44m", 441_378),
    ],
)  # fmt: skip
def test_networks_are_as_large_as_the_authors(name, parameters):
    plan = PLANS[name]
    assert count_parameters(trained_parameters(convolutional_shapes(plan))) == parameters
    assert plan_name(replace(plan, image_size=64).with_adapter("last")) == name
    with_adapter = count_parameters(trained_parameters(convolutional_shapes(plan.with_adapter("last"))))
    channels = plan.blocks[-1].out
    assert with_adapter - parameters == {128: 18_048, 64: 4_928}[channels]


def test_training_and_scoring_are_those_of_torch(rng):
    torch = pytest.importorskip("torch", reason="torch is the reference implementation (extra `dev`)")
    plan = TINY.with_adapter(2)
    theirs = network(torch, plan)
    params = _as_ours(theirs, plan)
    run = apply_backbone(plan)
    learning = learning_layers(plan, lambda path: True)
    assert set(learning) == {"layer1", "layer2", "layer3", "adapter"}

    def loss(trained, params, images):
        out = run({**params, **trained}, images, learning=learning)
        logits = apply_head(trained["head"], out.features)
        return (logits**2).mean(), (logits, out.statistics)

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.01)
    theirs.train()
    for _ in range(2):
        images = rng.normal(size=(6, 18, 18, 3)).astype(np.float32)
        trained = trained_parameters(params)
        (_, (logits, statistics)), gradient = step(trained, params, images)
        params = jax.tree.map(lambda p, g: p - 0.01 * g, trained, gradient) | {"statistics": statistics}
        expected = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        np.testing.assert_allclose(logits, expected.detach().numpy(), atol=1e-5)
        optimizer.zero_grad()
        (expected**2).mean().backward()
        optimizer.step()
    for (path, mine), other in zip(flatten(params).items(), flatten(_as_ours(theirs, plan)).values(), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5, err_msg=path)
    theirs.eval()
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(apply_convolutional(plan)(params, images), expected, atol=1e-5)


def network(torch, plan):
    """A torch module of a plan, named as directories name tensors; nothing in it is 0 or 1, which would hide swaps."""
    nn = torch.nn

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            for layer in plan.layers():
                if layer.block is None:
                    continue
                block = layer.block
                parts = {"conv": nn.Conv2d(layer.inputs, block.channels, 3, padding=1, groups=block.groups)}
                if block.pointwise:
                    parts["pointwise"] = nn.Conv2d(block.channels, block.pointwise, 1)
                parts["norm"] = nn.BatchNorm2d(block.out)
                setattr(self, layer.name, nn.ModuleDict(parts))
            widths = (plan.flat, *plan.hidden)
            for number in range(1, len(widths)):
                setattr(self, f"fc{number}", nn.Linear(widths[number - 1], widths[number]))
            self.head = nn.Linear(widths[-1], 2)

        def forward(self, x):
            for layer in plan.layers():
                if layer.block is None:
                    x = nn.functional.max_pool2d(x, 2)
                    continue
                for part in getattr(self, layer.name).values():
                    x = part(x)
                x = torch.relu(x)
            x = x.flatten(1)
            for number in range(1, len(plan.hidden) + 1):
                x = torch.relu(getattr(self, f"fc{number}")(x))
            return self.head(x)

    torch.manual_seed(0)
    made = Network()
    with torch.no_grad():
        for tensor in made.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.05 * torch.rand_like(tensor))
    return made


def _as_ours(module, plan):
    from r2m_jax.checkpoints.convolutional import assemble_convolutional
    from r2m_jax.checkpoints.tensors import LazyTensor

    tensors = {name: LazyTensor.of(tensor.numpy().copy()) for name, tensor in module.state_dict().items()}
    return assemble_convolutional(tensors, plan, "the torch module")


def test_dropout_keeps_the_mean_and_follows_its_key(rng):
    # Without hidden biases or ReLU's kink (all positive), the mean over keys is the output without dropout.
    plan = Plan((4, "pool"), hidden=(1,), image_size=8)
    params = jax.tree.map(jnp.abs, init_convolutional(plan, jax.random.key(0)))
    images = jnp.asarray(rng.uniform(size=(2, 8, 8, 3)), jnp.float32)
    run = jax.jit(lambda key: apply_backbone(plan)(params, images, key=key).features)
    plain = apply_backbone(plan)(params, images).features
    drawn = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(1), 1500))
    np.testing.assert_allclose(drawn.mean(axis=0), plain, rtol=0.05)
    assert (drawn.std(axis=0) > 0.01 * plain).all()
    np.testing.assert_array_equal(run(jax.random.key(1)), run(jax.random.key(1)))


@pytest.mark.parametrize("place", ["middle", 2])
def test_a_residual_adapter_changes_nothing_at_first(place, rng):
    params = jax.tree.map(lambda leaf: leaf + 0.01, init_convolutional(TINY, jax.random.key(0)))
    before = ConvolutionalDetector.create(TINY, params, processor=None)
    after = before.with_adapter(place, True, jax.random.key(1))
    images = jnp.asarray(rng.normal(size=(2, 18, 18, 3)), jnp.float32)
    expected = before(images)
    np.testing.assert_allclose(after(images), expected, atol=1e-6)
    learnt = jax.jit(partial(apply_backbone(after.config), learning=("adapter",)))(after.params, images)
    np.testing.assert_allclose(learnt.features, before.features(images), atol=1e-6)
    plain = before.with_adapter(place, False, jax.random.key(1))
    assert (np.abs(np.asarray(plain(images) - expected)) > 1e-3).any()
    for path, leaf in flatten(before.params).items():
        np.testing.assert_array_equal(flatten(after.params)[path], leaf)
    with pytest.raises(InputError, match="has an adapter already, after block"):
        after.with_adapter("last", False, jax.random.key(1))


def test_layers_that_are_not_trained_keep_their_statistics(rng):
    plan = TINY.with_adapter("last")
    params = init_convolutional(plan, jax.random.key(0))
    learning = learning_layers(plan, lambda path: path.startswith("backbone/adapter/"))
    run = jax.jit(partial(apply_backbone(plan), learning=learning))
    out = run(params, jnp.asarray(rng.normal(size=(4, 18, 18, 3)), jnp.float32))
    moved = {path.split("/")[0] for path, leaf in flatten(out.statistics).items()
             if (leaf != flatten(params["statistics"])[path]).any()}  # fmt: skip
    assert moved == {"adapter"}


def test_plans_come_back_from_json_and_bad_ones_end_with_a_sentence():
    import json

    plan = TINY.with_adapter(3, residual=True)
    assert parse_plan(json.loads(json.dumps(plan.to_dict())), "x") == plan
    for settings, message in (
        ({"body": ["pool"], "hidden": []}, "a plan needs a convolution"),
        ({"body": [4] + ["pool"] * 6, "hidden": [], "image_size": 32}, "images of 32 px leave nothing after 6"),
        ({"body": [{"channels": 4, "groups": 2}], "hidden": []}, "2 do not divide 3 and 4"),
        ({"body": [4], "hidden": [8], "dropout": 1.0}, "dropout is from 0 to below 1"),
        ({"body": [4], "hidden": [8], "depth": 1}, "x: depth: a plan has no such key; it has body, hidden, image_size"),
        ({"body": [4, "pol"], "hidden": [8]}, "x: body.1: 'pol' is neither channels"),
        ({"body": [4]}, "x: hidden: "),
        ({"body": [4], "hidden": [], "adapter": {"after": 2}}, "an adapter goes after block 1 to 1"),
    ):
        with pytest.raises(InputError, match=message):
            parse_plan(settings, "x")
