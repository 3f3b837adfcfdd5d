"""What files tell, against the programs that wrote them."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from r2m_jax.data.audit.facts import MISSING, examine, jpeg_quality


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


@pytest.mark.parametrize("quality", range(1, 101))
def test_the_quality_pillow_saved_with_is_recovered(quality, pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    table = list(Image.open(file).quantization[0])
    found = jpeg_quality(table)
    if found != quality:  # below 3 all entries are clipped to 255, so these tables are one and the same
        again = io.BytesIO()
        Image.fromarray(pixels).save(again, "JPEG", quality=found)
        assert list(Image.open(again).quantization[0]) == table


@pytest.mark.parametrize("quality", [40, 75, 92])
def test_the_quality_opencv_saved_with_is_recovered(quality, pixels, tmp_path):
    path = tmp_path / "a.jpg"
    cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert examine(str(path)).quality == quality


@pytest.mark.parametrize(("subsampling", "name"), [(0, "4:4:4"), (1, "4:2:2"), (2, "4:2:0")])
def test_jpeg_facts(subsampling, name, pixels, tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(pixels).save(path, quality=80, subsampling=subsampling, progressive=subsampling == 1)
    facts = examine(str(path))
    assert (facts.problem, facts.format, facts.mode, facts.width, facts.height) == ("", "JPEG", "RGB", 56, 40)
    assert (facts.quality, facts.subsampling, facts.progressive) == (80, name, subsampling == 1)
    assert facts.bytes == path.stat().st_size


def test_content_is_of_the_pixels_whatever_the_file(pixels, tmp_path):
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.bmp")
    turned = Image.Exif()
    turned[0x0112] = 6  # shown a quarter turn clockwise
    image.rotate(90, expand=True).save(tmp_path / "c.png", exif=turned)
    one = {examine(str(tmp_path / name)).content for name in ("a.png", "b.bmp", "c.png")}
    assert len(one) == 1
    other = pixels.copy()
    other[0, 0, 0] ^= 1
    Image.fromarray(other).save(tmp_path / "d.png")
    assert examine(str(tmp_path / "d.png")).content not in one


def test_problems_are_facts(pixels, tmp_path):
    assert examine(str(tmp_path / "nowhere.png")).problem == MISSING
    (tmp_path / "text.png").write_text("no image")
    assert "cannot identify" in examine(str(tmp_path / "text.png")).problem
    Image.fromarray(pixels).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    assert examine(str(tmp_path / "cut.png")).problem
    assert examine(str(tmp_path / "text.png"), film=True).problem


def test_films_are_described_by_their_container(pixels, tmp_path):
    import av

    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 56, 40, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    facts = examine(str(tmp_path / "a.mp4"), film=True)
    assert (facts.problem, facts.mode, facts.width, facts.height) == ("", "h264", 56, 40)
    assert "mp4" in facts.format
