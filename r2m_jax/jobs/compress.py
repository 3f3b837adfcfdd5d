"""``r2m compress``: a model directory to a smaller one, with what that saves and what it changes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r2m_jax import compression
from r2m_jax.atomic import atomic_directory
from r2m_jax.checkpoints import load_detector, preprocessing, provenance
from r2m_jax.checkpoints.calibration import FILE as CALIBRATION
from r2m_jax.checkpoints.compressed import Record, open_stored, open_tensors, read_record
from r2m_jax.checkpoints.directory import CONFIG_FILE, read_json_object, read_provenance
from r2m_jax.checkpoints.names import HEAD, disassemble
from r2m_jax.checkpoints.tensors import (
    COMPRESSION_FILE,
    INDEX_FILE,
    LazyTensor,
    SafetensorsWriter,
    safetensors_files,
)
from r2m_jax.compression import measures, storage
from r2m_jax.data.device import normalise
from r2m_jax.errors import InputError
from r2m_jax.export import check_images
from r2m_jax.jobs import kinds
from r2m_jax.merging.ranks import parse_rank
from r2m_jax.merging.selection import Select
from r2m_jax.models import Params, TowerOptions
from r2m_jax.models.architecture import KEPT_HEADS, attention_heads
from r2m_jax.parallel import one_lapack_thread
from r2m_jax.progress import Reporter
from r2m_jax.recipes.compressing import CompressRecipe, MeasureSection

STRUCTURED = ("channels", "heads", "layers")
TASK_VECTOR_BITS = 8
_NOT_CARRIED = (INDEX_FILE, COMPRESSION_FILE, provenance.FILE, CALIBRATION)
"""JSON files of a model that its compressed successor does not take over as they are."""


@dataclass(frozen=True)
class Compressed:
    """What a compression made.

    Attributes:
        directory: the model.
        report: sizes, rates, operations and changes, as JSON; also in its ``r2m.json``.
        remarks: sentences for the user.
    """

    directory: Path
    report: dict[str, Any]
    remarks: list[str]


@dataclass(frozen=True)
class _Made:
    tensors: Mapping[str, LazyTensor]
    entries: Mapping[str, Any]
    config: Mapping[str, Any]
    base: Mapping[str, Any] | None = None
    remarks: tuple[str, ...] = ()


def compress(recipe: CompressRecipe, *, reporter: Reporter, overwrite: bool = False) -> Compressed:
    """Compress by a recipe, read the result back, and compare it with the model on built-in images.

    Args:
        recipe: what to do.
        reporter: told of the progress.
        overwrite: replace an existing model.

    Raises:
        InputError: the model or the base cannot be read, the method does not fit them, or the output is taken; then
            nothing is left behind.
    """
    if not recipe.model.is_dir():
        what = "is a file" if recipe.model.exists() else "does not exist"
        raise InputError(f"{recipe.model} {what}; give a model directory (`r2m convert` makes one).")
    with atomic_directory(recipe.out, overwrite) as aside:
        reporter.say(f"{recipe.method}: {recipe.model}")
        made = _structured(recipe) if recipe.method in STRUCTURED else _stored(recipe)
        writer = SafetensorsWriter(aside, made.tensors)
        with reporter.track("write", len(made.tensors), unit="tensors") as advance:
            for name, tensor in made.tensors.items():
                writer.write(name, tensor.read())
                advance()
        writer.close()
        for file in sorted(recipe.model.glob("*.json")):
            if file.name not in _NOT_CARRIED:
                config = made.config if file.name == CONFIG_FILE else {}
                _write_json(aside / file.name, config or read_json_object(file))
        if made.entries:
            _write_json(aside / COMPRESSION_FILE, Record(made.entries, made.base).as_json())
        report = _report(recipe, aside, reporter)
        _write_json(aside / provenance.FILE, _provenance(recipe, report))
    remarks = list(made.remarks)
    if (recipe.model / CALIBRATION).exists():
        remarks.append("the model's calibrated threshold was not taken over, for scores changed: r2m eval --calibrate")
    return Compressed(recipe.out, report, remarks)


def _structured(recipe: CompressRecipe) -> _Made:
    """Channels, heads or layers of a tower removed."""
    detector = load_detector(recipe.model)
    config, params = detector.config, jax.tree.map(np.asarray, detector.params)
    backbone = params["backbone"]
    if recipe.method == "channels":
        keep = _kept(recipe, config.intermediate_size)
        smaller = compression.keep_channels(
            config, params, compression.best(compression.channel_importance(backbone), keep)
        )
        changed = {"intermediate_size": keep}
    elif recipe.method == "heads":
        keep = _kept(recipe, attention_heads(config))
        places = compression.best(compression.head_importance(config, backbone), keep)
        smaller, changed = compression.keep_heads(config, params, places), {KEPT_HEADS: keep}
    else:
        keep = _kept(recipe, config.num_hidden_layers)
        images = _images(detector.processor, _side(detector.processor))
        places = compression.best(compression.layer_importance(config, backbone, images), keep)
        smaller, changed = compression.keep_layers(config, params, places), {"num_hidden_layers": keep}
    remarks = () if recipe.method != "layers" else (f"kept layers {', '.join(map(str, places))}",)
    stored = open_tensors(recipe.model)
    tensors = disassemble(smaller[1])
    if "head.weight" not in stored:
        tensors = {name: tensor for name, tensor in tensors.items() if name not in HEAD}
    return _Made(tensors, {}, _settings(recipe.model) | changed, remarks=remarks)


def _settings(model: Path) -> dict[str, Any]:
    """What ``config.json`` says of the tower, from inside a whole CLIP model's config too."""
    content = read_json_object(model / CONFIG_FILE)
    return content.get("vision_config", content)


