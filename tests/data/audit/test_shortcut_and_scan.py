"""What metadata gives away, and facts kept between runs."""

import importlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from r2m_jax.data.audit import audit, scan, shortcut
from r2m_jax.data.audit.facts import Facts
from r2m_jax.data.audit.shortcut import _weighted_auc, tables
from r2m_jax.data.audit.shortcut import shortcut as measure
from r2m_jax.data.index import read_index, write_index
from r2m_jax.data.records import Record
from r2m_jax.errors import InputError

_SCAN = importlib.import_module("r2m_jax.data.audit.scan")  # its package gives the function of that name


def pairs(count: int, seed: int, *, told: bool) -> tuple[list[Record], dict[str, Facts]]:
    """Real images and a fake of each; sizes from one distribution, or the fakes' larger."""
    rng = np.random.default_rng(seed)
    records, facts = [], {}
    for number in range(count):
        for label in (0, 1):
            record = Record(f"/x/{number:05d}{label}.img", label, "FS" * label, video=str(number), split="train")
            size = int(rng.lognormal(9, 0.3) * (1.3 if told and label else 1))
            quality = 0 if told and label else int(rng.integers(80, 95))
            records.append(record)
            facts[record.path] = Facts("", size, "JPEG", "RGB", 64, 64, quality, "4:2:0", False, record.path)
    return records, facts


def test_matched_files_tell_nothing():
    for seed in range(3):
        found = measure(*pairs(400, seed, told=False))
        assert abs(found.auc - 0.5) < 0.06
        assert found.low < 0.5 + 0.03
        assert not found.alarming


def test_different_files_tell_all():
    found = measure(*pairs(200, 0, told=True))
    assert found.auc > 0.98
    assert found.alarming
    assert max(found.single, key=found.single.__getitem__) == "JPEG quality"


def test_constant_files_are_exactly_chance_and_few_images_are_not_judged():
    records, facts = pairs(100, 0, told=False)
    same = Facts("", 100, "PNG", "RGB", 64, 64, content="x")
    constant = dict.fromkeys(facts, same)
    named = [Record(r.path[:-5] + "0.img", r.label, r.family, video=r.video) for r in records]
    assert measure(named, {r.path: same for r in named}).auc == 0.5
    assert np.isnan(measure(records[:40], constant).auc)


@pytest.mark.parametrize("clips", [1, 4, 5])
def test_fewer_videos_than_folds_are_not_judged(clips):
    records, facts = pairs(60, 0, told=True)
    records = [Record(r.path, r.label, r.family, video=str(int(r.video) % clips)) for r in records]
    assert np.isnan(measure(records, facts).auc) == (clips < 5)
    assert measure(records, facts).alarming == (clips == 5)


def test_weighted_auc_is_scikit_learns():
    rng = np.random.default_rng(0)
    labels, scores, weights = (
        rng.integers(0, 2, 300),
        rng.integers(0, 20, 300) / 7,
        rng.integers(0, 4, 300).astype(float),
    )
    expected = roc_auc_score(labels, scores, sample_weight=weights)
    assert _weighted_auc(labels, scores, weights) == pytest.approx(expected, abs=1e-12)


def test_tables_count_values_against_the_label():
    crossed = tables(*pairs(50, 0, told=True))
    assert crossed["format"] == [{"value": "JPEG", "real": 50, "fake": 50}]
    assert crossed["JPEG quality"][0] == {"value": "none", "real": 0, "fake": 50}
    assert sum(row["real"] for row in crossed["JPEG quality"]) == 50
    assert crossed["resolution"] == [{"value": "64 x 64", "real": 50, "fake": 50}]
    quarters = [row["real"] + row["fake"] for row in crossed["bytes"]]
    assert sum(quarters) == 100
    assert quarters == pytest.approx([25] * 4, abs=1)
    edges = [int(row["value"].removeprefix("up to ").replace(",", "")) for row in crossed["bytes"]]
    assert edges == sorted(edges)
    assert edges[0] < 10_000 <= edges[-1]  # one digit more, and a comma, must not come first
    assert tables([], {})["bytes"] == []


def test_the_alarm_is_a_warning_that_can_be_allowed():
    records, facts = pairs(200, 0, told=True)
    assert "shortcut" in [finding.name for finding in audit(records, facts).warnings]
    allowed = ["shortcut", "one-class"]
    assert audit(records, facts, allow=allowed).findings == []


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    records = []
    for number in range(300):
        path = tmp_path / f"{number:03d}.png"
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
        records.append(Record(str(path), number % 2))
    return records


def test_facts_are_the_same_whatever_the_workers(images):
    assert scan(images, workers=1) == scan(images, workers=2)


