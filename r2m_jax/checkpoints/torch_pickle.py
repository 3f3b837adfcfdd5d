"""Tensors out of PyTorch checkpoints and TorchScript archives, without torch, running nothing in them.

A file of torch >= 1.6 is a zip archive of ``data.pkl``, which names the tensors, and of raw storages under
``data/`` (https://docs.pytorch.org/docs/stable/notes/serialization.html; TorchScript:
https://github.com/pytorch/pytorch/blob/main/torch/csrc/jit/docs/serialization.md). A pickle is a program; the
names it may use here all stand for inert values of this module, and any other name refuses the file.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from r2m_jax.errors import InputError

_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
_WRAPPERS = ("state_dict", "model", "model_state_dict", "net")
_ZIP_MAGIC = b"PK\x03\x04"
# 0x1950a86a20f9469cfc6c, the first object of a legacy file, as the pickle opcode LONG1 writes it.
_LEGACY_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
# Weights hardly compress: a file that becomes many times larger, and not just small, is a decompression bomb.
_SMALL = 64 * 2**20
_MAX_EXPANSION = 20
# Attribute graphs can be cyclic, or reach one module by exponentially many names.
_MAX_MODULES = 10_000
_MAX_NAME = 1_000
_DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}


def is_torch_file(path: Path) -> bool:
    """Whether a file is worth giving to :func:`read_torch_file`, by its name or else by its content.

    A directory never is; a missing file is, if its name says so, so that the reader can report it.
    """
    path = Path(path)
    if path.is_dir() or path.suffix.lower() in _SUFFIXES:
        return not path.is_dir()
    try:
        with path.open("rb") as file:
            head = file.read(32)
            if not head.startswith(_ZIP_MAGIC):
                return _LEGACY_MAGIC in head
            with zipfile.ZipFile(file) as archive:
                return bool(_pickles(archive))
    except Exception:  # whatever a foreign file does to zipfile, it is not a checkpoint
        return False


def read_torch_file(path: Path) -> dict[str, np.ndarray]:
    """Named tensors of a ``torch.save`` or ``torch.jit.save`` file; nothing in the file is executed.

    A state dict may stand alone or, beside anything, under ``state_dict``, ``model``, ``model_state_dict`` or
    ``net``; entries that are not tensors are left out, and so is the prefix ``module.`` if every name has it.
    Attributes of TorchScript modules get dotted names. Files older than PyTorch 1.6 need torch.

    Args:
        path: the file.

    Returns:
        Name to array of the stored shape and dtype (bfloat16 through ml_dtypes), C-contiguous and possibly
        read-only, as it may share memory with others. Only the storages of these tensors are read.

    Raises:
        InputError: the file is missing, damaged, not of PyTorch, big-endian, asks for anything but tensors
            and plain values, describes a tensor outside its storage, or holds no named tensor.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a directory; give the checkpoint file in it.")
    try:
        with path.open("rb") as file:
            head = file.read(32)
            file.seek(0)
            if head.startswith(_ZIP_MAGIC):
                return _read_zip(path, file)
            if _LEGACY_MAGIC in head:
                return _read_legacy(path)
            raise _foreign(path, file.read(_SMALL))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}); check the path.") from None


def _foreign(path: Path, content: bytes) -> InputError:
    if not content:
        return InputError(f"{path} is empty; fetch or save it again.")
    try:
        _unpickle(path, content)
    except _RefusedError as refused:  # a pickle that wants to run something is told apart from any other file
        return refused
    except InputError:
        pass
    return InputError(f"{path} is not a PyTorch checkpoint; give a file that torch.save or torch.jit.save wrote.")


class _RefusedError(InputError):
    def __init__(self, path: Path, asked: str) -> None:
        # repr, because a name in a pickle may hold control characters and line ends
        super().__init__(
            f"{path}: refused, its pickle asks for `{repr(asked)[1:-1][:100]}`, which is not a tensor; "
            "re-save it as safetensors or as a plain state_dict."
        )