def _kept(recipe: CompressRecipe, count: int) -> int:
    keep = recipe.keep if recipe.keep is not None else max(1, count - round((recipe.rate or 0.0) * count))
    if keep >= count:
        raise InputError(f"{recipe.model} has {count} {recipe.method}, of which {keep} would be kept; remove some.")
    return keep


def _stored(recipe: CompressRecipe) -> _Made:
    """Tensors made zero, integers, factors or differences."""
    tensors, record = open_tensors(recipe.model), read_record(recipe.model)
    default = compression.kernels if recipe.method in ("prune", "low-rank") else compression.weights
    select = _selection(recipe, default)
    granularity = recipe.granularity or "channel"
    if recipe.method in ("int8", "int4"):
        stored = storage.Stored(open_stored(recipe.model), dict(record.tensors))
        made = storage.integers(stored, int(recipe.method[-1]), granularity=granularity, select=select)
        return _Made(*made, {}, _place(recipe.model, record.base, recipe.out))
    remarks = ("what was stored compressed is stored whole again, then " + recipe.method,) if record.tensors else ()
    if recipe.method == "prune":
        assert recipe.rate is not None, "checked with the recipe"
        zeros = storage.pruned(tensors, recipe.rate, scope=recipe.scope or "tensor", select=select)
        made = storage.sparse(zeros, select) if recipe.sparse else storage.Stored(zeros, {})
        return _Made(*made, {}, remarks=remarks)
    if recipe.method == "low-rank":
        assert recipe.rank is not None, "checked with the recipe"
        with one_lapack_thread():
            made = storage.factors(tensors, parse_rank(recipe.rank), select)
        if not made.entries:
            raise InputError(f"rank {recipe.rank} makes no matrix of {recipe.model} smaller; choose a lower one.")
        whole = sum(select(name, tensor) for name, tensor in tensors.items()) - len(made.entries)
        left = (f"{whole} matrices stay whole, for two factors would be larger",) if whole else ()
        return _Made(*made, {}, remarks=remarks + left)
    assert recipe.base is not None, "checked with the recipe"
    base = open_tensors(recipe.base)
    made = storage.differences(tensors, base, recipe.bits or TASK_VECTOR_BITS, granularity=granularity, select=select)
    described = {"path": str(recipe.base), "files": provenance.input_hashes(safetensors_files(recipe.base))}
    return _Made(*made, {}, _place(Path(), described, recipe.out), remarks=remarks)


def _selection(recipe: CompressRecipe, default: Select) -> Select:
    return compression.by_patterns(default, recipe.only, recipe.skip)


def _place(model: Path, base: Mapping[str, Any] | None, out: Path) -> dict[str, Any] | None:
    """The base as the new model names it: from itself if both lie in one folder, so that the folder can be moved."""
    if base is None:
        return None
    path = (model / base["path"]).resolve()
    beside = path.parent == out.resolve().parent
    return {**base, "path": os.path.relpath(path, out.resolve()) if beside else str(path)}


