"""Which patches each region's mask keeps in every layer of a CoRIT detector (arXiv 2603.24057, Figs. 9 to 11)."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8

from r2m_jax.evaluation.plots.canvas import series_style

_COLUMNS = 6
_PANEL = 1.75  # inches
_DIM, _TINT = 0.35, 0.5  # brightness of patches that are filtered out; opacity of a region's colour


def draw_masks(
    streams: UInt8[np.ndarray, "s h w 3"],
    regions: Bool[np.ndarray, "k n"],
    masks: Bool[np.ndarray, "layers k n"],
    empty: Bool[np.ndarray, "layers k"],
    names: Sequence[str],
    title: str,
) -> bytes:
    """The image, what it is compared with, its regions, their masks in every layer, and the share kept, as PNG bytes.

    Args:
        streams: the image as the model saw it, then its self-blended images, of which the first is shown.
        regions: patches of each region, by rows of the square image.
        masks: patches that count in each layer.
        empty: where a region had no patch above its threshold, so that all of them count; its panel has a star.
        names: of the regions.
        title: above the picture.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    layers, count = masks.shape[:2]
    rows = 1 + -(-layers // _COLUMNS)
    figure = Figure(figsize=(_PANEL * _COLUMNS, (_PANEL + 0.27) * rows + 0.75), dpi=110, layout="constrained")
    grid = figure.add_gridspec(rows, _COLUMNS)
    colours = [series_style(region).colour for region in range(count)]

    first = [("image", streams[0])]
    if len(streams) > 1:
        first.append(("self-blended", streams[1]))
    first.append(("regions", tinted(streams[0], regions, colours)))
    panels = [(0, place, *panel) for place, panel in enumerate(first)]
    for layer in range(layers):
        star = "*" if empty[layer].any() else ""
        kept = masks[layer].sum() / max(regions.sum(), 1)
        panels.append((1 + layer // _COLUMNS, layer % _COLUMNS, f"layer {layer + 1}: {kept:.0%}{star}",
                       tinted(streams[0], masks[layer], colours)))  # fmt: skip
    for row, column, heading, picture in panels:
        axes = figure.add_subplot(grid[row, column])
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(heading, fontsize=9, pad=3)
        axes.set_axis_off()

    axes = figure.add_subplot(grid[0, len(first) :])
    for region, shares in enumerate(kept_shares(regions, masks).T):
        style = series_style(region)
        axes.plot(np.arange(1, layers + 1), 100 * shares, color=style.colour, marker=style.marker, ms=3.5, lw=1.3)
    axes.set(ylim=(0, 105), xlim=(0.5, layers + 0.5))
    axes.set_xticks(sorted({1, layers, *range(layers // 4, layers + 1, max(layers // 4, 1))} - {0}))
    axes.set_title("% of each region's patches kept, by layer", fontsize=9, pad=3)
    axes.tick_params(labelsize=8)
    axes.yaxis.tick_right()  # on the left the numbers would push the panels below apart
    axes.spines[["top", "left"]].set_visible(False)
    axes.grid(axis="y", lw=0.4)

    figure.suptitle(title, fontsize=11)
    handles = [Patch(color=colour, label=name) for colour, name in zip(colours, names, strict=True)]
    figure.legend(handles=handles, loc="outside lower left", ncols=count, frameon=False, fontsize=9)
    if empty.any():
        figure.text(0.995, 0.012, "* a region without a patch above the threshold keeps all", ha="right", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Title": title, "Software": None})
    return buffer.getvalue()


def tinted(
    image: UInt8[np.ndarray, "h w 3"], masks: Bool[np.ndarray, "k n"], colours: Sequence[str]
) -> Float[np.ndarray, "h w 3"]:
    """The grey image, patches under a mask in its colour and all others dark; 0 to 1.

    Args:
        image: square, its sides a multiple of the number of patches along them.
        masks: of patches, by rows.
        colours: of the masks, as matplotlib takes them.
    """
    from matplotlib.colors import to_rgb

    side = round(masks.shape[1] ** 0.5)
    size = image.shape[0] // side
    grey = (image @ np.array([0.299, 0.587, 0.114]) / 255)[..., None].repeat(3, axis=2)  # luma of ITU-R BT.601
    out = _DIM * grey
    for mask, colour in zip(masks, colours, strict=True):
        inside = np.kron(mask.reshape(side, side), np.ones((size, size), np.bool_))
        out[inside] = (1 - _TINT) * grey[inside] + _TINT * np.array(to_rgb(colour))
    return out


def kept_shares(
    regions: Bool[np.ndarray, "k n"], masks: Bool[np.ndarray, "layers k n"]
) -> Float[np.ndarray, "layers k"]:
    """Share of each region's patches that its mask keeps in every layer; NaN of a region without patches."""
    whole = regions.sum(axis=1)
    return np.where(whole > 0, masks.sum(axis=2) / np.maximum(whole, 1), np.nan)
