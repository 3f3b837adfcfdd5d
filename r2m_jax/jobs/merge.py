"""``r2m merge``: from a recipe to a merged model directory, file to file, in bounded memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from r2m_jax import merging
from r2m_jax.atomic import atomic_text
from r2m_jax.checkpoints import provenance
from r2m_jax.checkpoints.directory import directory_in_parts
from r2m_jax.checkpoints.names import PREFIX
from r2m_jax.checkpoints.tensors import LazyTensor, ShapeDtype
from r2m_jax.errors import InputError
from r2m_jax.jobs.merge_inputs import Inputs, open_inputs
from r2m_jax.merging.averaging import WeightAveraging
from r2m_jax.merging.diagnostics import as_json
from r2m_jax.merging.screen import screen
from r2m_jax.merging.streaming import Plan, apply_stream, measure_stream, plan, resolve
from r2m_jax.merging.ties_streaming import ties_stream
from r2m_jax.parallel import data_mesh, one_lapack_thread
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

    The matrices are spread over all devices of this process. What was measured when a merge is interrupted waits in
    ``OUT.merge`` for the same command.

    Args:
        recipe: what to do.
        reporter: told of the progress.
        overwrite: replace an existing model.

    Raises:
        InputError: a model cannot be read or does not belong to the others, holds NaN or Inf, or is found broken by a
            screen that refuses; a setting is out of range; or the output is taken.
    """
    if recipe.out.exists() and not overwrite and any(recipe.out.iterdir()):
        raise InputError(f"{recipe.out} already exists; choose another out or pass --overwrite.")
    inputs = open_inputs(recipe.base, {name: entry.path for name, entry in recipe.models.items()})
    with ThreadPoolExecutor(1) as beside, one_lapack_thread():
        # The inputs are hashed while they are merged; a file that belongs to another base is noticed before the end.
        hashes = beside.submit(provenance.input_hashes, inputs.files)
        warned = _screened(recipe, inputs, reporter)
        with _scratch(recipe, inputs) as scratch:
            return _merge(recipe, inputs, scratch, hashes.result, warned, reporter, overwrite)


def _merge(
    recipe: MergeRecipe,
    inputs: Inputs,
    scratch: Path,
    hashes: Callable[[], list[dict[str, Any]]],
    warned: list[str],
    reporter: Reporter,
    overwrite: bool,
) -> Outcome:
    mesh = data_mesh(jax.local_devices())
    method = WeightAveraging() if recipe.method == "ties" else recipe.linear_method()
    base, thetas = inputs.base.tower, [each.tower for each in inputs.specialists.values()]
    cut = plan(
        method,
        base,
        thetas,
        fused_qkv=bool(recipe.parameters.fused_qkv),
        memory=recipe.memory * 2**20,
        devices=mesh.size,
    )
    names = list(inputs.specialists)
    sentences, numbers, coefficients = [], {}, None
    if recipe.method != "ties":
        statistics = None
        if method.measures:
            with _tracked(reporter, "measure", cut) as advance:
                statistics = measure_stream(
                    method, cut, base, thetas, names=names, scratch=scratch, kernel=recipe.kernel, mesh=mesh,
                    advance=advance,
                )  # fmt: skip
        coefficients, diagnostics = resolve(method, statistics, cut)
        if diagnostics is not None:
            sentences, numbers = merging.explain(diagnostics, names), as_json(diagnostics)
    head = _head(recipe, inputs)
    dtype = None if recipe.dtype is None else np.dtype(recipe.dtype)
    wanted = {PREFIX + name: ShapeDtype(tensor.shape, dtype or tensor.dtype) for name, tensor in base.items()}
    wanted |= {name: ShapeDtype(value.shape, dtype or value.dtype) for name, value in head.items()}
    with directory_in_parts(
        recipe.out, config=inputs.base.config, tensors=wanted, processing=inputs.processing, overwrite=overwrite
    ) as (writer, made):

        def write(name: str, values: np.ndarray, row: int) -> None:
            writer.write(PREFIX + name, values, row)

        with _tracked(reporter, "merge", cut, passes=2 if recipe.method == "ties" else 1) as advance:
            if coefficients is None:
                thresholds = ties_stream(
                    cut, base, thetas, write, names=names, dtype=dtype, advance=advance, **recipe.settings()
                )
                numbers = {"thresholds": thresholds.tolist()}
            else:
                apply_stream(
                    method, cut, base, thetas, coefficients, write, names=names, dtype=dtype, kernel=recipe.kernel,
                    mesh=mesh, scratch=scratch if method.measures else None, advance=advance,
                )  # fmt: skip
        for name, value in head.items():
            writer.write(name, value)
        hashed = hashes()
        inputs.check_origin({item["sha256"] for item in hashed})
        made |= provenance.record(
            "merged",
            inputs=hashed,
            recipe=recipe.model_dump(mode="json"),
            diagnostics=numbers,
            says=sentences,
            screen=warned,
            devices=[str(device) for device in mesh.devices.flat],
        )
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


