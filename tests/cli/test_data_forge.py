"""`r2m data forge` as a user runs it."""

import pytest
from PIL import Image

from r2m_jax.cli import main
from r2m_jax.data.embedded import cut_patches, embedded_photographs
from r2m_jax.data.index import read_index


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["r2m", "data", "forge", *arguments])
    try:
        main()
    except SystemExit as stop:
        code = stop.code or 0
    else:
        code = 0
    out, err = capsys.readouterr()
    return int(code), out, err


def test_forging_a_folder(monkeypatch, capsys, tmp_path):
    (tmp_path / "in").mkdir()
    for number, image in enumerate(cut_patches(embedded_photographs(), 64, 12, 0)[0]):
        Image.fromarray(image).save(tmp_path / "in" / f"{number}.png")
    arguments = [str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--no-landmarks", "--size", "64"]
    chosen = ["--method", "box_swap", "--method", "pose_turn", "--workers", "1"]
    code, out, err = run(monkeypatch, capsys, *arguments, *chosen)
    assert code == 0, err
    assert "FS" in out
    records = read_index(tmp_path / "out" / "index.csv")
    assert {record.method for record in records} == {"", "box_swap", "pose_turn"}
    code, _, err = run(monkeypatch, capsys, *arguments, *chosen)
    assert code == 2
    assert "already exists" in err


def test_methods_and_cameras_are_listed(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "--list")
    assert code == 0
    for word in ("poisson_swap", "lip_sync", "webcam"):
        assert word in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name the real images and an output"),
        (("nowhere", "--out", "x", "--no-landmarks"), "nowhere cannot be read"),
        (("nowhere", "--out", "x", "--family", "FX"), "there is no family 'FX'; choose from FS, FR, EFS"),
        (("nowhere", "--out", "x", "--method", "poison_swap"), "did you mean 'poisson_swap'"),
    ],
)
def test_mistakes_end_in_one_sentence(monkeypatch, capsys, arguments, message):
    code, _, err = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
