"""What one file tells about itself: whether it can be read, how it is encoded, and what it shows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import Image, ImageOps

MISSING = "missing"


@dataclass(frozen=True)
class Facts:
    """Facts about one image or video file.

    Attributes:
        problem: why it cannot be used, ``missing`` or the decoder's words; empty for a readable file.
        bytes: size on disk.
        format: of the container, ``JPEG``, ``PNG``, ``WEBP`` …, or a video container's name.
        mode: how pixels are stored, Pillow's mode (``RGB``, ``L``, ``P`` …) or the video codec's name.
        width, height: in pixels, as stored (before any EXIF rotation).
        quality: of a JPEG file, 1 to 100, estimated from its luminance table; 0 for other formats.
        subsampling: of a JPEG file's chroma, e.g. ``4:2:0``; empty for others.
        progressive: whether a JPEG file is progressive.
        content: digest of the decoded pixels, upright and as RGB; empty for films.
    """

    problem: str = ""
    bytes: int = 0
    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    quality: int = 0
    subsampling: str = ""
    progressive: bool = False
    content: str = ""


def examine(path: str, film: bool = False) -> Facts:
    """Decode a file and note what it tells. Nothing is raised: a damaged file is a fact as well.

    Args:
        path: of the file.
        film: whether it is a video file, of which the container is read and no frame decoded.
    """
    try:
        size = Path(path).stat().st_size
    except OSError as error:
        return Facts(problem=MISSING if isinstance(error, FileNotFoundError) else str(error.strerror))
    try:
        return _examine_film(path, size) if film else _examine_image(path, size)
    except (OSError, SyntaxError, ValueError, ArithmeticError, Image.DecompressionBombError) as error:
        return Facts(problem=str(error).splitlines()[0] or type(error).__name__, bytes=size)


def jpeg_quality(table: list[int]) -> int:
    """The quality from 1 to 100 whose standard luminance table is nearest to a file's.

    libjpeg scales the table of ITU-T T.81, Annex K.1, by 5000/q below 50 and 200 - 2q from there. Tables are compared
    as sorted lists, so that it does not matter whether a reader gives them in zigzag order.
    """
    return int(np.abs(_TABLES - np.sort(table)[None]).sum(axis=1).argmin()) + 1


def _examine_image(path: str, size: int) -> Facts:
    with Image.open(path) as image:
        quality, subsampling, progressive = 0, "", False
        if image.format in ("JPEG", "MPO"):
            from PIL import JpegImagePlugin

            quality = jpeg_quality(list(image.quantization[0]))  # type: ignore[attr-defined]
            subsampling = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}.get(JpegImagePlugin.get_sampling(image), "other")
            progressive = "progressive" in image.info
        stored = image.format or "", image.mode, *image.size
        # Upright RGB is what a detector sees; the same picture saved with another orientation tag is a duplicate.
        pixels = ImageOps.exif_transpose(image).convert("RGB")
        digest = hashlib.blake2b(f"{pixels.size}".encode() + pixels.tobytes(), digest_size=12).hexdigest()
    return Facts("", size, *stored, quality, subsampling, progressive, digest)


def _examine_film(path: str, size: int) -> Facts:
    import av

    with av.open(path) as container:
        if not container.streams.video:
            return Facts(problem="it holds no video", bytes=size)
        stream = container.streams.video[0]
        if not stream.width:
            return Facts(problem="its picture size is unknown", bytes=size)
        return Facts("", size, container.format.name, stream.codec_context.name, stream.width, stream.height)


def _standard_tables() -> Int[np.ndarray, "100 64"]:
    # ITU-T T.81 (1992), table K.1, row by row.
    base = np.array(
        [16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
         14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
         49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99]
    )  # fmt: skip
    quality = np.arange(1, 101)[:, None]
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return np.sort(np.clip((base * scale + 50) // 100, 1, 255), axis=1)


_TABLES = _standard_tables()
