import av
import numpy as np
import pytest
from PIL import Image

from r2m_jax.data.records import Record


@pytest.fixture(scope="session")
def records(tmp_path_factory):
    """Images of many formats, one on its side, and frames of a video, over three splits, every field set."""
    folder = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(2)
    exif = Image.Exif()
    exif[0x0112] = 6
    records = []
    formats = (("png", "RGB"), ("jpg", "RGB"), ("webp", "RGB"), ("jpg", "L"), ("png", "RGBA"), ("tif", "RGB"))
    for number, (suffix, mode) in enumerate(formats * 2):
        path = folder / f"{number}.{suffix}"
        pixels = rng.integers(0, 256, (14 + number, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(path, exif=exif)
        label = number % 2
        records.append(
            Record(
                str(path), label, family="FS" * label, method="simswap" * label, domain="ff", video=f"clip ü {number}",
                split=("train", "test", "val")[number // 2 % 3], dataset="FSAll_ff", compression="c23",
                landmarks=str(folder / f"{number}.npy"), mask=str(folder / f"mask/{number}.png"),
            )
        )  # fmt: skip
    video = folder / "clip.mp4"
    write_video(video, rng)
    return [*records, *(Record(str(video), 1, method="m", split="test", frame=frame) for frame in (3, 0, 7))]


def write_video(path, rng):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 32
        for _ in range(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))))
        container.mux(stream.encode())
