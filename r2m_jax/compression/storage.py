"""Stored tensors made smaller: what a model directory holds before, to what it holds after.

Tensors are those of :mod:`r2m_jax.checkpoints.compressed`, by name in torch layout; each function returns new tensors
and the entries of ``compression.json`` that say how to read them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from r2m_jax.checkpoints.compressed import PARTS, Entry, pack
from r2m_jax.checkpoints.names import tower_name
from r2m_jax.checkpoints.tensors import LazyTensor
from r2m_jax.compression.factorisation import factorise
from r2m_jax.compression.pruning import Scope, magnitude_masks
from r2m_jax.compression.quantisation import Granularity, quantise
from r2m_jax.errors import InputError
from r2m_jax.merging.ranks import Rank
from r2m_jax.merging.selection import Select
from r2m_jax.trees import refuse_non_finite

_QUANTISED_PARTS = ("left", "right", "values")
"""Parts that are numbers like any tensor's and may become integers in turn."""


class Stored(NamedTuple):
    """What a model directory holds.

    Attributes:
        tensors: by the name in the file.
        entries: how tensors are put together that are stored as parts, by name.
    """

    tensors: dict[str, LazyTensor]
    entries: dict[str, Entry]


def pruned(tensors: Mapping[str, LazyTensor], rate: float, *, scope: Scope, select: Select) -> dict[str, LazyTensor]:
    """Tensors with their entries of least magnitude zero (:func:`r2m_jax.compression.magnitude_masks`).

    Raises:
        InputError: see there.
    """
    masks = magnitude_masks({name: t.read() for name, t in tensors.items() if select(name, t)}, rate, scope=scope,
                            select=lambda *_: True)  # fmt: skip
    return {name: _masked(tensor, masks[name]) if name in masks else tensor for name, tensor in tensors.items()}


def _masked(tensor: LazyTensor, mask: np.ndarray) -> LazyTensor:
    def load(rows: slice | None) -> np.ndarray:
        return tensor.read(rows) * (mask if rows is None else mask[rows]).astype(tensor.dtype)

    return LazyTensor(tensor.shape, tensor.dtype, load)


def sparse(tensors: Mapping[str, LazyTensor], select: Select) -> Stored:
    """Tensors by the places and values of what is not zero, where that takes less room."""
    made = Stored({}, {})
    for name, tensor in tensors.items():
        array = tensor.read() if select(name, tensor) else None
        kept = None if array is None else array.reshape(len(array), -1) != 0
        if array is None or kept is None or not _shrinks(kept, array):
            made.tensors[name] = tensor
            continue
        made.entries[name] = _entry("sparse", tensor)
        made.tensors[f"{name}.kept"] = LazyTensor.of(np.packbits(kept, axis=1))
        made.tensors[f"{name}.values"] = LazyTensor.of(array.reshape(kept.shape)[kept])
    return made


