"""Model directories whose tensors are stored as something smaller, and tensors that are rebuilt as they are read.

``compression.json`` beside the weights names every tensor that is not stored as it is::

    {"format": 1,
     "tensors": {NAME: {"as": "integers", "bits": 8, "shape": [...], "dtype": "float32"}},
     "base": {"path": ..., "files": [{"path", "bytes", "sha256"}]}}

``integers``
    ``NAME.integers`` (int8 of the tensor's shape, or fewer bits packed, uint8 ``[rows, bytes]``) times ``NAME.scale``
    (float32, ``[rows]`` or ``[1]``).
``factors``
    ``NAME.left [rows, k]`` times ``NAME.right [k, n]``.
``sparse``
    ``NAME.kept`` (a bit each, uint8 ``[rows, bytes]``) says which entries are ``NAME.values``, the others are 0.
``difference``
    ``NAME.difference`` plus the tensor of the base; nothing is stored of a tensor that equals the base's.

Parts are tensors themselves and may be stored as something smaller in turn (factors as integers). Rows are those of the
leading axis, which a reader may ask for a few of.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from r2m_jax.checkpoints import provenance
from r2m_jax.checkpoints.names import tower_name
from r2m_jax.checkpoints.tensors import (
    COMPRESSION_FILE,
    LazyTensor,
    names_in_words,
    open_safetensors,
    safetensors_files,
)
from r2m_jax.errors import InputError

FORMAT = 1
BITS = range(2, 9)
"""Widths of stored integers."""
PARTS = {
    "integers": ("integers", "scale"),
    "factors": ("left", "right"),
    "sparse": ("kept", "values"),
    "difference": ("difference",),
}
"""What a tensor is stored as, and the endings of the names of its parts."""

Rows = slice | None
Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Record:
    """What ``compression.json`` says.

    Attributes:
        tensors: by name, what is stored instead of a tensor.
        base: where tensors of differences are added to, with hashes of its files; None where there are none.
    """

    tensors: Mapping[str, Entry]
    base: Mapping[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """Content of the file."""
        base = {} if self.base is None else {"base": dict(self.base)}
        return {"format": FORMAT, "tensors": {name: dict(entry) for name, entry in self.tensors.items()}, **base}


def read_record(directory: Path) -> Record:
    """What a model directory says of its tensors; nothing where it has no ``compression.json``.

    Raises:
        InputError: the file is damaged, or of a later version of this package.
    """
    path = Path(directory) / COMPRESSION_FILE
    if not path.exists():
        return Record({})
    content = provenance.read_json(path)
    tensors = content.get("tensors") if isinstance(content, dict) else None
    if not isinstance(tensors, dict):
        raise InputError(f"{path} does not say how tensors are stored; compress the model again.")
    if content.get("format") != FORMAT:
        raise InputError(f"{path} is of format {content.get('format')!r}, not {FORMAT}; a later r2m-jax wrote it.")
    for name, entry in tensors.items():
        if not _sound(entry):
            raise InputError(f"{path}: {name} is stored in a way that is unknown ({entry}).")
    base = content.get("base")
    if any(entry["as"] == "difference" for entry in tensors.values()) and not (
        isinstance(base, dict) and isinstance(base.get("path"), str) and base.get("files")
    ):
        raise InputError(f"{path} holds differences but does not name their base with hashes of its files.")
    return Record(tensors, base)


def _sound(entry: Any) -> bool:
    if not isinstance(entry, dict) or entry.get("as") not in PARTS:
        return False
    shape = entry.get("shape")
    sizes = isinstance(shape, list) and bool(shape) and all(isinstance(size, int) and size > 0 for size in shape)
    bits = entry["as"] != "integers" or entry.get("bits") in BITS
    return sizes and bits and entry.get("dtype") in ("float32", "float16", "bfloat16", "float64")


def open_tensors(directory: Path) -> dict[str, LazyTensor]:
    """The tensors of a model directory, unread, whatever they are stored as.

    Raises:
        InputError: files are missing or damaged, or differences were taken from another base than is there.
    """
    record = read_record(directory)
    return rebuilt(open_stored(directory), record, Path(directory))


def open_stored(directory: Path) -> dict[str, LazyTensor]:
    """The tensors as they are in the files of a model directory, parts and all."""
    return open_safetensors(safetensors_files(directory)[0])


def rebuilt(stored: Mapping[str, LazyTensor], record: Record, directory: Path) -> dict[str, LazyTensor]:
    """Tensors that are put together when read.

    Args:
        stored: of :func:`open_stored`.
        record: of :func:`read_record`.
        directory: where both were read, for messages and for the way to the base.

    Raises:
        InputError: see :func:`open_tensors`.
    """
    if not record.tensors:
        return dict(stored)
    base = _open_base(record, directory)
    part_names = {f"{name}.{part}" for name, entry in record.tensors.items() for part in PARTS[entry["as"]]}
    tensors = {name: tensor for name, tensor in stored.items() if name not in part_names}

    def whole(name: str) -> LazyTensor | None:
        entry = record.tensors.get(name)
        if entry is None:
            return stored.get(name)
        parts = {part: whole(f"{name}.{part}") for part in PARTS[entry["as"]]}
        if entry["as"] == "difference":
            origin = base.get(tower_name(name))
            if origin is None:
                raise InputError(f"{directory}: {name} is a difference, but the base has no such tensor.")
            parts["base"] = origin
        lacking = [f"{name}.{part}" for part, tensor in parts.items() if tensor is None]
        if lacking and entry["as"] != "difference":
            raise InputError(f"{directory} lacks {names_in_words(lacking)}, which its {COMPRESSION_FILE} names.")
        return _tensor(name, entry, parts, directory)

    for name in record.tensors:
        if name not in part_names:
            found = whole(name)
            assert found is not None, "it has an entry"
            tensors[name] = found
    return tensors


def _tensor(name: str, entry: Entry, parts: Mapping[str, LazyTensor | None], directory: Path) -> LazyTensor:
    shape = tuple(entry["shape"])
    rows, width = shape[0], math.prod(shape[1:])
    fill, expected = _READERS[entry["as"]](entry, parts, rows, width)
    for part, wanted in expected.items():
        tensor = parts[part]
        if tensor is not None and (tensor.shape not in wanted):
            raise InputError(f"{directory}: {name}.{part} has shape {tensor.shape} instead of {wanted[0]}.")
    dtype = np.dtype(entry["dtype"])

    def load_into(chosen: Rows, out: np.ndarray) -> None:
        first, last, step = (chosen or slice(None)).indices(rows)
        assert step == 1, "rows are read one after the other"
        fill(slice(first, last), out.reshape(last - first, width))

    def load(chosen: Rows) -> np.ndarray:
        first, last, _ = (chosen or slice(None)).indices(rows)
        out = np.empty((max(last - first, 0), *shape[1:]), dtype)
        load_into(chosen, out)
        return out

    return LazyTensor(shape, dtype, load, load_into)


Fill = Callable[[slice, np.ndarray], None]
Shapes = dict[str, list[tuple[int, ...]]]
Reader = Callable[[Entry, Mapping[str, Any], int, int], tuple[Fill, Shapes]]


def _integers(entry: Entry, parts: Mapping[str, LazyTensor], rows: int, width: int) -> tuple[Fill, Shapes]:
    bits, values, scale = entry["bits"], parts["integers"], parts["scale"]

    def fill(chosen: slice, out: np.ndarray) -> None:
        read = values.read(chosen)
        each = read.reshape(out.shape) if bits == 8 else unpack(read, bits, width)
        scales = scale.read() if scale.shape == (1,) else scale.read(chosen)
        if out.dtype == np.float32:
            np.multiply(each, scales[:, None], out=out)
        else:
            out[...] = each * scales[:, None]

    packed = tuple(entry["shape"]) if bits == 8 else (rows, -(-bits * width // 8))
    return fill, {"integers": [packed], "scale": [(rows,), (1,)]}


def _factors(entry: Entry, parts: Mapping[str, LazyTensor], rows: int, width: int) -> tuple[Fill, Shapes]:
    left, right = parts["left"], parts["right"]

    def fill(chosen: slice, out: np.ndarray) -> None:
        out[...] = left.read(chosen).astype(np.float32) @ right.read().astype(np.float32)

    return fill, {"left": [(rows, right.shape[0])], "right": [(right.shape[0], width)]}


def _sparse(entry: Entry, parts: Mapping[str, LazyTensor], rows: int, width: int) -> tuple[Fill, Shapes]:
    kept, values = parts["kept"], parts["values"]

    def fill(chosen: slice, out: np.ndarray) -> None:
        before = np.bitwise_count(kept.read(slice(0, chosen.start))).sum() if chosen.start else 0
        mask = np.unpackbits(kept.read(chosen), axis=1, count=width).astype(np.bool_)
        out[...] = 0
        out[mask] = values.read(slice(int(before), int(before) + int(mask.sum())))

    return fill, {"kept": [(rows, -(-width // 8))]}


def _difference(entry: Entry, parts: Mapping[str, LazyTensor | None], rows: int, width: int) -> tuple[Fill, Shapes]:
    moved, base = parts["difference"], parts["base"]
    assert base is not None, "looked for before"

    def fill(chosen: slice, out: np.ndarray) -> None:
        start = base.read(chosen).reshape(out.shape)
        if moved is None:
            out[...] = start
        else:
            out[...] = start.astype(np.float32) + moved.read(chosen).reshape(out.shape).astype(np.float32)

    return fill, {"difference": [tuple(entry["shape"])], "base": [tuple(entry["shape"])]}


_READERS: dict[str, Reader] = {
    "integers": _integers, "factors": _factors, "sparse": _sparse, "difference": _difference,
}  # fmt: skip


def _open_base(record: Record, directory: Path) -> dict[str, LazyTensor]:
    """The tensors of the base, by name without prefix; empty where none is needed."""
    if not any(entry["as"] == "difference" for entry in record.tensors.values()):
        return {}
    assert record.base is not None, "checked on reading"
    wanted = {str(file["sha256"]) for file in record.base["files"]}
    # A relative path is one from the model, so that both can be moved together.
    path = Path(directory) / record.base["path"]
    if not path.is_dir():
        raise InputError(
            f"{directory} holds differences to the base {path}, which is not there; put it there, or write its new "
            f"place into {Path(directory) / COMPRESSION_FILE} (base.path)."
        )
    found = {_digest(file, *_stamp(file)) for file in safetensors_files(path)}
    if found != wanted:
        raise InputError(f"{path} is another base than the one {directory} holds differences to (by its hash).")
    return {tower_name(name): tensor for name, tensor in open_tensors(path).items()}


def _stamp(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


@functools.lru_cache(maxsize=64)
def _digest(file: Path, size: int, changed: int) -> str:
    """Hash of a file, worked out once for as long as it stays as it is."""
    return provenance.sha256(file)


def pack(values: Integer[np.ndarray, "rows n"], bits: int) -> Integer[np.ndarray, "rows bytes"]:
    """Signed integers of ``bits`` bits side by side in bytes, every row starting a new one."""
    shifted = (values.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    each = np.unpackbits(shifted[..., None], axis=-1)[..., 8 - bits :]
    return np.packbits(each.reshape(len(values), -1), axis=1)


def unpack(packed: Integer[np.ndarray, "rows bytes"], bits: int, count: int) -> Integer[np.ndarray, "rows count"]:
    """The inverse of :func:`pack`: int8, ``count`` in a row."""
    each = np.unpackbits(packed, axis=1, count=bits * count).reshape(len(packed), count, bits)
    powers = 2 ** np.arange(bits - 1, -1, -1, dtype=np.int16)
    return (each @ powers - 2 ** (bits - 1)).astype(np.int8)
