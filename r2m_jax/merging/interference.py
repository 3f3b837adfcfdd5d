"""How task vectors τᵢ = θᵢ - θ₀ lie to each other, over the whole model, by depth and leaf by leaf.

Everything is computed on the host in float64, one matrix of all specialists at a time, so the memory needed is that
of the trees plus N + 1 matrices whatever the model's size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from r2m_jax.errors import InputError
from r2m_jax.merging.selection import Select, attention_and_mlp
from r2m_jax.trees import flatten, refuse_non_finite, same_structure

Tree = Mapping[str, Any]

DENSITY = 0.2
"""Share of its largest entries a specialist keeps before signs are compared (TIES §4.1: the top 20 %)."""

GRID = np.linspace(0.0, 1.0, 51)
"""Shares of a matrix's directions at which the mean energy curves are given."""

# Layers are stacked below this prefix, unless the next part of the path is already a layer's number.
_STACKED = re.compile(r"layers/(?!\d+/)")
_NUMBERED = re.compile(r"layers/(\d+)/")


@dataclass(frozen=True)
class Piece:
    """One leaf, or one layer of a stacked leaf, of the origin and of all specialists.

    Attributes:
        path: the leaf's path.
        layer: the layer's number, None outside the layers.
        matrix: the leaf is one that is truncated layer by layer (``select``).
        origin: θ₀, float64.
        taus: the task vectors, stacked, float64.
    """

    path: str
    layer: int | None
    matrix: bool
    origin: Float[np.ndarray, " *shape"]
    taus: Float[np.ndarray, " n *shape"]


def where(path: str, layer: int | None) -> str:
    """A piece in words: ``layers/attn/q/kernel, layer 3``."""
    return path if layer is None or _NUMBERED.match(path) else f"{path}, layer {layer}"


def pieces(theta0: Tree, thetas: Sequence[Tree], select: Select = attention_and_mlp) -> Iterator[Piece]:
    """Go through the task vectors in bounded memory, a stacked leaf one layer at a time, in order of path."""
    flat = [flatten(theta) for theta in thetas]
    for path, leaf in flatten(theta0).items():
        leaves = [np.asarray(leaf), *(np.asarray(tree[path]) for tree in flat)]
        matrix = select(path, leaves[0]) and leaves[0].ndim >= 2
        if _STACKED.match(path) and leaves[0].ndim >= 1:
            for layer in range(leaves[0].shape[0]):
                yield _piece(path, layer, matrix, [stack[layer] for stack in leaves])
        else:
            number = _NUMBERED.match(path)
            yield _piece(path, int(number.group(1)) if number else None, matrix, leaves)


def _piece(path: str, layer: int | None, matrix: bool, leaves: Sequence[np.ndarray]) -> Piece:
    origin = leaves[0].astype(np.float64)
    taus = np.stack([leaf.astype(np.float64) - origin for leaf in leaves[1:]])
    return Piece(path, layer, bool(matrix) and origin.ndim >= 2, origin, taus)


def check_specialists(theta0: Tree, thetas: Sequence[Tree], names: Sequence[str]) -> None:
    """Check that there are specialists, each with a name of its own and the leaves of ``theta0``.

    Raises:
        InputError: otherwise.
    """
    if not thetas:
        raise InputError("there are no specialists: give at least one.")
    if len(names) != len(thetas) or len(set(names)) != len(names):
        raise InputError(f"{len(thetas)} specialists need as many different names, not {', '.join(names) or 'none'}.")
    for name, theta in zip(names, thetas, strict=True):
        same_structure(theta0, theta, f"specialist {name}")


