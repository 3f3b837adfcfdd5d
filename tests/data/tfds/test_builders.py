import av
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from typer.testing import CliRunner

from r2m_jax import InputError
from r2m_jax.cli.data.app import app
from r2m_jax.data.index import write_index
from r2m_jax.data.readers import read_source
from r2m_jax.data.tfds import BUILDERS, TfdsSource, prepare_source

IMAGES = {
    "df40": ("simswap/ff/frames/001_870/000.png", "simswap/ff/frames/001_870/001.png", "lia/cdf/frames/a/000.png"),
    "universal_fake_detect": ("biggan/0_real/a.png", "biggan/1_fake/b.png", "progan/cat/1_fake/c.png"),
    "synthbuster": ("dalle2/r01.png", "glide/r01.png", "stable-diffusion-xl/r02.png"),
}
VIDEOS = {
    "faceforensics": ("original_sequences/youtube/c23/videos/000.mp4",
                      "manipulated_sequences/Deepfakes/c23/videos/000_003.mp4"),
    "celeb_df": ("Celeb-real/id0_0000.mp4", "YouTube-real/00000.mp4", "Celeb-synthesis/id0_id1_0000.mp4"),
}  # fmt: skip


def lay_out(root, name):
    rng = np.random.default_rng(4)
    for file in IMAGES.get(name, ()):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(root / file)
    for file in VIDEOS.get(name, ()):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(root / file), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width = stream.height = 32
            for _ in range(5):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
            container.mux(stream.encode())


@pytest.mark.parametrize("name", [*IMAGES, *VIDEOS])
def test_published_layouts_give_what_their_readers_give(tmp_path, name):
    lay_out(tmp_path / "set", name)
    folder = prepare_source(tmp_path / "set", tmp_path / "data", name)
    assert folder == tmp_path / "data" / name / "1.0.0"
    expected = read_source(tmp_path / "set", **BUILDERS[name].OPTIONS).records
    files = {record.path for record in expected}
    assert files == {str(tmp_path / "set" / file) for file in IMAGES.get(name, VIDEOS.get(name))}
    found = [
        record
        for split in dict.fromkeys(record.split for record in expected)
        for record in TfdsSource(folder, split).records
    ]
    assert sorted(found, key=repr) == sorted(expected, key=repr)


def test_builders_are_found_by_name_and_read_manual_dir(tmp_path):
    lay_out(tmp_path / "set", "synthbuster")
    builder = tfds.builder("synthbuster", data_dir=tmp_path / "data")
    config = tfds.download.DownloadConfig(manual_dir=tmp_path / "set")
    builder.download_and_prepare(download_config=config)
    assert len(builder.as_data_source("test")) == 3
    assert builder.info.file_format.value == "array_record"


def test_reader_options_pass_through(tmp_path):
    lay_out(tmp_path / "set", "celeb_df")
    folder = prepare_source(tmp_path / "set", tmp_path / "data", "celeb_df", frames=2, split="val")
    assert len(TfdsSource(folder, "val").records) == 6


@pytest.mark.parametrize("name", ["generic", "imagenet"])
def test_other_names_have_no_layout(tmp_path, name):
    with pytest.raises(InputError, match=f"no builder '{name}'; choose one of df40, "):
        prepare_source(tmp_path, tmp_path, name)


def test_the_command(tmp_path, records):
    write_index(records, tmp_path / "index.csv")
    data = str(tmp_path / "data")
    result = CliRunner().invoke(app, ["prepare", str(tmp_path / "index.csv"), "--data-dir", data, "--name", "faces"])
    assert result.exit_code == 0, result.output
    assert f"written  {data}/faces/1.0.0 (train 4, test 7, val 4)" in result.output
    assert TfdsSource(tmp_path / "data" / "faces", "test").records == [r for r in records if r.split == "test"]
    lay_out(tmp_path / "set", "df40")
    result = CliRunner().invoke(app, ["prepare", str(tmp_path / "set"), "--data-dir", data, "--name", "df40"])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(app, ["prepare", str(tmp_path / "set"), "--data-dir", data, "--name", "own"])
    assert isinstance(result.exception, InputError)
    assert "give an index, or --name" in str(result.exception)
