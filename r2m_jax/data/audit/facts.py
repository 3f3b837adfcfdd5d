"""What one file tells about itself: whether it can be read, how it is encoded, and what it shows."""

from __future__ import annotations

import hashlib
import os
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile, get_sampling

MISSING = "missing"

_ENDS = 1 << 20  # bytes of a film's beginning and end that its digest is of
_DAMAGED = (OSError, SyntaxError, ValueError, ArithmeticError, LookupError, EOFError, struct.error)
"""What Pillow's decoders raise on damaged bytes, found by damaging files of every format at random."""


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
        content: digest of the decoded pixels, upright and as RGB; of a film, of its size, first and last MiB, where
            its table of frames is: equal for copies of a file, not for one that was encoded again.
        bits: per channel, as stored; 0 for films.
        bit_rate: of a film, in bits per second; 0 where the container does not tell, and for images.
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
    bits: int = 0
    bit_rate: int = 0


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
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        return Facts(problem=_words(error), bytes=size)


def jpeg_quality(table: list[int]) -> int:
    """The quality from 1 to 100 whose standard luminance table is nearest to a file's.

    libjpeg scales the table of ITU-T T.81, Annex K.1, by 5000/q below 50 and 200 - 2q from there. Tables are compared
    as sorted lists, so that it does not matter whether a reader gives them in zigzag order.
    """
    return int(np.abs(_TABLES - np.sort(table)[None]).sum(axis=1).argmin()) + 1


def _examine_image(path: str, size: int) -> Facts:
    # Pillow warns of oddities in metadata; the picture counts, and what spoils that is raised.
    with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
        stored = image.format or "", image.mode, *image.size
        # Upright RGB is what a detector sees; the same picture saved with another orientation tag is a duplicate.
        pixels = ImageOps.exif_transpose(image).convert("RGB")
        digest = hashlib.blake2b(f"{pixels.size}".encode() + pixels.tobytes(), digest_size=12).hexdigest()
        encoded = _jpeg(image) if isinstance(image, JpegImageFile) else (0, "", False)
    return Facts("", size, *stored, *encoded, digest, _bits(path, stored[0], stored[1]))


def _jpeg(image: JpegImageFile) -> tuple[int, str, bool]:
    """Quality, chroma subsampling, and whether it is progressive."""
    first = image.layer[0]  # luminance, or the only one: identifier, sampling factors, number of its table
    quality = jpeg_quality(list(image.quantization[first[3]]))
    known = {-1: "4:0:0" if image.layers == 1 else "other", 0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}
    return quality, known[get_sampling(image)], "progressive" in image.info


def _bits(path: str, kind: str, mode: str) -> int:
    if kind == "PNG":  # Pillow makes 8 bits of 16 where there is colour; the header tells
        with Path(path).open("rb") as file:
            return file.read(25)[24]  # signature 8, length and name of IHDR 8, width and height 8, then the bit depth
    return {"1": 1, "I": 32, "F": 32}.get(mode, 16 if mode.startswith("I;16") else 8)


def _examine_film(path: str, size: int) -> Facts:
    import av

    try:
        with av.open(path) as container:
            if not container.streams.video:
                return Facts(problem="it holds no video", bytes=size)
            stream = container.streams.video[0]
            if not stream.width:
                return Facts(problem="its picture size is unknown", bytes=size)
            stored = container.format.name, stream.codec_context.name, stream.width, stream.height
            rate = container.bit_rate or 0
    except av.FFmpegError as error:  # not all of its kinds are OSErrors or ValueErrors
        return Facts(problem=_words(error), bytes=size)
    return Facts("", size, *stored, content=_ends(path, size), bit_rate=rate)


def _ends(path: str, size: int) -> str:
    digest = hashlib.blake2b(f"{size}".encode(), digest_size=12)
    with Path(path).open("rb") as file:
        digest.update(file.read(_ENDS))
        if size > _ENDS:
            file.seek(-min(_ENDS, size - _ENDS), os.SEEK_END)
            digest.update(file.read(_ENDS))
    return digest.hexdigest()


def _words(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


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
