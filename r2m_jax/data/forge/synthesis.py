"""Entire-face-synthesis-like forgeries: every pixel comes out of a decoder, fitted on generator images or fixed."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage

from r2m_jax.data.forge.method import Forger, Method, unfitted
from r2m_jax.data.forge.regions import to_uint8
from r2m_jax.data.forge.warping import through_bottleneck
from r2m_jax.errors import InputError

_CELL = 4  # pixels a side of one token
_CODES = 128
_PATCH = 8  # pixels a side of the denoiser's patches
_STRIDE = 3  # between them; every pixel is the average of about seven
_SAMPLES = 20_000  # patches to fit on, a hundred for each of a patch's 192 dimensions


def prepare_vq(generator_images: UInt8[np.ndarray, "n h w 3"], seed: int) -> Forger:
    """Learn a codebook of textures; forgeries are put together from its entries.

    Shape-gain vector quantisation (Gersho and Gray 1992, chapter 12): a cell's mean stays, its deviation becomes a unit
    vector of the codebook times a gain in steps of √2. Two rounds, the second on what the first left, as in residual
    quantisation (Lee et al. 2022).
    """
    _check(generator_images)
    cells = np.concatenate([_cells(image) for image in generator_images])
    codebook = _fit_codebook(cells - cells.mean(axis=1, keepdims=True), seed)

    def forge(
        image: UInt8[np.ndarray, "h w 3"], donors: UInt8[np.ndarray, "n h w 3"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "h w 3"]:
        height, width = image.shape[:2]
        padded = np.pad(image, ((0, -height % _CELL), (0, -width % _CELL), (0, 0)), mode="symmetric")
        cells = _cells(padded)
        mean = cells.mean(axis=1, keepdims=True)
        decoded = np.broadcast_to(mean, cells.shape)
        for _ in range(2):
            residual = (cells - decoded).reshape(len(cells), -1)
            decoded = decoded + _quantised(residual, codebook, rng).reshape(cells.shape)
        rows, columns = padded.shape[0] // _CELL, padded.shape[1] // _CELL
        grid = decoded.reshape(rows, columns, _CELL, _CELL, 3)
        return to_uint8(grid.swapaxes(1, 2).reshape(padded.shape)[:height, :width])

    return forge


def prepare_patch_diffusion(generator_images: UInt8[np.ndarray, "n h w 3"], seed: int) -> Forger:
    """Learn the covariance of patches; forgeries are noise-disturbed images, denoised under it in two steps.

    SDEdit (Meng et al. 2022) with the denoiser of a Gaussian scale mixture (Portilla et al. 2003) in place of a
    network: the posterior mean of a patch's eigen-coefficients. The mixture's scale is not integrated out, but taken
    from the patch's energy.
    """
    _check(generator_images)
    patches = np.concatenate(
        [_sampled(image, seed, i, len(generator_images)) for i, image in enumerate(generator_images)]
    )
    patches = patches - patches.mean(axis=1, keepdims=True)
    flat = patches.reshape(len(patches), -1)
    variances, basis = np.linalg.eigh(flat.T @ flat / len(flat))
    variances = np.maximum(variances, 1e-6)

    def forge(
        image: UInt8[np.ndarray, "h w 3"], donors: UInt8[np.ndarray, "n h w 3"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "h w 3"]:
        pixels = image.astype(np.float64)
        for sigma in (rng.uniform(24, 36), rng.uniform(9, 14)):
            pixels = _denoised(pixels + sigma * rng.standard_normal(pixels.shape), sigma, variances, basis)
        return to_uint8(pixels)

    return forge


def transposed_convolution(
    image: UInt8[np.ndarray, "h w 3"], donors: UInt8[np.ndarray, "n h w 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """The image as an autoencoder's last layer gives it back: halved, then doubled by a transposed convolution.

    Part of the lost detail returns, as through a network's other channels; without it the result would be blurred.
    """
    height, width = image.shape[:2]
    padded = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="symmetric").astype(np.float64)
    halved = padded.reshape(padded.shape[0] // 2, 2, padded.shape[1] // 2, 2, 3).mean(axis=(1, 3))
    doubled = np.zeros_like(padded)
    top, left = rng.integers(2, size=2)
    doubled[top::2, left::2] = halved
    # Even and odd pixels get a total weight of 1 + uneven and 1 - uneven per axis, which makes the checkerboard;
    # bilinear interpolation would be [0.5, 1, 0.5].
    uneven = rng.uniform(0.06, 0.1) * rng.choice([-1, 1])
    kernel = np.array([(1 - uneven) / 2, 1 + uneven, (1 - uneven) / 2])
    for axis in (0, 1):
        doubled = ndimage.convolve1d(doubled, kernel, axis=axis, mode="mirror")
    detail = rng.uniform(0.5, 0.8) * (padded - through_bottleneck(padded, 2.0))
    return to_uint8((doubled + detail)[:height, :width])


def _check(generator_images: UInt8[np.ndarray, "n h w 3"]) -> None:
    if not len(generator_images) or not np.ptp(generator_images, axis=(1, 2)).any():
        raise InputError(f"{len(generator_images)} generator images without texture teach nothing; give photographs.")


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


def _sampled(image: UInt8[np.ndarray, "h w 3"], seed: int, index: int, images: int) -> Float[np.ndarray, "m k 3"]:
    """A share of an image's patches at random places."""
    rng = np.random.default_rng((seed, index))
    windows = sliding_window_view(image, (_PATCH, _PATCH), axis=(0, 1))
    count = -(-_SAMPLES // images)
    rows, columns = rng.integers(windows.shape[0], size=count), rng.integers(windows.shape[1], size=count)
    return windows[rows, columns].reshape(count, 3, -1).swapaxes(1, 2).astype(np.float64)


def _denoised(
    noisy: Float[np.ndarray, "h w 3"],
    sigma: float,
    variances: Float[np.ndarray, " d"],
    basis: Float[np.ndarray, "d d"],
) -> Float[np.ndarray, "h w 3"]:
    """Posterior mean of overlapping patches under a Gaussian scale mixture, averaged where they overlap."""
    height, width = noisy.shape[:2]
    starts = [sorted({*range(0, side - _PATCH + 1, _STRIDE), side - _PATCH}) for side in (height, width)]
    windows = sliding_window_view(noisy, (_PATCH, _PATCH), axis=(0, 1))[np.ix_(*starts)]
    shape = windows.shape
    patches = windows.reshape(shape[0] * shape[1], 3, _PATCH * _PATCH).swapaxes(1, 2)
    mean = patches.mean(axis=1, keepdims=True)
    coefficients = (patches - mean).reshape(len(patches), -1) @ basis
    energy = (coefficients**2).sum(axis=1) - coefficients.shape[1] * sigma**2
    scale = np.maximum(energy, 0) / variances.sum()
    prior = scale[:, None] * variances
    clean = (coefficients * prior / (prior + sigma**2)) @ basis.T
    clean = (clean.reshape(patches.shape) + mean).reshape(shape[0], shape[1], _PATCH, _PATCH, 3)
    total, weight = np.zeros_like(noisy), np.zeros((height, width, 1))
    rows, columns = np.array(starts[0]), np.array(starts[1])
    for down in range(_PATCH):
        for right in range(_PATCH):
            place = np.ix_(rows + down, columns + right)
            total[place] += clean[:, :, down, right]
            weight[place] += 1
    return total / weight


METHODS = (
    Method(
        "vq_reconstruction",
        "EFS",
        "van den Oord et al., Neural Discrete Representation Learning, NeurIPS 2017, https://arxiv.org/abs/1711.00937; "
        "Lee et al., Residual Quantization, CVPR 2022, https://arxiv.org/abs/2203.01941",
        "the image put together from a learned codebook of textures",
        prepare_vq,
    ),
    Method(
        "patch_diffusion",
        "EFS",
        "Meng et al., SDEdit, ICLR 2022, https://arxiv.org/abs/2108.01073, with a denoiser after Portilla et al., "
        "Scale Mixtures of Gaussians in the Wavelet Domain, IEEE TIP 2003, https://doi.org/10.1109/TIP.2003.818640",
        "noise added and removed under a learned model of patches",
        prepare_patch_diffusion,
    ),
    Method(
        "transposed_convolution",
        "EFS",
        "Odena et al., Deconvolution and Checkerboard Artifacts, Distill 2016, https://doi.org/10.23915/distill.00003; "
        "Zhang et al., AutoGAN, WIFS 2019, https://arxiv.org/abs/1907.06515",
        "the image halved and doubled by a transposed convolution with an uneven kernel",
        unfitted(transposed_convolution),
    ),
)
