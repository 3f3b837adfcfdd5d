"""The quantities in the theory of R²M (arXiv 2509.24367 §3.2 and appendix A), each as a number to be measured.

R1 asks whether features move linearly with the weights, R2 whether the leading direction of the task matrix stands
out, R3 whether the merged residual leaves the common axis alone, and Proposition 1 concludes that one averaged head
serves all specialists. The paper states existence ("some constant C", "for some ε'"); these functions measure what
can be measured and say in their docstrings how an ambiguous definition was read.

Jacobian-vector products run in JAX and float32; N×N algebra and everything on feature vectors in NumPy and float64.
Class 1 is fake. ``features(params, batch)`` is any differentiable function that returns ``[batch, d]``; ``batches``
are its inputs and ``labels`` the matching 0/1 arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from r2m_jax.errors import InputError
from r2m_jax.merging.interference import pieces, squared_singular_values
from r2m_jax.merging.selection import Select, attention_and_mlp

Tree = Any
Features = Callable[[Tree, Any], Array]
Vector = Float[np.ndarray, " d"]
Labels = Int[np.ndarray, " _"]  # batches may differ in size

# Singular values below this share of the largest are rounding noise of a float64 Gram matrix (the square root of
# its 1e-16, with two digits of room).
_NULL = 1e-7


# R1: local linearity


@dataclass(frozen=True)
class Remainder:
    """How far a step in weights is from acting linearly (R1, eq. 10); lengths are in the units of the features.

    Attributes:
        step: ‖Δθ‖₂.
        change: size of f(θ₀ + Δθ) - f(θ₀).
        linear: size of J Δθ.
        remainder: size of their difference R(Δθ).
    """

    step: float
    change: float
    linear: float
    remainder: float

    @property
    def relative(self) -> float:
        """Remainder over change: 0 is linear, 1 means that the linear model explains nothing. NaN without change."""
        return _ratio(self.remainder, self.change)

    @property
    def constant(self) -> float:
        """The C that this step needs in ‖R(Δθ)‖ ≤ C‖Δθ‖² (eq. 10): a lower bound of the paper's C."""
        return _ratio(self.remainder, self.step**2)


def local_linearity(
    features: Features, theta0: Tree, thetas: Mapping[str, Tree], batches: Sequence[Any]
) -> dict[str, Remainder]:
    """R1 image by image: f(θ) against f(θ₀) + J(θ - θ₀), for each of ``thetas``; root mean square over images.

    A merged model is one more entry of ``thetas``. J is linear, so for θ = θ₀ + Στᵢ this compares f(θ₀ + Στᵢ)
    with f(θ₀) + ΣJτᵢ. :func:`separation_linearity` is the statement as the paper makes it, of class means; this one
    is stronger, because remainders of single images may cancel in a mean.
    """
    base = _float32(theta0)
    found = {}
    for name, theta in thetas.items():
        step = _step(base, theta)
        totals, images = np.zeros(3), 0
        for batch in batches:
            change, linear = (np.asarray(x, np.float64) for x in _expand(features, base, step, batch))
            totals += [np.sum(change**2), np.sum(linear**2), np.sum((change - linear) ** 2)]
            images += len(change)
        found[name] = Remainder(_length(step), *(float(x) for x in np.sqrt(totals / images)))
    return found


def separation_linearity(
    features: Features, theta0: Tree, thetas: Mapping[str, Tree], batches: Sequence[Any], labels: Sequence[Labels]
) -> dict[str, Remainder]:
    """R1 as stated (eqs. 9 and 10): Δ^RF(θ) against Δ^RF(θ₀) + H(θ - θ₀), norms in feature space.

    The task i of Δᵢ^RF and Hᵢ is that of the images given: call this once per task.
    """
    base = _float32(theta0)
    found = {}
    for name, theta in thetas.items():
        step = _step(base, theta)
        parts = [
            [weight @ np.asarray(x, np.float64) for x in _expand(features, base, step, batch)]
            for batch, weight in _weighted(batches, labels)
        ]
        change, linear = np.sum(parts, axis=0)
        found[name] = Remainder(_length(step), *(float(np.linalg.norm(x)) for x in (change, linear, change - linear)))
    return found


