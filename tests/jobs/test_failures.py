"""What happens when a process of several dies, a disk is full or a reader hangs: one sentence, and the way on."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from r2m_jax import load_detector
from r2m_jax.data.index import read_index, write_index
from r2m_jax.parallel.leaving import LOST
from r2m_jax.training.log import read_log

pytestmark = pytest.mark.integration

STEPS = 30


@pytest.fixture
def arguments(base, index, tmp_path):
    def make(name, *more):
        return [
            "train", "specialist", f"name={name}", f"data.index={index}", f"model.base={base}",
            f"out={tmp_path}/{{name}}", "batch_size=16", "optimizer.learning_rate=1e-3", "states.every=10", "window=4",
            f"steps={STEPS}", "validation.every=0", *more,
        ]  # fmt: skip

    return make


@pytest.fixture
def pair(r2m, arguments):
    """Two processes that train one model."""

    def start(name):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = (*arguments(name), "--coordinator", f"127.0.0.1:{port}", "--processes", 2)
        return [r2m(*shared, "--process", number, wait=False) for number in (0, 1)]

    return start


def curve(folder):
    return [(r["step"], r["loss"], r["gradient_norm"]) for r in read_log(folder / "log.jsonl") if r["kind"] == "step"]


def wait_for_step(folder, step, processes):
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        rows = curve(folder) if (folder / "log.jsonl").exists() else []
        if rows and rows[-1][0] >= step and (folder / "states" / "10").exists():  # which is saved beside the training
            return
        for process in processes:
            assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    raise AssertionError("the run did not get so far")


def ended(processes, code):
    """Every process ends by itself, with this code and without a traceback; what each said."""
    said = []
    for process in processes:
        _, err = process.communicate(timeout=280)
        assert process.returncode == code, err
        assert "Traceback" not in err
        said.append(err)
    return said


def one_sentence(text):
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, text
    assert text.rstrip().endswith(errors[0])
    return errors[0]


def test_two_processes_of_which_one_dies_or_is_asked_to_stop_go_on_bit_for_bit(pair, tmp_path):
    """Steps that were done twice, before the kill and after it from the last state, are the same to the bit."""
    first, second = pair("killed")
    wait_for_step(tmp_path / "killed.run", 16, (first, second))
    second.send_signal(signal.SIGKILL)
    (said,) = ended([first], LOST)
    assert "another process of this computation" in one_sentence(said)
    second.communicate()
    assert not (tmp_path / "killed").exists()
    before = curve(tmp_path / "killed.run")

    first, second = pair("killed")
    wait_for_step(tmp_path / "killed.run", 24, (first, second))
    second.send_signal(signal.SIGTERM)  # one is told, both save and stop
    said, _ = ended([first, second], 130)
    assert "going on after step" in said
    assert "the same command goes on from there" in said

    said, _ = ended(pair("killed"), 0)
    assert "going on after step" in said
    found = curve(tmp_path / "killed")
    assert [row[0] for row in found] == list(range(1, STEPS + 1))
    assert found[: len(before)] == before
    load_detector(tmp_path / "killed")


def test_full_and_read_only_disks(base, index, tmp_path):
    """A file system of 300 kB in a mount namespace of its own, then the same read-only."""
    disk, model = tmp_path / "disk", tmp_path / "model"
    disk.mkdir()
    shutil.copytree(base, model)
    r2m = f"{sys.executable} -m r2m_jax"
    script = f"""
        mount -t tmpfs -o size=300k none {disk} || exit 99
        {r2m} merge --base {base} --specialist a={model} --specialist b={base} --method r2m --out {disk}/out
        echo "code $?"; ls -A {disk} | grep -vx out.merge
        mount -o remount,ro {disk}
        {r2m} eval --model a={model} --data {index} --out {disk}/results
        echo "code $?"; ls -A {disk} | grep -vx out.merge
    """
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    if shutil.which("unshare") is None:
        pytest.skip("unshare is absent: nothing can be mounted")
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(inside, capture_output=True, text=True, timeout=240, check=False, env=env)
    if result.returncode == 99 or "code" not in result.stdout:
        pytest.skip(f"nothing can be mounted here: {result.stderr.strip()[:200]}")
    assert result.stdout.split("\n") == ["code 2", "code 2", ""], result.stdout + result.stderr
    full, locked = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert f"{disk}/out" in full
    assert "No space left on device" in full
    assert f"{disk} cannot be written (Read-only file system)" in locked
    assert "Traceback" not in result.stderr


def test_a_reader_that_hangs_ends_the_run_and_is_named(r2m, arguments, index, tmp_path):
    records = read_index(index)
    hung = tmp_path / "hung.png"
    os.mkfifo(hung)  # opening it waits for somebody to write into it
    place = next(number for number, record in enumerate(records) if record.split == "train")
    records[place] = replace(records[place], path=str(hung))
    write_index(records, tmp_path / "index.csv")
    arguments = [*arguments("hung"), f"data.index={tmp_path / 'index.csv'}", "data.timeout=4"]
    result = r2m(*arguments, check=False)
    assert result.returncode == 2, result.stderr
    said = one_sentence(result.stderr)
    assert f"reading {hung} for" in said
    assert "data.timeout" in said
    assert not (tmp_path / "hung").exists()
