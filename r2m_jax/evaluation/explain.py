"""Which patches of an image a detector's logit comes from: integrated gradients, whose map adds up to the logit.

Sundararajan, Taly, Yan, "Axiomatic Attribution for Deep Networks", ICML 2017 (https://arxiv.org/abs/1703.01365): the
gradient along the straight way from a baseline to the input, integrated and multiplied by their difference. By the
theorem on path integrals the map's sum is the logit less the baseline's (completeness, their Proposition 1).

A patch's share is the sum over its pixels. The patch projection being linear, that is exactly its share by integrated
gradients on the patch embeddings. The baseline is the mean colour of the normalisation, whose patches embed as zeros:
an image that says nothing. Relevance is thus relative to an empty image and additive; it is no claim about where an
image was altered.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from r2m_jax.models import Params

_POINTS = 8  # of a stretch of the way: Gauss-Legendre quadrature, exact for polynomials of degree 15
# A tower normalises its tokens first, so a trained detector's logit moves while the image is still faint: a real CLIP
# B/16 does 90 % of its way before an eighth. These stretches are the first to be looked at.
_EDGES = (0.0, 1 / 16, 1 / 8, 1 / 4, 1.0)
_TOLERANCE = 0.01  # what stretches may miss together, as a share of the logit explained (of 1 where that is less)
_MOST = 512  # gradients, after which the gap is what it is


@dataclass(frozen=True)
class Relevance:
    """Where a logit comes from.

    Attributes:
        patches: share of every patch in logits, float64 ``[rows, columns]``; positive speaks for fake.
        logit: fake minus real, of the image.
        baseline: of the empty image.
        steps: gradients taken.
    """

    patches: Float[np.ndarray, "rows columns"]
    logit: float
    baseline: float
    steps: int

    @property
    def gap(self) -> float:
        """By how much the map misses ``logit - baseline``, in logits: the error of the integration."""
        return float(self.patches.sum()) - (self.logit - self.baseline)


def explainer(
    logits: Callable[[Params, Float[Array, "b h w 3"]], Float[Array, "b 2"]], patch: int
) -> Callable[[Params, Float[np.ndarray, "h w 3"], Float[np.ndarray, "h w 3"]], Relevance]:
    """Build ``explain(params, image, baseline)``; it is compiled once per size of image.

    Args:
        logits: of a detector, differentiable; compute in float32, since rounding is a gap that no refinement closes.
        patch: sides of a patch in pixels.

    Returns:
        A function of parameters, a normalised image and a baseline of its shape. Completeness holds for every stretch
        of the way, where the logits at its ends tell by how much the gradients between them miss. The worst stretch is
        halved until all together miss no more than 0.01 logits or 1 % of what is explained, or 512 gradients are
        spent; :attr:`Relevance.gap` tells what is left.
    """

    def margins(params: Params, images: Array) -> Array:
        both = logits(params, images)
        return both[:, 1] - both[:, 0]

    nodes, weights = np.polynomial.legendre.leggauss(_POINTS)

    @jax.jit
    def stretch(params: Params, image: Array, baseline: Array, start: Array, length: Array) -> tuple[Array, Array]:
        """The integral over a stretch, by pixel and channel, and the logits at its ends."""
        way = image - baseline
        points = baseline + (start + length * jnp.asarray((nodes + 1) / 2, jnp.float32))[:, None, None, None] * way
        each = jax.grad(lambda x: margins(params, x).sum())(points)
        mean = jnp.einsum("s,shwc->hwc", jnp.asarray(weights / 2, jnp.float32), each, precision="highest")
        ends = margins(params, jnp.stack([baseline + start * way, baseline + (start + length) * way]))
        return length * mean * way, ends

    def measure(params: Params, image: np.ndarray, baseline: np.ndarray, start: float, end: float) -> _Stretch:
        pixels, ends = stretch(params, image, baseline, np.float32(start), np.float32(end - start))
        return _Stretch(start, end, _by_patch(np.asarray(pixels, np.float64), patch), float(ends[0]), float(ends[1]))

    def explain(params: Params, image: np.ndarray, baseline: np.ndarray) -> Relevance:
        parts = [measure(params, image, baseline, *ends) for ends in itertools.pairwise(_EDGES)]
        steps = _POINTS * len(parts)
        logit, empty = parts[-1].last, parts[0].first
        while sum(part.gap for part in parts) > _TOLERANCE * max(1.0, abs(logit - empty)) and steps < _MOST:
            worst = parts.pop(max(range(len(parts)), key=lambda number: parts[number].gap))
            middle = (worst.start + worst.end) / 2
            parts += [measure(params, image, baseline, *ends) for ends in ((worst.start, middle), (middle, worst.end))]
            steps += 2 * _POINTS
        return Relevance(np.sum([part.patches for part in parts], axis=0), logit, empty, steps)

    return explain


@dataclass(frozen=True)
class _Stretch:
    """A stretch of the way: its share of the map, and the logits at its ends."""

    start: float
    end: float
    patches: Float[np.ndarray, "rows columns"]
    first: float
    last: float

    @property
    def gap(self) -> float:
        return abs(float(self.patches.sum()) - (self.last - self.first))


def draw(image: UInt8[np.ndarray, "h w 3"], relevance: Relevance, title: str) -> bytes:
    """The map over the grey image, as PNG bytes: red patches speak for fake, blue ones for real.

    Args:
        image: as the model saw it.
        relevance: of its patches.
        title: above the picture.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    height, width = image.shape[:2]
    largest = float(np.abs(relevance.patches).max()) or 1.0
    scale = Normalize(-largest, largest)
    figure = Figure(figsize=(6.4, 5.6 * height / width + 0.9), dpi=120, layout="constrained")
    axes = figure.subplots()
    grey: Any = image @ np.array([0.299, 0.587, 0.114])  # luma of ITU-R BT.601, as Pillow's "L"
    area = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes.imshow(grey, cmap="gray", vmin=0, vmax=255, extent=area)
    # Patches that say little stay clear, so that the picture beneath them can be seen.
    opacity = 0.75 * np.abs(relevance.patches) / largest
    axes.imshow(relevance.patches, cmap="RdBu_r", norm=scale, alpha=opacity, extent=area, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(title, fontsize=11)
    figure.colorbar(
        ScalarMappable(scale, "RdBu_r"), ax=axes, label="logit per patch (blue: real, red: fake)", shrink=0.9
    )
    figure.supxlabel(
        f"logit {relevance.logit:+.2f} = empty image {relevance.baseline:+.2f} + map {relevance.patches.sum():+.2f} "
        f"(error {abs(relevance.gap):.1g})",
        fontsize=9,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Title": title, "Software": None})
    return buffer.getvalue()


def _by_patch(pixels: Float[np.ndarray, "h w c"], patch: int) -> Float[np.ndarray, "rows columns"]:
    height, width = pixels.shape[0] // patch, pixels.shape[1] // patch
    return np.asarray(pixels.reshape(height, patch, width, patch, -1).sum(axis=(1, 3, 4)))
