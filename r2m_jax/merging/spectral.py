"""Rank truncation of batches of matrices, exact to rounding, on every platform.

Of an ``m × n`` matrix only a basis of its smaller side (s = min(m, n)) is ever computed: of the singular vectors it
keeps or of those it discards, whichever are fewer. What truncation throws away is then two matrix products, and its
size needs one. Four ways lead to the basis:

``gram``
    Eigenvectors of the Gram matrix in float64, which resolves singular values down to 1e-8 of the largest. Trained
    task vectors span four decades and more, where a float32 Gram matrix (3e-4) finds nothing and even a float32 SVD
    loses the subspace at the cut (measured: docs/merging.md). Cheaper than an SVD of any precision.
``svd``
    Singular vectors in the matrix's own precision; what is left where float64 is not to be had (TPU).
``randomized``
    Range finder with power iterations (Halko, Martinsson and Tropp 2011, https://arxiv.org/abs/0909.4061): for ranks
    far below s on spectra that decay; inexact on flat ones.
``matmul``
    Spectral projector by trace-correcting purification (Niklasson 2002, https://doi.org/10.1103/PhysRevB.66.155115):
    matrix products only, for accelerators whose eigensolvers are slow. Singular values closer than about 1e-3 to those
    at the cut are shared between both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from r2m_jax.errors import InputError
from r2m_jax.merging.ranks import Energy, Rank, kept_rank

Kernel = Literal["auto", "gram", "svd", "randomized", "matmul"]

POWER_ITERATIONS = 6
OVERSAMPLING = 16
PURIFICATIONS = 120
BLOCKS = 4
_matmul = partial(jnp.matmul, precision="highest")


@contextmanager
def wide_arithmetic() -> Iterator[None]:
    """float64 inside, also while tracing a program whose inputs are float32; float32 on TPUs, which have no other."""
    with jax.enable_x64(jax.default_backend() != "tpu"):
        yield


def wide() -> jnp.dtype:
    """The widest float there is: float64 inside :func:`wide_arithmetic`, except on TPUs."""
    return jax.dtypes.canonicalize_dtype(jnp.float64)


def choose_kernel(kernel: Kernel = "auto") -> Kernel:
    """The kernel ``auto`` stands for on this platform: ``gram``, or ``svd`` without float64.

    Measured by ``benchmarks/spectral.py``.
    """
    if kernel != "auto":
        return kernel
    return "svd" if jax.default_backend() == "tpu" else "gram"


def keeps_basis(rank: Rank, m: int, n: int) -> bool:
    """Whether the basis of an ``m × n`` matrix spans what is kept, not what is discarded."""
    kept = kept_rank(rank, m, n)
    return isinstance(rank, Energy) or 2 * kept <= min(m, n)


def basis(matrix: Float[Array, "m n"], rank: Rank, kernel: Kernel = "auto") -> Float[Array, "s j"]:
    """Orthonormal basis of the side s = min(m, n) of what truncation keeps, or of what it discards if that is less.

    Args:
        matrix: in float64 where there is float64 (:func:`wide_arithmetic`).
        rank: what is kept; :func:`keeps_basis` tells which of the two comes back.
        kernel: see the module.

    Returns:
        float32. A share of energy has no static size: its basis has s columns, those beyond the share being zero. So
        has the projector of ``matmul``, which serves as a basis of its own range.

    Raises:
        InputError: an unknown kernel, or one that cannot do this rank.
    """
    m, n = matrix.shape
    kept, smaller, keeps = kept_rank(rank, m, n), min(m, n), keeps_basis(rank, m, n)
    if not isinstance(rank, Energy) and kept in (0, smaller):
        return jnp.zeros((smaller, 0), jnp.float32)
    flat = _normalised(matrix)[0]
    kernel = choose_kernel(kernel)
    if kernel in ("gram", "svd"):
        vectors, values = _by_gram(flat) if kernel == "gram" else _by_svd(flat)
        if isinstance(rank, Energy):
            energy = jnp.cumsum(values**2) - values**2
            found = vectors * (energy < rank.share * (values**2).sum())
        else:
            found = vectors[:, :kept] if keeps else vectors[:, kept:]
    elif isinstance(rank, Energy):
        raise InputError(f"kernel={kernel!r} finds no spectrum, which {rank} needs; use 'gram' or 'svd'.")
    elif kernel == "randomized":
        if not keeps:
            raise InputError(f"kernel='randomized' is for ranks up to half of {smaller}, not {kept}; use 'gram'.")
        found = _by_range_finder(flat, kept)
    elif kernel == "matmul":
        leading = _purify(flat, kept)
        found = leading if keeps else jnp.eye(smaller, dtype=leading.dtype) - leading
    else:
        raise InputError(f"kernel={kernel!r} is unknown; there are auto, gram, svd, randomized and matmul.")
    return found.astype(jnp.float32)


def discarded(matrix: Float[Array, "m n"], found: Float[Array, "s j"], keeps: bool) -> Float[Array, "m n"]:
    """What truncation throws away, W - W_r, in the dtype of ``matrix``.

    Args:
        matrix: W.
        found: of :func:`basis`.
        keeps: of :func:`keeps_basis`.
    """
    found = found.astype(matrix.dtype)
    if matrix.shape[0] <= matrix.shape[1]:
        part = _matmul(found, _matmul(found.T, matrix))
    else:
        part = _matmul(_matmul(matrix, found), found.T)
    return matrix - part if keeps else part


def discarded_tail(
    matrices: Float[Array, "*batch m n"], rank: Rank, kernel: Kernel = "auto"
) -> Float[Array, "*batch m n"]:
    """What truncation to ``rank`` singular components throws away, of every matrix of a batch, in float32.

    The tail W - W_r rather than W_r: residuals of specialists cancel in their sum, so a merge built from the kept parts
    would amplify their rounding errors about tenfold, one built from the tails does not.
    """
    *_, m, n = matrices.shape

    def one(matrix: Float[Array, "m n"]) -> Array:
        wide_matrix = matrix.astype(wide())
        return discarded(wide_matrix, basis(wide_matrix, rank, kernel), keeps_basis(rank, m, n)).astype(jnp.float32)

    with wide_arithmetic():
        return one_by_one(one, matrices.reshape(-1, m, n)).reshape(matrices.shape)


def spectrum(matrices: Float[Array, "*batch m n"]) -> Float[Array, "*batch s"]:
    """Singular values in descending order, without vectors: roots of the Gram matrix's eigenvalues, in float32."""
    *batch, m, n = matrices.shape

    def one(matrix: Float[Array, "m n"]) -> Array:
        flat, size = _normalised(matrix.astype(wide()))
        values = jnp.linalg.eigvalsh(_gram(flat), symmetrize_input=False)[::-1]
        return (jnp.sqrt(jnp.maximum(values, 0.0)) * size).astype(jnp.float32)

    with wide_arithmetic():
        return one_by_one(one, matrices.reshape(-1, m, n)).reshape(*batch, min(m, n))


