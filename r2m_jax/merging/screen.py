"""A look at specialists before they are merged: which of them are broken, mislabelled or tampered with.

Advisory: nothing here stops a merge. Every check compares a specialist with the others or with the origin, so it
finds what is gross (a file of zeros, a flipped sign, one matrix replaced) and cannot find a careful backdoor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from r2m_jax.merging.pieces import check_specialists, pieces, where
from r2m_jax.merging.selection import Select, attention_and_mlp
from r2m_jax.trees import flatten, refuse_non_finite

Tree = Mapping[str, Any]

NORM_RATIO = 10.0
"""Longer or shorter than the others by more than this. Specialists whose data differ in size and hardness were
measured to differ by 3 (CLIP B/16: ‖τ‖ 1.4 to 4.8), tenfold training at most by 10; beyond, one rules the average."""

FAR_BASE = 1.0
"""‖τ‖/‖θ₀‖ at which a specialist is as far from the origin as a network of zeros is. Fine-tuning stays near 0.01;
weights trained from another origin are at √2."""

UNCHANGED = 1e-7
"""‖τ‖/‖θ₀‖ of rounding to float32 and back (2⁻²⁴ ≈ 6e-8): less has not been trained."""

IDENTICAL = 1e-2
"""‖τᵢ - τⱼ‖ over the longer of the two: a copy, or one that was trained on by next to nothing. A copy stored in
bfloat16 is not recognised: rounding moves θ by about 1e-3 of its size, and ‖τ‖ is only about 1e-2 of it."""

OPPOSITE = -0.2
"""Cosine to the mean direction of the others. Measured specialists have pairwise cosines of 0.04 (short
training on unlike synthetic patterns) to 0.8 (forged faces, CLIP B/16); unrelated ones have 0 ± 1/√D."""

MIRRORED = -0.9
"""Cosine of two vectors that count as one another's negative (θᵢ and θ₀, τᵢ and τⱼ), tolerating some noise on it."""

SPIKE_SHARE = 0.5
"""σ₁² over the sum of all: half of a matrix's change in one direction."""

SPIKE_ODDS = 10.0
"""σ₁²/(the rest) against the same matrix of the others and against the specialist's own other matrices. Low-rank
training (LoRA of rank 1) makes every matrix of one specialist spiky, and in the tiny tower the last fc2 is so by itself
(84 to 95 % in one direction), in all specialists. Neither is a fault. Six short Adam trainings of that tower on
synthetic patterns, with rates 1e-4 and 1e-5, reached 4 at most over all pairs and triples."""

FAR_LEAF = 10.0
"""‖τ‖/‖θ₀‖ of a leaf against the specialist's typical leaf and against the same leaf of the others (each relative to
their typical leaf). Both, because some leaves (biases that start near zero) move far in every specialist;
a leaf that no other specialist moved is not judged, nor is a spike there. The same six trainings reached 2.2."""

# Numbers of so few values scatter by factors of ten by themselves.
_SMALL_LEAF = 8
_SMALL_MATRIX = 8
# A leaf of the origin that is (nearly) zero gives no scale: this share of the mean size of weights is taken instead.
_FLOOR = 1e-2
# Noise of a cosine in D dimensions is 1/√D; five of them are allowed for where D is small.
_SIGMAS = 5.0


@dataclass(frozen=True)
class Finding:
    """One thing that is odd about one specialist.

    Attributes:
        specialist: its name; of two that are alike, the later one.
        kind: ``non_finite``, ``unchanged``, ``far_base``, ``flipped_base``, ``identical``, ``norm``, ``flipped``,
            ``direction``, ``spike``, ``flipped_leaf`` or ``far_leaf``.
        where: the leaf and layer, or ``whole model``.
        value: what was measured.
        limit: what it was held against.
        sentence: for people: who, where, the number and what to do.
    """

    specialist: str
    kind: str
    where: str
    value: float
    limit: float
    sentence: str


