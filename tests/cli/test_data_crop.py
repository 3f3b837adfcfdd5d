"""``r2m data crop`` as a user runs it."""

import numpy as np
import pytest
import skimage.data
from PIL import Image
from typer.testing import CliRunner

from r2m_jax.cli.app import app
from r2m_jax.data.index import read_index


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    for name, image in (("real/a.png", skimage.data.astronaut()), ("fake/swap/cat.png", skimage.data.chelsea())):
        (folder / name).parent.mkdir(parents=True)
        Image.fromarray(image).save(folder / name)
    (folder / "fake" / "swap" / "broken.mp4").write_bytes(b"no film")
    (folder / "fake" / "swap" / "torn.png").write_bytes(b"no image")
    return folder


def crop(*arguments):
    return CliRunner().invoke(app, ["data", "crop", *map(str, arguments)])


def test_a_folder(raw, tmp_path):
    result = crop(raw, "--out", tmp_path / "out", "--size", 96, "--workers", 1)
    assert result.exit_code == 0, result.output
    for line in (
        "faces      1 in 3 images (33.3%)", "no face    1 images, left out: ", "cat.png", "unreadable 1 images",
        "torn.png", "1 real, 0 fake", "1 video files cannot be read", "broken.mp4", "cropping: 3 images in",
    ):  # fmt: skip
        assert line in result.output, line
    [record] = read_index(tmp_path / "out" / "index.csv")
    assert np.array(Image.open(record.path)).shape == (96, 96, 3)
    again = crop(raw, "--out", tmp_path / "out", "--size", 96)
    assert "done       2 of them by an earlier run" in again.output


def test_files_of_one_class(raw, tmp_path):
    result = crop(raw, "--out", tmp_path / "out", "--label", "fake", "--method", "swap", "--family", "FS",
                  "--no-face", "centre", "--domain", "here", "--split", "train", "--workers", 1)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "the centre was cropped" in result.output
    assert "broken.mp4 cannot be read as a video" in result.output
    records = read_index(tmp_path / "out" / "index.csv")
    assert {(r.label, r.method, r.family, r.domain, r.split, r.dataset) for r in records} == {
        (1, "swap", "FS", "here", "train", "raw")
    }
    one = crop(raw / "real" / "a.png", "--out", tmp_path / "one", "--label", "real")
    assert one.exit_code == 0, one.output
    assert (tmp_path / "one" / "frames" / "a" / "000.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--label", "maybe"], "neither real nor fake"),
        (["--label", "real", "--method", "swap"], "of fake images"),
        (["--label", "real", "--split", "dev"], "choose one of train, val, test"),
        (["--method", "swap"], "--label fake"),
        (["--frames", "0"], "at least 1"),
        (["--no-face", "maybe"], "no policy"),
        (["--margin", "-1"], "must be positive"),
        (["--no-face", "error", "--workers", "1"], "cat.png"),
    ],
)
def test_mistakes(raw, tmp_path, arguments, message):
    result = crop(raw, "--out", tmp_path / "out", *arguments)
    assert result.exit_code != 0
    text = result.output + str(result.exception)
    assert message in text
    assert not (tmp_path / "out" / "index.csv").exists()


def test_a_folder_that_does_not_tell(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.fromarray(skimage.data.astronaut()).save(tmp_path / "pictures" / "a.png")
    result = crop(tmp_path / "pictures", "--out", tmp_path / "out")
    assert result.exit_code != 0
    assert "pass --label real or fake" in result.output + str(result.exception)
