"""Ways to put one image's content into another: feathered, by gradients, by frequency bands."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage, sparse
from scipy.sparse.linalg import splu


def to_uint8(pixels: Float[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Grey levels rounded and clipped to 0 … 255."""
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def feathered(inside: Bool[np.ndarray, "h w"], sigma: float) -> Float[np.ndarray, "h w"]:
    """A blurred mask: 1 well inside, 0 from two ``sigma`` outside on.

    Args:
        inside: the region.
        sigma: of the Gaussian, in pixels.
    """
    return ndimage.gaussian_filter(inside.astype(np.float64), sigma, truncate=2.0)


def paste(
    image: UInt8[np.ndarray, "h w 3"], source: np.ndarray, mask: Float[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """``mask · source + (1 - mask) · image``; pixels where the mask is 0 are the image's own."""
    weight = mask[..., None]
    return to_uint8(weight * source + (1 - weight) * image)


def clone(
    image: UInt8[np.ndarray, "h w 3"], source: np.ndarray, inside: Bool[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Seamless cloning: the source's gradients inside the region, the image's colours along its border.

    Pérez et al., "Poisson Image Editing", SIGGRAPH 2003, https://doi.org/10.1145/882262.882269: with the source's
    gradients as guidance, what is added to the source is the harmonic continuation of the difference at the border.
    """
    membrane = harmonic(image - source, inside)
    return to_uint8(np.where(inside[..., None], source + membrane, image))


def harmonic(boundary: Float[np.ndarray, "h w 3"], inside: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w 3"]:
    """Solve Laplace's equation inside a region that does not touch the image's edge, given the values around it."""
    number = np.full(inside.shape, -1)
    number[inside] = np.arange(inside.sum())
    rows, columns = np.nonzero(inside)
    unknowns = len(rows)
    links, known = [], np.zeros((unknowns, 3))
    for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        neighbour = number[rows + down, columns + right]
        within = neighbour >= 0
        links.append(np.stack([np.flatnonzero(within), neighbour[within]]))
        known[~within] += boundary[(rows + down)[~within], (columns + right)[~within]]
    pairs = np.concatenate(links, axis=1)
    weights = np.concatenate([np.full(unknowns, 4.0), np.full(pairs.shape[1], -1.0)])
    places = np.concatenate([np.tile(np.arange(unknowns), (2, 1)), pairs], axis=1)
    matrix = sparse.csc_array((weights, tuple(places)), shape=(unknowns, unknowns))
    solution = np.zeros_like(boundary)
    if unknowns:
        solution[inside] = splu(matrix, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}).solve(known)
    return solution


def multiband(
    image: UInt8[np.ndarray, "h w 3"], source: np.ndarray, mask: Float[np.ndarray, "h w"], levels: int
) -> UInt8[np.ndarray, "h w 3"]:
    """Blend coarse structure over a wide border and detail over a narrow one.

    Burt and Adelson, "A Multiresolution Spline With Application to Image Mosaics", ACM TOG 1983,
    https://doi.org/10.1145/245.247.

    Args:
        image, source: grey levels, ``[h, w, 3]``.
        mask: 1 where the source is wanted.
        levels: halvings of the pyramid; no more than the sides allow.
    """
    levels = min(levels, int(np.log2(min(image.shape[:2]))) - 2)
    weight = np.repeat(mask[..., None], 3, axis=2)
    ours, theirs = image.astype(np.float64), np.asarray(source, np.float64)
    bands = []
    for _ in range(levels):
        smaller = [cv2.pyrDown(array) for array in (ours, theirs, weight)]
        size = ours.shape[1::-1]
        detail = [big - cv2.pyrUp(small, dstsize=size) for big, small in ((ours, smaller[0]), (theirs, smaller[1]))]
        bands.append(weight * detail[1] + (1 - weight) * detail[0])
        ours, theirs, weight = smaller
    blended = weight * theirs + (1 - weight) * ours
    for band in reversed(bands):
        blended = cv2.pyrUp(blended, dstsize=band.shape[1::-1]) + band
    return to_uint8(blended)