def screen(
    theta0: Tree, thetas: Sequence[Tree], names: Sequence[str], *, select: Select = attention_and_mlp
) -> list[Finding]:
    """Look for broken or poisoned specialists; an empty list means that nothing is odd.

    A specialist with NaN or Inf, without any change or with an origin of its own is reported for that alone and left
    out of all comparisons. Comparisons need a second specialist; with only two it can often not be told which of
    them is wrong, and the sentence says so. Host side, float64, one matrix at a time.

    Args:
        theta0: the common origin.
        thetas: the specialists, trees of the same leaves.
        names: one per specialist.
        select: which leaves are matrices, looked at for rank-one spikes.

    Returns:
        Findings, whole models first, then leaves. Layers of one leaf with the same fault are one finding, about the
        worst of them.

    Raises:
        InputError: no specialist, names that do not fit, differing trees, or an origin with NaN or Inf.
    """
    check_specialists(theta0, thetas, names)
    refuse_non_finite(theta0, "the origin")
    findings = []
    finite = []
    for index, name in enumerate(names):
        found = _non_finite(name, thetas[index])
        findings += found
        if not found:
            finite.append(index)
    if finite:
        measured = _measure(theta0, [thetas[i] for i in finite], [names[i] for i in finite], select)
        broken = _against_origin(measured)
        left = [index for index, name in enumerate(measured.names) if name not in {f.specialist for f in broken}]
        findings += broken
        if left:
            findings += _whole_models(measured.of(left)) + _leaves(measured.of(left))
    return findings


@dataclass(frozen=True)
class _Measured:
    """What one pass over the weights gives; N specialists, P pieces (leaves, stacked ones layer by layer)."""

    names: list[str]
    size: int
    origin: float  # ‖θ₀‖
    on_origin: Float[np.ndarray, " n"]  # ⟨τᵢ, θ₀⟩
    gram: Float[np.ndarray, "n n"]  # ⟨τᵢ, τⱼ⟩
    paths: list[str]
    layers: list[int | None]
    far: Float[np.ndarray, "n p"]  # ‖τ‖/‖θ₀‖, NaN for small leaves
    leading: Float[np.ndarray, "n p"]  # σ₁² share, NaN where there is none
    mirror: Float[np.ndarray, "n p"]  # cosine of θᵢ and θ₀, NaN for other leaves than matrices

    def of(self, left: list[int]) -> _Measured:
        return _Measured(
            names=[self.names[index] for index in left],
            size=self.size,
            origin=self.origin,
            on_origin=self.on_origin[left],
            gram=self.gram[np.ix_(left, left)],
            paths=self.paths,
            layers=self.layers,
            far=self.far[left],
            leading=self.leading[left],
            mirror=self.mirror[left],
        )

    @property
    def norms(self) -> Float[np.ndarray, " n"]:
        return np.sqrt(np.diagonal(self.gram))


def _measure(theta0: Tree, thetas: Sequence[Tree], names: list[str], select: Select) -> _Measured:
    count = len(names)
    flat = flatten(theta0).values()
    size = sum(math.prod(leaf.shape) for leaf in flat)
    squared = sum(float(np.sum(np.square(np.asarray(leaf).astype(np.float64)))) for leaf in flat)
    floor = _FLOOR * math.sqrt(squared / max(size, 1))
    gram, on_origin = np.zeros((count, count)), np.zeros(count)
    paths, layers, far, leading, mirror = [], [], [], [], []
    for piece in pieces(theta0, thetas, select):
        rows, start = piece.taus.reshape(count, -1), piece.origin.ravel()
        products, with_start, own = rows @ rows.T, rows @ start, float(start @ start)
        gram += products
        on_origin += with_start
        lengths = np.sqrt(np.diagonal(products))
        nothing = np.full(count, np.nan)
        scale = max(math.sqrt(own), floor * math.sqrt(start.size))
        paths.append(piece.path)
        layers.append(piece.layer)
        far.append(lengths / scale if start.size >= _SMALL_LEAF and scale > 0 else nothing)
        large = piece.matrix and min(piece.origin.shape[-2:]) >= _SMALL_MATRIX
        leading.append(np.array([_leading_share(tau) for tau in piece.taus]) if large else nothing)
        ends = np.sqrt(np.maximum(own + 2 * with_start + lengths**2, 0.0)) * math.sqrt(own)
        cosines = np.divide(own + with_start, ends, out=nothing.copy(), where=ends > 0)
        mirror.append(cosines if piece.origin.ndim >= 2 and start.size >= _SMALL_MATRIX**2 else nothing)
    columns = (np.stack(x, axis=1) for x in (far, leading, mirror))
    return _Measured(names, size, math.sqrt(squared), on_origin, gram, paths, layers, *columns)