def one_by_one(function: Callable[..., Any], *batched: Any, mesh: Mesh | None = None) -> Any:
    """Map ``function`` over the leading axis, each device of a mesh taking its share, one item at a time.

    One at a time because a batched LAPACK call on the CPU spreads over the thread pool and waits there for its parts,
    and two such calls in flight (two leaves, or two merges) on two cores wait for each other for ever; nothing is lost,
    as such a batch does not run faster. A batch that does not divide is filled up with zeros and cut again.

    Args:
        function: of one item of every argument.
        batched: arrays, trees of them, or None, which ``function`` is given as it is.
        mesh: devices; None for the one the arrays are on.
    """

    def run(*parts: Any) -> Any:
        # Behind a barrier, because XLA's CPU compiler (jax 0.10.2) fails where it fuses taking an item out of a batch
        # that is stacked from sharded arrays with what is done to the item.
        return jax.lax.map(lambda arguments: function(*jax.lax.optimization_barrier(arguments)), parts)

    if mesh is None or mesh.size == 1:
        return run(*batched)
    count = jax.tree.leaves(batched)[0].shape[0]
    missing = -count % mesh.size

    def fill(leaf: Array) -> Array:
        return jnp.concatenate([leaf, jnp.zeros((missing, *leaf.shape[1:]), leaf.dtype)]) if missing else leaf

    over_all = PartitionSpec(mesh.axis_names)
    # What functions close over (weights) is the same everywhere; replication is not tracked through eigensolvers.
    spread = jax.shard_map(run, mesh=mesh, in_specs=over_all, out_specs=over_all, check_vma=False)
    return jax.tree.map(lambda leaf: leaf[:count], spread(*jax.tree.map(fill, batched)))


