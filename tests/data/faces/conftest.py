"""Photographs with a face, and films whose frames tell their number."""

import struct
from pathlib import Path

import av
import numpy as np
import pytest
import skimage.data
from PIL import Image


@pytest.fixture(scope="session")
def astronaut() -> np.ndarray:
    """A woman smiling at the camera, her face near (222, 127)."""
    return skimage.data.astronaut()


@pytest.fixture
def film():
    """``film(path, frames, codec=…, turn=…)`` writes a video of images, or of ``frames`` numbered ones."""

    def make(path: Path, frames=60, *, codec: str = "libx264", turn: int = 0) -> Path:
        images = _numbered(frames) if isinstance(frames, int) else frames
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.height, stream.width = images[0].shape[:2]
            stream.pix_fmt, stream.gop_size = "yuv420p", 10
            for image in images:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
        if turn:
            _turn(path, turn)
        return path

    return make


@pytest.fixture
def photographs(tmp_path, astronaut, film):
    """``real/`` with a photograph and a film of a face, ``fake/swap/`` with a photograph; every kind of failure."""
    folder = tmp_path / "raw"
    (folder / "real").mkdir(parents=True)
    (folder / "fake" / "swap").mkdir(parents=True)
    Image.fromarray(astronaut).save(folder / "real" / "astronaut.png")
    Image.fromarray(np.ascontiguousarray(astronaut[:, ::-1])).save(folder / "fake" / "swap" / "mirrored.png")
    Image.fromarray(skimage.data.chelsea()).save(folder / "fake" / "swap" / "cat.png")
    (folder / "real" / "broken.jpg").write_bytes(b"no image")
    head = astronaut[20:260, 100:340]
    film(folder / "real" / "talk.mp4", [np.roll(head, shift, axis=1) for shift in range(0, 24, 2)])
    return folder


def number_of(image: np.ndarray) -> int:
    """The number a frame carries in its lower two rows of bright and dark squares."""
    squares = image[16:].reshape(2, 16, 4, 16, 3).mean(axis=(1, 3, 4)).ravel() > 128
    return int(np.packbits(squares, bitorder="little")[0])


def _numbered(frames: int) -> list[np.ndarray]:
    images = []
    for number in range(frames):
        bits = np.unpackbits(np.uint8(number), bitorder="little").reshape(2, 4)
        squares = np.concatenate([[[1, 0, 0, 0]], bits])  # bright: the upper left corner
        images.append(np.kron(40 + 180 * squares[..., None], np.ones((16, 16, 3))).astype(np.uint8))
    return images


def _turn(path: Path, degrees: int) -> None:
    """Have players turn a film clockwise: the matrix of its track header (ISO 14496-12, 8.3.2), as phones write it."""
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    one = 1 << 16
    assert struct.unpack(">9i", data[at : at + 36]) == (one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    data[at : at + 36] = struct.pack(">9i", one * cos, one * sin, 0, -one * sin, one * cos, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
