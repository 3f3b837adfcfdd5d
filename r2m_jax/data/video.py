"""Chosen frames of a video file in one pass: exact numbers, upright, one in memory at a time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from r2m_jax.errors import InputError

_TIMED = frozenset({"mov", "mp4", "matroska", "webm"})
"""Containers whose packets carry the time of display and which seek by it.

AVI has no times of display (FFmpeg guesses them, wrongly where frames are stored out of order), MPEG streams have no
index; their frames are counted from the start of the film instead.
"""


@dataclass(frozen=True)
class FrameTable:
    """Frames of a video file in the order of display, known from its packets without decoding.

    Attributes:
        times: time stamps of the frames, ascending; the frame number is the position here.
        keys: time stamps of those that decoding can start at.
        timed: whether the stamps are those of the file; otherwise they count the frames.
    """

    times: Sequence[int]
    keys: Sequence[int]
    timed: bool

    def __len__(self) -> int:
        return len(self.times)


def frame_table(path: str | Path) -> FrameTable:
    """Read a video file's table of frames; frames its edit list cuts away are not counted, as players do not show them.

    Raises:
        InputError: the file is missing, damaged, cut off or holds no video.
    """
    with _opened(path) as (container, stream):
        packets = [packet for packet in container.demux(stream) if packet.size]
        if not packets:
            raise InputError(f"{path} holds no frame of video.")
        # Some containers state their length; a file whose download or recording broke off holds fewer.
        if len(packets) < stream.frames:
            raise InputError(f"{path} is damaged: it should have {stream.frames} frames and holds {len(packets)}.")
        if _TIMED.isdisjoint(container.format.name.split(",")) or any(packet.pts is None for packet in packets):
            return FrameTable(range(len(packets)), (0,), timed=False)
        shown = sorted(packet.pts for packet in packets if not packet.is_discard)
        keys = sorted(packet.pts for packet in packets if packet.is_keyframe)
        return FrameTable(tuple(shown), tuple(keys), timed=True)


def read_frames(
    path: str | Path, numbers: Iterable[int], table: FrameTable | None = None
) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
    """Frames by number, counted from 0 in the order of display, turned upright as the file's metadata say.

    The film is decoded forwards once; where a key frame lies between one wanted frame and the next, what is before it
    is skipped.

    Args:
        path: video file.
        numbers: of the wanted frames, in any order; each is given once, ascending.
        table: the file's table, where it has been read already.

    Yields:
        Number and frame, RGB.

    Raises:
        InputError: the file cannot be read, has no such frame, or the frame is damaged; the message names both.
    """
    table = frame_table(path) if table is None else table
    wanted = sorted(set(numbers))
    for number in wanted:
        if not 0 <= number < len(table):
            raise InputError(f"{path} has {len(table)} frames, none of number {number}.")
    with _opened(path) as (container, stream):
        frames = _stamped(container, stream, table.timed)
        position = table.keys[0] if table.keys else 0  # everything up to this time stamp is behind
        for number in wanted:
            time = table.times[number]
            nearest = bisect_right(table.keys, time) - 1  # the last key frame not after the wanted one
            if nearest >= 0 and table.keys[nearest] > position:
                container.seek(table.keys[nearest], stream=stream, backward=True)
                frames = _stamped(container, stream, table.timed)
            stamp, frame = next(((stamp, frame) for stamp, frame in frames if stamp >= time), (None, None))
            if frame is None or stamp != time or frame.is_corrupt:
                raise InputError(f"{path} is damaged: its frame {number} cannot be decoded.")
            position = time
            yield number, _upright(frame)


def read_frame(path: str | Path, number: int) -> Image.Image:
    """One frame by number, as :func:`read_frames` gives it; tables of the last files asked for are kept.

    Raises:
        InputError: as in :func:`read_frames`.
    """
    return Image.fromarray(next(read_frames(path, [number], _kept_table(str(path))))[1])


_kept_table = lru_cache(maxsize=256)(frame_table)


def _stamped(container: Any, stream: Any, timed: bool) -> Iterator[tuple[int, av.VideoFrame]]:
    for count, frame in enumerate(container.decode(stream)):
        yield (frame.pts if timed else count), frame


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[Any, Any]]:
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"{path} holds no video.")
            yield container, container.streams.video[0]
    except (av.FFmpegError, OSError) as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{path} cannot be read as a video ({reason}).") from None


def _upright(frame: av.VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
    # The display matrix asks for this many degrees anticlockwise, as np.rot90 turns; phones write multiples of 90.
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))
