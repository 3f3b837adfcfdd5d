"""Face swaps: another face's inner part put in, made to fit in shape, colour and at the seam."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8

from r2m_jax.data.forge.blending import clone, feathered, multiband, paste
from r2m_jax.data.forge.colour import match_histograms, transfer_colour
from r2m_jax.data.forge.donors import aligned, choose, fitted
from r2m_jax.data.forge.landmarks import (
    BROWS,
    LEFT_EYE,
    MOUTH,
    NOSE,
    RIGHT_EYE,
    face_width,
    hull,
    outline,
    points_of,
)
from r2m_jax.data.forge.method import Face, Method, State
from r2m_jax.data.forge.self_blending import self_blend
from r2m_jax.data.forge.warping import affine_field, smooth_field, through_bottleneck, warp

_INNER = np.concatenate([BROWS, NOSE, RIGHT_EYE, LEFT_EYE, MOUTH])
_PARTS = (np.concatenate([RIGHT_EYE, LEFT_EYE, BROWS]), NOSE, MOUTH, np.concatenate([NOSE, MOUTH]))


def feathered_swap(
    face: Face, donors: Sequence[Face], state: State, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """A donor's face with the image's colours, alpha-blended under a feathered hull."""
    points, inside = _region(face, rng)
    donor = _rendered(choose(face, donors, inside), points, face, rng)
    matched = transfer_colour(donor.pixels, face.pixels, inside)
    return paste(face.pixels, matched, feathered(inside, rng.uniform(0.025, 0.055) * face_width(points)))


def poisson_swap(
    face: Face, donors: Sequence[Face], state: State, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """A donor's face cloned by its gradients, so that no step in colour remains at the seam."""
    points, inside = _region(face, rng)
    donor = _rendered(choose(face, donors, inside), points, face, rng)
    return clone(face.pixels, transfer_colour(donor.pixels, face.pixels, inside), inside)


