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


@pytest.mark.parametrize("quality", range(1, 101))
def test_the_quality_opencv_saved_with_is_recovered(quality, pixels, tmp_path):
    path, again = tmp_path / "a.jpg", tmp_path / "b.jpg"
    cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    found = examine(str(path)).quality
    if found != quality:  # as above, only where the tables are one and the same
        cv2.imwrite(str(again), pixels, [cv2.IMWRITE_JPEG_QUALITY, found])
        assert Image.open(again).quantization[0] == Image.open(path).quantization[0]


@pytest.mark.parametrize(("mode", "name"), [("L", "4:0:0"), ("CMYK", "other")])
def test_jpegs_without_chroma(mode, name, tmp_path):
    Image.new(mode, (16, 16)).save(tmp_path / "a.jpg", quality=60)
    facts = examine(str(tmp_path / "a.jpg"))
    assert (facts.mode, facts.subsampling, facts.quality, facts.bits) == (mode, name, 60, 8)


@pytest.mark.parametrize(("shape", "kind", "bits"), [((9, 7), "u1", 8), ((9, 7), "u2", 16), ((9, 7, 3), "u2", 16)])
def test_the_bit_depth_opencv_saved_with_is_recovered(shape, kind, bits, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros(shape, kind))
    assert examine(str(tmp_path / "a.png")).bits == bits


@pytest.mark.parametrize(
    ("suffix", "options"),
    [("jpg", {}), ("jpg", {"progressive": True}), ("png", {}), ("webp", {}), ("bmp", {}), ("gif", {}), ("tif", {})],
)
def test_damaged_files_never_stop_an_audit(suffix, options, pixels, tmp_path):
    """Whatever bytes are changed or missing, a file is read or its problem told; a warning would be an error here."""
    whole = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    if suffix in ("jpg", "png", "webp"):
        options = {**options, "exif": exif}
    Image.fromarray(pixels).save(whole, Image.registered_extensions()[f".{suffix}"], **options)
    rng = np.random.default_rng(0)
    path = tmp_path / f"a.{suffix}"
    problems = 0
    for trial in range(150):
        data = np.frombuffer(whole.getvalue(), np.uint8).copy()
        end = len(data) if trial % 3 else int(rng.integers(len(data)))
        # Headers, where a changed byte does most, are hit more often than their share.
        places = rng.integers(min(len(data), 300 if trial % 2 else len(data)), size=4)
        data[places] = rng.integers(256, size=4)
        path.write_bytes(data[:end].tobytes())
        problems += bool(examine(str(path)).problem)
    assert problems > 20


def test_a_jpeg_file_without_its_first_table_is_a_problem(pixels, tmp_path):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    data = bytearray(file.getvalue())
    place = data.index(b"\xff\xdb")  # the marker of a table; two bytes of length and one of number follow
    data[place + 4] = 3
    (tmp_path / "a.jpg").write_bytes(data)
    assert examine(str(tmp_path / "a.jpg")).problem


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
    # Three frames at 25 a second.
    assert facts.bit_rate == pytest.approx(facts.bytes * 8 * 25 / 3, rel=0.01)
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "copy.mp4").write_bytes(data)
    (tmp_path / "longer.mp4").write_bytes(data + bytes(1))
    assert examine(str(tmp_path / "copy.mp4"), film=True) == facts
    assert examine(str(tmp_path / "longer.mp4"), film=True).content != facts.content
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    assert examine(str(tmp_path / "cut.mp4"), film=True).problem


def test_the_digest_of_a_long_film_is_of_both_its_ends(tmp_path):
    from r2m_jax.data.audit.facts import _ENDS, _ends

    def digest(change: int | None) -> str:
        data = bytearray(2 * _ENDS + 10)
        if change is not None:
            data[change] = 1
        (tmp_path / "a").write_bytes(data)
        return _ends(str(tmp_path / "a"), len(data))

    assert digest(0) != digest(None)
    assert digest(2 * _ENDS + 9) != digest(None)
    assert digest(_ENDS + 5) == digest(None)