@dataclass(frozen=True)
class Spectrum:
    """How many directions a matrix of one task vector uses; σ are its singular values, NaN where it is zero.

    For a stack of matrices within one layer the numbers are means over the stack.

    Attributes:
        stable_rank: ‖W‖_F² / ‖W‖₂² (Rudelson and Vershynin 2007, https://arxiv.org/abs/math/0503442).
        effective_rank: exp of the entropy of σ²/Σσ² (Roy and Vetterli 2007, who take σ instead of the energy σ²).
        leading: share of the energy Σσ² in the first direction.
        tenth: share in the leading 10 % of the directions.
        seventy: share in the leading 70 %, what R²M keeps at the paper's r = 0.7.
    """

    stable_rank: float
    effective_rank: float
    leading: float
    tenth: float
    seventy: float


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
            "whole": _plain(self.whole),
            "layers": _plain(self.layers),
            "entries": _plain(self.entries),
            "energy_curves": {"directions": GRID.tolist(), "energy": _plain(self.energy_curves)},
        }

    def table(self, *, entries: bool = True) -> list[list[str]]:
        """Rows for printing, the first being headings: the whole model, its layers and, if wanted, its leaves.

        A dash stands for a number that does not exist there. Ranks are means over the specialists.
        """
        pairs = list(_pairs(len(self.names)))
        head = ["where", "parameters", *(f"‖{name}‖" for name in self.names)]
        head += [f"cos {self.names[i]}, {self.names[j]}" for i, j in pairs]
        head += ["interference", "if orthogonal", "sign conflicts", f"in top {self.density:.0%}"]
        rows = [[*head, "stable rank", "effective rank"]]
        for part in (self.whole, *self.layers, *(self.entries if entries else ())):
            numbers = [part.cosines[i, j] for i, j in pairs]
            numbers += [part.interference, part.orthogonal, part.sign_conflicts, part.kept_sign_conflicts]
            ranks = [
                np.mean([getattr(spectrum, rank) for spectrum in part.spectra]) if part.spectra else np.nan
                for rank in ("stable_rank", "effective_rank")
            ]
            rows.append(
                [part.where, f"{part.size:,}"]
                + [f"{norm:.4g}" for norm in part.norms]
                + [_text(number, ".3f") for number in numbers]
                + [_text(float(rank), ".1f") for rank in ranks]
            )
        return rows

    def plot(self, path: Path | str) -> None:
        """Draw cosines, depth and spectra in one figure; the file's ending is its format (png, svg, pdf)."""
        from matplotlib.figure import Figure  # without pyplot there is no display and nothing to close

        figure = Figure(figsize=(12, 8.5), layout="constrained")
        axes = figure.subplots(2, 2)
        _draw_cosines(axes[0, 0], self)
        _draw_depth(axes[0, 1], axes[1, 0], self)
        _draw_energy(axes[1, 1], self)
        figure.savefig(path, dpi=120)


def compare(
    theta0: Tree,
    thetas: Sequence[Tree],
    names: Sequence[str],
    *,
    select: Select = attention_and_mlp,
    density: float | int = DENSITY,
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
                spectra.append(_spectrum(energies))
                drawn += [_energy_curve(row) for row in energies if row[0] > 0]
        entries.append(sums.comparison(piece.path, piece.layer, tuple(spectra)))
    nothing = np.full(GRID.shape, np.nan)
    return TaskVectorReport(
        names=tuple(names),
        density=float(density),
        whole=whole.comparison("", None),
        layers=tuple(layers[layer].comparison("layers", layer) for layer in sorted(layers)),
        entries=tuple(entries),
        energy_curves=np.stack([np.mean(drawn, axis=0) if drawn else nothing for drawn in curves]),
    )


def squared_singular_values(matrices: Float[np.ndarray, "*batch m n"]) -> Float[np.ndarray, "count k"]:
    """σ² of every matrix, descending, ``k = min(m, n)``.

    They are eigenvalues of the smaller Gram matrix, which is exact to 1e-16 of the largest σ² and several times
    faster than an SVD.
    """
    stack = matrices.reshape(-1, *matrices.shape[-2:])
    transposed = stack.swapaxes(1, 2)
    products = stack @ transposed if stack.shape[1] <= stack.shape[2] else transposed @ stack
    return np.maximum(np.linalg.eigvalsh(products)[:, ::-1], 0.0)


def _spectrum(energies: Float[np.ndarray, "count k"]) -> Spectrum:
    used = energies[energies[:, 0] > 0]
    if not len(used):
        return Spectrum(*[float("nan")] * 5)
    shares = used / used.sum(axis=1, keepdims=True)
    logs = np.log(np.where(shares > 0, shares, 1.0))  # 0·log 0 counts as 0
    count = shares.shape[1]
    # The number of directions is counted as R²M's rank ratio is: rounded down, at least one.
    tenth, seventy = (max(1, int(ratio * count)) for ratio in (0.1, 0.7))
    return Spectrum(
        stable_rank=float((1 / shares[:, 0]).mean()),
        effective_rank=float(np.exp(-(shares * logs).sum(axis=1)).mean()),
        leading=float(shares[:, 0].mean()),
        tenth=float(shares[:, :tenth].sum(axis=1).mean()),
        seventy=float(shares[:, :seventy].sum(axis=1).mean()),
    )


def _energy_curve(energies: Float[np.ndarray, " k"]) -> Float[np.ndarray, " grid"]:
    total = np.concatenate([[0.0], np.cumsum(energies)])
    return np.interp(GRID, np.linspace(0, 1, len(total)), total / total[-1])


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
            interference=1 - _ratio(max(float(self.gram.sum()), 0.0), total),
            orthogonal=1 - _ratio(float(np.trace(self.gram)), total),
            sign_conflicts=_ratio(self.conflicts, self.moved),
            kept_sign_conflicts=_ratio(self.kept_conflicts, self.both_kept),
            kept=self.kept / max(self.size, 1),
            spectra=spectra,
        )


def _conflicts(taus: Float[np.ndarray, "n size"], counted: Bool[np.ndarray, "n size"]) -> tuple[int, int]:
    """Coordinates that at least two specialists moved (as far as they are counted), and those with both signs."""
    up = ((taus > 0) & counted).sum(axis=0)
    down = ((taus < 0) & counted).sum(axis=0)
    return int((up + down >= 2).sum()), int(((up > 0) & (down > 0)).sum())


