from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from r2m_jax import InputError
from r2m_jax.data.images import decode_image, load_images
from r2m_jax.data.pipeline import Decoding, RecordSource, evaluation_batches
from r2m_jax.data.records import Record
from r2m_jax.data.video import read_frame


def test_pixels_are_those_of_load_images(faces):
    rows = list(evaluation_batches(RecordSource(faces), batch_size=len(faces), decoding=Decoding(size=12)))
    np.testing.assert_array_equal(rows[0]["image"], load_images([record.path for record in faces], 12))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_decoding_is_that_of_images(tmp_path, rng, mode):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    image = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).convert(mode)
    image.save(tmp_path / "a.png", exif=exif)
    ours = RecordSource([Record(str(tmp_path / "a.png"), 0)]).image(0)
    assert ours.size == (20, 30)
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(decode_image(tmp_path / "a.png")))


def test_reduced_decoding_keeps_the_shorter_side(tmp_path):
    """A smooth photograph shrunk by the decoder is close to the whole one resized."""
    y, x = np.mgrid[:480, :640] / 100
    pixels = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], -1) * 100 + 128
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "a.jpg", quality=95)
    source = RecordSource([Record(str(tmp_path / "a.jpg"), 0)])
    assert source.image(0, 120).size == (160, 120)
    assert source.image(0, 121).size == (320, 240)
    assert source.image(0, 480).size == (640, 480)
    exact, reduced = (
        next(evaluation_batches(source, batch_size=1, decoding=Decoding(size=32, exact=exact)))["image"]
        for exact in (True, False)
    )
    assert 0 < np.abs(exact.astype(int) - reduced).max() <= 4


@pytest.mark.parametrize("bframes", [0, 2])
@pytest.mark.parametrize("irregular", [False, True])
def test_every_frame_of_a_video_by_its_number(tmp_path, bframes, irregular):
    """Each frame has its own brightness; key frames every 10, time stamps regular or not, reordered or not."""
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "10", "bf": str(bframes), "crf": "10"})
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 8 * number, np.uint8), format="rgb24")
            frame.pts = 40 * number + (13 * (number % 3) if irregular else 0)
            frame.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        sequential = [frame.to_image() for frame in container.decode(video=0)]
    assert len(sequential) == 30
    for number in (29, 0, 9, 10, 11, 5, 28):
        np.testing.assert_array_equal(np.asarray(read_frame(path, number)), np.asarray(sequential[number]))
        assert abs(np.asarray(sequential[number]).mean() - 8 * number) < 4
    with pytest.raises(InputError, match="30 frames, none of number 30"):
        read_frame(path, 30)


def test_damaged_and_missing_videos_are_named(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    for name in ("text.mp4", "absent.mp4"):
        with pytest.raises(InputError, match=name):
            RecordSource([Record(str(tmp_path / name), 1, frame=0)]).image(0)