def _provenance(recipe: CompressRecipe, report: Mapping[str, Any]) -> dict[str, Any]:
    """What made the model before, and every compression since: a compressed specialist stays a specialist."""
    before = read_provenance(recipe.model)
    read = [recipe.model, *([recipe.base] if recipe.base else [])]
    step = provenance.record(
        "compressed",
        inputs=provenance.input_hashes([file for folder in read for file in safetensors_files(folder)]),
        recipe=recipe.model_dump(mode="json"),
        report=dict(report),
    )
    return {**(before or step), "compression": [*before.get("compression", []), step]}


def _report(recipe: CompressRecipe, made: Path, reporter: Reporter) -> dict[str, Any]:
    reporter.say("compare with the model")
    sizes = {"before": measures.size(recipe.model), "after": measures.size(made)}
    report: dict[str, Any] = {
        "method": recipe.method,
        "size": {when: asdict(size) for when, size in sizes.items()},
        "times_less": measures.rates(sizes["before"], sizes["after"]),
    }
    if recipe.method == "prune":
        tensors = {name: tensor.read() for name, tensor in open_tensors(made).items()}
        report["zeros"] = compression.sparsity(tensors, _selection(recipe, compression.kernels))
    described = {"before": kinds.describe(recipe.model), "after": kinds.describe(made)}
    if any(each.prepare is not None for each in described.values()):
        return report
    ready = {when: each.load() for when, each in described.items()}
    size = described["before"].size

    def of_both(make: Callable[[kinds.Ready], Any]) -> dict[str, Any]:
        # Models that only differ in parameters share what is compiled, and take the same operations.
        first = make(ready["before"])
        return {"before": first, "after": first if alike else make(ready["after"])}

    alike = described["before"].alike == described["after"].alike
    scored = of_both(lambda each: kinds.forward(each, features=True))
    report["flops"] = of_both(lambda each: _flops(each, size))
    pixels = check_images(size)
    found = {when: _scores(scored[when], each.params, pixels) for when, each in ready.items()}
    logits, features = ([each[place] for each in found.values()] for place in (0, 1))
    report["change"] = {
        "images": len(pixels),
        "logit": float(np.abs(logits[0] - logits[1]).max()) if ready["before"].trained else None,
        "features": float(np.linalg.norm(features[0] - features[1]) / np.linalg.norm(features[0])),
    }
    if recipe.measure is not None:
        compiled = of_both(lambda each: jax.jit(each.logits))
        given = {when: (compiled[when], jax.device_put(each.params)) for when, each in ready.items()}
        report["time"] = _time(given, size, recipe.measure)
    return report


def _flops(ready: kinds.Ready, size: int) -> float:
    """Of one image."""
    # Layers one after the other, for XLA counts the body of a loop once.
    logits = kinds.describe(ready.detector, TowerOptions(unrolled=True)).load().logits
    return measures.flops(logits, ready.params, jax.ShapeDtypeStruct((1, size, size, 3), np.float32))


def _scores(scored: Callable[..., Any], params: Params, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fake-minus-real logits and features, float64."""
    parts = [scored(params, pixels[at : at + 8]) for at in range(0, len(pixels), 8)]
    logits, features = (np.concatenate([np.asarray(part[place], np.float64) for part in parts]) for place in (0, 1))
    if not (np.isfinite(logits).all() and np.isfinite(features).all()):
        raise InputError("the model gives scores that are NaN or infinite on the built-in images; it is broken.")
    return logits, features


def _time(
    given: Mapping[str, tuple[Callable[..., Any], Params]], size: int, wanted: MeasureSection
) -> dict[str, dict[str, Any]]:
    """Latency and memory of compiled logits with their parameters, by batch size."""

    def images(batch: int) -> Any:
        return jax.device_put(np.zeros((batch, size, size, 3), np.float32))

    functions = {when: partial(function, params) for when, (function, params) in given.items()}
    taken = measures.latencies(functions, images, wanted.batches, runs=wanted.runs, warm_up=wanted.warm_up)
    return {
        when: {
            "latency": [asdict(each) for each in taken[when]],
            "memory": {
                str(batch): asdict(measures.memory(function, params, images(batch))) for batch in wanted.batches
            },
            "device": str(jax.devices()[0]),
        }
        for when, (function, params) in given.items()
    }


def _images(processor: Any, size: int) -> np.ndarray:
    """The built-in images, normalised."""
    return np.asarray(normalise(jnp.asarray(check_images(size)), processor.image_mean, processor.image_std))


def _side(processor: Any) -> int:
    return kinds.square_input(processor, preprocessing.FILE)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
