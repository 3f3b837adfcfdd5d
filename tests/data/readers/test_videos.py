"""Video files made with PyAV here; the number of frames is the one encoded."""

import av
import numpy as np
import pytest

from r2m_jax.data.readers import read_source
from r2m_jax.data.readers.videos import count_frames
from r2m_jax.errors import InputError


def encode(path, frames, codec="mpeg4"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width = stream.height = 32
        for value in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), value, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_frames_are_counted(tmp_path, name):
    encode(tmp_path / name, 13)
    assert count_frames(tmp_path / name) == 13


def test_real_and_fake_videos(tmp_path, golden):
    encode(tmp_path / "set/train/real/a.mp4", 9)
    encode(tmp_path / "set/test/fake/simswap/b.mp4", 3)
    (tmp_path / "set/train/real/broken.mp4").write_bytes(b"no video")
    reading = read_source(tmp_path / "set", frames=4)
    assert reading.layout == "videos"
    assert golden(reading.records) == {("train", "real", "", ""): 4, ("test", "FS", "simswap", ""): 3}
    assert [r.frame for r in reading.records if not r.label] == [0, 2, 5, 8]
    assert any("1 video files cannot be read" in w and "broken.mp4" in w for w in reading.warnings)
    assert [r.frame for r in read_source(tmp_path / "set", frames=2, frame_selection="bench").records][:2] == [0, 1]
    with pytest.raises(InputError, match="say how many frames of each"):
        read_source(tmp_path / "set")


def test_downloads_of_faceforensics_and_celeb_df(tmp_path):
    root = tmp_path / "downloads"
    encode(root / "FaceForensics++/original_sequences/youtube/c23/videos/000.mp4", 2)
    encode(root / "FaceForensics++/manipulated_sequences/Face2Face/c23/videos/000_003.mp4", 2)
    encode(root / "Celeb-DF-v2/YouTube-real/00000.mp4", 2)
    records = read_source(root, frames=1).records
    assert {(r.video.rpartition("/")[2], r.label, r.method, r.domain, r.compression) for r in records} == {
        ("000", 0, "", "ff", "c23"),
        ("000_003", 1, "FF-F2F", "ff", "c23"),
        ("00000", 0, "", "cdf", ""),
    }
