"""What a merge does, counted before it runs: operations, bytes and memory, from shapes alone.

Products are counted as :mod:`r2m_jax.merging.spectral` and :mod:`r2m_jax.merging.statistics` make them; elementwise
work by the arrays it reads and makes, as if they were float32 and nothing stayed in a cache. What a machine makes of it
is in :mod:`r2m_jax.merging.estimate`.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

from r2m_jax.merging.ranks import Energy, Rank, kept_rank
from r2m_jax.merging.spectral import BLOCKS, OVERSAMPLING, POWER_ITERATIONS, PURIFICATIONS, Kernel, keeps_basis

_GRAM = 5 / 8
"""Share of a Gram matrix's products that is worked out (four blocks, the lower half)."""

_EIGENVECTORS = 9.0
"""Operations of a symmetric eigenproblem with vectors, by s³: LAPACK's xSYEVD, of which 4/3 is the reduction."""


_OF_A_BASIS = 12
"""Arrays of float32 that making a residual and scaling it come to: six of float64."""


def work(m: int, n: int) -> float:
    """Floating-point operations of finding the basis of an ``m × n`` matrix: what matrices are dealt out by.

    5/4·s²·l of the Gram matrix and 9·s³ of its eigenvectors, where s and l are the smaller and the larger side
    (Golub and Van Loan, Matrix Computations, 4th ed., section 8.3).
    """
    small, large = sorted((m, n))
    return 2 * _GRAM * small**2 * large + _EIGENVECTORS * small**3


@dataclass(frozen=True)
class Deal:
    """Who does what.

    Attributes:
        shares: the indices of every worker's items.
        loads: the sum of costs of every worker.
    """

    shares: tuple[tuple[int, ...], ...]
    loads: tuple[float, ...]

    @property
    def balance(self) -> float:
        """The mean load over the largest: 1 when nobody waits, the share of all workers' time that is used."""
        largest = max(self.loads)
        return sum(self.loads) / (len(self.loads) * largest) if largest > 0 else 1.0


def deal(costs: Sequence[float], workers: int) -> Deal:
    """Deal items to workers, the costliest first, each to whoever has least so far (the first of equals).

    Ends at most a third later than the best deal there is (Graham 1969, https://doi.org/10.1137/0117039). Depends on
    nothing but the arguments, so that processes that deal for themselves agree.

    Args:
        costs: of every item, at least zero.
        workers: how many, at least one.
    """
    shares: list[list[int]] = [[] for _ in range(workers)]
    loads = [(0.0, worker) for worker in range(workers)]
    for item in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        load, worker = loads[0]
        shares[worker].append(item)
        heapq.heapreplace(loads, (load + costs[item], worker))
    by_worker = {worker: load for load, worker in loads}
    return Deal(tuple(tuple(sorted(share)) for share in shares), tuple(by_worker[w] for w in range(workers)))


@dataclass(frozen=True)
class Operations:
    """What is to be done, in the terms a :class:`Machine` has rates for. Terms add up.

    Attributes:
        products: floating-point operations of matrix products in float32.
        wide_products: of those in float64.
        cubes, squares: Σ s³ and Σ s² over the symmetric s × s eigenproblems, in float64.
        moved: bytes of the arrays that elementwise work reads and makes.
        read, written: bytes from and to files.
    """

    products: float = 0.0
    wide_products: float = 0.0
    cubes: float = 0.0
    squares: float = 0.0
    moved: float = 0.0
    read: float = 0.0
    written: float = 0.0

    def __add__(self, other: Operations) -> Operations:
        return Operations(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: float) -> Operations:
        return Operations(*(times * a for a in astuple(self)))


def total(parts: Iterable[Operations]) -> Operations:
    """The sum."""
    return sum(parts, start=Operations())


def gram_products(small: int, large: int) -> float:
    """Operations of the products in a Gram matrix as :mod:`r2m_jax.merging.spectral` works it out, in blocks."""
    size = -(-small // BLOCKS)
    rows = [min(size, small - at) for at in range(0, small, size)]
    return 2.0 * large * sum(row * sum(rows[: place + 1]) for place, row in enumerate(rows))


def columns(m: int, n: int, rank: Rank, kernel: Kernel = "gram") -> int:
    """How many columns the basis of an ``m × n`` matrix has (:func:`r2m_jax.merging.spectral.basis`)."""
    kept, small = kept_rank(rank, m, n), min(m, n)
    if isinstance(rank, Energy):
        return small
    if kept in (0, small):
        return 0
    return small if kernel == "matmul" else kept if keeps_basis(rank, m, n) else small - kept


def basis_operations(m: int, n: int, rank: Rank, kernel: Kernel = "gram") -> Operations:
    """Finding one basis, its residual included.

    ``auto`` is counted as ``gram``. ``svd`` is counted in eigenproblems that take as long on a CPU (a 1024² SVD takes
    1.4 times its Gram matrix's eigenvectors, a 4096 × 1024 one 3.2 times); of ``matmul`` the most iterations it makes.
    """
    small, large = sorted((m, n))
    moved = Operations(moved=4.0 * _OF_A_BASIS * small * large)
    if columns(m, n, rank, kernel) == 0:
        return Operations()
    if kernel == "svd":
        return moved + Operations(cubes=0.8 * small**3 + 0.6 * small**2 * large)
    if kernel == "randomized":
        tried = min(small, kept_rank(rank, m, n) + OVERSAMPLING)
        passes = POWER_ITERATIONS * 4.0 * small * large * tried  # W·(Wᵀ·Q)
        last = 2.0 * small * large * tried + gram_products(tried, large) + 2.0 * small * tried**2
        factorised = 4.0 * small * tried**2 * (POWER_ITERATIONS + 1)  # Householder QR and its Q
        return moved + Operations(wide_products=passes + last + factorised, cubes=tried**3, squares=tried**2)
    if kernel == "matmul":
        return moved + Operations(wide_products=gram_products(small, large) + PURIFICATIONS * 2.0 * small**3)
    return moved + Operations(wide_products=gram_products(small, large), cubes=float(small**3), squares=float(small**2))


def tail_products(m: int, n: int, rank: Rank, kernel: Kernel = "gram") -> float:
    """Operations of the two products that give one discarded tail from its basis."""
    return 4.0 * m * n * columns(m, n, rank, kernel)


def measuring(shape: tuple[int, ...], rank: Rank | None, count: int, kernel: Kernel = "gram") -> Operations:
    """Statistics of one layer of a unit, its bases (:func:`basis_operations`) apart.

    Args:
        shape: of the layer.
        rank: of truncation, None for what is not truncated.
        count: of specialists.
        kernel: of truncation.
    """
    size = math.prod(shape)
    vectors = count + 1 if rank is None else 2 * count + 1  # residuals and the mean, and tails
    inner = 2.0 * vectors**2 * size
    moved = 4.0 * size * (count + 1 + 2 * vectors)
    tails = 0.0
    if rank is not None:
        m, n = shape
        tails = count * tail_products(m, n, rank, kernel)
    return Operations(products=tails + inner, moved=moved)


def applying(shape: tuple[int, ...], rank: Rank | None, count: int, kernel: Kernel = "gram") -> Operations:
    """The result for one layer of a unit, bases apart."""
    size = math.prod(shape)
    if rank is None:
        return Operations(moved=4.0 * size * (count + 2))
    m, n = shape
    tails = count * tail_products(m, n, rank, kernel)
    return Operations(products=tails, moved=4.0 * size * (3 * count + 2))
