"""Parameters in Orbax stores, which all processes write and read in parallel, each what its devices hold.

From a store to a model directory no process holds the model: stores are read tensor by tensor, by TensorStore, in which
Orbax keeps them (OCDBT, https://google.github.io/tensorstore/kvstore/ocdbt/, with one zarr array per leaf).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from r2m_jax.checkpoints.names import disassemble
from r2m_jax.checkpoints.tensors import LazyTensor, names_in_words
from r2m_jax.errors import InputError
from r2m_jax.parallel import shardings
from r2m_jax.trees import flatten, unflatten

CACHE = 512 * 2**20
"""Bytes of decoded chunks kept: the layers of a stacked leaf may lie in one chunk, and are asked for one by one."""

_MANIFEST = "manifest.ocdbt"
_LANDMARK = "backbone/embeddings/class_token"
_ARRAYS = {"/zarr.json": "zarr3", "/.zarray": "zarr"}


def save_sharded(folder: Path, params: Any, *, overwrite: bool = False) -> None:
    """Write a tree of arrays; all processes call it, and each writes what its devices hold.

    Raises:
        InputError: the place is taken or cannot be written.
    """
    from orbax.checkpoint import v1 as ocp

    try:
        with quiet():
            ocp.save(Path(folder).absolute(), params, overwrite=overwrite)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise InputError(f"{folder} cannot be written ({reason}); choose another, or overwrite.") from None


def load_sharded(folder: Path, like: Any, mesh: Mesh) -> Any:
    """Read a tree onto a mesh, which need not be the one it was written from; each process reads its part.

    Args:
        folder: of :func:`save_sharded`.
        like: arrays or shapes of the same structure.
        mesh: of :func:`r2m_jax.parallel.data_mesh`; leaves go where :func:`r2m_jax.parallel.shardings` puts them.

    Raises:
        InputError: there is no store, or its leaves or shapes are others.
    """
    stored = {path: tuple(tensor.shape) for path, tensor in open_sharded(folder).items()}
    wanted = {path: tuple(leaf.shape) for path, leaf in flatten(like).items()}
    # Orbax would read leaves of another shape as far as they go.
    for path in sorted(stored.keys() | wanted.keys()):
        if stored.get(path) != wanted.get(path):
            raise InputError(
                f"{folder} is of another model: {path} is {stored.get(path, 'absent')} there, not "
                f"{wanted.get(path, 'absent')}."
            )
    target = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), like, shardings(mesh, like)
    )
    from orbax.checkpoint import v1 as ocp

    with quiet():
        return ocp.load(Path(folder).absolute(), target)


class quiet(warnings.catch_warnings):
    """Orbax's own deprecations are not the user's to mend."""

    def __enter__(self) -> Any:
        found = super().__enter__()
        warnings.simplefilter("ignore", DeprecationWarning)
        return found


def is_sharded(folder: Path) -> bool:
    """Whether there is an Orbax store in a folder, or in one below it, as Orbax puts them."""
    return bool(_stores(folder))


def stored_files(folder: Path) -> list[Path]:
    """The files of a store, in order."""
    return sorted(path for store in _stores(folder) for path in store.rglob("*") if path.is_file())


def open_sharded(folder: Path) -> dict[str, LazyTensor]:
    """The leaves of a store by path, unread; reading rows reads the chunks they are in.

    Raises:
        InputError: there is no store, there are several, or it is damaged.
    """
    stores = _stores(folder)
    if len(stores) != 1:
        found = f"holds several stores ({names_in_words(s.name for s in stores)})" if stores else "holds no Orbax store"
        raise InputError(f"{folder} {found}; give the folder of one saved state.")
    import tensorstore  # half a second that other commands need not wait

    base = {"driver": "file", "path": f"{stores[0].absolute()}/"}
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": CACHE}})
    try:
        keys = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result().list().result()
        tensors = {}
        for key in map(bytes.decode, keys):
            for suffix, driver in _ARRAYS.items():
                if key.endswith(suffix):
                    name = key.removesuffix(suffix)
                    spec = {"driver": driver, "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"}}
                    opened = tensorstore.open(spec, open=True, read=True, context=context).result()
                    tensors[name.replace(".", "/")] = _tensor(opened, f"{folder}: {name}")
    except ValueError as error:  # what TensorStore raises of everything
        raise InputError(f"{folder} is no whole Orbax store ({str(error).splitlines()[0][:200]}).") from None
    return tensors


def open_parameters(folder: Path) -> dict[str, LazyTensor]:
    """The tensors of a detector in a store, in Hugging Face names and layout, unread; layers are cut when read.

    The store holds parameters, or a training state, of which the moving average is taken where there is one.

    Raises:
        InputError: there is no store, or it holds no detector, or leaves that are no part of one.
    """
    leaves = open_sharded(folder)
    root = next((f"{at}/" for at in ("average", "params") if f"{at}/{_LANDMARK}" in leaves), "")
    own = {path.removeprefix(root): tensor for path, tensor in leaves.items() if path.startswith(root)}
    if _LANDMARK not in own:
        raise InputError(f"{folder} holds no parameters of a detector (there is no {_LANDMARK} in it).")
    tree = unflatten({path: _Leaf(tensor) for path, tensor in own.items()})
    tensors = disassemble(tree)
    written, held = (sum(math.prod(t.shape) for t in each) for each in (tensors.values(), own.values()))
    if written != held:
        known = flatten(tree)
        strange = [path for path in known if not path.startswith(("backbone/", "head/")) or "lora" in path]
        raise InputError(
            f"{folder} holds leaves that are no part of a detector ({names_in_words(strange or known)}); finish the "
            "training instead, which folds them."
        )
    return tensors


@dataclass(frozen=True)
class _Leaf:
    """What cuts and transposes take for an array, read from the store when they do."""

    tensor: LazyTensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def dtype(self) -> np.dtype:
        return self.tensor.dtype

    def __getitem__(self, layer: int) -> np.ndarray:
        return self.tensor.read(slice(layer, layer + 1))[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.tensor.read().astype(dtype or self.dtype, copy=False)


def _stores(folder: Path) -> list[Path]:
    folder = Path(folder)
    if (folder / _MANIFEST).exists():
        return [folder]
    return sorted(manifest.parent for manifest in folder.glob(f"*/{_MANIFEST}"))


def _tensor(opened: Any, what: str) -> LazyTensor:
    def load(rows: slice | None) -> np.ndarray:
        try:
            return np.asarray((opened if rows is None else opened[rows]).read().result())
        except ValueError as error:
            raise InputError(f"{what} cannot be read ({str(error).splitlines()[0][:200]}).") from None

    return LazyTensor(tuple(opened.shape), np.dtype(opened.dtype.numpy_dtype), load)


def finite(tensors: Mapping[str, LazyTensor], dtype: np.dtype | None, what: str) -> dict[str, LazyTensor]:
    """The same tensors, still unread, in another dtype; reading one refuses NaN and infinities.

    Raises:
        InputError: (when read) a value is NaN or infinite, as stored or in the dtype.
    """

    def of(name: str, tensor: LazyTensor) -> LazyTensor:
        target = tensor.dtype if dtype is None else dtype

        def load(rows: slice | None) -> np.ndarray:
            values = tensor.read(rows)
            with np.errstate(over="ignore"):
                out = values.astype(target, copy=False)
            if not np.isfinite(out.astype(np.float32, copy=False)).all():
                raise InputError(f"{what}: {name} holds values that are NaN, infinite or too large for {target}.")
            return out

        return LazyTensor(tensor.shape, target, load)

    return {name: of(name, tensor) for name, tensor in tensors.items()}
