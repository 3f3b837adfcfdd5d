"""Clean specialists give no finding, every planted fault is found and named, and nobody else is blamed for it."""

import numpy as np
import pytest

from r2m_jax import InputError
from r2m_jax.merging.screen import screen
from r2m_jax.trees import unflatten

SHAPES = {
    "embeddings/position": (17, 24),
    "layers/attn/q/kernel": (4, 24, 24),
    "layers/attn/q/bias": (4, 24),
    "layers/attn/out/kernel": (4, 24, 24),
    "layers/mlp/fc1/kernel": (4, 24, 48),
    "layers/mlp/fc2/kernel": (4, 48, 24),
    "layers/norm1/scale": (4, 24),
    "post_norm/bias": (24,),
    "temperature": (),
}
NAMES = ["FS", "FR", "EFS", "FE", "S5", "S6", "S7", "S8", "S9", "S10"]
LAYER = "layers/mlp/fc1/kernel"


def tree(rng, scale=1.0):
    return {path: (scale * rng.normal(size=shape)).astype(np.float32) for path, shape in SHAPES.items()}


def clean(seed, count, shared=0.5):
    """Fine-tuned specialists (flat dicts): a common part, an own one, lengths of 0.5 to 3 times 2 % of θ₀.

    Leaves move by different amounts, the same in all specialists; biases of θ₀ are nearly zero and move far.
    """
    rng = np.random.default_rng(seed)
    theta0 = tree(rng)
    theta0["layers/attn/q/bias"] *= 1e-3
    leaf_scales = {path: np.exp(rng.normal(scale=0.5)) for path in SHAPES}
    common = tree(rng)
    thetas = []
    for factor in rng.uniform(0.5, 3, size=count):
        own = tree(rng)
        thetas.append({
            path: theta0[path]
            + np.float32(0.02 * factor * leaf_scales[path]) * (shared * common[path] + (1 - shared) * own[path])
            for path in SHAPES
        })  # fmt: skip
    return theta0, thetas


def run(theta0, thetas, names=None):
    findings = screen(unflatten(theta0), [unflatten(theta) for theta in thetas], names or NAMES[: len(thetas)])
    for finding in findings:
        assert finding.specialist in finding.sentence
        assert finding.where == "whole model" or finding.where in finding.sentence
        assert finding.sentence.endswith(".")
    return findings


def told(findings):
    return [(finding.specialist, finding.kind, finding.where) for finding in findings]


@pytest.mark.parametrize("shared", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("count", [1, 2, 3, 10])
@pytest.mark.parametrize("seed", range(6))
def test_clean_specialists_give_no_finding(seed, count, shared):
    assert run(*clean(seed, count, shared)) == []


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [2, 4])
def test_low_rank_training_is_clean(seed, count):
    """LoRA: some matrices only, every change of rank one; beside it, one trained in full."""
    theta0, thetas = clean(seed, count)
    rng = np.random.default_rng(seed)
    thetas[0] = {path: leaf.copy() for path, leaf in theta0.items()}
    for path in ("layers/attn/q/kernel", "layers/attn/out/kernel"):
        thetas[0][path] += np.einsum("li,lj->lij", *(0.1 * rng.normal(size=(2, 4, 24)))).astype(np.float32)
    assert run(theta0, thetas) == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(value):
    theta0, thetas = clean(0, 3)
    thetas[1][LAYER][2, 3, 4] = value
    thetas[1]["post_norm/bias"][:5] = value
    (finding,) = run(theta0, thetas)
    assert (finding.specialist, finding.kind, finding.where) == ("FR", "non_finite", "post_norm/bias")
    assert finding.value == 6
    assert "and 1 other leaf hold NaN or infinite values (6 of them)" in finding.sentence


def move(theta0, theta, factor, paths=None):
    """Scale the task vector, of some leaves or of all."""
    return {
        path: (theta0[path] + factor * (leaf - theta0[path])).astype(np.float32) if not paths or path in paths else leaf
        for path, leaf in theta.items()
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [3, 4, 9])
def test_length(seed, count):
    theta0, thetas = clean(seed, count)
    unit = [move(theta0, theta, 0.3 / np.linalg.norm(theta[LAYER] - theta0[LAYER])) for theta in thetas]
    assert told(run(theta0, [move(theta0, unit[0], 15), *unit[1:]])) == [("FS", "norm", "whole model")]
    (short,) = run(theta0, [*unit[:-1], move(theta0, unit[-1], 1 / 15)])
    assert (short.specialist, short.kind) == (NAMES[count - 1], "norm")
    assert short.value == pytest.approx(1 / 15, rel=0.2)


def test_length_of_two_blames_the_longer_and_says_it_may_be_the_other():
    theta0, thetas = clean(1, 2, shared=0.0)
    (finding,) = run(theta0, [move(theta0, thetas[0], 0.03), thetas[1]])
    assert (finding.specialist, finding.kind) == ("FR", "norm")
    assert "unless FS has hardly been trained" in finding.sentence


@pytest.mark.parametrize("seed", range(3))
def test_moved_against_the_others(seed):
    theta0, thetas = clean(seed, 4, shared=0.6)
    assert told(run(theta0, [*thetas[:2], move(theta0, thetas[2], -1), thetas[3]])) == [
        ("EFS", "direction", "whole model")
    ]


def test_two_that_move_apart():
    theta0, thetas = clean(0, 2, shared=0.6)
    (finding,) = run(theta0, [thetas[0], move(theta0, thetas[1], -1)])
    assert finding.kind == "direction"
    assert "FR moved against FS (or the other way round)" in finding.sentence


