"""``r2m merge``: from a recipe to a merged model directory."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from r2m_jax import merging
from r2m_jax.checkpoints import load_detector, provenance, save_detector
from r2m_jax.checkpoints.directory import cast
from r2m_jax.checkpoints.tensors import safetensors_files
from r2m_jax.errors import InputError
from r2m_jax.merging.diagnostics import as_json
from r2m_jax.models import Detector
from r2m_jax.progress import Reporter
from r2m_jax.recipes.merging import MergeRecipe


@dataclass(frozen=True)
class Outcome:
    """What a merge made.

    Attributes:
        directory: the model.
        sentences: what the merge says about itself; empty for methods without diagnostics.
    """

    directory: Path
    sentences: list[str]


def merge(recipe: MergeRecipe, *, reporter: Reporter, overwrite: bool = False) -> Outcome:
    """Merge by a recipe and write the result with what made it.

    Args:
        recipe: what to do.
        reporter: told of the progress.
        overwrite: replace an existing model.

    Raises:
        InputError: a model cannot be loaded or does not belong to the others, a setting is out of range, or the output
            is taken.
    """
    if recipe.out.exists() and not overwrite and any(recipe.out.iterdir()):
        raise InputError(f"{recipe.out} already exists; choose another out or pass --overwrite.")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has no head", category=UserWarning)  # a base needs none
        base = load_detector(recipe.base, dtype=None)  # the result takes its dtypes
    specialists: dict[str, Detector] = {}
    with reporter.track("read", len(recipe.models), unit="models") as advance:
        for name, entry in recipe.models.items():
            specialists[name] = load_detector(entry.path)
            advance(note=name)
    _check(recipe, base, specialists)
    method = partial(getattr(merging, recipe.method), **recipe.settings())
    with reporter.track(f"merge by {recipe.method}", 1, unit="models"):
        thetas = [each.params["backbone"] for each in specialists.values()]
        result = jax.block_until_ready(jax.jit(method)(base.params["backbone"], thetas))
    sentences, numbers = [], {}
    if isinstance(result, merging.MergeResult):
        sentences, numbers = merging.explain(result.diagnostics, list(specialists)), as_json(result.diagnostics)
    backbone = result.params if isinstance(result, merging.MergeResult) else result
    heads = {name: each.params["head"] for name, each in specialists.items()}
    head = merging.average_heads(list(heads.values())) if recipe.head == "average" else heads[recipe.head]
    first = next(iter(specialists.values()))
    made = provenance.record(
        "merged",
        inputs=provenance.input_hashes([f for p in _directories(recipe) for f in safetensors_files(p)]),
        recipe=recipe.model_dump(mode="json"),
        diagnostics=numbers,
        says=sentences,
        devices=[str(device) for device in jax.devices()],
    )
    params = cast(jax.tree.map(np.asarray, {"backbone": backbone, "head": head}), recipe.dtype)
    merged = Detector.create(base.config, params, first.processor)
    save_detector(merged, recipe.out, provenance=made, overwrite=overwrite)
    return Outcome(recipe.out, sentences)


def earlier_recipe(directory: Path) -> dict[str, Any]:
    """The recipe a merged model was made by, to merge again with other models.

    Raises:
        InputError: the directory is no merge of this command, or one of its inputs has changed since.
    """
    path = directory / provenance.FILE
    made = provenance.read_json(path)
    recipe = made.get("recipe") if isinstance(made, dict) else None
    if not isinstance(recipe, dict) or made.get("kind") != "merged" or "models" not in recipe:
        raise InputError(f"{path} does not say how {directory} was merged; give --base and every --specialist.")
    for item in made.get("inputs", []):
        file = Path(item["path"])
        if not file.exists() or provenance.sha256(file) != item["sha256"]:
            what = "has changed since" if file.exists() else "is no longer there"
            raise InputError(f"{file}, of which {directory} was merged, {what}; give --base and every --specialist.")
    return {key: value for key, value in recipe.items() if key != "out"}


def _directories(recipe: MergeRecipe) -> list[Path]:
    return [recipe.base, *(entry.path for entry in recipe.models.values())]


def _check(recipe: MergeRecipe, base: Detector, specialists: Mapping[str, Detector]) -> None:
    """Refuse, by name, what does not belong together."""
    architecture = _architecture(base)
    hashes = {item["sha256"] for item in provenance.input_hashes(safetensors_files(recipe.base))}
    first_name, first = next(iter(specialists.items()))
    for name, each in specialists.items():
        for key, value in _architecture(each).items():
            if value != architecture[key]:
                raise InputError(f"{name} has {key} {value}, the base {architecture[key]}; they cannot be merged.")
        for what in ("image_mean", "image_std", "crop_size"):
            ours, theirs = getattr(first.processor, what), getattr(each.processor, what)
            if json.dumps(_plain(ours)) != json.dumps(_plain(theirs)):
                raise InputError(
                    f"{name} takes images with {what} {_plain(theirs)}, {first_name} with {_plain(ours)}; a merged "
                    "model can do but one."
                )
        recorded = each.provenance.get("inputs", []) if each.provenance.get("kind") in _TRAINED else []
        weights = {item["sha256"] for item in recorded if str(item["path"]).endswith(".safetensors")}
        if weights and not weights & hashes:
            raise InputError(f"{name} was fine-tuned from another base than {recipe.base} (its r2m.json has the hash).")


_TRAINED = ("specialist", "all_in_one", "linear_probe")


def _architecture(detector: Detector) -> dict[str, Any]:
    names = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size",
        "hidden_act", "layer_norm_eps",
    )  # fmt: skip
    return {name: getattr(detector.config, name) for name in names}


def _plain(value: Any) -> Any:
    """Sizes and lists as JSON has them, numbers to six digits."""
    if hasattr(value, "items"):
        return {str(key): item for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [round(float(item), 6) for item in value]
    return str(value)