def _shrinks(kept: np.ndarray, array: np.ndarray) -> bool:
    count = int(kept.sum())
    return count > 0 and len(kept) * -(-kept.shape[1] // 8) + count * array.itemsize < array.nbytes


def integers(stored: Stored, bits: int, *, granularity: Granularity, select: Select) -> Stored:
    """Floating-point tensors, and such parts, as integers of 2…8 bits; what are integers already stays as it is.

    Raises:
        InputError: nothing is selected, or a tensor holds NaN or infinity.
    """
    made = Stored({}, dict(stored.entries))
    parts = dict(_parts(stored.entries))
    for name, tensor in stored.tensors.items():
        owner, part = parts.get(name, (name, ""))
        if part and part not in _QUANTISED_PARTS:
            made.tensors[name] = tensor
        elif part == "values":
            # One value a row: bytes, whatever the bits.
            _put_integers(made, name, tensor, tensor.read(), 8, "tensor")
        elif select(owner, tensor):
            _put_integers(made, name, tensor, tensor.read(), bits, granularity)
        else:
            made.tensors[name] = tensor
    if len(made.entries) == len(stored.entries):
        raise InputError("no tensor of the model is chosen to be compressed that is not stored as integers already.")
    return made


def factors(tensors: Mapping[str, LazyTensor], rank: Rank, select: Select) -> Stored:
    """Tensors as two factors where those are smaller; the others stay whole.

    Raises:
        InputError: a tensor holds NaN or infinity, or the rank is out of range.
    """
    made = Stored({}, {})
    for name, tensor in tensors.items():
        array = tensor.read() if select(name, tensor) else None
        if array is not None:
            refuse_non_finite({name: array}, "the model")
        found = None if array is None else factorise(array, rank, output=0)
        if found is None:
            made.tensors[name] = tensor
            continue
        made.entries[name] = _entry("factors", tensor)
        made.tensors[f"{name}.left"] = LazyTensor.of(found.left)
        made.tensors[f"{name}.right"] = LazyTensor.of(found.right)
    return made


def differences(
    tensors: Mapping[str, LazyTensor],
    base: Mapping[str, LazyTensor],
    bits: int,
    *,
    granularity: Granularity,
    select: Select,
) -> Stored:
    """A fine-tuned model by what it differs in from its base, as integers.

    Task vectors span a smaller range than weights, so that fewer bits do (https://arxiv.org/abs/2503.06921). Tensors
    that are not selected (biases, norms, the head) stay whole; of those that equal the base's nothing is stored.

    Args:
        tensors: of the model.
        base: of its base, both by name with the prefix of towers or without.
        bits: 2…8.
        granularity: one scale for a tensor, or one for every output.
        select: the tensors stored as differences.

    Raises:
        InputError: the base lacks a tensor selected or has another shape of it, or a tensor holds NaN or infinity.
    """
    made = Stored({}, {})
    origin = {tower_name(name): tensor for name, tensor in base.items()}
    for name, tensor in tensors.items():
        start = origin.get(tower_name(name))
        if start is not None and start.shape == tensor.shape:
            array, from_there = tensor.read(), start.read()
            if array.ndim and start.dtype == tensor.dtype and np.array_equal(array, from_there):
                made.entries[name] = _entry("difference", tensor)
                continue
        if not select(name, tensor):
            made.tensors[name] = tensor
            continue
        if start is None or start.shape != tensor.shape:
            what = "has none" if start is None else f"has {start.shape}"
            raise InputError(f"{name} is {tensor.shape} in the model, but the base {what}; it is another architecture.")
        moved = array.astype(np.float32) - from_there.astype(np.float32)
        made.entries[name] = _entry("difference", tensor)
        _put_integers(made, f"{name}.difference", LazyTensor.of(moved), moved, bits, granularity)
    return made


def _put_integers(
    made: Stored, name: str, tensor: LazyTensor, array: np.ndarray, bits: int, granularity: Granularity
) -> None:
    refuse_non_finite({name: array}, "the model")
    found = quantise(array, bits, (0,) if granularity == "channel" else ())
    values = np.asarray(found.values)
    if bits < 8:
        values = pack(values.reshape(len(values), -1), bits)
    made.entries[name] = {**_entry("integers", tensor), "bits": bits}
    made.tensors[f"{name}.integers"] = LazyTensor.of(values)
    made.tensors[f"{name}.scale"] = LazyTensor.of(np.asarray(found.scale).reshape(-1))


def _entry(kind: str, tensor: LazyTensor) -> dict[str, object]:
    return {"as": kind, "shape": list(tensor.shape), "dtype": tensor.dtype.name}


def _parts(entries: Mapping[str, Entry]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Name of a part, to what it is a part of and as what."""
    for name, entry in entries.items():
        for part in PARTS[entry["as"]]:
            yield f"{name}.{part}", (name, part)


__all__ = ["Stored", "differences", "factors", "integers", "pruned", "sparse"]
