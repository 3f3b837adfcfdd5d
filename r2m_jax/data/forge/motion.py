"""How faces move: expressions as moved landmarks, head turns and head motions as displacement fields."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from r2m_jax.data.faces.align import similarity, warp_points
from r2m_jax.data.forge.landmarks import (
    BROWS,
    INNER_LIPS,
    LEFT_EYE,
    MOUTH,
    OUTER_LIPS,
    RIGHT_EYE,
    edge_points,
    face_width,
    outline,
)
from r2m_jax.data.forge.method import Face
from r2m_jax.data.forge.warping import affine_field, smooth_field, spline_field

_LOWER_LIP = np.array([55, 56, 57, 58, 59, 65, 66, 67])
_CHIN = np.arange(6, 11)
_CORNERS = np.array([48, 54, 60, 64])
_UPPER_LIDS = np.array([37, 38, 43, 44])
_LOWER_LIDS = np.array([41, 40, 47, 46])


def expression(points: Float[np.ndarray, "68 2"], rng: np.random.Generator) -> Float[np.ndarray, "68 2"]:
    """Landmarks after a random expression: mouth opened or pressed, corners, brows and lids moved.

    Amplitudes are shares of the face's width, about those of speech and smiles (FACS units 1, 2, 12, 15, 25 to 27).
    """
    unit = face_width(points)
    across = (points[16] - points[0]) / max(unit, 1e-9)
    down = np.array([-across[1], across[0]])
    moved = points.copy()
    drop = rng.choice([rng.uniform(0.05, 0.11), rng.uniform(-0.05, -0.03)]) * unit
    moved[_LOWER_LIP] += drop * down
    moved[_CHIN] += 0.6 * drop * down
    pull, lift = rng.uniform(-0.03, 0.05) * unit, rng.uniform(-0.04, 0.04) * unit
    for corner in _CORNERS:
        side = np.sign((points[corner] - points[MOUTH].mean(axis=0)) @ across)
        moved[corner] += side * pull * across - lift * down
    moved[BROWS] -= rng.choice([-1, 1]) * rng.uniform(0.02, 0.045) * unit * down
    closing = rng.uniform(-0.2, 0.7)
    moved[_UPPER_LIDS] += closing * (points[_LOWER_LIDS] - points[_UPPER_LIDS])
    return moved


def expression_of(donor: Face, points: Float[np.ndarray, "68 2"]) -> Float[np.ndarray, "68 2"]:
    """Landmarks with a donor's brows, eyes and mouth, as they lie in a face of the same place and size.

    Args:
        donor: with landmarks.
        points: landmarks of the face to move.
    """
    assert donor.landmarks is not None  # the caller has looked
    frame = np.concatenate([np.arange(0, 6), np.arange(11, 17), np.arange(27, 36)])  # what expressions leave in place
    theirs = warp_points(donor.landmarks, similarity(donor.landmarks[frame], points[frame]))
    moved = points.copy()
    for part in (BROWS, RIGHT_EYE, LEFT_EYE, np.concatenate([OUTER_LIPS, INNER_LIPS])):
        # Each part takes the donor's shape, and half of its shift: faces differ in where the parts are.
        centre = points[part].mean(axis=0) + 0.5 * (theirs[part].mean(axis=0) - points[part].mean(axis=0))
        moved[part] = theirs[part] - theirs[part].mean(axis=0) + centre
    return moved


def anchored_field(
    points: Float[np.ndarray, "68 2"], moved: Float[np.ndarray, "68 2"], shape: tuple[int, int]
) -> Float[np.ndarray, "2 h w"]:
    """The thin-plate field of moved landmarks that leaves the surroundings of the face in place."""
    middle = points.mean(axis=0)
    around = middle + 1.35 * (outline(points)[::3] - middle)
    fixed = np.concatenate([around, edge_points(shape)])
    return spline_field(shape, np.concatenate([moved, fixed]), np.concatenate([points, fixed]), smoothing=1e-4)


def head_turn(
    points: Float[np.ndarray, "68 2"], shape: tuple[int, int], yaw: float, pitch: float
) -> Float[np.ndarray, "2 h w"]:
    """Displacement of a head turned in space, its shape taken for half an ellipsoid over the outline.

    Args:
        points: landmarks.
        shape: of the image.
        yaw, pitch: in radians, to the side and downwards.
    """
    height, width = shape
    ring = outline(points)
    centre, radii = (ring.min(axis=0) + ring.max(axis=0)) / 2, 1.15 * np.maximum(np.ptp(ring, axis=0) / 2, 1.0)
    x = (np.arange(width)[None, :] - centre[0]) / radii[0]
    y = (np.arange(height)[:, None] - centre[1]) / radii[1]
    depth = np.sqrt(np.maximum(1 - x**2 - y**2, 0.0))
    # The pixel at (x, y, depth) comes from where the inverse turn takes it; at the rim the depth, and so the
    # motion, goes to zero.
    return np.stack(
        [
            radii[1] * (y * (np.cos(pitch) - 1) * (depth > 0) - depth * np.sin(pitch)),
            radii[0] * (x * (np.cos(yaw) - 1) * (depth > 0) - depth * np.sin(yaw)),
        ]
    )


def plate_motions(
    points: Float[np.ndarray, "68 2"], shape: tuple[int, int], rng: np.random.Generator
) -> Float[np.ndarray, "2 h w"]:
    """Several thin-plate motions, each of five key points, weighted by smooth contribution maps.

    Zhao and Zhang, "Thin-Plate Spline Motion Model for Image Animation", CVPR 2022, §3.2 (there learned).
    """
    unit = face_width(points)
    fields, logits = [np.zeros((2, *shape))], [np.zeros(shape)]
    for _ in range(4):
        keys = points[rng.choice(68, 5, replace=False)] + rng.normal(0, 0.05 * unit, (5, 2))
        fields.append(spline_field(shape, keys + rng.normal(0, 0.03 * unit, keys.shape), keys))
        logits.append(2 * smooth_field(shape, 4, rng) + 0.5)
    weights = np.exp(np.array(logits) - np.max(logits, axis=0))
    weights /= weights.sum(axis=0)
    limit = 0.06 * unit  # a spline of five points may run away far from them
    return np.clip(np.einsum("khw,kchw->chw", weights, np.array(fields)), -limit, limit)


def sway(
    points: Float[np.ndarray, "68 2"], shape: tuple[int, int], rng: np.random.Generator
) -> Float[np.ndarray, "2 h w"]:
    """A head's small motion between frames: a turn and shift of the image plane about the face."""
    unit, angle = face_width(points), rng.uniform(0.015, 0.04) * rng.choice([-1, 1])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = points.mean(axis=0)
    shift = middle - turn @ middle + rng.uniform(-0.03, 0.03, 2) * unit
    return affine_field(shape, np.concatenate([turn, shift[:, None]], axis=1))
