"""What up-sampling decoders leave in the Fourier spectrum: peaks on a grid, and a decay of their own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage

from r2m_jax.data.forge.method import Face, Method, State
from r2m_jax.data.forge.synthesis.texture import refuse_flat
from r2m_jax.data.forge.synthesis.tones import with_tones_of
from r2m_jax.data.forge.warping import through_bottleneck

PERIOD = 8
"""Pixels after which the fingerprint of three doublings repeats."""
_CHANNELS = 8
_MARGIN = 16  # pixels of mirrored surroundings, so that the borders bring no edges into the spectrum


def fit_peaks(generator_images: UInt8[np.ndarray, "n h w 3"], seed: int, effort: float) -> State:
    """One decoder's fingerprint, common to all it makes (Marra et al., https://arxiv.org/abs/1812.11842).

    It is the answer of three transposed convolutions with random kernels to a constant input, which repeats every eight
    pixels: in the spectrum, peaks at multiples of an eighth of the sampling frequency.
    """
    refuse_flat(generator_images)
    rng = np.random.default_rng((seed, 4))
    x = rng.standard_normal((1, 1, _CHANNELS))
    for outputs in (_CHANNELS, _CHANNELS, 3):
        enlarged = np.zeros((2 * x.shape[0], 2 * x.shape[1], _CHANNELS))
        enlarged[::2, ::2] = np.maximum(x, 0.2 * x)
        kernel = rng.standard_normal((3, 3, _CHANNELS, outputs)) / np.sqrt(9 * _CHANNELS / 4)
        x = sum(
            np.roll(enlarged, (down - 1, right - 1), axis=(0, 1)) @ kernel[down, right]
            for down in range(3)
            for right in range(3)
        )
    tile = x - x.mean(axis=(0, 1))
    return {"tile": tile / np.sqrt((tile**2).mean())}


def spectral_peaks(
    face: Face, donors: Sequence[Face], state: State, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """The image as a decoder with such a fingerprint renders it: softened, the fingerprint strongest in texture."""
    height, width = face.pixels.shape[:2]
    pixels = face.pixels.astype(np.float64)
    low = through_bottleneck(pixels, 2.0)
    detail = pixels - low
    activity = np.sqrt(ndimage.gaussian_filter((detail**2).mean(axis=2), 3))[..., None]
    strength = rng.uniform(0.7, 1.2) * (1 + 0.25 * np.minimum(activity, 8))
    repeated = np.tile(state["tile"], (-(-height // PERIOD), -(-width // PERIOD), 1))[:height, :width]
    return with_tones_of(low + rng.uniform(0.7, 0.95) * detail + strength * repeated, face.pixels)


def fit_decay(generator_images: UInt8[np.ndarray, "n h w 3"], seed: int, effort: float) -> State:
    """One decoder's decay: the exponent by which its highest frequencies are too weak, common to all it makes.

    Durall et al. found too little power there with interpolating decoders (figure 2, "Up+Conv").
    """
    refuse_flat(generator_images)
    return {"exponent": np.asarray(np.random.default_rng((seed, 6)).uniform(-3.0, -2.0))}


def spectral_decay(
    face: Face, donors: Sequence[Face], state: State, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """The image with its highest frequencies invented: of another decay, in step with the image's texture."""
    padded = np.pad(face.pixels.astype(np.float64), ((_MARGIN,) * 2, (_MARGIN,) * 2, (0, 0)), mode="symmetric")
    radius = _radius(padded.shape[:2])
    start = rng.uniform(0.16, 0.24)
    above = np.clip((radius - start) / 0.06, 0, 1)  # a soft step: a hard one would ring at every edge
    gain = (np.maximum(radius, start) / start) ** (state["exponent"] + rng.uniform(-0.2, 0.2))
    band = _filtered(padded, above * gain)
    loudness = np.sqrt(ndimage.gaussian_filter(band**2, (2, 2, 0)))
    noise = _filtered(rng.standard_normal(padded.shape), above * gain)
    noise *= np.sqrt((band**2).mean() / np.maximum((noise**2).mean(), 1e-12))
    level = np.sqrt(ndimage.gaussian_filter(noise**2, (6, 6, 0))) + 1e-9
    kept = rng.uniform(0.55, 0.8)
    invented = kept * band + np.sqrt(1 - kept**2) * noise * loudness / level
    result = _filtered(padded, 1 - above) + invented
    return with_tones_of(result[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN], face.pixels)


def _radius(shape: tuple[int, int]) -> Float[np.ndarray, "h k"]:
    """Distance from zero frequency, in cycles per pixel, of the bins of a real Fourier transform."""
    return np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None, :])


def _filtered(pixels: Float[np.ndarray, "h w 3"], gain: Float[np.ndarray, "h k"]) -> Float[np.ndarray, "h w 3"]:
    spectrum = np.fft.rfft2(pixels, axes=(0, 1)) * gain[..., None]
    return np.fft.irfft2(spectrum, s=pixels.shape[:2], axes=(0, 1))


METHODS = (
    Method(
        "spectral_peaks",
        "EFS",
        "Frank et al., Leveraging Frequency Analysis for Deep Fake Image Recognition, ICML 2020, "
        "https://arxiv.org/abs/2003.08685; Marra et al., Do GANs Leave Artificial Fingerprints?, MIPR 2019, "
        "https://arxiv.org/abs/1812.11842",
        "the periodic fingerprint of three transposed convolutions: peaks on a grid of the spectrum",
        spectral_peaks,
        fit_peaks,
    ),
    Method(
        "spectral_decay",
        "EFS",
        "Durall et al., Watch Your Up-Convolution, CVPR 2020, https://arxiv.org/abs/2003.01826; Dzanic et al., Fourier "
        "Spectrum Discrepancies in Deep Network Generated Images, NeurIPS 2020, https://arxiv.org/abs/1911.06465",
        "the highest frequencies invented, with another decay than a photograph's",
        spectral_decay,
        fit_decay,
    ),
)
