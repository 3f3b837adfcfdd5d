"""Named tensors that are read when asked for, and their safetensors files, sharded where large.

File format: https://github.com/huggingface/safetensors, sharded as transformers does it
(``model-00001-of-00003.safetensors`` and ``model.safetensors.index.json`` with a ``weight_map``).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from r2m_jax.atomic import DiskError
from r2m_jax.checkpoints.provenance import read_json
from r2m_jax.errors import InputError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
COMPRESSION_FILE = "compression.json"
"""Beside weights that are stored as something smaller (:mod:`r2m_jax.checkpoints.compressed`)."""
MAX_SHARD_BYTES = 5 * 10**9
"""Default size at which a model is split over files (transformers' own default since 2022 is 5-50 GB)."""

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


class ShapeDtype(NamedTuple):
    """A tensor that is yet to be written."""

    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class LazyTensor:
    """A tensor known by shape and dtype and read on demand.

    Attributes:
        shape: of the whole tensor.
        dtype: NumPy dtype as stored (bfloat16 through ml_dtypes).
        load: reads a slice of the leading axis, or everything for ``None``.
        load_into: the same into an array of the dtype stored, contiguous; None where that saves nothing.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[slice | None], np.ndarray]
    load_into: Callable[[slice | None, np.ndarray], None] | None = None

    def read(self, rows: slice | None = None) -> np.ndarray:
        """The tensor, or only ``rows`` of its leading axis (nothing else is read from disk)."""
        return self.load(rows)

    def read_into(self, out: np.ndarray, rows: slice | None = None) -> None:
        """Fill ``out``, an array of as many values, in place; of another dtype, they are converted."""
        if self.load_into is not None and out.dtype == self.dtype and out.flags.c_contiguous:
            self.load_into(rows, out)
        else:
            out[...] = self.read(rows).reshape(out.shape)

    @classmethod
    def of(cls, array: np.ndarray) -> LazyTensor:
        """Wrap an array that is already in memory."""
        return cls(array.shape, array.dtype, lambda rows: array if rows is None else array[rows])

    def rows(self, start: int, stop: int) -> LazyTensor:
        """The part ``[start:stop]`` of the leading axis, still unread."""

        def load(rows: slice | None) -> np.ndarray:
            first, last, step = (rows or slice(None)).indices(stop - start)
            return self.load(slice(start + first, start + last, step))

        return LazyTensor((stop - start, *self.shape[1:]), self.dtype, load)


def open_safetensors(path: Path) -> dict[str, LazyTensor]:
    """Tensors of one file, or of every shard an ``…index.json`` names. Only headers are read.

    Raises:
        InputError: a file is missing, truncated or not safetensors, or the index names what is not there.
    """
    path = Path(path)
    if path.name.endswith(".index.json"):
        return _open_shards(path)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            headers = {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}).") from None
    except SafetensorError as error:
        raise InputError(f"{path} is not a whole safetensors file ({error}); fetch or write it again.") from None
    places = _offsets(path)
    return {name: _stored(path, name, *header, places[name]) for name, header in headers.items()}


def _offsets(path: Path) -> dict[str, int]:
    """Where every tensor starts in a file that safetensors found whole: 8 bytes of length, a JSON header, the data."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}


def _stored(path: Path, name: str, shape: tuple[int, ...], code: str, offset: int) -> LazyTensor:
    if code not in _DTYPES:
        raise InputError(f"{path}: {name} is stored as {code}, which is not supported; convert it to F32 or BF16.")
    dtype = np.dtype(_DTYPES[code])

    width = math.prod(shape[1:]) * dtype.itemsize

    def load_into(rows: slice | None, out: np.ndarray) -> None:
        start = 0 if rows is None else rows.indices(shape[0])[0]
        with path.open("rb", buffering=0) as file:
            file.seek(offset + start * width)
            left = memoryview(out.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
            while left:  # the kernel reads at most 2 GiB at a time
                got = file.readinto(left)
                if not got:
                    raise InputError(f"{path} ends before {name} does; fetch or write it again.")
                left = left[got:]

    def load(rows: slice | None) -> np.ndarray:
        first, last, step = (slice(None) if rows is None or not shape else rows).indices(shape[0] if shape else 1)
        assert step == 1, "rows are read one after the other"
        out = np.empty((last - first, *shape[1:]) if shape else shape, dtype)
        load_into(rows, out)
        return out

    return LazyTensor(shape, dtype, load, load_into)


def _open_shards(index: Path) -> dict[str, LazyTensor]:
    weight_map = _weight_map(index)
    tensors: dict[str, LazyTensor] = {}
    for shard in sorted(set(weight_map.values())):
        held = open_safetensors(index.with_name(shard))
        missing = [name for name, where in weight_map.items() if where == shard and name not in held]
        if missing:
            raise InputError(f"{index} says {missing[0]} is in {shard}, but it is not there.")
        tensors |= held
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict):
        raise InputError(f"{index} has no weight_map; it is not the index of a sharded model.")
    for shard in weight_map.values():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise InputError(f"{index} names the shard {shard!r}, which is not a file beside it.")
    return weight_map


def safetensors_files(directory: Path) -> list[Path]:
    """The files that make the weights of a model directory: the index and its shards, or the single file, come first.

    What says how they are to be read (:data:`COMPRESSION_FILE`) comes last, where there is one.

    Raises:
        InputError: the directory holds neither.
    """
    index, single = Path(directory) / INDEX_FILE, Path(directory) / SINGLE_FILE
    described = [path for path in [Path(directory) / COMPRESSION_FILE] if path.exists()]
    if index.exists():
        shards = sorted(set(_weight_map(index).values()))
        return [index, *(index.with_name(shard) for shard in shards), *described]
    if single.exists():
        return [single, *described]
    raise InputError(f"{directory} is not a model directory: it has neither {SINGLE_FILE} nor {INDEX_FILE}.")


class SafetensorsWriter:
    """Files whose tensors are written in any order, in parts, straight to their place.

    Args:
        directory: where ``model.safetensors`` or its shards and index appear, at once and full of holes.
        tensors: shapes and dtypes by name (:class:`LazyTensor` or anything alike).
        max_shard_bytes: larger models are split; a tensor larger than that gets a shard of its own.
        shares: names that are written by each of several processes; all by one when omitted. No file is written by
            two: network and object stores do not keep what several machines write into one.
        own: number of this process, which makes its own shards only; process 0 makes the index.

    Attributes:
        resumed: every file was there, laid out alike, and still has what was written into it.
    """

    def __init__(
        self,
        directory: Path,
        tensors: Mapping[str, Any],
        max_shard_bytes: int = MAX_SHARD_BYTES,
        *,
        shares: Sequence[Collection[str]] | None = None,
        own: int = 0,
    ):
        groups = [set(names) for names in (shares if shares is not None else [tensors.keys()])]
        assert sum(map(len, groups)) == len(set().union(*groups) | tensors.keys()), "each tensor is of one process"
        self._tensors = {name: tensor for name, tensor in tensors.items() if name in groups[own]}
        self._places: dict[str, tuple[Path, int]] = {}
        self._left = {name: math.prod(tensor.shape) for name, tensor in self._tensors.items()}
        shards = [
            (process, names)
            for process, group in enumerate(groups)
            for names in _split({name: tensor for name, tensor in tensors.items() if name in group}, max_shard_bytes)
        ]
        weight_map: dict[str, str] = {}
        self.resumed = True
        for number, (process, names) in enumerate(shards, start=1):
            file = SINGLE_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            if process == own:
                places, found = _lay_out(Path(directory) / file, {name: tensors[name] for name in names})
                self._places |= places
                self.resumed &= found
            weight_map |= dict.fromkeys(names, file)
        if len(shards) > 1 and own == 0:
            total = sum(_bytes(tensor) for tensor in tensors.values())
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            (Path(directory) / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def write(self, name: str, values: np.ndarray, row: int = 0) -> None:
        """Put a tensor, or its rows from ``row`` on, where it belongs.

        Raises:
            InputError: the disk is full or fails.
        """
        tensor, (path, offset) = self._tensors[name], self._places[name]
        values = np.ascontiguousarray(values, tensor.dtype)
        assert values.shape[1:] == tensor.shape[1:], (name, values.shape, tensor.shape)
        within = row * math.prod(tensor.shape[1:]) * tensor.dtype.itemsize
        try:
            with path.open("r+b") as file:
                file.seek(offset + within)
                file.write(values.reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise DiskError(
                f"{path} cannot be written ({error.strerror}); make room there and give the same command again."
            ) from None
        self._left[name] -= values.size

    def keep(self, name: str, count: int) -> None:
        """So many values of a tensor are there from before (see ``resumed``) and will not be written."""
        self._left[name] -= count

    def close(self) -> None:
        """Check that nothing is missing."""
        missing = [name for name, left in self._left.items() if left > 0]
        assert not missing, f"never written: {names_in_words(missing)}"


def _lay_out(path: Path, tensors: Mapping[str, Any]) -> tuple[dict[str, tuple[Path, int]], bool]:
    """A safetensors file with its header and room for the data: where every tensor goes, and whether it was there."""
    codes = {np.dtype(dtype): code for code, dtype in _DTYPES.items()}
    # transformers refuses files whose metadata does not say which framework's layout they hold.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    # Wide dtypes first, as safetensors' own writer does, so that every tensor is aligned.
    for name in sorted(tensors, key=lambda each: -tensors[each].dtype.itemsize):
        tensor = tensors[name]
        end = at + _bytes(tensor)
        header[name] = {"dtype": codes[np.dtype(tensor.dtype)], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    text = len(text).to_bytes(8, "little") + text
    with path.open("r+b" if path.exists() else "w+b") as file:
        found = os.fstat(file.fileno()).st_size == len(text) + at and file.read(len(text)) == text
        if not found:
            file.truncate(0)
            file.seek(0)
            file.write(text)
            file.truncate(len(text) + at)
    return {name: (path, len(text) + header[name]["data_offsets"][0]) for name in tensors}, found


def _bytes(tensor: Any) -> int:
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def _split(tensors: Mapping[str, Any], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    used = 0
    if not tensors:
        return []
    for name, tensor in tensors.items():
        if shards[-1] and used + _bytes(tensor) > limit:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += _bytes(tensor)
    return shards


def names_in_words(names: Iterable[str], most: int = 3) -> str:
    """The first few names and how many more there are, for a message."""
    listed = sorted(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
