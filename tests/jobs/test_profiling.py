"""Traces of work under way, and programs that are compiled once."""

import gzip
import json
import os

import jax
import jax.numpy as jnp
import pytest
from typer.testing import CliRunner

from r2m_jax import InputError
from r2m_jax.profiling import TracingReporter, reporter
from r2m_jax.progress import Reporter


def traces(folder):
    return sorted(folder.rglob("*.xplane.pb"))


def test_the_middle_of_each_work_is_traced_once(tmp_path, capsys):
    @jax.jit
    def early(x):
        return x + 1

    @jax.jit
    def late(x):
        return jnp.sin(x) * 2

    follow = TracingReporter(tmp_path / "traces")
    for _ in range(2):
        with follow.track("train FS", 40) as advance:
            for number in range(40):
                (early if number < 15 else late)(jnp.ones(3)).block_until_ready()
                advance()
    with follow.track("one", 1) as advance:
        advance()
    said = capsys.readouterr().err
    assert said.count("train FS: images 21 to 30 traced in") == 1
    assert "one: too short to be traced" in said
    assert not (tmp_path / "traces" / "one").exists()
    (made,) = traces(tmp_path / "traces" / "train-fs")
    (events,) = made.parent.glob("*.trace.json.gz")
    names = [event.get("name") for event in json.loads(gzip.decompress(events.read_bytes()))["traceEvents"]]
    assert names.count("PjitFunction(late)") in (10, 20)  # some versions note a call twice
    assert "PjitFunction(early)" not in names


def test_work_that_fails_ends_its_trace(tmp_path):
    def fail():
        with TracingReporter(tmp_path, quiet=True).track("merge", 40) as advance:
            advance(25)
            raise InputError("broken")

    with pytest.raises(InputError, match="broken"):
        fail()
    assert len(traces(tmp_path / "merge")) == 1
    jax.profiler.start_trace(tmp_path / "again")  # would fail were the other still under way
    jax.profiler.stop_trace()


def test_who_traces(tmp_path):
    assert type(reporter(None)) is Reporter
    assert type(reporter(tmp_path / "a", quiet=True)) is Reporter  # one process of several does
    assert isinstance(reporter(tmp_path / "a"), TracingReporter)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        reporter(tmp_path / "file" / "b")


@pytest.mark.parametrize(
    ("command", "job"),
    [
        (["train", "specialist", "name=x", "data.index=i", "model.base=b", "out=o"], "train.train"),
        (["merge", "--base", "b", "--specialist", "x=y", "--out", "o"], "merge.merge"),
        (["eval", "--model", "x=y", "--data", "i", "--out", "o"], "evaluate.evaluate"),
    ],
)
def test_the_commands_trace(monkeypatch, tmp_path, command, job):
    from r2m_jax.cli.app import app

    def noted(recipe, *, reporter, overwrite):
        raise InputError(type(reporter).__name__)

    monkeypatch.setattr("r2m_jax.parallel.one_device_per_core", lambda: None)
    monkeypatch.setattr("r2m_jax.cli.merge.one_device_per_core", lambda: None)
    monkeypatch.setattr(f"r2m_jax.cli.{job}", noted)
    for options, kind in (([], "Reporter"), (["--profile", tmp_path / "p"], "TracingReporter")):
        result = CliRunner().invoke(app, [*command, *map(str, options)])
        assert str(result.exception) == kind
    assert (tmp_path / "p").is_dir()


@pytest.mark.integration
def test_a_second_process_finds_the_programs_of_the_first(base, index, tmp_path):
    import subprocess
    import sys

    cache = tmp_path / "cache"
    env = os.environ | {
        "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05", "JAX_DEBUG_LOG_MODULES": "jax._src.compiler",
    }  # fmt: skip
    found = []
    for number in range(2):
        command = [
            sys.executable, "-m", "r2m_jax", "eval", "--model", f"a={base}", "--data", str(index), "--batch-size", "4",
            "--no-intervals", "--out", str(tmp_path / f"out{number}"), "--profile", str(tmp_path / f"traces{number}"),
        ]  # fmt: skip
        result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)
        assert result.returncode == 0, result.stderr
        assert len(traces(tmp_path / f"traces{number}")) == 1
        found.append((result.stderr.count("Persistent compilation cache hit"), sorted(p.name for p in cache.iterdir())))
    (none, written), (hits, after) = found
    assert none == 0
    assert hits > 0
    assert [name for name in written if name.endswith("-cache")] == [name for name in after if name.endswith("-cache")]
