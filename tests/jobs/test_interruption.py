"""Runs that are killed, stopped, moved to other devices or spread over processes; each is a process of its own."""

import json
import random
import signal
import socket
import time

import numpy as np
import pytest

from r2m_jax import load_detector
from r2m_jax.training.log import read_log
from r2m_jax.trees import flatten

pytestmark = pytest.mark.integration

STEPS = 60


@pytest.fixture
def arguments(base, index, tmp_path):
    def make(name, *more):
        return [
            "train", "specialist", f"name={name}", f"data.index={index}", f"model.base={base}",
            f"out={tmp_path}/{{name}}", "batch_size=16", "optimizer.learning_rate=1e-3", "states.every=7", "window=5",
            f"steps={STEPS}", "validation.every=10", *more,
        ]  # fmt: skip

    return make


def curve(folder):
    return [(r["step"], r["loss"], r["gradient_norm"]) for r in read_log(folder / "log.jsonl") if r["kind"] == "step"]


def wait_for_step(run, folder, step, process):
    """Until the log has got so far; the process must still be running."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        rows = curve(folder) if (folder / "log.jsonl").exists() else []
        if rows and rows[-1][0] >= step:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    raise AssertionError("the run did not get so far")


def wait_for_save(states, process):
    """Until a state is half written: Orbax writes beside the place and renames."""
    while not any("orbax-checkpoint-tmp" in path.name for path in states.iterdir()):
        assert process.poll() is None, process.stderr.read()


@pytest.mark.parametrize("devices", [1, 8])
def test_killed_at_any_step_a_run_goes_on_bit_for_bit(r2m, arguments, tmp_path, devices):
    r2m(*arguments("whole"), devices=devices)
    chance = random.Random(devices)
    for number, saving in ((chance.randrange(8, 25), False), (chance.randrange(25, 40), True)):
        process = r2m(*arguments("killed"), devices=devices, wait=False)
        wait_for_step(r2m, tmp_path / "killed.run", number, process)
        if saving:
            wait_for_save(tmp_path / "killed.run" / "states", process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (tmp_path / "killed").exists()
    result = r2m(*arguments("killed"), devices=devices)
    assert "going on after step" in result.stderr
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    assert len(curve(tmp_path / "whole")) == STEPS
    one, other = (flatten(load_detector(tmp_path / name).params) for name in ("whole", "killed"))
    for path in one:
        np.testing.assert_array_equal(one[path], other[path], err_msg=path)


def test_asked_to_stop_a_run_saves_and_goes_on_elsewhere(r2m, arguments, tmp_path):
    r2m(*arguments("whole"))
    process = r2m(*arguments("moved"), wait=False)
    wait_for_step(r2m, tmp_path / "moved.run", 15, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "the same command goes on from there" in err
    assert "Traceback" not in err
    # Taken up on four devices, two of which share each parameter: the same but for the order of sums.
    result = r2m(*arguments("moved", "fsdp=2"), devices=4)
    assert "going on after step" in result.stderr
    steps, whole = curve(tmp_path / "moved"), curve(tmp_path / "whole")
    assert [row[0] for row in steps] == [row[0] for row in whole]
    np.testing.assert_allclose([row[1] for row in steps], [row[1] for row in whole], rtol=2e-2)
    np.testing.assert_allclose([row[1] for row in steps[:15]], [row[1] for row in whole[:15]], rtol=0)


def test_two_processes_train_as_one(r2m, arguments, tmp_path):
    r2m(*arguments("alone", "optimizer.name=sgd", "fsdp=4"), devices=4)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = ("--coordinator", f"127.0.0.1:{port}", "--processes", 2)
    both = [
        r2m(*arguments("both", "optimizer.name=sgd", "fsdp=4"), *shared, "--process", number, devices=2, wait=False)
        for number in (0, 1)
    ]
    for process in both:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    assert both[1].stdout.closed
    alone, together = curve(tmp_path / "alone"), curve(tmp_path / "both")
    assert [row[0] for row in alone] == [row[0] for row in together]
    np.testing.assert_allclose([r[1] for r in together], [r[1] for r in alone], rtol=1e-5)
    validations = [
        [r["frame_auc"] for r in read_log(tmp_path / name / "log.jsonl") if r["kind"] == "validation"]
        for name in ("alone", "both")
    ]
    np.testing.assert_allclose(*validations, atol=1e-6)
    one, other = (flatten(load_detector(tmp_path / name).params) for name in ("alone", "both"))
    for path in one:
        np.testing.assert_allclose(other[path], one[path], rtol=1e-4, atol=1e-6, err_msg=path)


def test_an_unwritable_state_ends_the_run_with_a_sentence_and_the_last_one_whole(r2m, arguments, tmp_path):
    """A full disk, as a file-size limit: the states no longer fit."""
    import subprocess
    import sys

    command = [sys.executable, "-m", "r2m_jax", *map(str, arguments("full", "states.every=10"))]
    code = (
        "import resource, runpy, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_module('r2m_jax', run_name='__main__')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *command[2:]], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 2, result.stderr
    assert "could not be saved" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "full").exists()


def test_the_command_says_what_it_would_do(r2m, arguments):
    result = r2m(*arguments("x", "recipe=lora")[:1], "recipe=lora", *arguments("x")[2:], "--dry-run")
    assert "rank: 8" in result.stdout
    assert json.dumps("x") in result.stdout or "name: x" in result.stdout
    wrong = r2m(*arguments("x"), "optimizer.lr=1", check=False)
    assert wrong.returncode == 2
    assert wrong.stderr == (
        "error: the section optimizer of the recipe has no key 'lr'; Available: name, learning_rate, weight_decay, b1, "
        "b2, eps, momentum, nesterov, schedule, warmup, clip_norm, accumulate, groups.\n"
    )
