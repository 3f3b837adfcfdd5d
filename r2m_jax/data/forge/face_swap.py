"""Face-swap-like forgeries: another image's centre pasted in, made to fit in colour and at the seam."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from scipy import sparse
from scipy.sparse.linalg import splu
from skimage import color

from r2m_jax.data.forge.method import Method, unfitted
from r2m_jax.data.forge.regions import face_prior, feathered, paste, to_uint8
from r2m_jax.data.forge.warping import similarity, smooth_field, through_bottleneck, warp
from r2m_jax.errors import InputError


def feathered_swap(
    image: UInt8[np.ndarray, "h w 3"], donors: UInt8[np.ndarray, "n h w 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """A donor's centre with the image's colours, alpha-blended under a feathered mask."""
    inside = face_prior(image.shape[:2], rng) <= 1
    donor = _rendered(_closest(image, donors, inside), rng)
    matched = transfer_colour(donor, image, inside)
    return paste(image, matched, feathered(inside, rng.uniform(0.015, 0.035) * min(image.shape[:2])))


def poisson_swap(
    image: UInt8[np.ndarray, "h w 3"], donors: UInt8[np.ndarray, "n h w 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """A donor's centre cloned by its gradients, so that no step in colour remains at the seam."""
    inside = face_prior(image.shape[:2], rng) <= 1
    donor = transfer_colour(_rendered(_closest(image, donors, inside), rng), image, inside)
    difference = image - donor
    membrane = _harmonic(difference, inside)
    return to_uint8(np.where(inside[..., None], donor + membrane, image))