@contextmanager
def _damage_reported(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        # zipfile, zlib and pickle raise almost any exception on bytes that are not what they claim to be.
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise InputError(f"{path} is truncated or damaged ({reason}); fetch or save it again.") from None


# What a pickle may build. The opcode BUILD changes attributes of any object at hand, classes included, unless
# the object has __setstate__. Hence a pickle gets only built-in values and classes with that method, which
# takes an instance's state without effect and fails, for want of an argument, when called on the class.


class _Inert:
    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


class _Dict(_Inert, dict):
    """``OrderedDict``; its state would be the ``_metadata`` of state dicts."""

    __slots__ = ()


class _Opaque(_Inert):
    """A plain value that is no tensor (a device, a NumPy number, a namespace): accepted and forgotten."""

    __slots__ = ()

    def __new__(cls, *args: object, **kwargs: object) -> _Opaque:
        return super().__new__(cls)


class _FirstArgument(_Inert):
    """A function that adds what does not matter here (``requires_grad``, a type) to its first argument."""

    __slots__ = ()

    def __new__(cls, value: Any, *args: object) -> Any:
        return value


class _Module:
    """An instance of a TorchScript class, of which only the attributes matter."""

    __slots__ = ("attributes",)

    def __setstate__(self, state: object) -> None:
        self.attributes = state


class _Storage(NamedTuple):  # the pickle sees instances alone, which are immutable
    dtype: np.dtype
    key: str
    numel: int


class _Arguments(NamedTuple):
    storage: Any
    offset: Any
    size: Any
    stride: Any
    requires_grad: Any
    hooks: Any
    metadata: Any = None


class _Tensor(_Inert, _Arguments):
    """The arguments of ``_rebuild_tensor_v2``, unchecked until the tensor is wanted."""

    __slots__ = ()


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Dict,
    ("collections", "Counter"): _Opaque,  # milestones of a learning rate schedule
    ("argparse", "Namespace"): _Opaque,
    ("torch", "Size"): tuple,
    ("torch", "device"): _Opaque,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch._utils", "_rebuild_parameter"): _FirstArgument,
    ("torch._utils", "_rebuild_parameter_with_state"): _FirstArgument,
    # A NumPy number, such as the best accuracy so far. Arrays are refused: they might be weights.
    ("numpy.core.multiarray", "scalar"): _Opaque,
    ("numpy._core.multiarray", "scalar"): _Opaque,
    ("numpy", "dtype"): _Opaque,
    ("_codecs", "encode"): _Opaque,
}
_ALLOWED |= {("torch", name): name for name in _DTYPES}
_ALLOWED |= {("torch", dtype.name): dtype.name for dtype in _DTYPES.values()}
_ALLOWED |= {
    ("torch.jit._pickle", name): _FirstArgument
    for name in (
        "restore_type_tag",
        "build_intlist",
        "build_tensorlist",
        "build_doublelist",
        "build_boollist",
    )
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, path: Path, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self._path = path

    def find_class(self, module: str, name: str, /) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if (module, name) not in _ALLOWED:
            raise _RefusedError(self._path, f"{module}.{name}")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage, key, _device, numel = pid
        if kind != "storage" or not isinstance(key, str) or type(numel) is not int:
            raise ValueError("a storage is not described as one")
        return _Storage(_DTYPES[storage], key, numel)


def _unpickle(path: Path, content: bytes) -> Any:
    with _damage_reported(path):
        for opcode, argument, _position in pickletools.genops(content):
            # The C unpickler allocates its memo up to the index it is given.
            if opcode.name.endswith("PUT") and int(argument or 0) > len(content):
                raise ValueError("memo index out of range")
            # An extension may come from a cache, without a call of find_class.
            if opcode.name.startswith("EXT"):
                raise _RefusedError(path, f"extension {argument}")
        return _Unpickler(path, content).load()


def _pickles(archive: zipfile.ZipFile) -> list[str]:
    return [name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)]


def _read_zip(path: Path, file: BinaryIO) -> dict[str, np.ndarray]:
    with _damage_reported(path), zipfile.ZipFile(file) as archive:
        names = _pickles(archive)
        if len(names) != 1:
            raise InputError(f"{path} is a zip archive, but not of PyTorch; give a file of torch.save.")
        reader = _Reader(path, archive, names[0].removesuffix("data.pkl"))
        if "byteorder" in reader and reader.read("byteorder", 64) != b"little":
            raise InputError(f"{path} is not little-endian; re-save it on a little-endian machine.")
        tensors = _named(path, _unpickle(path, reader.read("data.pkl", _SMALL)), _Tensor)
        return {name: reader.array(name, tensor) for name, tensor in tensors.items()}