def test_an_interrupted_scan_goes_on_where_it_stopped(images, tmp_path):
    cache = tmp_path / "facts.sqlite"

    class Killed(Exception):
        pass

    def kill(count: int) -> None:
        kill.done += count
        if kill.done >= 128:
            raise Killed

    kill.done = 0
    with pytest.raises(Killed):
        scan(images, cache=cache, workers=1, on_progress=kill)
    assert sqlite3.connect(cache).execute("SELECT COUNT(*) FROM facts_2").fetchone() == (128,)
    steps: list[int] = []
    resumed = scan(images, cache=cache, workers=1, on_progress=steps.append)
    assert steps[0] == 128
    assert resumed == scan(images, workers=1)
    again: list[int] = []
    scan(images, cache=cache, workers=1, on_progress=again.append)
    assert again == [300]


def test_a_changed_file_is_read_again(images, tmp_path):
    cache = tmp_path / "facts.sqlite"
    before = scan(images, cache=cache)
    Image.new("RGB", (16, 16)).save(images[5].path)
    os.utime(images[5].path, ns=(1, 1))
    after = scan(images, cache=cache)
    changed = {path for path in before if before[path] != after[path]}
    assert changed == {images[5].path}


def test_a_killed_scan_goes_on_where_it_stopped_and_leaves_no_process(images, tmp_path):
    """Killed as a machine kills: nothing of the program runs any more."""
    cache, index = tmp_path / "facts.sqlite", tmp_path / "index.csv"
    write_index(images, index)
    script = tmp_path / "killed.py"
    script.write_text(_KILLED)
    run = subprocess.run([sys.executable, script, index, cache], capture_output=True, text=True, check=False)
    assert run.returncode == -signal.SIGKILL, run.stderr
    workers = [int(number) for number in run.stdout.split()]
    assert len(workers) == 2
    steps: list[int] = []
    resumed = scan(images, cache=cache, workers=1, on_progress=steps.append)
    assert 128 <= steps[0] < 300
    fresh = scan(images, workers=1)
    assert resumed == fresh
    assert audit(images, resumed).as_json() == audit(images, fresh).as_json()
    until = time.monotonic() + 20
    while any(_runs(number) for number in workers) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(_runs(number) for number in workers)


_KILLED = """
import multiprocessing, os, signal, sys
from pathlib import Path
from r2m_jax.data.audit import scan
from r2m_jax.data.index import read_index

done = 0

def kill(count):
    global done
    done += count
    if done >= 128:
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    scan(read_index(sys.argv[1]), cache=Path(sys.argv[2]), workers=2, on_progress=kill)
"""


def _runs(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_equal_relative_paths_in_two_folders_are_two_files(tmp_path, monkeypatch):
    cache = tmp_path / "facts.sqlite"
    contents = set()
    for shade in (0, 255):
        (tmp_path / str(shade)).mkdir()
        monkeypatch.chdir(tmp_path / str(shade))
        Image.new("L", (8, 8), shade).save("a.bmp")
        os.utime("a.bmp", ns=(1, 1))  # as unpacked from an archive
        contents.add(scan([Record("a.bmp", 0)], cache=cache)["a.bmp"].content)
    assert len(contents) == 2


def test_problems_and_kinds_of_file_are_not_kept(images, tmp_path, monkeypatch):
    """A file that could not be read is tried again, and a film first taken for an image is read as a film."""
    cache, path = tmp_path / "facts.sqlite", images[0].path
    told: list[bool] = []

    def failing(path: str, film: bool) -> Facts:
        told.append(film)
        return Facts(problem="Permission denied") if len(told) == 1 else Facts(mode=str(film))

    monkeypatch.setattr(_SCAN, "examine", failing)
    assert scan(images[:1], cache=cache)[path].problem
    assert scan(images[:1], cache=cache)[path].mode == "False"
    assert scan([Record(path, 0, frame=3)], cache=cache)[path].mode == "True"
    assert scan(images[:1], cache=cache)[path].mode == "False"
    assert told == [False, False, True]


def test_a_process_that_is_ended_is_told(images, monkeypatch):
    class Pool:
        def __init__(self, *_, **__): ...
        def submit(self, *_):
            raise BrokenProcessPool

        def shutdown(self, **_): ...

    monkeypatch.setattr(_SCAN, "ProcessPoolExecutor", Pool)
    with pytest.raises(InputError, match="--workers 1"):
        scan(images, workers=2)


def test_a_cache_that_is_no_database_is_named(images, tmp_path):
    (tmp_path / "facts.sqlite").write_text("x" * 2000)
    with pytest.raises(InputError, match=r"facts\.sqlite cannot be used .* --cache"):
        scan(images[:2], cache=tmp_path / "facts.sqlite")


@pytest.mark.integration
@pytest.mark.parametrize("name", ["faces_ffhq", "faces_photoshop", "natural_generators"])
def test_the_shared_sets_have_no_error(shared_data, name):
    records = read_index(shared_data / name / "index.csv")
    found = audit(records, scan(records, workers=2))
    assert found.errors == []
    assert found.counts["label"]["real"]["train"] > 100
    assert set(found.shortcuts["all"].single) >= {"bytes", "width", "JPEG quality"}
    assert shortcut.MARGIN == 0.03