def _leading_share(matrices: Float[np.ndarray, "*batch m n"]) -> float:
    """Largest σ₁² share of a stack of matrices, NaN for zeros.

    By subspace iteration (Halko et al. 2011, https://arxiv.org/abs/0909.4061, algorithm 4.4) with four vectors: a few
    products instead of a decomposition. It cannot come out too large, and is exact for what matters here, a σ₁ that
    stands out.
    """
    shares = []
    for matrix in matrices.reshape(-1, *matrices.shape[-2:]):
        energy = float(np.sum(matrix**2))
        if energy > 0:
            block = np.random.default_rng(0).normal(size=(matrix.shape[1], 4))
            for _ in range(5):
                block = matrix.T @ np.linalg.qr(matrix @ np.linalg.qr(block)[0])[0]
            shares.append(float(np.linalg.norm(block, 2)) ** 2 / energy)
    return max(shares, default=float("nan"))


def _non_finite(name: str, theta: Tree) -> list[Finding]:
    counts = {}
    for path, leaf in flatten(theta).items():
        array = np.asarray(leaf)
        wide = array if array.dtype.itemsize > 2 else array.astype(np.float32)
        bad = int(array.size - np.isfinite(wide).sum())
        if bad:
            counts[path] = bad
    if not counts:
        return []
    path, total = max(counts, key=counts.__getitem__), sum(counts.values())
    more = f" and {_several(len(counts) - 1, 'other leaf', 'other leaves')}" if len(counts) > 1 else ""
    return [
        Finding(
            name, "non_finite", path, float(total), 0.0,
            f"{name}: {path}{more} hold NaN or infinite values ({total} of them); leave it out or take an earlier "
            "checkpoint.",
        )
    ]  # fmt: skip


def _against_origin(m: _Measured) -> list[Finding]:
    """Faults that make a specialist useless for comparisons."""
    findings = []
    for name, norm, on_origin in zip(m.names, m.norms, m.on_origin, strict=True):
        if norm <= UNCHANGED * m.origin:
            findings.append(Finding(
                name, "unchanged", "whole model", norm, UNCHANGED * m.origin,
                f"{name} does not differ from the origin (‖τ‖ = {norm:.1e}), so it only thins out the merge; check "
                "that its trained weights were saved, or leave it out.",
            ))  # fmt: skip
            continue
        if m.origin == 0:  # gives no scale and no direction
            continue
        length = math.sqrt(max(m.origin**2 + 2 * on_origin + norm**2, 0.0))
        cosine = (m.origin**2 + on_origin) / (m.origin * length) if length > 0 else 0.0
        if cosine < MIRRORED:
            findings.append(Finding(
                name, "flipped_base", "whole model", cosine, MIRRORED,
                f"{name} is the origin with its sign changed (cosine {cosine:.3f}); check how it was written, or "
                "leave it out.",
            ))  # fmt: skip
        elif norm > FAR_BASE * m.origin:
            findings.append(Finding(
                name, "far_base", "whole model", norm / m.origin, FAR_BASE,
                f"{name} is {norm / m.origin:.2f} times the origin's own size away from it (limit {FAR_BASE:g}): it "
                "was probably trained from other weights or diverged; check its origin, or leave it out.",
            ))  # fmt: skip
    return findings


