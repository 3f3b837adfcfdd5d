"""Model directories: ``config.json``, ``model.safetensors``, ``preprocessor_config.json``, ``r2m.json``.

``transformers.CLIPVisionModel.from_pretrained(DIR)``, of a ViT ``ViTModel``, reads the same files and gives the same
pooled output (a ViT's is the class token of its last hidden state).
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from r2m_jax.atomic import atomic_directory
from r2m_jax.checkpoints import preprocessing, provenance
from r2m_jax.checkpoints.compressed import open_tensors
from r2m_jax.checkpoints.names import assemble, disassemble, tower_name
from r2m_jax.checkpoints.tensors import (
    INDEX_FILE,
    MAX_SHARD_BYTES,
    LazyTensor,
    SafetensorsWriter,
)
from r2m_jax.errors import InputError
from r2m_jax.models import Params, TowerOptions, check_config, family_of, parameter_shapes
from r2m_jax.models.detector import Detector
from r2m_jax.parallel import common_directory
from r2m_jax.trees import flatten, refuse_non_finite, same_structure

CONFIG_FILE = "config.json"
CORIT_FILE = "corit.json"
"""Switches of a CoRIT detector (:mod:`r2m_jax.checkpoints.corit`); no other directory has it."""
CONVOLUTIONAL: Mapping[str, Any] = {"architectures": ["R2MConvolutional"], "model_type": "r2m_convolutional"}
"""What ``config.json`` calls a convolutional network (:mod:`r2m_jax.checkpoints.convolutional`)."""
_BESIDE = re.compile(r"(.*\.)?embeddings\.(position_ids|mask_token)|pooler\..*")
PROJECTION = "visual_projection.weight"
"""CLIP's map from pooled output to the image-text space: kept in a base, no part of a detector."""


def read_config(directory: Path) -> Any:
    """The ``CLIPVisionConfig`` or ``ViTConfig`` of a Hugging Face directory (from inside a whole CLIP's too).

    Raises:
        InputError: the file is missing, malformed, or describes a tower that cannot be built.
    """
    path = Path(directory) / CONFIG_FILE
    return parse_config(read_json_object(path), str(path))


def parse_config(settings: Mapping[str, Any], where: str) -> Any:
    """A ``CLIPVisionConfig``, or ``ViTConfig``, from the JSON object that ``where`` holds.

    Raises:
        InputError: it is malformed, or describes a tower that cannot be built.
    """
    refuse_convolutional(settings, where)
    settings = settings.get("vision_config", settings)
    if "hidden_size" not in settings or "patch_size" not in settings:
        raise InputError(f"{where} describes no CLIP vision tower (it lacks hidden_size or patch_size).")
    import transformers

    family = family_of(settings.get("model_type"))
    try:
        config = getattr(transformers, family.config).from_dict(settings)
    except Exception as error:  # transformers' strict configs raise classes of their own, by version
        reason = " ".join(str(error).split())
        raise InputError(f"{where} is not a valid {family.config} ({reason}).") from None
    check_config(config, where)
    return config