def test_negated_task_vector():
    theta0, thetas = clean(0, 4)
    mirrored = move(theta0, thetas[0], -0.7)
    assert told(run(theta0, [*thetas, mirrored])) == [("S5", "flipped", "whole model")]
    assert told(run(theta0, [mirrored, *thetas])) == [("FS", "flipped", "whole model")]
    (finding,) = run(theta0, [thetas[0], mirrored])
    assert finding.value == pytest.approx(-1, abs=1e-4)
    assert "the other way round" in finding.sentence


@pytest.mark.parametrize("count", [1, 2, 5])
def test_origin_with_its_sign_changed(count):
    theta0, thetas = clean(2, count)
    thetas[-1] = {path: -leaf for path, leaf in thetas[-1].items()}
    assert told(run(theta0, thetas)) == [(NAMES[count - 1], "flipped_base", "whole model")]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_trained_from_another_origin(count):
    theta0, thetas = clean(2, count)
    thetas[0] = tree(np.random.default_rng(99))
    (finding,) = run(theta0, thetas)
    assert (finding.specialist, finding.kind) == ("FS", "far_base")
    assert finding.value == pytest.approx(np.sqrt(2), rel=0.05)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_unchanged(count):
    theta0, thetas = clean(3, count)
    thetas[0] = theta0
    assert told(run(theta0, thetas)) == [("FS", "unchanged", "whole model")]


def test_identical():
    theta0, thetas = clean(4, 3)
    stored = {path: leaf * np.float32(1 + 1e-6) for path, leaf in thetas[0].items()}
    (finding,) = run(theta0, [*thetas, stored])
    assert (finding.specialist, finding.kind) == ("FE", "identical")
    assert "FE and FS are the same weights" in finding.sentence


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("seed", range(3))
def test_rank_one_spike(seed, count):
    theta0, thetas = clean(seed, count)
    rng = np.random.default_rng(seed)
    spike = np.outer(rng.normal(size=24), rng.normal(size=48))
    tau = np.linalg.norm(thetas[0][LAYER][2] - theta0[LAYER][2])
    thetas[0][LAYER][2] += (4 * tau * spike / np.linalg.norm(spike)).astype(np.float32)
    (finding,) = run(theta0, thetas)
    assert (finding.specialist, finding.kind, finding.where) == ("FS", "spike", f"{LAYER}, layer 2")
    matrix = thetas[0][LAYER][2].astype(float) - theta0[LAYER][2]
    energy = np.linalg.svd(matrix, compute_uv=False) ** 2
    assert finding.value == pytest.approx(energy[0] / energy.sum(), rel=1e-3)


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("path", ["layers/attn/out/kernel", "layers/norm1/scale", "post_norm/bias"])
def test_leaf_far_from_the_origin(path, count):
    theta0, thetas = clean(5, count, shared=0.2)
    thetas[1] = move(theta0, thetas[1], 40, [path])
    found = told(run(theta0, thetas))
    assert {(name, kind, where.split(",")[0]) for name, kind, where in found} - {("FR", "norm", "whole model")} == {
        ("FR", "far_leaf", path)
    }


def test_layers_of_a_leaf_are_one_finding():
    theta0, thetas = clean(6, 3)
    path = "layers/norm1/scale"
    thetas[2][path][1:] = (theta0[path] + 60 * (thetas[2][path] - theta0[path]))[1:]
    (finding,) = run(theta0, thetas)
    assert (finding.specialist, finding.kind) == ("EFS", "far_leaf")
    assert "(and 2 more layers)" in finding.sentence


@pytest.mark.parametrize("count", [1, 4])
def test_leaf_with_its_sign_changed(count):
    theta0, thetas = clean(7, count)
    thetas[0][LAYER][1] *= -1
    found = [entry for entry in told(run(theta0, thetas)) if entry[1] != "norm"]
    assert found == [("FS", "flipped_leaf", f"{LAYER}, layer 1")]


def test_broken_specialists_do_not_make_others_look_odd():
    """Two of five are broken in ways that would move every median."""
    theta0, thetas = clean(8, 5)
    thetas[0] = {path: 50 * leaf for path, leaf in tree(np.random.default_rng(1)).items()}
    thetas[1]["embeddings/position"][0] = np.nan
    assert told(run(theta0, thetas)) == [
        ("FR", "non_finite", "embeddings/position"),
        ("FS", "far_base", "whole model"),
    ]


def test_nothing_left_to_compare():
    theta0, thetas = clean(9, 2)
    thetas[0]["post_norm/bias"][0] = np.nan
    assert [kind for _, kind, _ in told(run(theta0, [thetas[0], theta0]))] == ["non_finite", "unchanged"]
    zero = {path: np.zeros_like(leaf) for path, leaf in theta0.items()}
    assert run(zero, thetas[1:]) == []


def test_mistakes_are_named():
    theta0, thetas = clean(0, 2)
    with pytest.raises(InputError, match="as many different names"):
        run(theta0, thetas, ["FS"])
    flat = {path: leaf for path, leaf in thetas[1].items() if path != "post_norm/bias"}
    with pytest.raises(InputError, match="specialist FR lacks post_norm/bias"):
        run(theta0, [thetas[0], flat])
    theta0["post_norm/bias"][0] = np.nan
    with pytest.raises(InputError, match="the origin: post_norm/bias"):
        run(theta0, thetas)