def _screened(recipe: MergeRecipe, inputs: Inputs, reporter: Reporter) -> list[str]:
    if recipe.screen == "off":
        return []
    reporter.say("screen the specialists")
    base = _arrays(inputs.base.tower)
    found = screen(base, [_arrays(each.tower) for each in inputs.specialists.values()], list(inputs.specialists))
    sentences = [finding.sentence for finding in found]
    if sentences and recipe.screen == "refuse":
        more = f" ({len(sentences) - 1} more findings; screen=warn merges all the same.)" if len(sentences) > 1 else ""
        raise InputError(sentences[0] + more)
    for sentence in sentences:
        reporter.say(f"warning: {sentence}")
    return sentences


def _arrays(tower: Mapping[str, LazyTensor]) -> dict[str, np.ndarray]:
    return {name: tensor.read() for name, tensor in tower.items()}


@contextmanager
def _scratch(recipe: MergeRecipe, inputs: Inputs) -> Iterator[Path]:
    """``OUT.merge``, with what an interrupted merge of the same recipe and files measured; gone when all is done."""
    folder = recipe.out.with_name(f"{recipe.out.name}.merge")
    stats = [file.stat() for file in inputs.files]
    identity = json.dumps(
        {
            "recipe": recipe.model_dump(mode="json"),
            "files": [[str(f), s.st_size, s.st_mtime_ns] for f, s in zip(inputs.files, stats, strict=True)],
            "devices": jax.local_device_count(),
            "versions": provenance.versions(),
        }
    )
    noted = folder / "merge.json"
    if folder.exists() and not (noted.exists() and noted.read_text(encoding="utf-8") == identity):
        shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_text(noted, identity)
    except OSError as error:
        raise InputError(f"{folder.parent} cannot be written ({error.strerror}); choose another out.") from None
    try:
        yield folder
    except InputError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder)


def _head(recipe: MergeRecipe, inputs: Inputs) -> dict[str, np.ndarray]:
    heads = {name: {key: t.read() for key, t in each.head.items()} for name, each in inputs.specialists.items()}
    if recipe.head in heads:
        return heads[recipe.head]
    ours = [{"kernel": head["head.weight"], "bias": head["head.bias"]} for head in heads.values()]
    how = merging.norm_matched_heads if recipe.head == "norm_matched" else merging.average_heads
    made = how(ours)
    return {"head.weight": np.asarray(made["kernel"]), "head.bias": np.asarray(made["bias"])}


@contextmanager
def _tracked(reporter: Reporter, what: str, cut: Plan, passes: int = 1) -> Iterator[Callable[[int], None]]:
    total = passes * sum(len(chunk.pieces) for chunk in cut.chunks)
    with reporter.track(what, total, unit="tensors") as advance:
        yield advance