class _Reader:
    """Reads each storage once, and no more in total than a file of this size can honestly hold."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, prefix: str) -> None:
        self._path, self._archive, self._prefix = path, archive, prefix
        self._left = max(_SMALL, _MAX_EXPANSION * path.stat().st_size)
        self._storages: dict[str, bytes] = {}

    def __contains__(self, entry: str) -> bool:
        return f"{self._prefix}{entry}" in self._archive.NameToInfo

    def read(self, entry: str, limit: int) -> bytes:
        """Content of an entry, its checksum verified."""
        size = self._archive.getinfo(f"{self._prefix}{entry}").file_size
        if size > limit:
            raise InputError(f"{self._path}: its {entry} has implausible {size} bytes; save it again.")
        return self._archive.read(f"{self._prefix}{entry}")

    def array(self, name: str, tensor: _Tensor) -> np.ndarray:
        """Values of a tensor, C-contiguous: a view of its storage where that is so, else a copy."""
        storage, offset, size, stride, _requires_grad, _hooks, metadata = tensor
        if not isinstance(storage, _Storage) or metadata or len(size) != len(stride):
            raise self._wrong(name, "is not a plain strided tensor")
        if any(type(number) is not int or number < 0 for number in (offset, *size, *stride)):
            raise self._wrong(name, "has a negative or malformed size, stride or offset")
        numel, itemsize = math.prod(size), storage.dtype.itemsize
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if numel and last >= storage.numel:
            raise self._wrong(name, "reaches outside its storage")
        self._spend(name, numel * itemsize)
        content = self._content(name, storage)
        if not numel:
            return np.zeros(size, storage.dtype)
        # PyTorch leaves the stride of a dimension of size 1 arbitrary, possibly too large for NumPy.
        steps = [step * itemsize if n > 1 else 0 for n, step in zip(size, stride, strict=True)]
        view: np.ndarray = np.ndarray(size, storage.dtype, content, offset * itemsize, steps)
        return view if view.flags.c_contiguous else view.copy(order="C")

    def _content(self, name: str, storage: _Storage) -> bytes:
        entry, declared = f"data/{storage.key}", storage.numel * storage.dtype.itemsize
        if entry not in self:
            raise self._wrong(name, f"needs {entry}, which is not in the file")
        if self._archive.getinfo(f"{self._prefix}{entry}").file_size != declared:
            raise self._wrong(name, f"needs {declared} bytes in {entry}, which has another size")
        if entry not in self._storages:
            self._spend(name, declared)
            self._storages[entry] = self.read(entry, declared)
        return self._storages[entry]

    def _spend(self, name: str, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise self._wrong(name, "makes the content many times larger than the file")

    def _wrong(self, name: str, what: str) -> InputError:
        return InputError(f"{self._path}: {name[:_MAX_NAME]!r} {what}; fetch or save it again.")


def _named(path: Path, top: Any, kind: type) -> dict[str, Any]:
    """The tensors, instances of ``kind``, of the state dict or module in what a file holds."""
    for _ in _WRAPPERS:  # a bound, as a dict may hold itself
        held = [top.get(key) for key in _WRAPPERS] if isinstance(top, dict) else []
        top = next((value for value in held if isinstance(value, dict | _Module)), top)
    if isinstance(top, _Module):
        top = _attributes(path, top)
    entries = top if isinstance(top, dict) else {}
    tensors = {key: it for key, it in entries.items() if isinstance(key, str) and isinstance(it, kind)}
    if not tensors:
        found = ", ".join(repr(key)[:50] for key in list(entries)[:5] if isinstance(key, str)) or "no names"
        raise InputError(f"{path} holds no named tensors (found {found}); save model.state_dict() instead.")
    prefix = "module." if all(key.startswith("module.") for key in tensors) else ""
    return {key.removeprefix(prefix): value for key, value in tensors.items()}


def _attributes(path: Path, root: _Module) -> dict[str, _Tensor]:
    found: dict[str, _Tensor] = {}
    pending = [("", root)]
    for _ in range(_MAX_MODULES):
        if not pending:
            return found
        prefix, module = pending.pop()
        attributes = getattr(module, "attributes", {})  # none where the pickle ends without giving a state
        if not isinstance(attributes, dict) or len(prefix) > _MAX_NAME:
            raise InputError(f"{path}: {prefix[:100]!r} is no plain module; save its state_dict() instead.")
        found |= {f"{prefix}{key}": it for key, it in attributes.items() if isinstance(it, _Tensor)}
        pending += [(f"{prefix}{key}.", it) for key, it in attributes.items() if isinstance(it, _Module)]
    raise InputError(f"{path} nests modules without end; save the model's state_dict() instead.")


def _read_legacy(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise InputError(
            f"{path} is in the format before PyTorch 1.6; install r2m-jax[torch] to read it, or re-save it."
        ) from None
    try:
        top = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds, with advice on how to switch its guard off
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked:
            raise _RefusedError(path, asked[1]) from None
        raise InputError(f"{path} is truncated or damaged (torch cannot load it); save it again.") from None
    arrays, known = {}, {dtype.name: dtype for dtype in _DTYPES.values()}
    for name, tensor in _named(path, top, torch.Tensor).items():
        dtype = known.get(str(tensor.dtype).removeprefix("torch."))
        if dtype is None or tensor.layout is not torch.strided:
            raise InputError(f"{path}: {name!r} is not a plain tensor; re-save it as dense float32.")
        # As bytes, because torch gives NumPy no bfloat16.
        flat = tensor.detach().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
        arrays[name] = flat.numpy().view(dtype).reshape(tuple(tensor.shape))
    return arrays
