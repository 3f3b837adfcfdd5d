"""JPEG compression and decompression of a batch on the device, without the entropy coding, in libjpeg's integers.

What a JPEG file loses is lost before its entropy coding, so a round trip needs none. The steps and their rounding are
those of libjpeg's defaults (libjpeg-turbo 3, "islow" transforms, triangle upsampling; ITU-T T.81 and T.871): BT.601
full range with 16 fractional bits, chroma means of 2x2 with alternating bias, 8x8 DCT with 13 fractional bits, Annex K
tables. All of it is int32, hence the same on every device.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, UInt8

from r2m_jax.data.augment.policy import Subsampling

# ITU-T T.81, tables K.1 and K.2
_LUMA = np.array([
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
], np.int32)  # fmt: skip
_CHROMA = np.full((8, 8), 99, np.int32)
_CHROMA[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]

# The DCT of eight values (rows: outputs 0 … 7) times √8·2^13. To this matrix libjpeg's factorisation (Loeffler,
# Ligtenberg & Moschytz 1989) with constants of 13 bits amounts; the second half of a row mirrors the first.
_HALF = np.array([
    [8192, 8192, 8192, 8192],
    [11363, 9633, 6437, 2260],
    [10703, 4433, -4433, -10703],
    [9633, -2259, -11362, -6436],
    [8192, -8192, -8192, 8192],
    [6437, -11362, 2261, 9633],
    [4433, -10704, 10704, -4433],
    [2260, -6436, 9633, -11363],
], np.int32)  # fmt: skip
_DCT = np.concatenate([_HALF, _HALF[:, ::-1] * np.array([1, -1] * 4, np.int32)[:, None]], 1)


def tables(quality: Int32[Array, ""]) -> tuple[Int32[Array, "8 8"], Int32[Array, "8 8"]]:
    """Quantisation tables of luma and chroma at libjpeg's quality 1…100, limited to 1…255 (baseline)."""
    scale = jnp.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    luma, chroma = (jnp.clip((jnp.asarray(table) * scale + 50) // 100, 1, 255) for table in (_LUMA, _CHROMA))
    return luma, chroma


def round_trip(
    image: UInt8[Array, "h w 3"], quality: Int32[Array, ""], subsampling: Subsampling
) -> UInt8[Array, "h w 3"]:
    """Compress one RGB image to JPEG and decode it again.

    Args:
        image: RGB, of any size from 3x3.
        quality: 1…100, libjpeg's scale.
        subsampling: of the chroma.
    """
    height, width = image.shape[:2]
    luma_table, chroma_table = tables(quality)
    luma, *chroma = _to_ycc(image.astype(jnp.int32))
    halved = subsampling == "4:2:0"
    planes = [luma, *(map(_halve, chroma) if halved else chroma)]
    blocks = [_to_blocks(plane) for plane in planes]
    counts = np.array([part.shape[2] for part in blocks])
    steps = jnp.where(np.arange(counts.sum()) < counts[0], luma_table[:, :, None], chroma_table[:, :, None])
    coded = jnp.split(_code(jnp.concatenate(blocks, 2), steps), np.cumsum(counts)[:-1], 2)
    luma, *chroma = (_from_blocks(part, plane.shape) for part, plane in zip(coded, planes, strict=True))
    if halved:
        chroma = [_upsample(plane, height, width) for plane in chroma]
    return _to_rgb(luma, *chroma)


def _fixed(value: float) -> int:
    return int(value * 65536 + 0.5)


def _to_ycc(image: Array) -> tuple[Array, Array, Array]:
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    half, middle = 1 << 15, (128 << 16) + (1 << 15) - 1
    return (
        (_fixed(0.299) * red + _fixed(0.587) * green + _fixed(0.114) * blue + half) >> 16,
        (-_fixed(0.16874) * red - _fixed(0.33126) * green + _fixed(0.5) * blue + middle) >> 16,
        (_fixed(0.5) * red - _fixed(0.41869) * green - _fixed(0.08131) * blue + middle) >> 16,
    )


def _to_rgb(luma: Array, blue: Array, red: Array) -> Array:
    blue, red, half = blue - 128, red - 128, 1 << 15
    channels = (
        luma + ((_fixed(1.402) * red + half) >> 16),
        luma + ((-_fixed(0.34414) * blue - _fixed(0.71414) * red + half) >> 16),
        luma + ((_fixed(1.772) * blue + half) >> 16),
    )
    return jnp.clip(jnp.stack(channels, -1), 0, 255).astype(jnp.uint8)


def _halve(plane: Array) -> Array:
    """Means of 2x2, rounded down and up in turn along a row; a missing row or column repeats the last.

    The columns are filled up to whole blocks here, because libjpeg fills up the rows after this step (``_code`` does)
    but the columns before it.
    """
    height, width = plane.shape
    plane = jnp.pad(plane, ((0, height % 2), (0, -width % 16)), mode="edge")
    total = plane[0::2, 0::2] + plane[0::2, 1::2] + plane[1::2, 0::2] + plane[1::2, 1::2]
    return (total + 1 + jnp.arange(total.shape[1], dtype=jnp.int32) % 2) >> 2


def _upsample(plane: Array, height: int, width: int) -> Array:
    """Twice the size by the triangle filter: 3/4 of the nearer and 1/4 of the farther sample along each axis."""
    rows, columns = (height + 1) // 2, (width + 1) // 2
    plane = jnp.pad(plane[:rows, :columns], 1, mode="edge")
    near = 3 * plane[1:-1]
    plane = jnp.stack([near + plane[:-2], near + plane[2:]], 1).reshape(2 * rows, columns + 2)
    near = 3 * plane[:, 1:-1]
    plane = jnp.stack([near + plane[:, :-2] + 8, near + plane[:, 2:] + 7], 2).reshape(2 * rows, 2 * columns)
    return (plane >> 4)[:height, :width]


def _to_blocks(plane: Array) -> Int32[Array, "8 8 n"]:
    """Blocks of 8x8, row by row, along the last axis, so that sums over a block's axes run along memory."""
    plane = jnp.pad(plane, ((0, -plane.shape[0] % 8), (0, -plane.shape[1] % 8)), mode="edge")
    return plane.reshape(plane.shape[0] // 8, 8, plane.shape[1] // 8, 8).transpose(1, 3, 0, 2).reshape(8, 8, -1)


def _from_blocks(blocks: Int32[Array, "8 8 n"], shape: tuple[int, ...]) -> Array:
    rows, columns = (-(-side // 8) for side in shape)
    plane = blocks.reshape(8, 8, rows, columns).transpose(2, 0, 3, 1).reshape(8 * rows, 8 * columns)
    return plane[: shape[0], : shape[1]]


def _code(blocks: Int32[Array, "8 8 n"], steps: Int32[Array, "8 8 n"]) -> Int32[Array, "8 8 n"]:
    """Transform samples 0…255, quantise by the given steps, dequantise and transform back."""
    blocks = _rounded(jnp.sum(_DCT[None, :, :, None] * (blocks - 128)[:, None], 2), 11)  # along rows
    blocks = _rounded(jnp.sum(_DCT[:, :, None, None] * blocks[None], 1), 15)  # 8 times the orthonormal DCT
    magnitude = jnp.abs(blocks) + 4 * steps
    # The whole quotient is exact in float32: the half keeps it off the next integer, and all fits 24 bits.
    level = jnp.floor((magnitude.astype(jnp.float32) + 0.5) / (8 * steps).astype(jnp.float32)).astype(jnp.int32)
    blocks = jnp.sign(blocks) * level * steps
    blocks = _rounded(jnp.sum(_DCT.T[:, :, None, None] * blocks[None], 1), 11)
    blocks = _rounded(jnp.sum(_DCT.T[None, :, :, None] * blocks[:, None], 2), 18)
    return jnp.clip(blocks + 128, 0, 255)


def _rounded(values: Array, shift: int) -> Array:
    """Divided by 2^shift, halves up."""
    return (values + (1 << (shift - 1))) >> shift