def _normalised(matrix: Float[Array, "m n"]) -> tuple[Float[Array, "s n"], Float[Array, ""]]:
    """The matrix lying down and divided by its largest entry, and that: Gram matrices square, which may overflow."""
    size = jnp.abs(matrix).max()
    scaled = matrix / jnp.where(size > 0, size, 1.0)
    if matrix.shape[0] <= matrix.shape[1]:
        return scaled, size
    # Through one dimension, which has but one layout: a transposition that is only a change of layout, or is folded
    # into the product, makes float64 products on the CPU take more than twice as long.
    return jax.lax.optimization_barrier(scaled.T.reshape(-1)).reshape(scaled.T.shape), size


def _gram(flat: Float[Array, "s n"]) -> Float[Array, "s s"]:
    """W·Wᵀ of which only the lower half is worked out, block by block: 5/8 of the products at four blocks."""
    size = -(-flat.shape[0] // BLOCKS)
    parts = [flat[at : at + size] for at in range(0, flat.shape[0], size)]
    rows = [[_matmul(part, other.T) for other in parts[: i + 1]] for i, part in enumerate(parts)]
    full = [[*row, *(rows[j][i].T for j in range(i + 1, len(parts)))] for i, row in enumerate(rows)]
    return jnp.block(full)


def _by_gram(flat: Float[Array, "s n"]) -> tuple[Float[Array, "s s"], Float[Array, " s"]]:
    values, vectors = jnp.linalg.eigh(_gram(flat), symmetrize_input=False)
    return vectors[:, ::-1], jnp.sqrt(jnp.maximum(values[::-1], 0.0))


def _by_svd(flat: Float[Array, "s n"]) -> tuple[Float[Array, "s s"], Float[Array, " s"]]:
    vectors, values, _ = jnp.linalg.svd(flat, full_matrices=False)
    return vectors, values


def _by_range_finder(flat: Float[Array, "s n"], kept: int) -> Float[Array, "s k"]:
    smaller = flat.shape[0]
    tried = min(smaller, kept + OVERSAMPLING)
    # A fixed key: the same matrix gives the same basis, whatever else is merged beside it. Drawn in float32: programs
    # that are traced in wide arithmetic but lowered outside of it, as in-memory merges are, cannot draw float64.
    with jax.enable_x64(False):
        start = jax.random.normal(jax.random.key(0), (smaller, tried), jnp.float32)
    start = start.astype(flat.dtype)

    def improve(_: int, found: Float[Array, "s t"]) -> Array:
        return jnp.linalg.qr(_matmul(flat, _matmul(flat.T, found)))[0]

    found = jax.lax.fori_loop(0, POWER_ITERATIONS, improve, jnp.linalg.qr(start)[0])
    inner, _ = _by_gram(_matmul(found.T, flat))
    return _matmul(found, inner[:, :kept])


def _purify(flat: Float[Array, "s n"], kept: int) -> Float[Array, "s s"]:
    """Projector onto the leading ``kept`` left singular vectors."""
    gram = _gram(flat)
    smaller = gram.shape[0]
    # Gershgorin's bound scales the spectrum into 0…1; x² pushes eigenvalues down, 2x - x² up, whichever brings the
    # trace nearer to the rank, until all are 0 or 1.
    highest = jnp.abs(gram).sum(axis=1).max()
    # A trace of the identity keeps rounding from making an eigenvalue negative, which 2x - x² would blow up.
    start = gram / jnp.where(highest > 0, highest, 1.0) + 1e3 * jnp.finfo(gram.dtype).eps * jnp.eye(smaller)

    def unsettled(state: tuple[Array, Array, Array]) -> Array:
        step, _, distance = state
        return (step < PURIFICATIONS) & (distance > 1e-9 * smaller)

    def purify(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        step, current, _ = state
        square = _matmul(current, current)
        trace, of_square = jnp.trace(current), jnp.trace(square)
        down = jnp.abs(of_square - kept) < jnp.abs(2 * trace - of_square - kept)
        after = jnp.where(down, square, 2 * current - square)
        return step + 1, (after + after.T) / 2, jnp.abs(trace - of_square) + jnp.abs(trace - kept)

    first = (jnp.zeros((), jnp.int32), start, jnp.asarray(jnp.inf, start.dtype))
    return jax.lax.while_loop(unsettled, purify, first)[1]
