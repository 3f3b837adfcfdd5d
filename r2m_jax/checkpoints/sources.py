"""Opening a checkpoint of any known kind: tensors by name, and the config and processing beside them if any."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r2m_jax.checkpoints import preprocessing
from r2m_jax.checkpoints.compressed import open_tensors
from r2m_jax.checkpoints.directory import CONFIG_FILE, read_config, read_json_object
from r2m_jax.checkpoints.sharded import is_sharded, open_parameters, stored_files
from r2m_jax.checkpoints.single_file import read_description
from r2m_jax.checkpoints.tensors import (
    INDEX_FILE,
    SINGLE_FILE,
    LazyTensor,
    open_safetensors,
    safetensors_files,
)
from r2m_jax.checkpoints.torch_pickle import is_torch_file, read_torch_file
from r2m_jax.errors import InputError

ORBAX = "Orbax store"
"""Kind of a source whose tensors are read one by one."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_TORCH_FILE = "pytorch_model.bin"
_WANTED = (CONFIG_FILE, preprocessing.FILE, "*.safetensors", INDEX_FILE)


@dataclass(frozen=True)
class Source:
    """A checkpoint as found.

    Attributes:
        kind: what it is, in words.
        files: the files its tensors come from.
        tensors: by the name in the file.
        config: ``CLIPVisionConfig``, None where the source has none.
        processor: ``CLIPImageProcessorPil``, None where the source has none.
        revision: the hub commit, for a source from the hub.
    """

    kind: str
    files: list[Path]
    tensors: dict[str, LazyTensor]
    config: Any = None
    processor: Any = None
    revision: str | None = None


def open_source(source: str) -> Source:
    """Open a directory, a file or a hub id.

    Args:
        source: a Hugging Face or model directory, a ``.safetensors`` file or shard index, a torch file, an Orbax
            store of parameters or of a training state, or ``owner/name`` on the Hugging Face hub (used when no such
            path exists).

    Raises:
        InputError: it is none of these, or damaged.
    """
    path = Path(source)
    if path.is_dir() and is_sharded(path):
        return Source(ORBAX, stored_files(path), open_parameters(path))
    if path.is_dir():
        return _open_directory(path, "model directory")
    if path.is_file():
        return _open_file(path)
    if _HUB_ID.fullmatch(source):
        return _open_hub(source)
    raise InputError(f"{source} does not exist; give a directory, a checkpoint file or a hub id like owner/name.")


def _open_file(path: Path) -> Source:
    if path.name.endswith((".safetensors", ".index.json")):
        tensors = open_safetensors(path)
        described = read_description(path) if path.name.endswith(".safetensors") else None
        return Source("safetensors file", [path], tensors, *(described or ()))
    if is_torch_file(path):
        arrays = read_torch_file(path)
        return Source("torch file", [path], {name: LazyTensor.of(array) for name, array in arrays.items()})
    raise InputError(f"{path} is no checkpoint of a known kind (.safetensors, .pth, .pt, .bin or a directory).")


def _open_directory(path: Path, kind: str, revision: str | None = None) -> Source:
    if (path / _TORCH_FILE).exists() and not any((path / name).exists() for name in (SINGLE_FILE, INDEX_FILE)):
        weights = _open_file(path / _TORCH_FILE)
        files, tensors = weights.files, weights.tensors
    else:
        files = safetensors_files(path)
        tensors = open_tensors(path)
    processor = preprocessing.read_processor(path) if (path / preprocessing.FILE).exists() else None
    return Source(kind, files, tensors, read_config(path), processor, revision)


def _open_hub(name: str) -> Source:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, allow_patterns=list(_WANTED)))
    except LocalEntryNotFoundError:
        raise InputError(f"{name} is no path here, not in the hub's cache, and the hub cannot be reached.") from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise InputError(f"{name} is no path here and could not be fetched from the hub ({reason}).") from None
    if not (folder / CONFIG_FILE).exists():
        raise InputError(f"the hub's {name} has no {CONFIG_FILE}; give the path of a checkpoint file instead.")
    read_json_object(folder / CONFIG_FILE)
    # The hub's cache keeps each snapshot in a folder named after its commit.
    return _open_directory(folder, f"hub model {name}", revision=folder.name)
