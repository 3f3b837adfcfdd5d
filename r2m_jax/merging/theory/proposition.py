"""Proposition 1: one axis of separation, one head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from r2m_jax.errors import InputError
from r2m_jax.merging.pieces import ratio
from r2m_jax.merging.theory.linearity import Labels, Vector, class_weights


def separation(features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"]) -> Vector:
    """Δ^RF, the mean of the fake features minus that of the real ones (eq. 8)."""
    return class_weights(labels) @ np.asarray(features, np.float64)


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
    from sklearn.metrics import roc_auc_score

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
        aucs=np.array([[roc_auc_score(y, x @ head) for head in w] for x, y in own]),
        mean_head_aucs=np.array([roc_auc_score(y, x @ mean) for x, y in own]),
        rank_correlations=np.array([_spearman(x @ head, x @ mean) for (x, _), head in zip(own, w, strict=True)]),
    )


def _spearman(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Correlation of ranks, equal values sharing their mean; NaN where one has nothing to rank."""
    from scipy.stats import rankdata

    a, b = (rankdata(x) - (len(x) + 1) / 2 for x in (a, b))
    return ratio(float(a @ b), float(np.linalg.norm(a) * np.linalg.norm(b)))
