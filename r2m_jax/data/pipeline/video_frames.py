"""Single frames of video files, by number."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import av
from PIL import Image

from r2m_jax.errors import InputError


def read_frame(path: str | Path, frame: int) -> Image.Image:
    """Frame number ``frame``, counted from 0 in the order of display, as RGB.

    Decoding starts at the key frame before, so that a late frame costs no more than an early one; frame rates that
    vary are followed.

    Raises:
        InputError: the file cannot be read, or has no such frame.
    """
    try:
        times = _display_times(str(path))
        if not 0 <= frame < len(times):
            raise InputError(f"{path} has {len(times)} frames, none of number {frame}.")
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            container.seek(times[frame], stream=stream, backward=True)
            for decoded in container.decode(stream):
                if decoded.pts is not None and decoded.pts >= times[frame]:
                    return decoded.to_image()
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"{path} cannot be read as a video ({error}).") from None
    raise InputError(f"{path}: frame {frame} cannot be decoded.")


@lru_cache(maxsize=256)
def _display_times(path: str) -> list[int]:
    """Time stamps of all frames in the order of display, from the packets alone (nothing is decoded)."""
    with av.open(path) as container:
        if not container.streams.video:
            raise InputError(f"{path} holds no video.")
        packets = container.demux(container.streams.video[0])
        return sorted(packet.pts for packet in packets if packet.pts is not None and packet.size)
