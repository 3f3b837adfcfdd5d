"""R2 and R3: whether one axis of the task matrix stands out, and how much of the merged residual leaves it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from r2m_jax.errors import InputError
from r2m_jax.merging.energies import squared_singular_values
from r2m_jax.merging.pieces import pieces, ratio
from r2m_jax.merging.selection import Select, attention_and_mlp
from r2m_jax.merging.theory.linearity import Tree, Vector

# Singular values below this share of the largest are rounding noise of a float64 Gram matrix (the square root of
# its 1e-16, with two digits of room).
_NULL = 1e-7


# R2: recovery of the shared axis


def task_gram(theta0: Tree, thetas: Sequence[Tree]) -> Float[np.ndarray, "n n"]:
    """⟨τᵢ, τⱼ⟩ in float64, leaf by leaf: the task matrix M (eq. 1) as far as R2 and R3 need it."""
    total = np.zeros((len(thetas), len(thetas)))
    for piece in pieces(theta0, thetas):
        rows = piece.taus.reshape(len(thetas), -1)
        total += rows @ rows.T
    return total


def centred(gram: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """⟨δᵢ, δⱼ⟩ of the centred task vectors (eq. 2) from ⟨τᵢ, τⱼ⟩."""
    return gram - gram.mean(axis=0) - gram.mean(axis=1)[:, None] + gram.mean()


def gamma(signal: float | int, noise: float | int) -> float:
    """γ = ‖Z_c‖/(‖A_c v*‖ - ‖Z_c‖) (A.10); inf where the gap is not positive. From 1 on it says nothing.

    The bound holds: off v*, v is P Z_cᵀu/σ₁(M_c), and σ₁(M_c) ≥ ‖A_c v*‖ - ‖Z_c‖ (Wedin 1972). The chain through
    Davis and Kahan in A.12, whose ‖E‖ is near 2‖A_c v*‖‖Z_c‖, would give twice as much.
    """
    return ratio(noise, signal - noise) if signal > noise else float("inf")


@dataclass(frozen=True)
class Recovery:
    """R2 in numbers (eq. 11, A.10).

    Attributes:
        singular_values: of the task matrix, descending.
        gap: σ₁ - σ₂.
        gamma: the bound of A.10 with σ₁ for the signal and σ₂ for the noise.
        gamma_floor: σ₂/σ₁. No decomposition of the matrix into a rank-one signal and noise has a smaller γ.
        shared: ‖v vᵀτ̄‖/‖τ̄‖ for the leading direction v: how much of the mean update lies on the axis that R2 calls
            shared. 0 means that the axis is a pure difference of specialists.
        coefficients: of v on the task vectors, v = Σ cᵢ τᵢ/σ₁; signs that differ show a difference.
    """

    singular_values: Float[np.ndarray, " n"]
    gap: float
    gamma: float
    gamma_floor: float
    shared: float
    coefficients: Float[np.ndarray, " n"]


def recovery(gram: Float[np.ndarray, "n n"], *, centre: bool = True) -> Recovery:
    """How well one axis stands out from the task matrix, from ⟨τᵢ, τⱼ⟩.

    The signal a·v* and the noise ζ of τᵢ = aᵢv* + ζᵢ cannot be told apart from the specialists alone. Read here as
    the best rank-one fit and what it leaves: ‖A_c v*‖ = σ₁, ‖Z_c‖ = σ₂, which by Eckart and Young is the split with
    the least noise. So a γ of 1 or more refutes R2's premise, while a small γ only does not contradict it. Centring
    leaves rank N - 1: two specialists give γ = 0 whatever they are, which says nothing.

    Args:
        gram: of the task vectors, from :func:`task_gram`.
        centre: as eq. 2 does. Rows of a centred matrix sum to zero, so its leading axis is where specialists differ
            most; without centring it is what they share.
    """
    rows = centred(gram) if centre else gram
    values, vectors = np.linalg.eigh((rows + rows.T) / 2)
    singular = np.sqrt(np.maximum(values[::-1], 0.0))
    u = vectors[:, -1]
    singular[singular < _NULL * np.sqrt(max(float(np.trace(gram)), 0.0))] = 0.0
    first, second = float(singular[0]), float(singular[1]) if len(singular) > 1 else 0.0
    coefficients = u - u.mean() if centre else u
    on_mean = coefficients @ gram.mean(axis=1)  # σ₁ ⟨v, τ̄⟩
    if on_mean < 0:
        coefficients, on_mean = -coefficients, -on_mean
    return Recovery(
        singular_values=singular,
        gap=first - second,
        gamma=gamma(first, second),
        gamma_floor=ratio(second, first),
        shared=ratio(float(on_mean), first * float(np.sqrt(max(gram.mean(), 0.0)))),
        coefficients=coefficients,
    )


# R3: off-axis control


def kappa(vectors: Float[np.ndarray, "n d"], u: Vector) -> float:
    """κ_u = mean of ‖P_{u⊥} xⱼ‖/‖xⱼ‖ over the rows (A.15); zero rows count as on the axis.

    The paper applies P_{u⊥}, a projector on features, to δⱼ, which are weights. Two readings make sense: the rows are
    feature responses Hδⱼ (:func:`separation_response`) and u is the feature axis, which is this function; or the axis
    is v, u's counterpart in weight space (A.5: H v ≈ s u), which is :func:`kappa_weights`. For the bound take the
    latter: A.16 moves the projector past H, which is allowed for v (if H v is along u) and not for u.
    """
    axis = u / np.linalg.norm(u)
    off = np.linalg.norm(vectors - np.outer(vectors @ axis, axis), axis=1)
    norms = np.linalg.norm(vectors, axis=1)
    return float(np.mean(np.divide(off, norms, out=np.zeros_like(off), where=norms > 0)))


def kappa_weights(gram: Float[np.ndarray, "n n"], core: Float[np.ndarray, " n"] | None = None) -> float:
    """κ in weight space: mean of ‖P_{v⊥} δⱼ‖/‖δⱼ‖ with v the leading right singular vector of M_c (A.15).

    Args:
        gram: of the task vectors (:func:`task_gram`); nothing larger than N×N is formed, since ⟨δⱼ, v⟩ = σ₁u₁ⱼ.
        core: coefficients cᵢ of another axis, along Σ cᵢ τᵢ: that of a core that was not taken from M_c.
    """
    rows = centred(gram)
    squared = np.diagonal(rows)
    moved = squared > _NULL**2 * np.trace(gram)
    if core is None:
        values, vectors = np.linalg.eigh((rows + rows.T) / 2)
        on_axis = values[-1] * vectors[:, -1] ** 2
    else:
        length = max(float(core @ gram @ core), np.finfo(float).tiny)
        on_axis = ((gram - gram.mean(axis=0)) @ core) ** 2 / length
    off = np.divide(squared - on_axis, squared, out=np.zeros_like(squared), where=moved)
    return float(np.mean(np.sqrt(np.clip(off, 0.0, 1.0))))


@dataclass(frozen=True)
class Tail:
    """What layerwise truncation discards of the centred residuals δⱼ.

    Attributes:
        norms: ‖δⱼ‖ over all leaves.
        tails: (Σ_{l>r} σ_l²)^½, over all truncated matrices.
    """

    norms: Float[np.ndarray, " n"]
    tails: Float[np.ndarray, " n"]

    @property
    def tail_energy(self) -> float:
        """τ̄_r, the mean of tails over norms (A.15); a residual of zero counts as 0."""
        shares = np.divide(self.tails, self.norms, out=np.zeros_like(self.tails), where=self.norms > 0)
        return float(shares.mean())

    @property
    def constant(self) -> float:
        """The largest ‖δⱼ‖/‖δ̃ⱼ‖, which the C of A.18 has to cover; inf where truncation leaves nothing."""
        kept = np.sqrt(np.maximum(self.norms**2 - self.tails**2, 0.0))
        ratios = [ratio(a, b) if b > 0 else float("inf") for a, b in zip(self.norms, kept, strict=True) if a > 0]
        return max(ratios, default=1.0)

    @property
    def mean_norm(self) -> float:
        """m_mean, the mean of ‖δ̃ⱼ‖ after truncation (eq. 4)."""
        return float(np.sqrt(np.maximum(self.norms**2 - self.tails**2, 0.0)).mean())


def truncation_tail(
    theta0: Tree, thetas: Sequence[Tree], rank: float | int, *, select: Select = attention_and_mlp
) -> Tail:
    """Tail energy of the residuals at a rank ratio (A.15, A.17), matrix by matrix, in float64.

    A.15 writes σ_l(δⱼ) although δⱼ is a vector of all weights; read as the singular values of the truncated matrices
    together, as A.18 aggregates them. Leaves that are not truncated add to the norm and nothing to the tail.

    Args:
        theta0, thetas: the origin and the specialists.
        rank: share of the directions kept, rounded down, at least one; 0 keeps none.
        select: which leaves are truncated.
    """
    if not 0 <= rank <= 1:
        raise InputError(f"rank={rank} is out of range; give a share of 0 to 1.")
    norms, tails = np.zeros(len(thetas)), np.zeros(len(thetas))
    for piece in pieces(theta0, thetas, select):
        for index, delta in enumerate(piece.taus - piece.taus.mean(axis=0)):
            norms[index] += np.sum(delta**2)
            if piece.matrix:
                energies = squared_singular_values(delta)
                kept = 0 if rank == 0 else max(1, int(rank * energies.shape[1]))
                tails[index] += energies[:, kept:].sum()
    return Tail(np.sqrt(norms), np.sqrt(tails))


def off_axis(residual: Vector, core: Vector, u: Vector) -> float:
    """The smallest ε' for which eq. 12 holds: ‖P_{u⊥} H(η τ_res)‖/‖H τ_core‖, measured.

    Args:
        residual, core: responses H(η τ_res) and H τ_core (:func:`separation_response`).
        u: the axis; A.5 takes the direction of the core's response, :func:`common_axis` of all tasks.
    """
    axis = u / np.linalg.norm(u)
    return ratio(float(np.linalg.norm(residual - (residual @ axis) * axis)), float(np.linalg.norm(core)))


def off_axis_bound(
    kappa_u: float, tail_energy: float, eta: float, response: float, mean_norm: float, core_response: float
) -> float:
    """ε' = C η (κ_u + τ̄_r) ‖H‖ m_mean / ‖H τ_core‖ (A.20), with the unnamed constant C set to 1.

    C is not universal: A.18 divides by ‖δⱼ‖ where norm matching divided by ‖δ̃ⱼ‖, so the proof gives C = max ‖δⱼ‖/‖δ̃ⱼ‖
    (:attr:`Tail.constant`), times the error of H v ∥ u.

    The printed A.15 has α in the place of η: it loses the factor ‖τ_core‖ of η = α‖τ_core‖ between A.20 and A.21,
    which makes it depend on the unit of the weights. Pass the η that multiplies τ_res (α‖τ_core‖ for eq. 6,
    α‖τ_core‖/‖τ_res‖ for η_eff), or α to get the printed number.

    Args:
        kappa_u, tail_energy: from :func:`kappa` or :func:`kappa_weights`, and :class:`Tail`.
        eta: scale of the merged residual.
        response: ‖H‖_op (:func:`response_norm`).
        mean_norm: m_mean.
        core_response: ‖H τ_core‖.
    """
    return ratio(eta * (kappa_u + tail_energy) * response * mean_norm, core_response)
