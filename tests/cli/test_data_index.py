"""``r2m data index`` as a user meets it."""

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from r2m_jax.cli.app import app
from r2m_jax.data.index import read_index
from r2m_jax.errors import InputError


def index(*arguments):
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["data", "index", *map(str, arguments)])
    if isinstance(result.exception, Exception) and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def sources(tmp_path):
    fakes = tmp_path / "simswap_ff.json"
    frames = [f"DF40/simswap/ff/frames/002_003/{i:03d}.png" for i in range(32)]
    video = {"label": "simswap_Fake", "frames": frames}
    fakes.write_text(json.dumps({"simswap_ff": {"simswap_Fake": {"val": {"v": video}, "test": {"v": video}}}}))
    reals = tmp_path / "FaceForensics++" / "original_sequences/youtube/c23/frames/002"
    reals.mkdir(parents=True)
    for i in range(32):
        (reals / f"{i:03d}.png").touch()
    return fakes, tmp_path / "FaceForensics++"


@pytest.mark.parametrize("name", ["out.parquet", "out.csv"])
def test_two_sources_one_index(sources, tmp_path, name):
    out = index(*sources, "--out", tmp_path / name, "--frames", 8, "--set", "simswap_ff")
    records = read_index(tmp_path / name)
    assert [(r.label, r.split) for r in records].count((1, "test")) == 8
    assert sum(r.label == 0 for r in records) == 8
    assert "val and test are the same 8 images" in out
    assert "no real image in the split val" in out
    assert "simswap" in out
    assert f"{24} images" in out


def test_refusals_write_nothing(sources, tmp_path):
    out = tmp_path / "out.csv"
    for arguments, message in (
        ((sources[0], "--out", out), "0 real images found"),
        ((*sources, "--out", tmp_path / "out.txt"), r"must end in .parquet or .csv"),
        ((*sources, "--out", out, "--label", "x=maybe"), "NAME=real or NAME=fake"),
        ((*sources, "--out", out, "--set", "simswop_ff"), "did you mean simswap_ff"),
        ((tmp_path / "nowhere", "--out", out), "does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            index(*arguments)
    assert not out.exists()
    index(sources[0], "--out", out, "--fakes-only")
    with pytest.raises(InputError, match="--overwrite"):
        index(*sources, "--out", out)
    assert "no real image in the split val" in index(*sources, "--out", out, "--overwrite")
    assert any(r.label == 0 for r in read_index(out))


def test_a_mistake_is_one_sentence_and_code_2(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "r2m_jax", "data", "index", str(tmp_path / "no"), "--out", str(tmp_path / "x.csv")],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert result.returncode == 2
    assert "does not exist" in result.stderr
    assert "Traceback" not in result.stderr
