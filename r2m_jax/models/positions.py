"""Position embeddings for image sizes a tower was not trained at.

The learned grid of positions is resampled bicubically the way ``torch.nn.functional.interpolate`` does it
(cubic kernel with a = -0.75, half-pixel centres, clamped borders, no antialiasing), because that is what
transformers' ``interpolate_pos_encoding=True`` computes and published numbers rest on.
``jax.image.resize(..., "cubic")`` uses a = -0.5 and would differ in the second digit.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_CUBIC_A = -0.75


def _cubic_kernel(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -0.75, evaluated in float64."""
    x = np.abs(distance)
    near = (_CUBIC_A + 2) * x**3 - (_CUBIC_A + 3) * x**2 + 1
    far = _CUBIC_A * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def bicubic_weights(source: int, target: int) -> np.ndarray:
    """Matrix that resamples ``source`` samples to ``target`` samples along one axis.

    Returns:
        float64 ``[target, source]``; every row sums to 1.
    """
    centres = (np.arange(target) + 0.5) * (source / target) - 0.5
    base = np.floor(centres).astype(int)
    weights = np.zeros((target, source))
    for offset in range(-1, 3):
        tap = base + offset
        np.add.at(weights, (np.arange(target), np.clip(tap, 0, source - 1)), _cubic_kernel(centres - tap))
    return weights


def interpolate_positions(position: Float[Array, "tokens d"], grid: tuple[int, int]) -> Float[Array, "new_tokens d"]:
    """Resample position embeddings to another grid of patches; the class token's row is kept.

    Args:
        position: one row for the class token, then a square grid of patch rows, row-major.
        grid: patches down and across of the new image.
    """
    side = round((position.shape[0] - 1) ** 0.5)
    if grid == (side, side):
        return position
    rows = jnp.asarray(bicubic_weights(side, grid[0]), jnp.float32)
    columns = jnp.asarray(bicubic_weights(side, grid[1]), jnp.float32)
    patches = position[1:].astype(jnp.float32).reshape(side, side, -1)
    resampled = jnp.einsum("hi,wj,ijd->hwd", rows, columns, patches, precision="highest")
    resampled = resampled.reshape(grid[0] * grid[1], -1).astype(position.dtype)
    return jnp.concatenate([position[:1], resampled])
