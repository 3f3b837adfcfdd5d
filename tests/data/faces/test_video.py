"""Frames by number: the films' frames carry their number in squares."""

import numpy as np
import pytest

from r2m_jax.data.video import frame_table, read_frames
from r2m_jax.errors import InputError

from .conftest import number_of

CONTAINERS = [("mp4", "libx264"), ("mkv", "libx264"), ("mov", "mpeg4"), ("webm", "libvpx"), ("avi", "mpeg4")]
UNTIMED = [("avi", "libx264"), ("ts", "libx264")]  # frames out of order without times, no index


@pytest.mark.parametrize(("suffix", "codec"), [*CONTAINERS, *UNTIMED])
def test_exact_frames(tmp_path, film, suffix, codec):
    path = film(tmp_path / f"film.{suffix}", 50, codec=codec)
    assert len(frame_table(path)) == 50
    wanted = [49, 0, 7, 8, 23, 8, 41]
    frames = list(read_frames(path, wanted))
    assert [number for number, _ in frames] == [0, 7, 8, 23, 41, 49]
    assert [number_of(image) for _, image in frames] == [0, 7, 8, 23, 41, 49]
    assert all(image.shape == (48, 64, 3) and image.dtype == np.uint8 for _, image in frames)


def test_every_frame_alone_and_in_one_pass(tmp_path, film):
    path = film(tmp_path / "film.mp4", 25)
    assert [number_of(image) for _, image in read_frames(path, range(25))] == list(range(25))
    assert [number_of(next(read_frames(path, [k]))[1]) for k in range(25)] == list(range(25))


def test_frames_come_one_by_one(tmp_path, film):
    frames = read_frames(film(tmp_path / "film.mp4", 20), range(20))
    first, second = next(frames)[1], next(frames)[1]
    assert (number_of(first), number_of(second)) == (0, 1)
    frames.close()


@pytest.mark.parametrize(("turn", "corner"), [(0, (0, 0)), (90, (0, -1)), (180, (-1, -1)), (270, (-1, 0))])
def test_films_are_turned_upright(tmp_path, film, turn, corner):
    path = film(tmp_path / "film.mp4", 5, turn=turn)
    _, image = next(read_frames(path, [2]))
    assert image.shape == ((64, 48, 3) if turn in (90, 270) else (48, 64, 3))
    assert number_of(np.rot90(image, turn // 90)) == 2
    bright = [where for where in ((0, 0), (0, -1), (-1, -1), (-1, 0)) if image[where].min() > 128]
    assert bright == [corner]


def test_files_that_cannot_be_read_are_named(tmp_path, film):
    whole = film(tmp_path / "film.mp4", 50).read_bytes()
    noisy = bytearray(whole)
    start = whole.index(b"mdat") + 100
    noisy[start::61] = bytes(0x5A ^ byte for byte in noisy[start::61])
    index = whole.index(b"moov")
    noisy[index:] = whole[index:]  # its index is whole, its frames are not
    for name, content in (
        ("missing.mp4", None), ("empty.mp4", b""), ("text.mp4", b"no film"), ("half.mp4", whole[: len(whole) // 2]),
        ("noise.mp4", bytes(noisy)),
    ):  # fmt: skip
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match=name):
            list(read_frames(path, [0, 30]))


def test_a_film_that_broke_off(tmp_path, film):
    # An index at the start, as of films made for the web, outlives the frames it lists.
    import av

    whole, web = film(tmp_path / "film.mp4", 60), tmp_path / "web.mp4"
    with av.open(str(whole)) as source, av.open(str(web), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    assert len(frame_table(web)) == 60
    web.write_bytes(web.read_bytes()[:-300])
    with pytest.raises(InputError, match=r"web.mp4 is damaged: it should have 60 frames"):
        frame_table(web)


def test_numbers_beyond_the_end(tmp_path, film):
    path = film(tmp_path / "film.mp4", 5)
    for number in (5, -1):
        with pytest.raises(InputError, match=f"film.mp4 has 5 frames, none of number {number}"):
            list(read_frames(path, [0, number]))


def test_sound_is_no_film(tmp_path):
    import av

    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(InputError, match=r"sound.mp4 holds no video"):
        frame_table(path)