def remainder_order(
    features: Features, theta0: Tree, theta: Tree, batches: Sequence[Any], scales: Sequence[float] = (1.0, 0.5, 0.25)
) -> float:
    """The power p in ‖R(t·Δθ)‖ ∝ t^p, fitted over ``scales``.

    R1 says 2 for small steps (A.8). Clearly less means that θ - θ₀ is outside the region where the theory speaks;
    near 1 at small scales it is float32 rounding of the features.
    """
    base = _float32(theta0)
    step = _step(base, theta)
    remainders = []
    for scale in scales:
        moved = jax.tree.map(lambda a, d, s=scale: a + s * d, base, step)
        remainders.append(local_linearity(features, base, {"": moved}, batches)[""].remainder)
    if min(remainders) <= 0:
        return float("nan")
    return float(np.polyfit(np.log(scales), np.log(remainders), 1)[0])


def separation_response(
    features: Features, theta0: Tree, update: Tree, batches: Sequence[Any], labels: Sequence[Labels]
) -> Vector:
    """H·Δθ with H = E[J|fake] - E[J|real] at θ₀ (eq. 9): how the separation vector answers to an update."""
    base, step = _float32(theta0), _float32(update)
    parts = [w @ np.asarray(_push(features, base, step, batch), np.float64) for batch, w in _weighted(batches, labels)]
    return np.sum(parts, axis=0)


def response_norm(
    features: Features, theta0: Tree, batches: Sequence[Any], labels: Sequence[Labels], *, steps: int = 20
) -> float:
    """‖H‖_op (A.15), by power iteration on H Hᵀ, which lives in feature space.

    The iterates grow towards ‖H‖ from below, so a bound built on this is at most slightly too small. Each step costs
    one vector-Jacobian and one Jacobian-vector product over all batches.
    """
    base = _float32(theta0)
    width = jax.eval_shape(features, base, batches[0]).shape[-1]
    y = np.random.default_rng(0).normal(size=width)
    norm = 0.0
    for _ in range(steps):
        y = y / np.linalg.norm(y)
        parts = [
            _pull(features, base, jnp.asarray(np.outer(weight, y), jnp.float32), batch)
            for batch, weight in _weighted(batches, labels)
        ]
        y = separation_response(features, base, jax.tree.map(lambda *x: sum(x), *parts), batches, labels)
        norm = float(np.sqrt(np.linalg.norm(y)))  # ‖H Hᵀ y‖ ≤ ‖H‖² for a unit y
        if norm == 0:
            break
    return norm


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
    return _ratio(noise, signal - noise) if signal > noise else float("inf")


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
        gamma_floor=_ratio(second, first),
        shared=_ratio(float(on_mean), first * float(np.sqrt(max(gram.mean(), 0.0)))),
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


def kappa_weights(gram: Float[np.ndarray, "n n"]) -> float:
    """κ in weight space: mean of ‖P_{v⊥} δⱼ‖/‖δⱼ‖ with v the leading right singular vector of M_c (A.15).

    Args:
        gram: of the task vectors (:func:`task_gram`); nothing larger than N×N is formed, since ⟨δⱼ, v⟩ = σ₁u₁ⱼ.
    """
    rows = centred(gram)
    values, vectors = np.linalg.eigh((rows + rows.T) / 2)
    squared = np.diagonal(rows)
    moved = squared > _NULL**2 * np.trace(gram)
    on_axis = values[-1] * vectors[:, -1] ** 2
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
        ratios = [_ratio(a, b) if b > 0 else float("inf") for a, b in zip(self.norms, kept, strict=True) if a > 0]
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
    return _ratio(float(np.linalg.norm(residual - (residual @ axis) * axis)), float(np.linalg.norm(core)))


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
    return _ratio(eta * (kappa_u + tail_energy) * response * mean_norm, core_response)


# Proposition 1: one axis, one head


