"""Vector quantisation: images put together from a learned codebook of textures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from r2m_jax.data.forge.blending import to_uint8
from r2m_jax.data.forge.method import Face, Method, State
from r2m_jax.data.forge.synthesis.texture import refuse_flat

_CELL = 4  # pixels a side of one token
_CODES = 48
_SAMPLES = 20_000  # cells to fit on


def fit(generator_images: UInt8[np.ndarray, "n h w 3"], seed: int, effort: float) -> State:
    """Learn a codebook of textures; forgeries are put together from its entries.

    Shape-gain vector quantisation (Gersho and Gray 1992, chapter 12): a cell's mean stays, its deviation becomes a unit
    vector of the codebook times a gain in steps of √2. Two rounds, the second on what the first left, as in residual
    quantisation (Lee et al. 2022).
    """
    refuse_flat(generator_images)
    cells = np.concatenate([_cells(image) for image in generator_images])
    return {"codebook": _fit_codebook(cells - cells.mean(axis=1, keepdims=True), seed)}


def vq_reconstruction(
    face: Face, donors: Sequence[Face], state: State, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """The image put together from the codebook's textures."""
    height, width = face.pixels.shape[:2]
    padded = np.pad(face.pixels, ((0, -height % _CELL), (0, -width % _CELL), (0, 0)), mode="symmetric")
    cells = _cells(padded)
    mean = cells.mean(axis=1, keepdims=True)
    decoded = np.broadcast_to(mean, cells.shape)
    for _ in range(2):
        residual = (cells - decoded).reshape(len(cells), -1)
        decoded = decoded + _quantised(residual, state["codebook"], rng).reshape(cells.shape)
    rows, columns = padded.shape[0] // _CELL, padded.shape[1] // _CELL
    grid = decoded.reshape(rows, columns, _CELL, _CELL, 3)
    return to_uint8(grid.swapaxes(1, 2).reshape(padded.shape)[:height, :width])


def _cells(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "m k 3"]:
    """Non-overlapping square cells, row by row; what does not fill one at the lower and right edge is left out."""
    rows, columns = image.shape[0] // _CELL, image.shape[1] // _CELL
    grid = image[: rows * _CELL, : columns * _CELL].reshape(rows, _CELL, columns, _CELL, 3)
    return grid.swapaxes(1, 2).reshape(rows * columns, _CELL * _CELL, 3).astype(np.float64)


def _fit_codebook(deviations: Float[np.ndarray, "m k 3"], seed: int) -> Float[np.ndarray, "codes d"]:
    """Unit vectors by k-means on the directions of the cells that hold texture."""
    from sklearn.cluster import MiniBatchKMeans

    vectors = deviations.reshape(len(deviations), -1)
    norms = np.linalg.norm(vectors, axis=1)
    rng = np.random.default_rng(seed)
    textured = np.flatnonzero(norms > norms.mean() / 2)
    chosen = rng.permutation(textured)[:_SAMPLES]
    units = vectors[chosen] / np.maximum(norms[chosen, None], 1e-9)
    codes = max(1, min(_CODES, len(units) // 4))
    fit = MiniBatchKMeans(codes, batch_size=2048, n_init=1, max_iter=10, random_state=seed).fit(units)
    return fit.cluster_centers_ / np.maximum(np.linalg.norm(fit.cluster_centers_, axis=1, keepdims=True), 1e-9)


def _quantised(
    vectors: Float[np.ndarray, "m d"], codebook: Float[np.ndarray, "codes d"], rng: np.random.Generator
) -> Float[np.ndarray, "m d"]:
    """Every vector as one of its two best codes, the better one more often, times a gain in steps of √2."""
    match = vectors @ codebook.T
    best = np.argsort(-np.abs(match), axis=1)[:, :2]
    second = (rng.random(len(best)) < 0.2).astype(int) if best.shape[1] > 1 else np.zeros(len(best), int)
    each = np.arange(len(best))
    code = best[each, second]
    gain = match[each, code]
    steps = 2 ** (np.rint(2 * np.log2(np.maximum(np.abs(gain), 1e-3))) / 2)
    return (np.sign(gain) * steps)[:, None] * codebook[code]


METHODS = (
    Method(
        "vq_reconstruction",
        "EFS",
        "van den Oord et al., Neural Discrete Representation Learning, NeurIPS 2017, https://arxiv.org/abs/1711.00937; "
        "Lee et al., Residual Quantization, CVPR 2022, https://arxiv.org/abs/2203.01941",
        "the image put together from a learned codebook of textures",
        vq_reconstruction,
        fit,
    ),
)
