"""Pixels as the codecs that cameras and platforms use give them back."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image


def jpeg(image: UInt8[np.ndarray, "h w 3"], quality: int, subsampling: str) -> UInt8[np.ndarray, "h w 3"]:
    """An image after JPEG.

    Args:
        image: uint8 RGB.
        quality: of libjpeg, 1 to 100.
        subsampling: of chroma, ``4:4:4`` or ``4:2:0``.
    """
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling=subsampling)
    with Image.open(file) as decoded:
        return np.array(decoded.convert("RGB"))


def h264(frames: Sequence[UInt8[np.ndarray, "h w 3"]], crf: int) -> list[UInt8[np.ndarray, "h w 3"]]:
    """Frames after H.264 (x264, 4:2:0), the first one intra-coded, the others predicted from those before.

    Args:
        frames: uint8 RGB of one shape; odd sides are padded by one pixel and cut back.
        crf: constant rate factor; FaceForensics++ calls 23 "high" and 40 "low" quality (c23, c40).

    Returns:
        As many frames of the same shape.
    """
    height, width = frames[0].shape[:2]
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": str(crf), "preset": "fast", "bframes": "0"})
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        stream.thread_count = 1  # the result must not depend on the machine's cores
        for number, frame in enumerate(frames):
            padded = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(padded), format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file) as container:
        return [frame.to_ndarray(format="rgb24")[:height, :width] for frame in container.decode(video=0)]
