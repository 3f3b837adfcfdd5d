"""The constant colour that FancyPCA adds, from the covariance of an image's colours; for numpy and for jax.numpy."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

_SWEEPS = 5
"""Of three rotations; convergence is quadratic, and after the fourth a 3x3 matrix in float32 no longer changes."""

_STEPS = 2.0**20
"""Per unit of (co)variance of numbers in 0…1: to this grid they are rounded, so that what is equal in truth is equal
on host and device; 255 times the error is below a thousandth of a grey level."""

Matrix = list[list[Any]]


def counted_loop(start: int, stop: int, body: Callable[[int, Any], Any], state: Any) -> Any:
    """``jax.lax.fori_loop`` in plain Python."""
    for i in range(start, stop):
        state = body(i, state)
    return state


def pca_shift(covariance: Any, xp: ModuleType, loop: Callable[..., Any] = counted_loop) -> Any:
    """FancyPCA's shift of R, G, B per unit of its factor, as albumentations 1.1.0 computes it.

    With eigenvalues l1 ≥ l2 ≥ l3 and unit eigenvectors e1, e2, e3, channel j gets ⟨e_j, (l1, l2, l3)⟩.
    (Krizhevsky et al. 2012, section 4.1, add Σ l_i e_i; albumentations stacks the eigenvectors as rows, which is the
    transpose of that.)
    An eigenvector's sign is arbitrary: here its R component is not negative. The same rotations in the same order on
    host and device make the choice the same where eigenvalues coincide, as they do in a grey image.

    Args:
        covariance: [3, 3] symmetric, float32 or float64.
        xp: ``numpy`` or ``jax.numpy``.
        loop: ``jax.lax.fori_loop`` keeps the compiled program short.

    Returns:
        [3], of the same dtype and in units of the covariance.
    """
    covariance = xp.round(covariance * _STEPS) / _STEPS
    one, zero = xp.ones_like(covariance[0, 0]), xp.zeros_like(covariance[0, 0])
    matrix = [[covariance[i, j] for j in range(3)] for i in range(3)]
    identity = [[one if i == j else zero for j in range(3)] for i in range(3)]
    matrix, axes = loop(0, _SWEEPS, lambda _, state: _sweep(state[0], state[1], xp), (matrix, identity))
    values = xp.stack([matrix[i][i] for i in range(3)])
    order = xp.argsort(-xp.round(values * _STEPS), stable=True)
    vectors = xp.stack([xp.stack(row) for row in axes])[:, order]
    vectors = vectors * xp.where(vectors[:1] < 0, -one, one)
    return xp.sum(vectors * values[order][:, None], axis=0)


def _sweep(matrix: Matrix, axes: Matrix, xp: ModuleType) -> tuple[Matrix, Matrix]:
    """Three Jacobi rotations, each of which makes one element beside the diagonal zero (Golub & Van Loan, 8.5.2)."""
    one, zero = xp.ones_like(matrix[0][0]), xp.zeros_like(matrix[0][0])
    for p, q in ((0, 1), (0, 2), (1, 2)):
        difference, twice = matrix[q][q] - matrix[p][p], 2 * matrix[p][q]
        # what is below the grid is rounding and must not turn axes of equal eigenvalues
        twice = xp.where(xp.abs(twice) * _STEPS < 1, zero, twice)
        # tan = ±|twice| / (|difference| + √(difference² + twice²)): no quotient that could overflow
        length = xp.abs(difference) + xp.sqrt(difference * difference + twice * twice)
        tangent = xp.where(difference < 0, -twice, twice) / xp.where(length > 0, length, one)
        cosine = 1 / xp.sqrt(1 + tangent * tangent)
        sine = tangent * cosine

        def turned(x: Any, y: Any, c: Any = cosine, s: Any = sine) -> tuple[Any, Any]:
            return c * x - s * y, s * x + c * y

        columns = [[turned(row[p], row[q]) for row in m] for m in (matrix, axes)]
        matrix, axes = ([[*row] for row in m] for m in (matrix, axes))
        for m, pairs in zip((matrix, axes), columns, strict=True):
            for row, pair in zip(m, pairs, strict=True):
                row[p], row[q] = pair
        pairs = [turned(x, y) for x, y in zip(matrix[p], matrix[q], strict=True)]
        matrix[p], matrix[q] = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return matrix, axes
