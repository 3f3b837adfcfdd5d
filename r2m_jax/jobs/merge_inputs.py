"""What a merge reads: a base and its specialists, checked to belong together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from r2m_jax.checkpoints import preprocessing
from r2m_jax.checkpoints.directory import (
    CONFIG_FILE,
    open_detector_weights,
    read_json_object,
    read_provenance,
    refuse_convolutional,
    refuse_corit,
)
from r2m_jax.checkpoints.names import HEAD, tower_places
from r2m_jax.checkpoints.tensors import LazyTensor, names_in_words, safetensors_files
from r2m_jax.errors import InputError
from r2m_jax.models import CLIP, check_config, family_of

_TRAINED = ("specialist", "all_in_one", "linear_probe")
_ARCHITECTURE = ("model_type", *CLIP.defaults)
"""Keys of a config that make an architecture."""


@dataclass(frozen=True)
class Source:
    """A model directory, unread but for its settings.

    Settings are plain JSON: making transformers' objects of them takes longer than many a merge.

    Attributes:
        config: of the tower, with the keys that make the architecture.
        tower: tensors by name without prefix.
        head: ``head.weight`` and ``head.bias``; empty in a base that has none.
        processing: how images are prepared.
        provenance: what made it.
        files: of the weights.
    """

    config: dict[str, Any]
    tower: dict[str, LazyTensor]
    head: dict[str, LazyTensor]
    processing: dict[str, Any]
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
    def processing(self) -> dict[str, Any]:
        """What all specialists share."""
        return next(iter(self.specialists.values())).processing

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
            theirs, ours = each.config[key], inputs.base.config[key]
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
            mine, other = _plain(each.processing[what]), _plain(first.processing[what])
            if mine != other:
                raise InputError(
                    f"{name} takes images with {what} {mine}, {first_name} with {other}; a merged model can do but one."
                )
    return inputs


def _open(directory: Path) -> Source:
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "does not exist"
        raise InputError(f"{directory} {what}; give a model directory (`r2m convert` makes one).")
    refuse_corit(directory)
    config, processing = _settings(directory)
    tensors = open_detector_weights(directory)
    head = {name: tensor for name, tensor in tensors.items() if name in HEAD}
    tower = {name: tensor for name, tensor in tensors.items() if name not in HEAD}
    wanted = tower_places(config["num_hidden_layers"], family_of(config["model_type"])).keys()
    if missing := wanted - tower.keys():
        raise InputError(f"{directory} lacks {names_in_words(missing)}.")
    if unknown := tower.keys() - wanted:
        raise InputError(
            f"{directory} has tensors that belong to no part of a detector: {names_in_words(unknown)}; "
            "`r2m convert` makes a model directory of a foreign checkpoint."
        )
    files = tuple(safetensors_files(directory))
    return Source(config, tower, head, processing, read_provenance(directory), files)


def _settings(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    path = directory / CONFIG_FILE
    found = read_json_object(path)
    refuse_convolutional(found, str(path))
    found = found.get("vision_config", found)
    if "hidden_size" not in found or "patch_size" not in found:
        raise InputError(f"{path} describes no CLIP vision tower (it lacks hidden_size or patch_size).")
    family = family_of(found.get("model_type"))
    # transformers' config classes take these for keys that a file leaves out.
    config = {**family.defaults, **found, "model_type": family.model_type}
    check_config(SimpleNamespace(**config), str(path))
    return config, preprocessing.read_settings(directory)


def _plain(value: Any) -> Any:
    """Settings to compare: numbers to six digits, and a size alone for that of a square."""
    if isinstance(value, int):
        return {"height": value, "width": value}
    if isinstance(value, list | tuple):
        return [round(float(item), 6) for item in value]
    return value
