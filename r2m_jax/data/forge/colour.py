"""Fitting one image's colours to another's."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, UInt8
from skimage import color


def transfer_colour(
    source: np.ndarray,
    target: UInt8[np.ndarray, "h w 3"],
    inside: Bool[np.ndarray, "h w"],
) -> Float[np.ndarray, "h w 3"]:
    """Give a source the target's mean and spread of colour, channel by channel in CIELAB.

    Reinhard et al., "Color Transfer between Images", IEEE CG&A 2001, https://doi.org/10.1109/38.946629 (there in lαβ).
    The spread changes at most twofold, since a flat source would turn into noise.

    Args:
        source, target: grey levels 0 … 255, ``[h, w, 3]``.
        inside: where both are measured.
    """
    ours = color.rgb2lab(np.clip(source, 0, 255) / 255)
    theirs = color.rgb2lab(target / 255)
    gain = theirs[inside].std(axis=0) / np.maximum(ours[inside].std(axis=0), 1e-3)
    lab = (ours - ours[inside].mean(axis=0)) * np.clip(gain, 0.5, 2) + theirs[inside].mean(axis=0)
    # lab2rgb clips what lies beyond the RGB gamut, but warns of a negative Z: b* stops just short of that.
    lab[..., 0] = np.clip(lab[..., 0], 0, 100)
    lab[..., 2] = np.minimum(lab[..., 2], 199 * (lab[..., 0] + 16) / 116)
    return 255 * color.lab2rgb(lab)


def match_histograms(
    source: np.ndarray,
    target: UInt8[np.ndarray, "h w 3"],
    inside: Bool[np.ndarray, "h w"],
) -> Float[np.ndarray, "h w 3"]:
    """Map a source's grey levels so that inside a region each channel is distributed as the target's.

    Gonzalez and Woods, Digital Image Processing, 4th edition, §3.3, histogram specification.
    """
    matched = np.array(source, np.float64)
    for c in range(3):
        levels, counts = np.unique(source[inside, c], return_counts=True)
        theirs = np.sort(target[inside, c].astype(np.float64))
        middle = np.cumsum(counts) - counts / 2 - 0.5  # rank in the middle of each level's pixels
        matched[..., c] = np.interp(source[..., c], levels, np.interp(middle, np.arange(len(theirs)), theirs))
    return matched