def refuse_convolutional(settings: Mapping[str, Any], where: str) -> None:
    """Refuse the settings of a convolutional network where those of a CLIP vision tower are wanted.

    Raises:
        InputError: ``where`` holds them; the message says what takes them.
    """
    if settings.get("model_type") == CONVOLUTIONAL["model_type"]:
        raise InputError(
            f"{where} is that of a convolutional network, not of a CLIP vision tower; "
            "r2m_jax.checkpoints.load_convolutional reads it, and no merge takes it, for averaged statistics of batch "
            "normalisation do not fit averaged weights."
        )


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file whose content is an object.

    Raises:
        InputError: it is missing, not JSON, or something else than an object.
    """
    content = provenance.read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object.")
    return content


def open_weights(directory: Path) -> dict[str, LazyTensor]:
    """The tensors of a model directory, unread, in one file or in shards, rebuilt from what they are stored as."""
    return open_tensors(directory)


def refuse_corit(directory: Path) -> None:
    """Refuse a directory whose head means nothing without the switches of a CoRIT detector.

    Raises:
        InputError: it is one; the message says what takes it.
    """
    if (Path(directory) / CORIT_FILE).exists():
        raise InputError(
            f"{directory} is a CoRIT model, which scores an image together with self-blended copies of it; `r2m eval`, "
            "predict, export and info take it, and r2m_jax.checkpoints.load_corit."
        )


def open_detector_weights(directory: Path) -> dict[str, LazyTensor]:
    """The tensors that make a detector, unread, by the names of :mod:`r2m_jax.checkpoints.names`.

    Files are written with a prefix and without it (transformers changed its mind); what some carry beside a tower and
    a head (the projection, position numbers, a ViT's pooler) is left out.
    """
    named = {tower_name(name): tensor for name, tensor in open_weights(directory).items() if name != PROJECTION}
    return {name: tensor for name, tensor in named.items() if not _BESIDE.fullmatch(name)}


def load_detector(path: str | Path, *, dtype: str | None = "float32", options: TowerOptions | None = None) -> Detector:
    """Load a model directory.

    Args:
        path: a directory that :func:`save_detector` or ``r2m convert`` wrote, or a Hugging Face directory of a
            CLIP vision tower.
        dtype: of the parameters in memory; None keeps what is stored.
        options: how the tower computes (dtype, rematerialisation, attention).

    Returns:
        The detector. A directory without ``head.*`` gets a zero head (p(fake) = 0.5 of every image), with a
        warning.

    Raises:
        InputError: the directory is wrong or damaged; the message names the file or leaf.

    Example:
        >>> det = load_detector("runs/r2m")                         # doctest: +SKIP
        >>> det(det.preprocess([Image.open("face.png")])).shape     # doctest: +SKIP
        (1, 2)
    """
    directory = Path(path)
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "does not exist"
        raise InputError(f"{directory} {what}; give a model directory (`r2m convert` makes one).")
    refuse_corit(directory)
    config = read_config(directory)
    stored = open_detector_weights(directory)
    shapes = parameter_shapes(config)
    has_head = any(name.startswith("head.") for name in stored)
    if not has_head:
        warnings.warn(f"{directory} has no head; using zeros until one is trained or merged", stacklevel=2)
        del shapes["head"]
    params = assemble(stored, shapes, str(directory))
    refuse_non_finite(params, str(directory))
    return Detector.create(
        config,
        cast(params, dtype),
        preprocessing.read_processor(directory),
        options=options,
        provenance=read_provenance(directory),
    )


def cast(params: Mapping[str, Any], dtype: str | None) -> Params:
    """Every leaf in another float dtype; None leaves them as they are."""
    if dtype is None:
        return dict(params)
    target = np.dtype(dtype) if dtype != "bfloat16" else np.dtype("bfloat16")
    return {
        key: cast(value, dtype) if isinstance(value, Mapping) else value.astype(target, copy=False)
        for key, value in params.items()
    }


def read_provenance(directory: Path) -> dict[str, Any]:
    """What made a model directory (its ``r2m.json``); empty where that is not recorded."""
    path = directory / provenance.FILE
    return read_json_object(path) if path.exists() else {}


def save_detector(
    detector: Detector,
    path: str | Path,
    *,
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a model directory; it appears whole or not at all.

    Args:
        detector: what to store; parameters keep their dtype.
        path: the directory to make.
        provenance: content of ``r2m.json``; the detector's own when omitted.
        overwrite: replace an existing directory.
        max_shard_bytes: larger models are split over several safetensors files.

    Raises:
        InputError: the place is taken or cannot be written, or a parameter is NaN, infinite or of a wrong
            shape.
    """
    same_structure(parameter_shapes(detector.config), detector.params, "the detector to save")
    refuse_non_finite(detector.params, "the detector to save")
    tensors = disassemble(detector.params)
    write_directory(
        Path(path),
        config=detector.config,
        tensors=tensors,
        processor=detector.processor,
        provenance=provenance if provenance is not None else detector.provenance,
        overwrite=overwrite,
        max_shard_bytes=max_shard_bytes,
    )


def write_directory(
    path: Path,
    *,
    config: Any,
    tensors: Mapping[str, LazyTensor],
    processor: Any,
    provenance: Mapping[str, Any],
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    beside: Mapping[str, Any] | None = None,
    called: Mapping[str, Any] | None = None,
) -> None:
    """Write the files of a model directory from tensors already in Hugging Face names and layout.

    ``beside`` are further JSON files, content by name; ``called`` is what ``config.json`` says the model is,
    that of its family when None.
    """
    with directory_in_parts(
        path, config=config.to_dict(), tensors=tensors, processing=preprocessing.processor_settings(processor),
        overwrite=overwrite, max_shard_bytes=max_shard_bytes, beside=beside, called=called,
    ) as (writer, made):  # fmt: skip
        for name, tensor in tensors.items():
            writer.write(name, tensor.read())
        made.update(provenance)


@contextmanager
def directory_in_parts(
    path: Path,
    *,
    config: Mapping[str, Any],
    tensors: Mapping[str, Any],
    processing: Mapping[str, Any],
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    beside: Mapping[str, Any] | None = None,
    called: Mapping[str, Any] | None = None,
    shares: Sequence[Collection[str]] | None = None,
    kept: Path | None = None,
) -> Iterator[tuple[SafetensorsWriter, dict[str, Any]]]:
    """A model directory whose tensors are written in any order; it appears when the block ends, whole.

    Args:
        path, overwrite, max_shard_bytes, beside, called: as in :func:`write_directory`.
        config, processing: content of ``config.json`` and ``preprocessor_config.json``.
        tensors: their shapes and dtypes, in Hugging Face names and layout.
        shares: names that each process of the computation writes, where all of them take part; by default the caller
            writes all, and no other process enters.
        kept: see :func:`r2m_jax.atomic.atomic_directory`.

    Yields:
        What tensors are written to, and the provenance, to be filled.

    Raises:
        InputError: the place is taken or cannot be written.
    """
    family = family_of(config.get("model_type"))
    settings = dict(config) | dict(called or {"architectures": [family.model], "model_type": family.model_type})
    made: dict[str, Any] = {}
    own = 0 if shares is None else jax.process_index()
    with (atomic_directory if shares is None else common_directory)(path, overwrite, kept) as aside:
        writer = SafetensorsWriter(aside, tensors, max_shard_bytes, shares=shares, own=own)
        yield writer, made
        writer.close()
        if own:
            return
        for file, content in (
            (CONFIG_FILE, settings),
            (preprocessing.FILE, processing),
            (provenance.FILE, made),
            *(beside or {}).items(),
        ):
            (aside / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def dtype_summary(params: Mapping[str, Any]) -> str:
    """The leaves' dtypes in one word or two, for people."""
    return ", ".join(sorted({np.dtype(leaf.dtype).name for leaf in flatten(params).values()}))


__all__ = [
    "CONFIG_FILE",
    "CORIT_FILE",
    "INDEX_FILE",
    "PROJECTION",
    "cast",
    "directory_in_parts",
    "dtype_summary",
    "load_detector",
    "open_detector_weights",
    "open_weights",
    "parse_config",
    "read_config",
    "read_json_object",
    "read_provenance",
    "refuse_convolutional",
    "refuse_corit",
    "save_detector",
    "write_directory",
]
