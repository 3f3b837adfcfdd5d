"""How task vectors τᵢ = θᵢ - θ₀ lie to each other, over the whole model, by depth and leaf by leaf.

Everything is computed on the host in float64, one matrix of all specialists at a time, so the memory needed is that
of the trees plus N + 1 matrices whatever the model's size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from r2m_jax.errors import InputError
from r2m_jax.merging.energies import GRID, Spectrum, energy_curve, spectrum, squared_singular_values
from r2m_jax.merging.pieces import check_specialists, pieces, ratio, where
from r2m_jax.merging.selection import Select, attention_and_mlp
from r2m_jax.trees import refuse_non_finite

Tree = Mapping[str, Any]

DENSITY = 0.2
"""Share of its largest entries a specialist keeps before signs are compared (TIES §4.1: the top 20 %)."""


@dataclass(frozen=True)
class Comparison:
    """The task vectors on one part of the model; a cosine or share with nothing below the line is NaN.

    Attributes:
        path: the leaf; ``"layers"`` for a whole layer, empty for the whole model.
        layer: the layer's number, None outside the layers.
        size: number of coordinates.
        norms: ‖τᵢ‖.
        cosines: of pairs.
        interference: 1 - ‖Στᵢ‖²/(Σ‖τᵢ‖)², the share of the squared length that is lost by adding: 0 when all point
            the same way, 1 when they cancel.
        orthogonal: what ``interference`` would be for orthogonal vectors of these lengths, 1 - Σ‖τᵢ‖²/(Σ‖τᵢ‖)². Less
            than this means that specialists reinforce each other, more that they undo each other. The two are equal
            exactly where the gradient diversity Σ‖gᵢ‖²/‖Σgᵢ‖² of Yin et al. 2018 (https://arxiv.org/abs/1706.05699)
            is 1; unlike that ratio, they stay finite when the sum vanishes.
        sign_conflicts: share of coordinates with both signs, of those that at least two specialists moved. Independent
            signs of N specialists give 1 - 2^(1-N).
        kept_sign_conflicts: the same after each specialist has been trimmed to its largest entries over the whole
            model, as TIES does (Yadav et al. 2023, https://arxiv.org/abs/2306.01708 §3.2 and §4.1).
        kept: share of this part's coordinates that survive that trimming, for each specialist.
        spectra: for each specialist, where this part is a matrix; otherwise empty.
    """

    path: str
    layer: int | None
    size: int
    norms: Float[np.ndarray, " n"]
    cosines: Float[np.ndarray, "n n"]
    interference: float
    orthogonal: float
    sign_conflicts: float
    kept_sign_conflicts: float
    kept: Float[np.ndarray, " n"]
    spectra: tuple[Spectrum, ...] = ()

    @property
    def where(self) -> str:
        """This part in words."""
        if not self.path:
            return "whole model"
        return f"layer {self.layer}" if self.path == "layers" else where(self.path, self.layer)


@dataclass(frozen=True)
class TaskVectorReport:
    """What :func:`compare` found.

    Attributes:
        names: of the specialists.
        density: share of entries kept for ``kept_sign_conflicts``.
        whole: over all leaves.
        layers: all leaves of a layer together, by depth; empty for a tree without layers.
        entries: every leaf, stacked ones layer by layer.
        energy_curves: for each specialist, mean over its matrices of the share of energy in the leading directions,
            at the shares of directions ``GRID``; NaN without matrices.
    """

    names: tuple[str, ...]
    density: float
    whole: Comparison
    layers: tuple[Comparison, ...]
    entries: tuple[Comparison, ...]
    energy_curves: Float[np.ndarray, "n grid"]

    def as_json(self) -> dict[str, Any]:
        """The same numbers as JSON values; NaN becomes null."""
        return {
            "names": list(self.names),
            "density": self.density,
            "whole": plain(self.whole),
            "layers": plain(self.layers),
            "entries": plain(self.entries),
            "energy_curves": {"directions": GRID.tolist(), "energy": plain(self.energy_curves)},
        }


def compare(
    theta0: Tree,
    thetas: Sequence[Tree],
    names: Sequence[str],
    *,
    select: Select = attention_and_mlp,
    density: float | int = DENSITY,
    advance: Callable[[int], None] = lambda done: None,
) -> TaskVectorReport:
    """Compare the task vectors of N specialists.

    Leaves below ``layers/`` are stacked layers and are reported layer by layer (``layers/3/…`` is taken as one
    layer's leaf); any other leaf is reported whole.

    Args:
        theta0: the common origin, nested dicts of arrays of any float dtype.
        thetas: the specialists, trees of the same leaves.
        names: one per specialist.
        select: which leaves are matrices whose spectra are wanted.
        density: share of all coordinates a specialist keeps for the trimmed sign conflicts.
        advance: told of every piece that is done; there are :func:`~r2m_jax.merging.pieces.count_pieces`.

    Raises:
        InputError: no specialist, names that do not fit, differing trees, NaN or Inf, or a density outside (0, 1].
    """
    check_specialists(theta0, thetas, names)
    if not 0 < density <= 1:
        raise InputError(f"density={density} is out of range; give a share above 0 and at most 1.")
    refuse_non_finite(theta0, "the origin")
    for name, theta in zip(names, thetas, strict=True):
        refuse_non_finite(theta, f"specialist {name}")

    thresholds = _thresholds(theta0, thetas, density)
    whole = _Sums.zero(len(names))
    layers: dict[int, _Sums] = {}
    entries = []
    curves: list[list[np.ndarray]] = [[] for _ in names]
    for piece in pieces(theta0, thetas, select):
        sums = _Sums.of(piece.taus.reshape(len(names), -1), thresholds)
        whole.add(sums)
        if piece.layer is not None:
            layers.setdefault(piece.layer, _Sums.zero(len(names))).add(sums)
        spectra = []
        for tau, drawn in zip(piece.taus, curves, strict=True):
            if piece.matrix:
                energies = squared_singular_values(tau)
                spectra.append(spectrum(energies))
                drawn += [energy_curve(row) for row in energies if row[0] > 0]
        entries.append(sums.comparison(piece.path, piece.layer, tuple(spectra)))
        advance(1)
    nothing = np.full(GRID.shape, np.nan)
    return TaskVectorReport(
        names=tuple(names),
        density=float(density),
        whole=whole.comparison("", None),
        layers=tuple(layers[layer].comparison("layers", layer) for layer in sorted(layers)),
        entries=tuple(entries),
        energy_curves=np.stack([np.mean(drawn, axis=0) if drawn else nothing for drawn in curves]),
    )


def _thresholds(theta0: Tree, thetas: Sequence[Tree], density: float) -> Float[np.ndarray, " n"]:
    """The smallest magnitude each specialist keeps, over the whole model, exact in float32.

    Positive floats are ordered as their bits are, so counting by the upper and then by the lower half of the bits
    finds the k-th largest without sorting or holding all of them.
    """
    count = len(thetas)
    upper = np.zeros((count, 1 << 16), np.int64)
    size = 0
    for piece in pieces(theta0, thetas):
        size += piece.origin.size
        for row, tau in zip(upper, piece.taus, strict=True):
            row += np.bincount(_bits(tau) >> 16, minlength=1 << 16)
    keep = max(1, int(density * size))
    halves = [_place(row, keep) for row in upper]
    lower = np.zeros((count, 1 << 16), np.int64)
    for piece in pieces(theta0, thetas):
        for row, tau, (half, _) in zip(lower, piece.taus, halves, strict=True):
            bits = _bits(tau)
            row += np.bincount(bits[bits >> 16 == half] & 0xFFFF, minlength=1 << 16)
    found = [(half << 16) | _place(row, left)[0] for row, (half, left) in zip(lower, halves, strict=True)]
    return np.array(found, np.uint32).view(np.float32).astype(np.float64)


def _bits(tau: np.ndarray) -> np.ndarray:
    return np.abs(tau.ravel()).astype(np.float32).view(np.uint32).astype(np.int64)


def _place(counts: np.ndarray, keep: int) -> tuple[int, int]:
    """The bin that holds the ``keep``-th largest, and which one from the top it is there."""
    above = np.cumsum(counts[::-1])
    index = int(np.searchsorted(above, keep))
    before = int(above[index - 1]) if index else 0
    return len(counts) - 1 - index, keep - before


@dataclass
class _Sums:
    """What adds up over leaves."""

    gram: Float[np.ndarray, "n n"]
    kept: Float[np.ndarray, " n"]
    size: int = 0
    moved: int = 0
    conflicts: int = 0
    both_kept: int = 0
    kept_conflicts: int = 0

    @classmethod
    def zero(cls, count: int) -> _Sums:
        return cls(np.zeros((count, count)), np.zeros(count))

    @classmethod
    def of(cls, taus: Float[np.ndarray, "n size"], thresholds: Float[np.ndarray, " n"]) -> _Sums:
        # A threshold of 0 (fewer entries moved than are kept) must not keep entries that did not move.
        large = (np.abs(taus).astype(np.float32) >= thresholds[:, None]) & (taus != 0)
        moved, conflicts = _conflicts(taus, np.ones_like(large))
        both_kept, kept_conflicts = _conflicts(taus, large)
        return cls(
            taus @ taus.T, large.sum(axis=1).astype(float), taus.shape[1], moved, conflicts, both_kept, kept_conflicts
        )

    def add(self, other: _Sums) -> None:
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def comparison(self, path: str, layer: int | None, spectra: tuple[Spectrum, ...] = ()) -> Comparison:
        norms = np.sqrt(np.diagonal(self.gram))
        scale = np.where(norms > 0, norms, np.nan)
        total = float(norms.sum() ** 2)
        return Comparison(
            path=path,
            layer=layer,
            size=self.size,
            norms=norms,
            cosines=np.clip(self.gram / (scale[:, None] * scale[None, :]), -1, 1),
            interference=1 - ratio(max(float(self.gram.sum()), 0.0), total),
            orthogonal=1 - ratio(float(np.trace(self.gram)), total),
            sign_conflicts=ratio(self.conflicts, self.moved),
            kept_sign_conflicts=ratio(self.kept_conflicts, self.both_kept),
            kept=self.kept / max(self.size, 1),
            spectra=spectra,
        )


def _conflicts(taus: Float[np.ndarray, "n size"], counted: Bool[np.ndarray, "n size"]) -> tuple[int, int]:
    """Coordinates that at least two specialists moved (as far as they are counted), and those with both signs."""
    up = ((taus > 0) & counted).sum(axis=0)
    down = ((taus < 0) & counted).sum(axis=0)
    return int((up + down >= 2).sum()), int(((up > 0) & (down > 0)).sum())


def plain(value: Any) -> Any:
    """Dataclasses, sequences, mappings and arrays as JSON values; a number that is NaN or infinite becomes null."""
    if is_dataclass(value):
        return {name: plain(item) for name, item in vars(value).items()}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


__all__ = [
    "DENSITY",
    "GRID",
    "Comparison",
    "Spectrum",
    "TaskVectorReport",
    "check_specialists",
    "compare",
    "pieces",
    "plain",
    "squared_singular_values",
    "where",
]
