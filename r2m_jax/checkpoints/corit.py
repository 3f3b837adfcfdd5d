"""Model directories of CoRIT detectors: as any other, and ``corit.json`` with the switches the head was trained under.

A head reads features that depend on every switch, so a detector without its switches, or with others, scores nothing
sensible; both are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from r2m_jax.checkpoints import preprocessing
from r2m_jax.checkpoints.directory import (
    CORIT_FILE,
    cast,
    open_detector_weights,
    read_config,
    read_json_object,
    read_provenance,
    write_directory,
)
from r2m_jax.checkpoints.names import assemble, disassemble
from r2m_jax.checkpoints.tensors import MAX_SHARD_BYTES
from r2m_jax.errors import InputError
from r2m_jax.models import TowerOptions
from r2m_jax.models.corit import CoritDetector, CoritSettings, corit_parameter_shapes
from r2m_jax.trees import refuse_non_finite, same_structure

_FORMAT = 1


def is_corit(directory: str | Path) -> bool:
    """Whether a model directory holds a CoRIT detector."""
    return (Path(directory) / CORIT_FILE).is_file()


def read_corit_settings(directory: Path) -> CoritSettings:
    """The switches of a CoRIT directory.

    Raises:
        InputError: the file is missing or damaged, of a later version, lacks a switch or has an unknown one.
    """
    path = Path(directory) / CORIT_FILE
    if not path.exists():
        raise InputError(
            f"{directory} has no {CORIT_FILE}, so it is no CoRIT model; use `r2m_jax.load_detector`, or train one with "
            "`r2m train corit`."
        )
    content = read_json_object(path)
    version = content.pop("format", None)
    if version != _FORMAT:
        raise InputError(f"{path} is of format {version}, this version reads format {_FORMAT}; retrain or update.")
    missing = [field.name for field in fields(CoritSettings) if field.name not in content]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}; a head without its switches cannot be used.")
    try:
        return TypeAdapter(CoritSettings).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{path}: {where}{': ' if where else ''}{reason.rstrip('.')}.") from None


def load_corit(
    path: str | Path,
    *,
    dtype: str | None = "float32",
    options: TowerOptions | None = None,
    settings: CoritSettings | None = None,
    force: bool = False,
) -> CoritDetector:
    """Load a CoRIT directory.

    Args:
        path: what :func:`save_corit` or ``r2m train corit`` wrote.
        dtype: of the parameters in memory; None keeps what is stored.
        options: how the tower computes.
        settings: that are expected; None takes the stored ones.
        force: use ``settings`` though they are not the stored ones: features then differ from those the head was
            trained on, which an ablation may want.

    Raises:
        InputError: the directory is wrong or damaged, or its switches are not those expected.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise InputError(f"{directory} does not exist; give the directory of a CoRIT model.")
    config = read_config(directory)
    used = stored = read_corit_settings(directory).resolved(config)
    if settings is not None:
        used = settings.resolved(config)
        other = [f.name for f in fields(CoritSettings) if getattr(used, f.name) != getattr(stored, f.name)]
        if other and not force:
            name = other[0]
            raise InputError(
                f"the head of {directory} was trained with {name}={getattr(stored, name)!r}, not "
                f"{getattr(used, name)!r}; train one for that, or load with force=True."
            )
    params = assemble(open_detector_weights(directory), corit_parameter_shapes(config, used), str(directory))
    refuse_non_finite(params, str(directory))
    return CoritDetector.create(
        config, cast(params, dtype), preprocessing.read_processor(directory), used,
        options=options, provenance=read_provenance(directory),
    )  # fmt: skip


def save_corit(
    detector: CoritDetector,
    path: str | Path,
    *,
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a CoRIT directory; it appears whole or not at all.

    Args:
        detector: what to store; parameters keep their dtype.
        path: the directory to make.
        provenance: content of ``r2m.json``; the detector's own when omitted.
        overwrite: replace an existing directory.
        max_shard_bytes: larger models are split over several safetensors files.

    Raises:
        InputError: the place is taken or cannot be written, or a parameter is NaN, infinite or of a wrong shape.
    """
    what = "the CoRIT detector to save"
    same_structure(corit_parameter_shapes(detector.config, detector.settings), detector.params, what)
    refuse_non_finite(detector.params, what)
    write_directory(
        Path(path),
        config=detector.config,
        tensors=disassemble(detector.params),
        processor=detector.processor,
        provenance=provenance if provenance is not None else detector.provenance,
        overwrite=overwrite,
        max_shard_bytes=max_shard_bytes,
        beside={CORIT_FILE: {"format": _FORMAT, **asdict(detector.settings)}},
    )
