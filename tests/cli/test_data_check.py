"""`r2m data check` as a user runs it."""

import json

import numpy as np
import pytest
from PIL import Image

from r2m_jax.cli import main
from r2m_jax.data.index import write_index
from r2m_jax.data.records import Record


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["r2m", "data", "check", *arguments])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "set"
    folder.mkdir()
    records = []
    for number in range(12):
        path = folder / f"{number:02d}.png"
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path, compress_level=0)
        label = number % 2
        records.append(Record(str(path), label, "FS" * label, split="train" if number < 6 else "test"))
    write_index(records, folder / "index.csv")
    return folder


def test_a_clean_set(run, folder, tmp_path):
    code, out, err = run(str(folder), "--json", str(tmp_path / "a.json"))
    assert (code, "nothing found" in out) == (0, True), err
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["images"] == 12
    assert report["counts"]["label"] == {"fake": {"test": 3, "train": 3}, "real": {"test": 3, "train": 3}}
    assert report["findings"] == []
    assert report["metadata"]["auc"]["all"]["auc"] is None
    assert (tmp_path / "cache" / "r2m-jax" / "facts.sqlite").exists()


def test_errors_end_with_two_unless_allowed(run, folder):
    (folder / "03.png").unlink()
    code, out, err = run(str(folder))
    assert code == 2
    assert "missing-files" in out
    assert "03.png" in out
    assert err.strip().splitlines()[-1].startswith("error: ")
    assert run(str(folder / "index.csv"), "--allow", "missing-files")[0] == 0
    code, _, err = run(str(folder), "--allow", "misspelt")
    assert (code, "no finding 'misspelt'" in err) == (2, True)


def test_warnings_count_when_strict(run, folder):
    (folder / "05.png").write_bytes((folder / "03.png").read_bytes())
    code, out, _ = run(str(folder))
    assert (code, "repeated-images" in out) == (0, True)
    assert run(str(folder), "--strict")[0] == 2


def test_a_first_look_says_what_it_leaves_out(run, folder, tmp_path):
    code, out, err = run(str(folder), "--max-images", "8", "--json", str(tmp_path / "a.json"))
    assert code == 0, err
    assert "4 of 12 images were left out" in out
    report = json.loads((tmp_path / "a.json").read_text())
    assert (report["images"], report["listed"]) == (8, 12)
    code, out, _ = run(str(folder), "--max-images", "12")
    assert (code, "left out" in out) == (0, False)


def test_a_list_whose_val_is_its_test(run, folder):
    """DF40's: an error, until it is allowed; what leaks into train remains one."""
    rows = (folder / "index.csv").read_text().splitlines()
    again = [row.replace(",test,", ",val,") for row in rows if ",test," in row]
    (folder / "index.csv").write_text("\n".join([*rows, *again]) + "\n")
    code, _, err = run(str(folder))
    assert (code, "val-is-test" in err) == (2, True)
    assert run(str(folder), "--allow", "val-is-test")[0] == 0
    leak = next(row for row in rows if ",test," in row).replace(",test,", ",train,")
    (folder / "index.csv").write_text("\n".join([*rows, *again, leak]) + "\n")
    code, _, err = run(str(folder), "--allow", "val-is-test")
    assert (code, "shared-images" in err) == (2, True)


def test_a_folder_without_index(run, tmp_path):
    code, _, err = run(str(tmp_path))
    assert code == 2
    assert "holds no index.csv" in err
