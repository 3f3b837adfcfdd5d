"""Sheets of sample images."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def contact_sheet(rows: Sequence[UInt8[np.ndarray, "n h w 3"]], *, gap: int = 4, zoom: int = 1) -> bytes:
    """Rows of images of one size on white, as PNG bytes; every row needs the same number of images."""
    count, height, width = rows[0].shape[:3]
    sheet = np.full((len(rows) * (height + gap) - gap, count * (width + gap) - gap, 3), 255, np.uint8)
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            top, left = row * (height + gap), column * (width + gap)
            sheet[top : top + height, left : left + width] = image
    picture = Image.fromarray(sheet)
    if zoom > 1:
        picture = picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