def _whole_models(m: _Measured) -> list[Finding]:
    count = len(m.names)
    if count < 2:
        return []
    norms = m.norms
    cosines = m.gram / np.outer(norms, norms)
    findings, explained = [], set()
    for i, j in combinations(range(count), 2):
        apart = math.sqrt(max(norms[i] ** 2 + norms[j] ** 2 - 2 * m.gram[i, j], 0.0)) / max(norms[i], norms[j])
        if apart < IDENTICAL:
            findings.append(Finding(
                m.names[j], "identical", "whole model", apart, IDENTICAL,
                f"{m.names[j]} and {m.names[i]} are the same weights (task vectors {apart:.1e} apart, limit "
                f"{IDENTICAL:g}), which gives them double weight in the merge; leave one out.",
            ))  # fmt: skip
        elif cosines[i, j] < MIRRORED:
            # The others tell which of the two points the wrong way.
            rest = [k for k in range(count) if k not in (i, j)]
            odd = i if rest and cosines[i, rest].sum() < cosines[j, rest].sum() else j
            other = i + j - odd
            doubt = "" if rest else " (or the other way round: a third specialist would tell)"
            explained |= {odd, other}
            findings.append(Finding(
                m.names[odd], "flipped", "whole model", float(cosines[i, j]), MIRRORED,
                f"{m.names[odd]} moved opposite to {m.names[other]} (cosine {cosines[i, j]:.3f}){doubt}, so they "
                "cancel in a merge; check for swapped labels or a negated task vector, or leave it out.",
            ))  # fmt: skip
    return findings + _lengths(m) + _directions(m, cosines, explained)


