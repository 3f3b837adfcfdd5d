"""Face-reenactment-like forgeries: the image's own content moved, as expression and pose move a face."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from r2m_jax.data.forge.method import Method, unfitted
from r2m_jax.data.forge.regions import ellipse, face_prior, feathered, paste, to_uint8
from r2m_jax.data.forge.warping import similarity, smooth_field, through_bottleneck, warp

# Brows, mouth corners, lips and chin in a face crop, as shares of height and width.
_LANDMARKS = np.array([(0.36, 0.36), (0.36, 0.64), (0.64, 0.37), (0.64, 0.63), (0.60, 0.50), (0.70, 0.50)])


def expression_warp(
    image: UInt8[np.ndarray, "h w 3"], donors: UInt8[np.ndarray, "n h w 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Landmarks of the centre pulled apart or together, the pixels between following smoothly."""
    shape = image.shape[:2]
    distance = face_prior(shape, rng)
    field = _radial_basis_field(shape, rng) * np.clip(4 * (1 - distance), 0, 1)
    moved = through_bottleneck(warp(image, field), rng.uniform(1.6, 2.2))
    return paste(image, moved, feathered(distance <= 0.9, 0.02 * min(shape)))


def mouth_replacement(
    image: UInt8[np.ndarray, "h w 3"], donors: UInt8[np.ndarray, "n h w 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """The lower centre stretched or squeezed and rendered again at lower resolution."""
    shape = image.shape[:2]
    centre = 0.66 + rng.uniform(-0.03, 0.03), 0.5 + rng.uniform(-0.04, 0.04)
    inside = ellipse(shape, centre, (rng.uniform(0.16, 0.2), rng.uniform(0.22, 0.28)), rng.uniform(-0.15, 0.15)) <= 1
    opening = rng.choice([rng.uniform(0.7, 0.85), rng.uniform(1.2, 1.4)])
    shift = tuple(rng.uniform(-0.04, 0.04, 2) * shape)
    moved = warp(image, similarity(shape, centre, scale=(opening, 1 + rng.uniform(-0.1, 0.1)), shift=shift))
    rendered = through_bottleneck(moved, rng.uniform(1.8, 2.4)) + rng.uniform(-4, 4, 3)
    return paste(image, rendered, feathered(inside, rng.uniform(0.015, 0.03) * min(shape)))


def dense_motion(
    image: UInt8[np.ndarray, "h w 3"], donors: UInt8[np.ndarray, "n h w 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """The whole frame resampled along a smooth motion field; where it is torn, a coarser rendering shows through."""
    shape = image.shape[:2]
    amplitude = rng.uniform(0.02, 0.035) * min(shape)
    field = amplitude * np.stack([smooth_field(shape, 5, rng), smooth_field(shape, 5, rng)])
    moved = warp(image, field)
    occlusion = 1 / (1 + np.exp(-3 * smooth_field(shape, 6, rng)))[..., None]
    return to_uint8((1 - occlusion) * moved + occlusion * through_bottleneck(moved, rng.uniform(1.6, 2.2)))


def _radial_basis_field(shape: tuple[int, int], rng: np.random.Generator) -> Float[np.ndarray, "2 h w"]:
    """Displacement by Gaussians around the landmarks, each too shallow to fold the image over itself."""
    height, width = shape
    rows = (np.arange(height)[:, None] + 0.5) / height
    columns = (np.arange(width)[None, :] + 0.5) / width
    field = np.zeros((2, height, width))
    for row, column in _LANDMARKS + rng.uniform(-0.03, 0.03, _LANDMARKS.shape):
        bump = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * rng.uniform(0.07, 0.1) ** 2))
        direction = rng.uniform(0, 2 * np.pi)
        length = rng.uniform(0.035, 0.06)
        field += length * np.array([height * np.sin(direction), width * np.cos(direction)])[:, None, None] * bump
    return field


METHODS = (
    Method(
        "expression_warp",
        "FR",
        "Arad et al., Image Warping by Radial Basis Functions: Application to Facial Expressions, CVGIP 1994, "
        "https://doi.org/10.1006/cgip.1994.1015",
        "landmarks of the centre moved, the rest of it following smoothly",
        unfitted(expression_warp),
    ),
    Method(
        "mouth_replacement",
        "FR",
        "Thies et al., Deferred Neural Rendering (NeuralTextures), SIGGRAPH 2019, https://arxiv.org/abs/1904.12356, "
        "which FaceForensics++ lets change the mouth alone, https://arxiv.org/abs/1901.08971",
        "the lower centre stretched and rendered again at lower resolution",
        unfitted(mouth_replacement),
    ),
    Method(
        "dense_motion",
        "FR",
        "Siarohin et al., First Order Motion Model for Image Animation, NeurIPS 2019 (dense motion field, "
        "occlusion-aware generation), https://arxiv.org/abs/2003.00196",
        "the whole frame resampled along a smooth motion field",
        unfitted(dense_motion),
    ),
)
