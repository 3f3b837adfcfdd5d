"""Processes of one computation of which one dies, hangs or fails: how the others end."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from r2m_jax import InputError
from r2m_jax.parallel.leaving import HEARTBEAT, LOST, heartbeat

# The command with another body: after three rounds the last process waits for its fate, and the others for it.
PROGRAM = """
import sys, time
import numpy as np
import r2m_jax.cli.app as module
from r2m_jax import InputError
from r2m_jax.cli import main
from r2m_jax.parallel import gather_rows, joined

def work():
    address, number, fails = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "fails"
    with joined(address, 2, number):
        for round in range(3):
            gather_rows(np.arange(2))
        print("here", flush=True)
        if fails and number == 1:
            raise InputError("this file is broken.")
        while True:
            gather_rows(np.arange(2))
            time.sleep(0.05)

module.app = work
main()
"""


def pair(fails="", **environment):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    return [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(number), fails], env=env, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number in (0, 1)
    ]  # fmt: skip


def wait_for(processes):
    for process in processes:
        while "here" not in (line := process.stdout.readline()):
            assert line, process.stderr.read()


def last_line(process, code):
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    return last


@pytest.mark.integration
@pytest.mark.parametrize(("victim", "how"), [(0, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_the_loss_of_a_process_ends_the_other_with_a_sentence(victim, how):
    """Process 0 is the coordinator, whose loss JAX's client answers by aborting; a stopped one sends no heartbeats."""
    both = pair(**{HEARTBEAT: "10"})
    wait_for(both)
    both[victim].send_signal(how)
    assert "another process of this computation has ended" in last_line(both[1 - victim], LOST)
    both[victim].kill()
    both[victim].communicate()


@pytest.mark.integration
def test_a_process_that_fails_alone_says_why_and_does_not_hold_the_others():
    both = pair("fails")
    wait_for(both)
    assert last_line(both[1], 2) == "error: this file is broken."
    assert "another process of this computation has ended" in last_line(both[0], LOST)


@pytest.mark.parametrize("text", ["0", "-3", "soon", ""])
def test_a_heartbeat_that_is_no_time(monkeypatch, text):
    assert heartbeat() == 60
    monkeypatch.setenv(HEARTBEAT, text)
    with pytest.raises(InputError, match=rf"{HEARTBEAT}={text} is no number of seconds"):
        heartbeat()
