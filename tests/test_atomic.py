"""Outputs of processes that were killed, and of disks that are full."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from r2m_jax import InputError
from r2m_jax.atomic import DiskError, atomic_directory, atomic_file, disk_errors

KILLED = """
import os, signal, sys
from pathlib import Path
from r2m_jax.atomic import atomic_directory
with atomic_directory(Path(sys.argv[1])) as aside:
    (aside / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_left_overs_of_the_dead_are_removed_and_the_living_left_alone(tmp_path):
    result = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "out")], check=False, timeout=60)
    assert result.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert (left / "half").exists()
    with atomic_directory(tmp_path / "out.other"):
        pass
    assert left.exists()  # of another output
    with atomic_directory(tmp_path / "out") as first, atomic_directory(tmp_path / "out", overwrite=True) as second:
        assert not left.exists()
        assert first.exists()
        (second / "whole").write_text("whole")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.other"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_full_disk_is_a_sentence_and_nothing_is_left(tmp_path, number):
    def half(kind, name):
        with kind(tmp_path / name) as aside:
            (aside / "half" if aside.is_dir() else aside).write_text("half")
            raise OSError(number, os.strerror(number))

    with pytest.raises(InputError, match=rf"out cannot be written \({os.strerror(number)}\); make room"):
        half(atomic_directory, "out")
    with pytest.raises(InputError, match="file cannot be written"):
        half(atomic_file, "file")
    assert not list(tmp_path.iterdir())


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path):
        (tmp_path / "absent").read_text()
    assert issubclass(DiskError, InputError)
