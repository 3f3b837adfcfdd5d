"""Decoding image files to arrays of one size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from r2m_jax.errors import InputError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
"""Of files taken for images."""


def image_files(folder: str | Path) -> list[Path]:
    """Image files in a folder and below, by suffix, sorted by path; hidden files and folders are passed over.

    Raises:
        InputError: the folder is missing or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name one that holds images.")
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
    if not files:
        raise InputError(f"{folder} holds no image; {', '.join(sorted(SUFFIXES))} files are read.")
    return files


def decode_image(file: str | Path | BinaryIO, *, name: str = "", shortest: int | None = None) -> Image.Image:
    """An encoded image as RGB, turned upright by its EXIF orientation.

    Args:
        file: path or open file.
        name: what an error calls it; the path when empty.
        shortest: let the JPEG decoder shrink by 2, 4 or 8 while the shorter side stays at least this many pixels:
            faster for large photographs, but not pixel for pixel what full decoding and resizing gives.

    Raises:
        InputError: it is missing, no image, or damaged.
    """
    try:
        with Image.open(file) as image:
            if shortest is not None and min(image.size) >= 2 * shortest:
                image.draft(None, tuple(side * shortest // min(image.size) for side in image.size))  # type: ignore[arg-type]
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{name or file} cannot be read as an image ({error}).") from None


def resize_and_crop(image: Image.Image, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Shorter side to ``size`` (bicubic), then the centre square: what a CLIP image processor does before rescaling."""
    if image.size != (size, size):
        width, height = image.size
        short = min(width, height)
        image = image.resize((int(size * width / short), int(size * height / short)), Image.Resampling.BICUBIC)
        left, top = (image.width - size) // 2, (image.height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image, dtype=np.uint8)


def load_images(
    paths: Sequence[str | Path],
    size: int,
    *,
    threads: int = 2,
    on_progress: Callable[[int], None] | None = None,
) -> UInt8[np.ndarray, "n size size 3"]:
    """Decode files in order into one array.

    Args:
        paths: image files.
        size: side of the square result.
        threads: decoders working side by side (Pillow releases the GIL while it decodes).
        on_progress: called with 1 for every image done.

    Raises:
        InputError: a file cannot be read; it is named.
    """
    out = np.empty((len(paths), size, size, 3), np.uint8)
    with ThreadPoolExecutor(threads) as pool:
        for index, array in enumerate(pool.map(lambda path: resize_and_crop(decode_image(path), size), paths)):
            out[index] = array
            if on_progress:
                on_progress(1)
    return out