def self_blended(
    image: UInt8[np.ndarray, "h w 3"], donors: UInt8[np.ndarray, "n h w 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """The image blended with a recoloured, resampled and slightly moved copy of itself.

    Unlike the paper, which alters the copy or its ground at random, only the copy is altered, so that what lies
    outside the mask stays as recorded.
    """
    shape = image.shape[:2]
    copy = _recoloured(image, rng)
    if rng.random() < 0.5:
        copy = through_bottleneck(copy, rng.uniform(1.5, 2.0))
    else:
        copy = copy + rng.uniform(0.8, 1.5) * (copy - through_bottleneck(copy, 2.0))
    scale = tuple(1 + rng.uniform(-0.06, 0.06, 2))
    shift = tuple(rng.uniform(-0.04, 0.04, 2) * shape)
    copy = warp(copy, similarity(shape, (0.5, 0.5), scale=scale, shift=shift))
    inside = face_prior(shape, rng) + 0.08 * smooth_field(shape, 5, rng) <= 1
    mask = feathered(inside, rng.uniform(0.012, 0.035) * min(shape)) * rng.choice([0.25, 0.5, 0.75, 1, 1, 1])
    return paste(image, copy, mask)


def transfer_colour(
    source: np.ndarray, target: UInt8[np.ndarray, "h w 3"], inside: np.ndarray
) -> Float[np.ndarray, "h w 3"]:
    """Give a source the target's mean and spread of colour, channel by channel in CIELAB.

    Reinhard et al., "Color Transfer between Images", IEEE CG&A 2001, https://doi.org/10.1109/38.946629 (there in lαβ).
    The spread changes at most twofold, since a flat source would turn into noise.

    Args:
        source, target: grey levels 0 … 255, ``[h, w, 3]``.
        inside: boolean ``[h, w]``, where both are measured.
    """
    ours = color.rgb2lab(np.clip(source, 0, 255) / 255)
    theirs = color.rgb2lab(target / 255)
    gain = theirs[inside].std(axis=0) / np.maximum(ours[inside].std(axis=0), 1e-3)
    lab = (ours - ours[inside].mean(axis=0)) * np.clip(gain, 0.5, 2) + theirs[inside].mean(axis=0)
    # lab2rgb clips what lies beyond the RGB gamut, but warns of a negative Z: b* stops just short of that.
    lab[..., 0] = np.clip(lab[..., 0], 0, 100)
    lab[..., 2] = np.minimum(lab[..., 2], 199 * (lab[..., 0] + 16) / 116)
    return 255 * color.lab2rgb(lab)


def _closest(
    image: UInt8[np.ndarray, "h w 3"], donors: UInt8[np.ndarray, "n h w 3"], inside: np.ndarray
) -> UInt8[np.ndarray, "h w 3"]:
    """The donor most alike in mean colour and contrast: swaps are made between faces that fit each other."""
    if not len(donors):
        raise InputError("a face swap needs a donor; give at least two different images.")
    own = image[inside]
    theirs = donors[:, inside].astype(np.float64)
    means = np.abs(theirs.mean(axis=1) - own.mean(axis=0)).mean(axis=1)
    spreads = np.abs(theirs.std(axis=1) - own.std(axis=0)).mean(axis=1)
    return donors[np.argmin(means + spreads)]


def _rendered(donor: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> Float[np.ndarray, "h w 3"]:
    """The donor as a swapping network gives it back: mirrored or not, at its own resolution, aligned by a warp."""
    if rng.random() < 0.5:
        donor = donor[:, ::-1]
    low = through_bottleneck(donor, rng.uniform(1.5, 2.2))
    size = 1 + rng.uniform(0.0, 0.15)
    return warp(low, similarity(donor.shape[:2], (0.5, 0.5), scale=(size, size)))


def _recoloured(image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> Float[np.ndarray, "h w 3"]:
    """RGB shift, then hue, saturation and value, then brightness and contrast: the colour part of SBI's transforms."""
    shifted = np.clip(image + rng.uniform(-15, 15, 3), 0, 255) / 255
    hsv = color.rgb2hsv(shifted)
    hsv[..., 0] = (hsv[..., 0] + rng.uniform(-0.03, 0.03)) % 1
    hsv[..., 1:] = np.clip(hsv[..., 1:] * (1 + rng.uniform(-0.3, 0.3, 2)), 0, 1)
    pixels = 255 * color.hsv2rgb(hsv)
    mean = pixels.mean()
    return np.clip((pixels - mean) * (1 + rng.uniform(-0.1, 0.1)) + mean + rng.uniform(-12, 12), 0, 255)


def _harmonic(boundary: Float[np.ndarray, "h w 3"], inside: np.ndarray) -> Float[np.ndarray, "h w 3"]:
    """Solve Laplace's equation inside a region that does not touch the image's edge, given the values around it."""
    number = np.full(inside.shape, -1)
    number[inside] = np.arange(inside.sum())
    rows, columns = np.nonzero(inside)
    unknowns = len(rows)
    matrix = sparse.identity(unknowns, format="csc") * 4.0
    known = np.zeros((unknowns, 3))
    for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        neighbour = number[rows + down, columns + right]
        within = neighbour >= 0
        links = sparse.coo_array(
            (np.ones(within.sum()), (np.flatnonzero(within), neighbour[within])), (unknowns, unknowns)
        )
        matrix = matrix - links.tocsc()
        known[~within] += boundary[(rows + down)[~within], (columns + right)[~within]]
    solution = np.zeros_like(boundary)
    solution[inside] = splu(matrix.tocsc()).solve(known)
    return solution


METHODS = (
    Method(
        "feathered_swap",
        "FS",
        "Reinhard et al., Color Transfer between Images, IEEE CG&A 2001, https://doi.org/10.1109/38.946629; "
        "as in FaceSwap of FaceForensics++, https://arxiv.org/abs/1901.08971",
        "another image's centre, colours matched, alpha-blended with a feathered edge",
        unfitted(feathered_swap),
    ),
    Method(
        "poisson_swap",
        "FS",
        "Pérez et al., Poisson Image Editing, SIGGRAPH 2003, seamless cloning, https://doi.org/10.1145/882262.882269",
        "another image's centre cloned by its gradients",
        unfitted(poisson_swap),
    ),
    Method(
        "self_blended",
        "FS",
        "Shiohara and Yamasaki, Detecting Deepfakes with Self-Blended Images, CVPR 2022, §3, "
        "https://arxiv.org/abs/2204.08376",
        "the image blended with a recoloured, resampled and moved copy of itself",
        unfitted(self_blended),
    ),
)
