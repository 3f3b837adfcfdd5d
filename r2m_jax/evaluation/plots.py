"""Figures: matplotlib without a display, returned as SVG or PNG to be put into a page."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image


def heat_map(
    values: Float[np.ndarray, "rows columns"],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    low: float,
    high: float,
) -> str:
    """Numbers as coloured cells with the number written in each; an SVG element.

    Args:
        values: one number per cell.
        rows, columns: labels.
        title: above the figure, and the picture's text for screen readers.
        low, high: ends of the colour scale (viridis, which stays ordered in grey and for colour-blind readers).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.9 + 0.95 * len(columns), 0.9 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, cmap="viridis", vmin=low, vmax=high, aspect="auto")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_title(title, fontsize=11)
    for row, column in np.ndindex(*values.shape):
        dark = (values[row, column] - low) / (high - low) < 0.55
        axes.text(
            column, row, f"{values[row, column]:.3f}", ha="center", va="center", fontsize=9,
            color="white" if dark else "black",
        )  # fmt: skip
    figure.colorbar(image, ax=axes, fraction=0.05)
    # Text stays text (searchable, scalable), and a fixed salt keeps the file the same from run to run.
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "r2m"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Title": title})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


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