def multiband_swap(
    face: Face, donors: Sequence[Face], state: State, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """A donor's face blended band by band: colours over a wide border, detail over a narrow one."""
    points, inside = _region(face, rng)
    donor = _rendered(choose(face, donors, inside), points, face, rng)
    matched = transfer_colour(donor.pixels, face.pixels, inside)
    mask = feathered(inside, 0.01 * face_width(points))
    return multiband(face.pixels, matched, mask, levels=int(rng.integers(2, 5)))


def triangle_swap(
    face: Face, donors: Sequence[Face], state: State, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """A donor's face warped triangle by triangle onto the landmarks, its histogram matched, the seam narrow."""
    points, inside = _region(face, rng)
    donor = aligned(choose(face, donors, inside), points, inside.shape, rng)
    jittered = Face(donor.pixels, donor.landmarks + rng.normal(0, 0.008 * face_width(points), points.shape))  # type: ignore[operator]
    matched = match_histograms(fitted(jittered, points, inside.shape), face.pixels, inside)
    return paste(face.pixels, matched, feathered(inside, rng.uniform(0.015, 0.03) * face_width(points)))


def autoencoder_swap(
    face: Face, donors: Sequence[Face], state: State, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """A donor's face at the low resolution of an autoencoder, smoothed, and pasted with a wide soft seam."""
    points, inside = _region(face, rng)
    donor = aligned(choose(face, donors, inside), points, inside.shape, rng)
    # The first DeepFakes generated 64 pixels for a face; faces in 256-pixel crops are about 140 wide.
    factor = max(1.7, face_width(points) / rng.uniform(56, 80))
    matched = transfer_colour(through_bottleneck(donor.pixels, factor), face.pixels, inside)
    return paste(face.pixels, matched, feathered(inside, rng.uniform(0.05, 0.09) * face_width(points)))


def inner_swap(
    face: Face, donors: Sequence[Face], state: State, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Only brows, eyes, nose and mouth of a donor, moved onto the image's own: jaw, cheeks and forehead stay."""
    points, whole = _region(face, rng)
    inside = _widened(points, _INNER, rng.uniform(1.0, 1.12), whole)
    donor = aligned(choose(face, donors, whole), points, whole.shape, rng)
    matched = transfer_colour(fitted(donor, points, whole.shape), face.pixels, inside)
    rendered = through_bottleneck(matched, rng.uniform(1.3, 1.7))
    return paste(face.pixels, rendered, feathered(inside, rng.uniform(0.02, 0.045) * face_width(points)))


def part_swap(face: Face, donors: Sequence[Face], state: State, rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """One part of a donor's face (eyes, nose, mouth, or nose and mouth) cloned over the image's own."""
    points, whole = _region(face, rng)
    part = _PARTS[rng.integers(len(_PARTS))]
    inside = _widened(points, part, rng.uniform(1.25, 1.45), whole)
    donor = aligned(choose(face, donors, whole), points, whole.shape, rng)
    rendered = through_bottleneck(fitted(donor, points, whole.shape), rng.uniform(1.3, 1.8))
    return clone(face.pixels, transfer_colour(rendered, face.pixels, inside), inside)


def box_swap(face: Face, donors: Sequence[Face], state: State, rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """A donor's face in a soft-edged quadrilateral: the mask of swaps that know a face's box but not its outline."""
    points, whole = _region(face, rng)
    corners = points[[17, 26, 11, 5]] + rng.normal(0, 0.02 * face_width(points), (4, 2))
    inside = hull(corners, whole.shape) & whole
    inside = inside if inside.any() else whole
    donor = _rendered(choose(face, donors, whole), points, face, rng)
    matched = transfer_colour(donor.pixels, face.pixels, inside)
    return paste(face.pixels, matched, feathered(inside, rng.uniform(0.03, 0.06) * face_width(points)))


def blended_image(
    face: Face, donors: Sequence[Face], state: State, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """The donor nearest in landmarks under a randomly deformed hull, colours corrected: Face X-ray's training data."""
    points, whole = _region(face, rng)
    kind = rng.integers(4)
    hulls = (points, outline(points), points[_INNER], np.concatenate([points[17:48], points[[2, 4, 6, 8, 10, 12, 14]]]))
    inside = hull(hulls[kind], whole.shape)
    amplitude = rng.uniform(0.015, 0.04) * face_width(points)
    field = amplitude * np.stack([smooth_field(whole.shape, 6, rng), smooth_field(whole.shape, 6, rng)])
    deformed = warp(np.repeat(inside[..., None].astype(np.float64), 3, axis=2), field)[..., 0] > 0.5
    deformed &= _inset(whole.shape)
    donor = aligned(choose(face, donors, whole), points, whole.shape, rng)
    matched = transfer_colour(donor.pixels, face.pixels, deformed if deformed.any() else whole)
    return paste(face.pixels, matched, feathered(deformed, rng.uniform(0.02, 0.06) * face_width(points)))


def self_blended(
    face: Face, donors: Sequence[Face], state: State, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """The image blended with a recoloured, resampled and slightly moved copy of itself."""
    return self_blend(face.pixels, points_of(face, rng), rng)[1]


def _region(face: Face, rng: np.random.Generator) -> tuple[Float[np.ndarray, "68 2"], Bool[np.ndarray, "h w"]]:
    """Landmarks and the region to swap; a face so small that no pixel is inside gets the middle of the image.

    The region keeps a little inside the outline, where hair, caps and background begin.
    """
    points = points_of(face, rng)
    ring = outline(points, forehead=rng.uniform(0.04, 0.18))
    middle = ring.mean(axis=0)
    inside = hull(middle + rng.uniform(0.9, 0.98) * (ring - middle), face.pixels.shape[:2])
    return points, inside if inside.any() else _inset(face.pixels.shape[:2])


def _inset(shape: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    inside = np.zeros(shape, bool)
    inside[1:-1, 1:-1] = True
    return inside


def _widened(
    points: Float[np.ndarray, "68 2"], part: np.ndarray, factor: float, whole: Bool[np.ndarray, "h w"]
) -> Bool[np.ndarray, "h w"]:
    """The hull of some landmarks, enlarged about its middle, within the face."""
    chosen = points[part]
    middle = (chosen.min(axis=0) + chosen.max(axis=0)) / 2
    inside = hull(middle + factor * (chosen - middle), whole.shape) & whole
    return inside if inside.any() else whole


def _rendered(donor: Face, points: Float[np.ndarray, "68 2"], face: Face, rng: np.random.Generator) -> Face:
    """A donor as a swapping network gives it back: brought to the face's landmarks, at the network's resolution."""
    moved = aligned(donor, points, face.pixels.shape[:2], rng)
    low = through_bottleneck(moved.pixels, rng.uniform(1.4, 2.0))
    turn, size = rng.uniform(-0.02, 0.02), 1 + rng.uniform(-0.02, 0.04)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) / size
    middle = points.mean(axis=0)
    about = np.concatenate([matrix, (middle - matrix @ middle)[:, None]], axis=1)
    return Face(warp(low, affine_field(face.pixels.shape[:2], about)), moved.landmarks)


METHODS = (
    Method(
        "feathered_swap",
        "FS",
        "Reinhard et al., Color Transfer between Images, IEEE CG&A 2001, https://doi.org/10.1109/38.946629; "
        "as in FaceSwap of FaceForensics++, https://arxiv.org/abs/1901.08971",
        "another face's hull, colours matched, alpha-blended with a feathered edge",
        feathered_swap,
    ),
    Method(
        "poisson_swap",
        "FS",
        "Pérez et al., Poisson Image Editing, SIGGRAPH 2003, seamless cloning, https://doi.org/10.1145/882262.882269",
        "another face cloned by its gradients",
        poisson_swap,
    ),
    Method(
        "self_blended",
        "FS",
        "Shiohara and Yamasaki, Detecting Deepfakes with Self-Blended Images, CVPR 2022, §3, "
        "https://arxiv.org/abs/2204.08376",
        "the image blended with a recoloured, resampled and moved copy of itself",
        self_blended,
    ),
    Method(
        "multiband_swap",
        "FS",
        "Burt and Adelson, A Multiresolution Spline With Application to Image Mosaics, ACM TOG 1983, "
        "https://doi.org/10.1145/245.247",
        "another face blended band by band of a Laplacian pyramid",
        multiband_swap,
    ),
    Method(
        "triangle_swap",
        "FS",
        "Bitouk et al., Face Swapping: Automatically Replacing Faces in Photographs, SIGGRAPH 2008, "
        "https://doi.org/10.1145/1360612.1360638; landmark meshes as in FaceForensics++'s FaceSwap",
        "another face fitted to the landmarks triangle by triangle, histograms matched",
        triangle_swap,
    ),
    Method(
        "autoencoder_swap",
        "FS",
        "Rössler et al., FaceForensics++ (DeepFakes), ICCV 2019, https://arxiv.org/abs/1901.08971; Li and Lyu, "
        "Exposing DeepFake Videos By Detecting Face Warping Artifacts, CVPRW 2019, https://arxiv.org/abs/1811.00656",
        "another face at the 64 pixels of an early autoencoder, enlarged and pasted with a wide seam",
        autoencoder_swap,
    ),
    Method(
        "inner_swap",
        "FS",
        "Nirkin et al., On Face Segmentation, Face Swapping, and Face Perception, FG 2018, "
        "https://arxiv.org/abs/1704.06729",
        "another face's brows, eyes, nose and mouth; jaw, cheeks and forehead stay",
        inner_swap,
    ),
    Method(
        "part_swap",
        "FS",
        "CIPLab, Real and Fake Face Detection (composites of eyes, nose, mouth or whole face), "
        "https://www.kaggle.com/datasets/ciplab/real-and-fake-face-detection; cloned after Pérez et al., 2003",
        "one part of another face (eyes, nose, mouth) cloned in",
        part_swap,
    ),
    Method(
        "box_swap",
        "FS",
        "the box blending of the faceswap project, https://github.com/deepfakes/faceswap, with which most early "
        "DeepFakes were made",
        "another face in a soft-edged quadrilateral",
        box_swap,
    ),
    Method(
        "blended_image",
        "FS",
        "Li et al., Face X-ray for More General Face Forgery Detection, CVPR 2020, §3.2, "
        "https://arxiv.org/abs/1912.13458",
        "the face nearest in landmarks under a randomly deformed hull",
        blended_image,
    ),
)
