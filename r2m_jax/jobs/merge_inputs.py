"""What a merge reads: a base and its specialists, checked to belong together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r2m_jax.checkpoints.directory import open_detector_weights, read_config, read_provenance
from r2m_jax.checkpoints.names import HEAD, tower_places
from r2m_jax.checkpoints.preprocessing import read_processor
from r2m_jax.checkpoints.tensors import LazyTensor, names_in_words, safetensors_files
from r2m_jax.errors import InputError

_TRAINED = ("specialist", "all_in_one", "linear_probe")
_ARCHITECTURE = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size",
    "hidden_act", "layer_norm_eps",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A model directory, unread but for its settings.

    Attributes:
        config: of the tower.
        tower: tensors by name without prefix.
        head: ``head.weight`` and ``head.bias``; empty in a base that has none.
        processor: how images are prepared.
        provenance: what made it.
        files: of the weights.
    """

    config: Any
    tower: dict[str, LazyTensor]
    head: dict[str, LazyTensor]
    processor: Any
    provenance: dict[str, Any]
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Inputs:
    """A base and its specialists.

    Attributes:
        base: the common origin.
        specialists: by name.
    """

    base: Source
    specialists: dict[str, Source]

    @property
    def files(self) -> list[Path]:
        """Of all weights."""
        return [file for source in (self.base, *self.specialists.values()) for file in source.files]

    @property
    def processor(self) -> Any:
        """What all specialists share."""
        return next(iter(self.specialists.values())).processor

    def check_origin(self, hashes: set[str]) -> None:
        """Compare what specialists say of their base with the hashes of the files read.

        Raises:
            InputError: one was fine-tuned from another base.
        """
        for name, each in self.specialists.items():
            recorded = each.provenance.get("inputs", []) if each.provenance.get("kind") in _TRAINED else []
            weights = {item["sha256"] for item in recorded if str(item["path"]).endswith(".safetensors")}
            if weights and not weights & hashes:
                where = self.base.files[0].parent
                raise InputError(f"{name} was fine-tuned from another base than {where} (its r2m.json has the hash).")


def open_inputs(base: Path, specialists: Mapping[str, Path]) -> Inputs:
    """Open model directories and refuse, by name, what does not belong together.

    Raises:
        InputError: a directory is wrong or damaged, or specialists differ from the base in architecture, tensors or
            shapes, or from each other in the processing of images.
    """
    inputs = Inputs(_open(base), {name: _open(path) for name, path in specialists.items()})
    first_name, first = next(iter(inputs.specialists.items()))
    for name, each in inputs.specialists.items():
        for key in _ARCHITECTURE:
            theirs, ours = getattr(each.config, key), getattr(inputs.base.config, key)
            if theirs != ours:
                raise InputError(f"{name} has {key} {theirs}, the base {ours}; they cannot be merged.")
        for key, tensor in inputs.base.tower.items():
            if each.tower[key].shape != tensor.shape:
                raise InputError(f"{name} has {key} of shape {each.tower[key].shape} instead of {tensor.shape}.")
        if each.head.keys() != HEAD.keys():
            raise InputError(f"{name} has no head; train one, or leave it out.")
        for key, tensor in each.head.items():
            if tensor.shape != first.head[key].shape:
                raise InputError(f"{name} has {key} of shape {tensor.shape}, {first_name} {first.head[key].shape}.")
        for what in ("image_mean", "image_std", "crop_size"):
            mine, other = _plain(getattr(each.processor, what)), _plain(getattr(first.processor, what))
            if mine != other:
                raise InputError(
                    f"{name} takes images with {what} {mine}, {first_name} with {other}; a merged model can do but one."
                )
    return inputs


def _open(directory: Path) -> Source:
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "does not exist"
        raise InputError(f"{directory} {what}; give a model directory (`r2m convert` makes one).")
    config = read_config(directory)
    tensors = open_detector_weights(directory)
    head = {name: tensor for name, tensor in tensors.items() if name in HEAD}
    tower = {name: tensor for name, tensor in tensors.items() if name not in HEAD}
    wanted = tower_places(config.num_hidden_layers).keys()
    if missing := wanted - tower.keys():
        raise InputError(f"{directory} lacks {names_in_words(missing)}.")
    if unknown := tower.keys() - wanted:
        raise InputError(
            f"{directory} has tensors that belong to no part of a detector: {names_in_words(unknown)}; "
            "`r2m convert` makes a model directory of a foreign checkpoint."
        )
    files = tuple(safetensors_files(directory))
    return Source(config, tower, head, read_processor(directory), read_provenance(directory), files)


def _plain(value: Any) -> Any:
    """Sizes and lists as JSON has them, numbers to six digits."""
    if hasattr(value, "items"):
        return {str(key): item for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [round(float(item), 6) for item in value]
    return str(value)