def _lengths(m: _Measured) -> list[Finding]:
    findings = []
    for index, (name, norm) in enumerate(zip(m.names, m.norms, strict=True)):
        others = np.sort(np.log(np.delete(m.norms, index)))
        # Of an even number of others the middle one nearer to this specialist is taken: one outlier among two others
        # must not make the normal one look odd.
        middle = np.clip(np.log(norm), others[(len(others) - 1) // 2], others[len(others) // 2])
        ratio = math.exp(np.log(norm) - middle)
        pair = len(m.names) == 2
        if ratio > NORM_RATIO:
            doubt = f", unless {m.names[1 - index]} has hardly been trained" if pair else ""
            findings.append(Finding(
                name, "norm", "whole model", ratio, NORM_RATIO,
                f"{name} moved {ratio:.1f} times as far as the others (limit {NORM_RATIO:g}) and would rule an "
                f"average; check its learning rate and origin, scale it down, or leave it out{doubt}.",
            ))  # fmt: skip
        elif ratio < 1 / NORM_RATIO and not pair:  # of two, the longer one has been named
            findings.append(Finding(
                name, "norm", "whole model", ratio, 1 / NORM_RATIO,
                f"{name} moved only {ratio:.3f} times as far as the others (limit {1 / NORM_RATIO:g}) and hardly "
                "counts in an average; check that its training finished.",
            ))  # fmt: skip
    return findings


def _directions(m: _Measured, cosines: Float[np.ndarray, "n n"], explained: set[int]) -> list[Finding]:
    count = len(m.names)
    limit = min(OPPOSITE, -_SIGMAS / math.sqrt(m.size))
    findings = []
    for index, name in enumerate(m.names):
        others = [k for k in range(count) if k != index]
        length = math.sqrt(max(float(cosines[np.ix_(others, others)].sum()), 0.0))
        # Others that cancel have no common direction to compare with.
        if index in explained or length < 0.1 * len(others) or (count == 2 and index == 0):
            continue
        cosine = float(cosines[index, others].sum()) / length
        if cosine < limit:
            who = f"{m.names[0]} (or the other way round)" if count == 2 else "the others"
            findings.append(Finding(
                name, "direction", "whole model", cosine, limit,
                f"{name} moved against {who} (cosine {cosine:.2f} to their mean direction, limit {limit:.2f}); check "
                "for swapped labels, and compare the merge with and without it.",
            ))  # fmt: skip
    return findings


def _leaves(m: _Measured) -> list[Finding]:
    """Faults of single leaves; a matrix with a spike or a flipped sign is not reported again for being far."""
    with np.errstate(divide="ignore", invalid="ignore"):
        spikes = _stands_out(m.leading / np.maximum(1 - m.leading, 1e-6))
        distances = _stands_out(m.far / _typical(m.far))
    spiked = (m.leading > SPIKE_SHARE) & (spikes > SPIKE_ODDS)
    flipped = m.mirror < MIRRORED
    far = (distances > FAR_LEAF) & ~spiked & ~flipped
    findings = []
    for index, name in enumerate(m.names):
        for path, worst, found in _grouped(m, spiked[index], m.leading[index]):
            share = float(m.leading[index, worst])
            findings.append(Finding(
                name, "spike", where(path, m.layers[worst]), share, SPIKE_SHARE,
                f"{name}: {share:.0%} of the change of {where(path, m.layers[worst])}{found} lies in one direction, "
                f"{spikes[index, worst]:.0f} times the odds of its other matrices and of the other specialists (limit "
                f"{SPIKE_ODDS:g}); an edit planted by hand looks like this: find out who wrote it, or leave it out.",
            ))  # fmt: skip
        for path, worst, found in _grouped(m, flipped[index], -m.mirror[index]):
            cosine = float(m.mirror[index, worst])
            findings.append(Finding(
                name, "flipped_leaf", where(path, m.layers[worst]), cosine, MIRRORED,
                f"{name}: {where(path, m.layers[worst])}{found} is the origin's with its sign changed (cosine "
                f"{cosine:.3f}); check how the weights were converted, or take this leaf from the origin.",
            ))  # fmt: skip
        for path, worst, found in _grouped(m, far[index], distances[index]):
            factor = float(distances[index, worst])
            findings.append(Finding(
                name, "far_leaf", where(path, m.layers[worst]), factor, FAR_LEAF,
                f"{name}: {where(path, m.layers[worst])}{found} moved {m.far[index, worst]:.2g} times its own size, "
                f"{factor:.0f} times what its other leaves and the other specialists suggest (limit {FAR_LEAF:g}); "
                "check that leaf, or take it from the origin.",
            ))  # fmt: skip
    return findings


def _typical(values: Float[np.ndarray, "n p"]) -> Float[np.ndarray, "n 1"]:
    """Median of each specialist over the leaves that it changed; 1 where there are none."""
    found = [row[row > 0] for row in values]
    return np.array([[np.median(row) if len(row) else 1.0] for row in found])


def _stands_out(values: Float[np.ndarray, "n p"]) -> Float[np.ndarray, "n p"]:
    """Each number over the larger of two: the specialist's own median, and the others' median at that place.

    Where the others have nothing the result is 0: there is no telling what is natural there.
    """
    filled = np.where(values > 0, values, np.nan)
    reference = np.broadcast_to(_typical(values), values.shape).copy()
    for index in range(len(values)):
        others = np.delete(filled, index, axis=0)
        there = np.isfinite(others).any(axis=0)
        median = np.full(values.shape[1], np.inf)
        median[there] = np.nanmedian(others[:, there], axis=0)
        reference[index] = np.maximum(reference[index], median)
    return values / reference


def _grouped(
    m: _Measured, marked: Bool[np.ndarray, " p"], badness: Float[np.ndarray, " p"]
) -> list[tuple[str, int, str]]:
    """Marked pieces leaf by leaf: path, index of the worst, and how many layers more there are, in words."""
    groups: dict[str, list[int]] = {}
    for index in np.flatnonzero(marked):
        groups.setdefault(m.paths[index], []).append(int(index))
    found = []
    for path, group in groups.items():
        words = f" (and {_several(len(group) - 1, 'more layer', 'more layers')})" if len(group) > 1 else ""
        found.append((path, max(group, key=lambda p: badness[p]), words))
    return found


def _several(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