def _ratio(part: float | int, whole: float | int) -> float:
    return part / whole if whole > 0 else float("nan")


def _pairs(count: int) -> Iterator[tuple[int, int]]:
    return ((i, j) for i in range(count) for j in range(i + 1, count))


def _text(number: float, form: str) -> str:
    return "–" if np.isnan(number) else format(number, form)


def _plain(value: Any) -> Any:
    """Dataclasses, tuples and arrays as JSON values."""
    if is_dataclass(value):
        return {name: _plain(item) for name, item in vars(value).items()}
    if isinstance(value, np.ndarray | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return None if np.isnan(value) else float(value)
    return value


# Okabe and Ito 2008: eight colours told apart in all common forms of colour blindness (yellow left out: too light on
# white). Line styles differ as well, for print in grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", "--", "-.", ":")
_MOST_PAIRS = 10  # more lines than this cannot be told apart


def _style(index: int) -> dict[str, Any]:
    return {"color": _COLOURS[index % len(_COLOURS)], "linestyle": _LINES[index % len(_LINES)], "linewidth": 1.8}


def _draw_cosines(axes: Any, report: TaskVectorReport) -> None:
    cosines = report.whole.cosines
    image = axes.imshow(cosines, cmap="PuOr", vmin=-1, vmax=1)
    axes.set_xticks(range(len(report.names)), report.names, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(report.names)), report.names)
    for (row, column), value in np.ndenumerate(cosines):
        colour = "white" if abs(value) > 0.6 else "black"
        axes.text(column, row, _text(value, ".2f"), ha="center", va="center", color=colour, fontsize=9)
    axes.set_title("Cosines of whole task vectors")
    axes.figure.colorbar(image, ax=axes, fraction=0.046)


def _draw_depth(upper: Any, lower: Any, report: TaskVectorReport) -> None:
    """Cosines above, interference and sign conflicts below, against depth (or the leaf, without layers)."""
    parts = report.layers or report.entries
    depth = [part.layer for part in report.layers] or list(range(len(parts)))
    mark = {"marker": "o", "markersize": 3}
    pairs = list(_pairs(len(report.names)))
    if pairs:
        lines = np.array([[part.cosines[pair] for part in parts] for pair in pairs])
        if len(pairs) <= _MOST_PAIRS:
            for index, (line, (i, j)) in enumerate(zip(lines, pairs, strict=True)):
                upper.plot(depth, line, label=f"{report.names[i]}, {report.names[j]}", **mark, **_style(index))
        else:
            filled = np.ma.masked_invalid(lines)
            upper.plot(depth, filled.mean(axis=0), label="mean of pairs", **mark, **_style(0))
            upper.fill_between(
                depth, filled.min(axis=0), filled.max(axis=0), color=_COLOURS[0], alpha=0.2, label="smallest to largest"
            )
        upper.legend(fontsize=8)
    upper.axhline(0, color="0.6", linewidth=0.8)
    upper.set_title("Cosines by depth")
    for index, (label, name) in enumerate(
        (
            ("interference", "interference"),
            ("interference, if orthogonal", "orthogonal"),
            ("sign conflicts", "sign_conflicts"),
            (f"sign conflicts in the top {report.density:.0%}", "kept_sign_conflicts"),
        )
    ):
        lower.plot(depth, [getattr(part, name) for part in parts], label=label, **mark, **_style(index))
    if pairs:
        at_random = 1 - 2.0 ** (1 - len(report.names))
        lower.axhline(at_random, color="0.6", linewidth=0.8, label="sign conflicts of random signs")
    lower.set_ylim(-0.02, 1.02)
    upper.set_ylabel("cosine")
    lower.set_ylabel("share")
    lower.set_title("Interference by depth")
    lower.legend(fontsize=8)
    for axes in (upper, lower):
        axes.set_xlabel("layer" if report.layers else "leaf, in order of path")
        axes.xaxis.get_major_locator().set_params(integer=True)


def _draw_energy(axes: Any, report: TaskVectorReport) -> None:
    """What truncation discards: on a log scale, because a few directions hold nearly all of a trained matrix."""
    for index, (name, curve) in enumerate(zip(report.names, report.energy_curves, strict=True)):
        axes.plot(GRID, np.maximum(1 - curve, 1e-9), label=name, **_style(index))
    axes.plot(GRID[:-1], 1 - GRID[:-1], color="0.6", linewidth=0.8, label="flat spectrum")
    axes.set_yscale("log")
    axes.set_ylim(1e-5, 1.2)
    axes.set_xlabel("share of a matrix's directions kept, largest first")
    axes.set_ylabel("share of its energy lost")
    axes.set_title("Spectra, mean over matrices")
    axes.legend(fontsize=8)