def separation(features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"]) -> Vector:
    """Δ^RF, the mean of the fake features minus that of the real ones (eq. 8)."""
    return _weights([labels])[0] @ np.asarray(features, np.float64)


def head_vector(head: Mapping[str, Any]) -> Vector:
    """w, the logit weights as one vector: the fake column of the kernel minus the real one (eq. 14's wᵢ^sp).

    With two logits only their difference ranks images, so this is the w whose product with φ the paper calls a score.
    """
    kernel = np.asarray(head["kernel"]).astype(np.float64)
    if kernel.ndim != 2 or kernel.shape[1] != 2:
        raise InputError(f"the head's kernel has shape {kernel.shape}; two logits per feature vector are needed.")
    return kernel[:, 1] - kernel[:, 0]


def angles(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n n"]:
    """Angles between rows in degrees, 0 to 180 (§3.2's cos ∠(a, b)); NaN for a row of zeros."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(norms > 0, norms, np.nan)
    # From the chord and its complement: the arc cosine alone loses half the digits near 0 and 180 degrees.
    apart = np.linalg.norm(unit[:, None] - unit[None], axis=-1)
    together = np.linalg.norm(unit[:, None] + unit[None], axis=-1)
    return np.degrees(2 * np.arctan2(apart, together))


def common_axis(vectors: Float[np.ndarray, "n d"]) -> Vector:
    """The unit u of eq. 13: the direction with the largest sum of squared cosines to the rows, on their mean's side.

    The paper asserts only that u exists. Rows are normalised first, because eq. 13 speaks of angles alone.
    """
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, norms, out=np.zeros_like(vectors, dtype=np.float64), where=norms > 0)
    axis = np.linalg.svd(unit, full_matrices=False)[2][0]
    return axis if (unit @ axis).sum() >= 0 else -axis


@dataclass(frozen=True)
class Proposition:
    """Proposition 1 in numbers for N tasks: what it assumes of the merged features, what it concludes of the heads.

    Attributes:
        separation_angles: ∠(Δᵢ, Δⱼ) at θ*, degrees.
        sines: sin ∠(Δᵢ, u) (eq. 13).
        same_side: whether Δᵢ points along u and not against it, which the sine cannot see and the proof needs
            (αᵢ > 0).
        epsilon: the least ε with eq. 13 for all tasks, s/(1 + s) for the largest sine s.
        head_angles: ∠(wᵢ, wⱼ), degrees.
        head_scales: cᵢ = ⟨wᵢ, q⟩ with q the unit vector along w̄ (eq. 15 wants all positive).
        head_errors: ‖wᵢ - cᵢ q‖/‖wᵢ‖, the error of "≈" in eq. 15.
        head_to_axis: ∠(wᵢ, u), degrees. Only for isotropic features should it be 0: the proof has q ∝ Σ⁻¹u.
        aucs: [task, head] AUC of every specialist's head on every task's merged features.
        mean_head_aucs: AUC of the averaged head on every task.
        rank_correlations: Spearman's ρ of own head and averaged head on every task; the conclusion is 1.
    """

    separation_angles: Float[np.ndarray, "n n"]
    sines: Float[np.ndarray, " n"]
    same_side: tuple[bool, ...]
    epsilon: float
    head_angles: Float[np.ndarray, "n n"]
    head_scales: Float[np.ndarray, " n"]
    head_errors: Float[np.ndarray, " n"]
    head_to_axis: Float[np.ndarray, " n"]
    aucs: Float[np.ndarray, "n n"]
    mean_head_aucs: Float[np.ndarray, " n"]
    rank_correlations: Float[np.ndarray, " n"]

    @property
    def auc_loss(self) -> float:
        """The largest AUC a task loses by the averaged head against its own, which the proposition says is 0."""
        return float((np.diagonal(self.aucs) - self.mean_head_aucs).max())


def proposition_1(
    features: Sequence[Float[np.ndarray, "_ d"]], labels: Sequence[Labels], heads: Sequence[Mapping[str, Any]]
) -> Proposition:
    """Measure premise and conclusion of Proposition 1 (eqs. 13-15) on one merged backbone.

    Args:
        features: φ(x; θ*) of every task's images, from the *merged* model.
        labels: 0 real, 1 fake, for every task.
        heads: the specialists' heads ``{"kernel": [d, 2], …}`` in the order of the tasks. Biases do not change ranks.
    """
    if not len(features) == len(labels) == len(heads) >= 1:
        raise InputError(f"{len(features)} sets of features, {len(labels)} of labels and {len(heads)} heads differ.")
    deltas = np.stack([separation(x, y) for x, y in zip(features, labels, strict=True)])
    u = common_axis(deltas)
    w = np.stack([head_vector(head) for head in heads])
    mean = w.mean(axis=0)
    q = mean / max(float(np.linalg.norm(mean)), np.finfo(float).tiny)
    scales = w @ q
    to_axis = np.radians(angles(np.vstack([deltas, u]))[-1, :-1])
    worst = float(np.max(np.sin(to_axis)))
    norms = np.linalg.norm(w, axis=1)
    own = [(np.asarray(x, np.float64), np.asarray(y)) for x, y in zip(features, labels, strict=True)]
    return Proposition(
        separation_angles=angles(deltas),
        sines=np.sin(to_axis),
        same_side=tuple(bool(cosine > 0) for cosine in deltas @ u),
        epsilon=worst / (1 + worst),
        head_angles=angles(w),
        head_scales=scales,
        head_errors=np.linalg.norm(w - np.outer(scales, q), axis=1) / np.where(norms > 0, norms, np.nan),
        head_to_axis=angles(np.vstack([w, u]))[-1, :-1],
        aucs=np.array([[_auc(x @ head, y) for head in w] for x, y in own]),
        mean_head_aucs=np.array([_auc(x @ mean, y) for x, y in own]),
        rank_correlations=np.array([_spearman(x @ head, x @ mean) for (x, _), head in zip(own, w, strict=True)]),
    )


def _auc(scores: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> float:
    """Mann and Whitney's form of the AUC, ties counted half."""
    fake = labels == 1
    positives, negatives = int(fake.sum()), int((~fake).sum())
    return float((_ranks(scores)[fake].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def _spearman(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    a, b = (_ranks(x) - (len(x) + 1) / 2 for x in (a, b))
    return _ratio(float(a @ b), float(np.linalg.norm(a) * np.linalg.norm(b)))


def _ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Ranks from 1, equal values sharing their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


# Jitted here, with the function static, so that repeated calls compile once.


@partial(jax.jit, static_argnums=0)
def _expand(features: Features, base: Tree, step: Tree, batch: Any) -> tuple[Array, Array]:
    """f(θ₀ + Δθ) - f(θ₀) and J Δθ."""
    at_base, linear = jax.jvp(lambda params: features(params, batch), (base,), (step,))
    return features(jax.tree.map(jnp.add, base, step), batch) - at_base, linear


@partial(jax.jit, static_argnums=0)
def _push(features: Features, base: Tree, step: Tree, batch: Any) -> Array:
    return jax.jvp(lambda params: features(params, batch), (base,), (step,))[1]


@partial(jax.jit, static_argnums=0)
def _pull(features: Features, base: Tree, cotangent: Array, batch: Any) -> Tree:
    return jax.vjp(lambda params: features(params, batch), base)[1](cotangent)[0]


def _float32(tree: Tree) -> Tree:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def _step(theta0: Tree, theta: Tree) -> Tree:
    return jax.tree.map(lambda a, b: a - b, _float32(theta), _float32(theta0))


def _length(tree: Tree) -> float:
    return float(np.sqrt(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(tree))))


def _weights(labels: Sequence[Labels]) -> list[Float[np.ndarray, " _"]]:
    """Per image +1/(fakes) or -1/(reals), so that the weighted sum of features is the separation vector (eq. 8)."""
    together = np.concatenate([np.asarray(part) for part in labels])
    fakes, reals = int((together == 1).sum()), int((together == 0).sum())
    if not fakes or not reals or fakes + reals != len(together):
        raise InputError("labels must be 0 (real) or 1 (fake), with both present.")
    return [np.where(np.asarray(part) == 1, 1 / fakes, -1 / reals) for part in labels]


def _weighted(batches: Sequence[Any], labels: Sequence[Labels]) -> zip[tuple[Any, Float[np.ndarray, " _"]]]:
    return zip(batches, _weights(labels), strict=True)


def _ratio(part: float | int, whole: float | int) -> float:
    return part / whole if whole > 0 else float("nan")
