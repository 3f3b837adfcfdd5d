"""Whose content goes into a face, and how it comes to lie there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial import Delaunay

from r2m_jax.data.faces.align import similarity as fit_similarity
from r2m_jax.data.faces.align import warp_points
from r2m_jax.data.forge.landmarks import MEAN_FACE, edge_points, hull, outline
from r2m_jax.data.forge.method import Face
from r2m_jax.data.forge.warping import affine_field, similarity, warp
from r2m_jax.errors import InputError

_COARSE = 64  # pixels a side that are compared when a donor is chosen


def choose(face: Face, donors: Sequence[Face], inside: Bool[np.ndarray, "h w"]) -> Face:
    """The donor most alike in colour, contrast and shape: swaps are made between faces that fit each other.

    Args:
        face: to be forged.
        donors: to choose from.
        inside: the face's region.

    Raises:
        InputError: there is no donor.
    """
    if not donors:
        raise InputError("a face swap needs a donor; give at least two different images.")
    own = _colours(face, inside)
    return min(donors, key=lambda donor: _distance(own, face, donor, inside))


def aligned(donor: Face, points: Float[np.ndarray, "68 2"], shape: tuple[int, int], rng: np.random.Generator) -> Face:
    """A donor brought to a face by the similarity between their landmarks.

    Where the donor's landmarks are unknown, it is mirrored or not and enlarged a little instead, so that its content
    does not lie on the pixels it came from.

    Returns:
        Pixels of the face's shape as float64, landmarks at their new places.
    """
    if donor.landmarks is None:
        pixels = donor.pixels[:, ::-1] if rng.random() < 0.5 else donor.pixels
        size = 1 + rng.uniform(0.03, 0.15)
        centre = donor.pixels.shape[0] / 2, donor.pixels.shape[1] / 2
        return Face(warp(pixels, similarity(shape, centre, scale=(size, size))), points)
    moved = warp(donor.pixels, affine_field(shape, fit_similarity(points, donor.landmarks)))
    return Face(moved, warp_points(donor.landmarks, fit_similarity(donor.landmarks, points)))


def fitted(donor: Face, points: Float[np.ndarray, "68 2"], shape: tuple[int, int]) -> Float[np.ndarray, "h w 3"]:
    """A donor whose landmarks are moved onto a face's, triangle by triangle.

    Piecewise affine on the Delaunay triangulation of the outline and the landmarks; outside it, the similarity of the
    nearest triangle continues.

    Args:
        donor: with landmarks.
        points: where they are to lie.
        shape: of the result.
    """
    assert donor.landmarks is not None  # of `aligned`, which always gives some
    target = np.concatenate([points, outline(points)[17:], edge_points(shape)])
    source = np.concatenate([donor.landmarks, outline(donor.landmarks)[17:], edge_points(donor.pixels.shape[:2])])
    mesh = Delaunay(target)
    height, width = shape
    x, y = np.meshgrid(np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64))
    pixels = np.stack([x.ravel(), y.ravel()], axis=1)
    triangle = np.maximum(mesh.find_simplex(pixels, tol=1e-9), 0)
    transform = mesh.transform[triangle]
    two = np.einsum("nij,nj->ni", transform[:, :2], pixels - transform[:, 2])
    weights = np.concatenate([two, 1 - two.sum(axis=1, keepdims=True)], axis=1)
    place = np.einsum("nk,nkd->nd", weights, source[mesh.simplices[triangle]])
    place = np.where(np.isfinite(place), place, pixels)  # a flat triangle has no inverse; it covers no area either
    field = np.stack([place[:, 1].reshape(shape) - y, place[:, 0].reshape(shape) - x])
    return warp(donor.pixels, field)


def _colours(face: Face, inside: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, " 6"]:
    step = max(1, min(face.pixels.shape[:2]) // _COARSE)
    pixels = face.pixels[::step, ::step][inside[::step, ::step]]
    if not len(pixels):
        pixels = face.pixels.reshape(-1, 3)
    return np.concatenate([pixels.mean(axis=0), pixels.std(axis=0)])


def _distance(own: Float[np.ndarray, " 6"], face: Face, donor: Face, inside: Bool[np.ndarray, "h w"]) -> float:
    if donor.landmarks is not None:
        inside = hull(outline(donor.landmarks), donor.pixels.shape[:2])
    distance = float(np.abs(_colours(donor, inside) - own).mean())
    if donor.landmarks is None or face.landmarks is None:
        return distance
    # A difference in shape of 3 % of the face's width, as between expressions, weighs as much as 10 grey levels.
    return distance + 330 * float(np.sqrt(((_shape(donor.landmarks) - _shape(face.landmarks)) ** 2).mean()))


def _shape(points: Float[np.ndarray, "68 2"]) -> Float[np.ndarray, "68 2"]:
    """Landmarks without place, size and turn: brought onto the mean face."""
    return warp_points(points, fit_similarity(points, MEAN_FACE))
