import socket
import threading
import time
import warnings

import numpy as np
import pytest

from r2m_jax import InputError
from r2m_jax.parallel import any_process, check, connect, gather, gather_arrays, gather_rows, is_first, joined, meet
from r2m_jax.parallel.processes import _cluster
from r2m_jax.parallel.roll_call import roll_call

SLURM = {
    "SLURM_JOB_ID": "4097", "SLURM_STEP_NODELIST": "gpu[007-008],old3", "SLURM_NTASKS": "3", "SLURM_PROCID": "2",
    "SLURM_LOCALID": "1",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911", "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}  # fmt: skip


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def environment(monkeypatch):
    for name in (*SLURM, *OPEN_MPI, "KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX", "JAX_COORDINATOR_PORT"):
        monkeypatch.delenv(name, raising=False)
    return lambda settings: [monkeypatch.setenv(*setting) for setting in settings.items()]


def called(port, present, count, timeout=3.0, told=None, commands=()):
    """What a roll call says to each of the processes that are present; empty where it lets them go on."""
    said = {}

    def call(place, number):
        try:
            command = dict(commands).get(number, "merge")
            roll_call(f"127.0.0.1:{port}", (told or {}).get(number, count), number, command=command, timeout=timeout)
            said[place] = ""
        except InputError as error:
            said[place] = str(error)

    threads = [threading.Thread(target=call, args=each) for each in enumerate(present)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return [said[place] for place in range(len(present))]


def test_alone_everything_is_local():
    with joined(multi_process="off"):
        assert is_first()
    assert any_process(True)
    assert not any_process(False)
    rows = np.arange(6).reshape(3, 2)
    np.testing.assert_array_equal(gather_rows(rows), rows)
    check()
    assert meet("here") == ["here"]
    assert gather(b"x") == [b"x"]
    assert gather_arrays({"file": rows})[0]["file"] is rows


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((None, 2, None), "--processes and --process need --coordinator"),
        (("127.0.0.1:1", 2, 2), "process 2 of 2 does not exist; they are counted from 0"),
        (("127.0.0.1:1", 2, None), "process None of 2 does not exist"),
        (("here", 2, 0), "--coordinator here is no HOST:PORT"),
    ],
)
def test_what_does_not_fit_is_said(arguments, says):
    with pytest.raises(InputError, match=says):
        connect(*arguments)


def test_all_that_were_called_go_on(port):
    assert called(port, [0, 3, 1, 2], 4, timeout=20) == [""] * 4


def test_the_missing_are_named_to_all(port):
    assert (
        called(port, [2, 0], 4, timeout=1)
        == ["processes 1, 3 of 4 did not call process 0 within 1 s; start them all."] * 2
    )
    assert called(port, [1], 2, timeout=0.5) == [
        f"process 0 did not answer at 127.0.0.1:{port} within 0.5 s; start it."
    ]


def test_who_does_not_belong_is_named(port):
    twice = called(port, [1, 1, 0], 3)
    assert "there are two processes 1; every one needs a number of its own." in twice
    told = called(port, [0, 1], 2, told={1: 3})
    assert told == ["process 1 was told of 3 processes, process 0 of 2."] * 2
    other = called(port, [0, 1], 2, commands=[(1, "eval")])
    assert (
        other
        == ["process 1 runs 'eval', process 0 'merge'; all must run the same (--multi-process off keeps them apart)."]
        * 2
    )


def test_a_scan_of_the_port_is_no_process(port):
    said = []
    first = threading.Thread(target=lambda: said.extend(called(port, [0], 2, timeout=20)))
    first.start()
    for _ in range(200):
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as peer:
                peer.sendall(b"GET / HTTP/1.0\r\n\r\n")
                break
        except OSError:
            time.sleep(0.05)
    assert called(port, [1], 2, timeout=20) == [""]
    first.join()
    assert said == [""]


def test_clusters_are_found_and_lone_machines_left_alone(environment):
    assert _cluster(1, lone=True) is None
    environment({"KUBERNETES_SERVICE_HOST": "10.0.0.1"})  # a pod that is no indexed Job, e.g. a notebook
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _cluster(1, lone=True) is None
    environment(SLURM)
    # JAX takes a port from the job's number: 65535 - 2¹² + 1 + 4097 mod 2¹².
    assert _cluster(1, lone=True) == ("gpu007:61441", 3, 2, [1])
    environment({"SLURM_NTASKS": "1"})
    assert _cluster(1, lone=True) is None
    environment({"SLURM_NTASKS": "many"})
    with pytest.raises(InputError, match=r"SlurmCluster does not say .* or --multi-process off"):
        connect(None, None, None, multi_process="auto")


def test_open_mpi_is_found(environment):
    environment(OPEN_MPI)
    address, count, number, local = _cluster(1, lone=True)
    assert (address.partition(":")[0], count, number, local) == ("10.96.0.1", 4, 3, [1])
