"""Merges, scores, training and Orbax stores of 2 and of 4 real processes, against the same of one.

The processes are started once and do everything in turn; the last merge fails in one of them.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from r2m_jax import load_detector, save_detector
from r2m_jax.checkpoints import provenance
from r2m_jax.checkpoints.convert import convert
from r2m_jax.checkpoints.directory import open_weights
from r2m_jax.checkpoints.sharded import load_sharded, open_sharded
from r2m_jax.checkpoints.tensors import safetensors_files
from r2m_jax.evaluation.scores import read_scores
from r2m_jax.jobs.evaluate import evaluate
from r2m_jax.jobs.merge import merge
from r2m_jax.jobs.train import train
from r2m_jax.parallel import data_mesh
from r2m_jax.progress import Reporter
from r2m_jax.recipes import TrainRecipe, load_recipe
from r2m_jax.recipes.evaluating import EvalRecipe
from r2m_jax.recipes.merging import MergeRecipe
from r2m_jax.training.log import read_log
from r2m_jax.trees import flatten

pytestmark = pytest.mark.integration

QUIET = Reporter(quiet=True)
KINDS = {
    "merge": (MergeRecipe, merge), "eval": (EvalRecipe, evaluate), "train": (TrainRecipe, train),
}  # fmt: skip
DONE = {2: ("r2m", "store"), 4: ("ties", "scores", "curve")}
"""What so many processes do; all of it in both would take too long."""
SHIPPED = {"train": "specialist"}
WORKER = Path(__file__).with_name("several_processes.py")


def tasks(base, models, index, folder):
    """What is done, by name: command and settings. Fewer images than rows of a batch, and no multiple of processes."""
    three = {"base": str(base), "models": {name: str(models / name) for name in ("fs", "fr", "efs")}, "memory": 1}
    data = {"index": str(index), "split": "test", "limit": 35}
    scored = {name: str(models / name) for name in ("fs", "efs")}
    made = {
        "r2m": ("merge", {**three, "method": "r2m", "parameters": {"rank": 0.5, "fused_qkv": True}}),
        "ties": ("merge", {**three, "method": "ties", "parameters": {"density": 0.3}}),
        "scores": ("eval", {"models": scored, "data": data, "batch_size": 4, "intervals": None}),
        "curve": ("train", {
            "name": "curve", "data": {"index": str(index)}, "model": {"base": str(base)},
            "optimizer": {"name": "sgd", "learning_rate": 1e-3}, "batch_size": 8, "steps": 6,
            "validation": {"every": 0},
        }),
    }  # fmt: skip
    return {name: (command, {**settings, "out": str(folder / name)}) for name, (command, settings) in made.items()}


@pytest.fixture(scope="module")
def models(base, tmp_path_factory):
    """Three specialists of the random base, and one that is broken in a single place."""
    origin, folder = load_detector(base), tmp_path_factory.mktemp("models")
    made = provenance.record("specialist", inputs=provenance.input_hashes(safetensors_files(base)))
    rng = np.random.default_rng(0)
    for number, name in enumerate(("fs", "fr", "efs"), start=1):
        moved = jax.tree.map(
            lambda leaf, size=0.01 * number: leaf + size * rng.standard_normal(leaf.shape, np.float32), origin.params
        )
        save_detector(origin.replace_params(moved), folder / name, provenance=made)
    save_detector(origin, folder / "broken", provenance=made)
    file = folder / "broken" / "model.safetensors"
    content = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")  # of the first tensor
    content[start : start + 4] = np.float32(np.nan).tobytes()
    file.write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def alone(base, models, index, tmp_path_factory):
    """What one process makes."""
    folder = tmp_path_factory.mktemp("alone")
    for command, settings in tasks(base, models, index, folder).values():
        recipe, job = KINDS[command]
        job(load_recipe(recipe, command, SHIPPED.get(command), [], settings), reporter=QUIET)
    return folder


@pytest.fixture(scope="module", params=[2, 4])
def together(request, base, models, index, tmp_path_factory):
    """What so many processes make, and how each of them ended."""
    folder = tmp_path_factory.mktemp(f"of-{request.param}")
    given = tasks(base, models, index, folder)
    failing = dict(given["ties"][1], out=str(folder / "failed"))
    given = {name: given[name] for name in DONE[request.param] if name in given}
    failing["models"] = {"fs": str(models / "fs"), "broken": str(models / "broken")}
    said = folder / "tasks.json"
    said.write_text(
        json.dumps(
            {"tasks": given, "store": str(models / "efs") if "store" in DONE[request.param] else None, "last": failing}
        )
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    forced = f"--xla_force_host_platform_device_count={4 // request.param}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": forced}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    commands = [[sys.executable, WORKER, said, str(port), str(request.param), str(n)] for n in range(request.param)]
    processes = [subprocess.Popen(command, **pipes) for command in commands]
    ended = [(*process.communicate(timeout=500), process.returncode) for process in processes]
    return folder, ended


def weights(folder):
    return {name: tensor.read() for name, tensor in open_weights(folder).items()}


def test_a_merge_is_that_of_one_process(alone, together):
    folder, ended = together
    name = DONE[len(ended)][0]
    one, other = weights(alone / name), weights(folder / name)
    assert one.keys() == other.keys()
    # The one has eight devices, over which bases are found in another order of sums; thresholds are counted.
    for tensor in one:
        np.testing.assert_allclose(
            other[tensor], one[tensor], rtol=0, atol=1e-7 if name == "r2m" else 0, err_msg=f"{name} {tensor}"
        )
    # Every process wrote a file of its own, none of them everything.
    sizes = [file.stat().st_size for file in safetensors_files(folder / name) if file.suffix == ".safetensors"]
    assert len(sizes) == len(ended)
    assert max(sizes) < 0.8 * sum(sizes)
    facts = [json.loads((each / name / "r2m.json").read_text()) for each in (alone, folder)]
    assert facts[0]["inputs"] == facts[1]["inputs"]
    assert facts[0]["diagnostics"].keys() == facts[1]["diagnostics"].keys()
    assert facts[0]["diagnostics"].get("thresholds") == facts[1]["diagnostics"].get("thresholds")
    assert not (folder / f"{name}.merge").exists()


@pytest.mark.parametrize("together", [4], indirect=True)
def test_scores_are_those_of_one_process_in_its_order(alone, together):
    folder, _ = together
    one, other = (read_scores(each / "scores" / "scores.csv") for each in (alone, folder))
    assert other.records == one.records
    assert len({record.path for record in one.records}) == 35
    assert other.models == one.models
    for model in one.models:
        np.testing.assert_allclose(other.logits[model], one.logits[model], atol=1e-5)
    assert (folder / "scores" / "table.md").read_text() == (alone / "scores" / "table.md").read_text()


@pytest.mark.parametrize("together", [4], indirect=True)
def test_four_processes_train_as_one(alone, together):
    folder, _ = together
    one, other = (
        [(r["step"], r["loss"]) for r in read_log(each / "curve" / "log.jsonl") if r["kind"] == "step"]
        for each in (alone, folder)
    )
    assert len(one) == 6
    np.testing.assert_allclose(other, one, rtol=1e-5)


@pytest.mark.parametrize("together", [2], indirect=True)
def test_a_store_of_all_processes_is_read_onto_another_mesh_and_made_one_model(together, models, base, tmp_path):
    folder, _ = together
    wanted = load_detector(models / "efs").params
    placed = load_sharded(folder / "store", wanted, data_mesh(fsdp=8))
    assert any(len(leaf.sharding.device_set) == 8 and not leaf.is_fully_replicated for leaf in jax.tree.leaves(placed))
    for path, leaf in flatten(wanted).items():
        np.testing.assert_array_equal(np.asarray(flatten(placed)[path]), leaf, err_msg=path)
    kernel = open_sharded(folder / "store")["backbone/layers/mlp/fc1/kernel"]
    np.testing.assert_array_equal(kernel.read(slice(1, 2)), wanted["backbone"]["layers"]["mlp"]["fc1"]["kernel"][1:2])
    report = convert(str(folder / "store"), tmp_path / "model", base=str(base))
    assert report.kind.startswith("Orbax store")
    one, other = weights(models / "efs"), weights(tmp_path / "model")
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(other[name], one[name], err_msg=name)


def test_what_one_process_finds_ends_all_and_leaves_nothing(together):
    folder, ended = together
    assert [code for _, _, code in ended] == [2] * len(ended), [err for _, err, _ in ended]
    said = [out.splitlines()[-1] for out, _, _ in ended]
    finders = [number for number, line in enumerate(said) if line.startswith("InputError broken: ")]
    assert len(finders) == 1
    others = [line for number, line in enumerate(said) if number != finders[0]]
    assert all(line.startswith(f"FailedElsewhere process {finders[0]}: broken: ") for line in others)
    assert not [path.name for path in folder.iterdir() if "failed" in path.name]
