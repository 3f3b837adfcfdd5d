"""The model of a prediction: loaded as stored, its threshold, and whether it was trained on face crops."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from r2m_jax.checkpoints.calibration import FILE, read_calibration
from r2m_jax.checkpoints.directory import read_provenance
from r2m_jax.data.faces.crop_folders import Framing
from r2m_jax.errors import InputError
from r2m_jax.jobs.kinds import Described, Ready, describe
from r2m_jax.models import TowerOptions

_UNCALIBRATED = 0.5


def load_model(directory: Path) -> tuple[Described, Ready]:
    """A model with a head, its parameters as stored; a bfloat16 one computes in bfloat16, any other in float32.

    Raises:
        InputError: the directory is wrong or damaged, or its head is missing or zero.
    """
    found = describe(directory, dtype=None)
    ready = found.load()
    if not ready.trained:
        raise InputError(f"{directory} has no trained head, so every image would get 0.5; train it with r2m train.")
    if max(jax.tree.leaves(ready.params), key=lambda leaf: leaf.size).dtype != jnp.bfloat16:
        return found, ready
    found = describe(ready.detector, TowerOptions(dtype=jnp.bfloat16), name=str(directory))
    return found, found.load()


def threshold_of(directory: Path, wanted: float | None) -> tuple[float, str]:
    """The threshold, and a sentence on where it is from.

    Raises:
        InputError: the one wanted is no probability, or the calibration is damaged.
    """
    if wanted is not None:
        if not 0 <= wanted <= 1:
            raise InputError(f"--threshold {wanted:g} is no probability; give one from 0 to 1.")
        return wanted, f"threshold {wanted:g}, as asked"
    found = read_calibration(directory)
    if found is None:
        return _UNCALIBRATED, (
            f"threshold {_UNCALIBRATED:g}, which is not calibrated: {directory} has no {FILE} (r2m eval --calibrate)"
        )
    return found.threshold, (
        f"threshold {found.threshold:.6g}, calibrated for {found.fpr:.2%} of real images called fake "
        f"({found.real} real images of {found.split})"
    )


def expected_framing(made: Mapping[str, Any]) -> Framing | None:
    """The framing of the face crops a model was trained on, by its provenance; None where that says nothing.

    A trained model records it (``face_crops``); a merged one expects what all its specialists do, which are looked up;
    DeepfakeBench and DF40 train on crops of one framing, so their checkpoints say it by their kind.
    """
    crops, kind = made.get("face_crops"), made.get("kind")
    if isinstance(crops, dict):
        return Framing(**crops)
    if kind == "converted" and "deepfakebench names" in str(made.get("source_kind")):
        return Framing()
    if kind != "merged":
        return None
    models = made.get("recipe", {}).get("models", {})
    found = {expected_framing(_read(entry)) for entry in models.values()}
    return found.pop() if len(found) == 1 else None


def _read(entry: Any) -> Mapping[str, Any]:
    directory = Path(entry["path"] if isinstance(entry, dict) else entry)
    return read_provenance(directory) if directory.is_dir() else {}
