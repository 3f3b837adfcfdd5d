"""``r2m export``: a model directory to one artifact that runs elsewhere, checked before it appears."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from r2m_jax.atomic import atomic_directory, atomic_file
from r2m_jax.checkpoints import preprocessing, provenance
from r2m_jax.checkpoints.directory import CONFIG_FILE, cast
from r2m_jax.checkpoints.names import assemble, tower_name
from r2m_jax.checkpoints.single_file import CLASSES, read_description, write_single_file
from r2m_jax.checkpoints.single_file import describe as description
from r2m_jax.checkpoints.tensors import open_safetensors, safetensors_files
from r2m_jax.data.device import normalise
from r2m_jax.data.images import image_files, load_images
from r2m_jax.data.pairs import by_content
from r2m_jax.data.records import Record
from r2m_jax.errors import InputError
from r2m_jax.export import (
    PLATFORMS,
    Difference,
    Run,
    check_images,
    compare,
    input_specs,
    open_onnx,
    open_stablehlo,
    rows,
    scoring,
    write_onnx,
    write_stablehlo,
)
from r2m_jax.export.quantised import TOLERANCE as INT8_TOLERANCE
from r2m_jax.export.quantised import Times, quantise_onnx, refuse_int8
from r2m_jax.jobs.kinds import Described, Ready, describe, forward, plain
from r2m_jax.models import TowerOptions, apply_detector, parameter_shapes
from r2m_jax.progress import Reporter
from r2m_jax.trees import count_parameters

Format = Literal["stablehlo", "onnx", "safetensors"]
DTYPES = ("float32", "bfloat16", "float16")
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 2e-2}
"""By the artifact's dtype: how far a probability may be from the float32 model's."""

_LARGEST = 2 * 10**9
"""Bytes of parameters a program may hold: protocol buffers (ONNX) and FlatBuffers (StableHLO) end at 2 GiB."""

_AT_ONCE = 16  # images that the model itself scores together for the check

_NO_TFLITE = (
    "tflite is not written: its maintained converter, litert-torch, takes PyTorch models only and brings gigabytes of "
    "packages; export --format onnx, which ONNX Runtime runs on phones too."
)


@dataclass(frozen=True)
class Exported:
    """What an export made.

    Attributes:
        artifact: the file.
        record: what it takes and gives, how it was checked, and what it was made from, as JSON.
        size: of the artifact in bytes.
        difference: between it and the model.
        tolerance: what the probabilities were held to.
        seconds: to write the artifact, and to load and check it.
        times: how long an int8 graph and the float32 one take; None without int8.
    """

    artifact: Path
    record: Path
    size: int
    difference: Difference
    tolerance: float
    seconds: tuple[float, float]
    times: Times | None = None


def export(
    model: Path,
    out: Path,
    *,
    format: str,
    dtype: str = "float32",
    batch: int | None = None,
    normalised: bool = False,
    check: Path | None = None,
    int8: str | None = None,
    tolerance: float | None = None,
    overwrite: bool = False,
    reporter: Reporter,
) -> Exported:
    """Write a model as one artifact, load it back with the runtime it is for, and compare their scores.

    Args:
        model: a model directory with a trained or merged head.
        out: a file with the format's suffix (its record goes beside it, as ``NAME.json``), or a directory, which gets
            ``model.SUFFIX`` and ``r2m.json``.
        format: ``stablehlo``, ``onnx`` or ``safetensors``.
        dtype: of the parameters. StableHLO with bfloat16 also computes in it (norms and softmax in float32), everything
            else in float32.
        batch: images a program takes at a time; None leaves it open.
        normalised: a program takes normalised float32 images instead of uint8 ones.
        check: folder of images to compare on; sixteen built-in ones when omitted.
        int8: ``dynamic`` or ``static`` make an int8 graph of the float32 one, which is held to a tolerance of its own.
        tolerance: how far a probability may be from the model's; None for the artifact's default (:data:`TOLERANCES`).
        overwrite: replace an existing artifact.
        reporter: told of progress.

    Raises:
        InputError: the format, the dtype or the model do not fit, the place is taken, or the artifact's scores differ
            from the model's by more than the tolerance; then nothing is left behind.
    """
    _refuse(format, dtype, batch, normalised)
    if tolerance is not None and not 0 <= tolerance <= 1:
        raise InputError(f"--tolerance {tolerance:g} is no difference of probabilities; give one from 0 to 1.")
    if int8 is not None:
        refuse_int8(int8, format, dtype, normalised)
    with _place(out, format, overwrite) as (artifact, record, shown):
        found = describe(model)
        if format == "safetensors" and found.kind != plain.NAME:
            raise InputError(
                f"{model} is a {found.kind} model, for which no single file is written; its directory holds the "
                "parameters as safetensors, --format stablehlo or onnx its program."
            )
        ready = found.load()
        if not ready.trained:
            raise InputError(f"{model} has a zero head, p(fake) = 0.5 of every image; train or merge it first.")
        images = load_images(image_files(check), found.size) if check else check_images(found.size)
        arrays = _prepared(found, images)
        specs = input_specs(
            {name: (array.shape[1:], array.dtype) for name, array in arrays.items()}, batch=batch, normalised=normalised
        )
        beside = [model / name for name in (CONFIG_FILE, preprocessing.FILE, provenance.FILE)]
        inputs = provenance.input_hashes([*safetensors_files(model), *(file for file in beside if file.exists())])
        described = description(ready.detector.config, ready.processor, inputs)
        if "switches" in ready.facts:
            described["switches"] = ready.facts["switches"]
        start = time.monotonic()
        reporter.say(f"write {shown[0]}")
        _write(artifact, format, ready, described, specs, dtype=dtype, normalised=normalised)
        times = None
        if int8 is not None:
            reporter.say(f"{int8} int8")
            times = quantise_onnx(artifact, int8, arrays, batch=batch)
        written = time.monotonic()
        run = _open(artifact, format, normalised)
        difference = _compare(ready, run, list(arrays.values()), batch=batch, normalised=normalised, reporter=reporter)
        held = (TOLERANCES[dtype] if int8 is None else INT8_TOLERANCE) if tolerance is None else tolerance
        if difference.probability > held:
            raise InputError(
                f"{shown[0]} was not kept: its probabilities differ from the model's by up to "
                f"{difference.probability:.2g}, more than {held:g}; choose a larger --tolerance or "
                f"{'no --int8' if int8 else 'another --format' if dtype == 'float32' else '--dtype float32'}."
            )
        seconds = written - start, time.monotonic() - written
        made = provenance.record(
            "exported",
            inputs=inputs,
            recipe={
                "format": format,
                "dtype": dtype,
                "batch": batch or "dynamic",
                "normalise": not normalised,
                "int8": int8,
            },
            artifact={"bytes": artifact.stat().st_size, "sha256": provenance.sha256(artifact)},
            takes=None if format == "safetensors" else _takes(found, specs, batch, normalised),
            gives=None if format == "safetensors" else _gives(),
            platforms=PLATFORMS if format == "stablehlo" else None,
            exporter=_exporter(format),
            seconds_per_batch=times and times._asdict(),
            classes=list(CLASSES),
            **{key: value for key, value in described.items() if key not in ("classes", "inputs")},
            check={"on": str(check) if check else "built-in images", **asdict(difference), "tolerance": held},
        )
        record.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
        return Exported(*shown, artifact.stat().st_size, difference, held, seconds, times)


def _refuse(format: str, dtype: str, batch: int | None, normalised: bool) -> None:
    if format == "tflite":
        raise InputError(_NO_TFLITE)
    for option, value, choices in (("--format", format, get_args(Format)), ("--dtype", dtype, DTYPES)):
        if value not in choices:
            raise InputError(f"{option} {value} is unknown; choose one of {', '.join(choices)}.")
    if format == "safetensors" and (batch is not None or normalised):
        raise InputError("safetensors files hold parameters, no program; leave out --batch and --no-normalise.")
    if batch is not None and batch < 1:
        raise InputError(f"--batch {batch} is no number of images; give 1 or more, or dynamic.")


@contextmanager
def _place(out: Path, format: str, overwrite: bool) -> Iterator[tuple[Path, Path, tuple[Path, Path]]]:
    """Where to write the artifact and its record, and where both will be found."""
    suffix = f".{format}"
    if out.suffix == suffix:
        beside = out.with_name(f"{out.name}.json")
        for path in (out, beside):
            if path.is_dir() or (path.exists() and not overwrite):
                raise InputError(f"{path} already exists; choose another output or pass --overwrite.")
        with atomic_file(beside) as record, atomic_file(out) as artifact:
            yield artifact, record, (out, beside)
    elif out.suffix in {f".{each}" for each in (*get_args(Format), "tflite")}:
        raise InputError(f"{out} is no name for --format {format}; end it in {suffix} or name a directory.")
    else:
        names = f"model{suffix}", provenance.FILE
        with atomic_directory(out, overwrite) as folder:
            yield folder / names[0], folder / names[1], (out / names[0], out / names[1])


def _prepared(found: Described, images: np.ndarray) -> dict[str, np.ndarray]:
    """What the model takes of decoded images, by the names that its program gives them."""
    prepare = found.prepare
    if prepare is None:
        return {"images": images}
    if prepare.foreground == "landmarks":
        prepare = replace(prepare, foreground="ellipse")  # programs are compared on images that have none
    pictures = [Image.fromarray(image) for image in images]
    made = [prepare(picture, Record("", 0), by_content(picture)) for picture in pictures]
    first, *others = found.inputs
    names = {first: "images"} | {name: name for name in others}
    return {name: np.stack([each[key] for each in made]) for key, name in names.items()}


def _write(
    path: Path,
    format: str,
    ready: Ready,
    described: dict[str, Any],
    specs: dict[str, jax.ShapeDtypeStruct],
    *,
    dtype: str,
    normalised: bool,
) -> None:
    params = jax.tree.map(np.asarray, cast(ready.params, dtype))
    if format == "safetensors":
        write_single_file(path, params, described)
        return
    total = count_parameters(params) * np.dtype(dtype).itemsize
    if total > _LARGEST:
        raise InputError(
            f"{total / 1e9:.1f} GB of parameters do not fit a {format} file, which ends at 2 GB; "
            "choose a 16-bit --dtype or --format safetensors."
        )
    if format == "stablehlo":
        # JAX has float16 attention neither on CPU nor on TPU, and a program is for all platforms; "xla" is the
        # implementation of attention they all have.
        options = TowerOptions(dtype="float32" if dtype == "float16" else dtype, attention="xla")
    else:
        options = TowerOptions(attention="xla", unrolled=True)
    logits = describe(ready.detector, options).load().logits
    function = scoring(logits, params, ready.processor, normalised=normalised)
    if format == "stablehlo":
        write_stablehlo(path, function, specs)
    else:
        write_onnx(path, function, specs, dtype=dtype, metadata=described)


def _open(path: Path, format: str, normalised: bool) -> Run:
    if format != "safetensors":
        return {"stablehlo": open_stablehlo, "onnx": open_onnx}[format](path)
    found = read_description(path)
    assert found is not None, "just written"
    config, processor = found
    tensors = {tower_name(name): tensor for name, tensor in open_safetensors(path).items()}
    params = cast(assemble(tensors, parameter_shapes(config), str(path)), "float32")
    logits = apply_detector(config)
    # Parameters are an argument here: as constants they would be folded by the compiler, which takes long.
    scores = jax.jit(lambda params, images: scoring(logits, params, processor, normalised=normalised)(images))

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        probability, logit = scores(params, images)
        return np.asarray(probability), np.asarray(logit)

    return run


def _compare(
    ready: Ready, run: Run, inputs: list[np.ndarray], *, batch: int | None, normalised: bool, reporter: Reporter
) -> Difference:
    scores, count = forward(ready), len(inputs[0])
    expected = np.empty(count, np.float32)
    for first in range(0, count, _AT_ONCE):
        last = min(first + _AT_ONCE, count)
        part = tuple(rows(inputs, first, last, _AT_ONCE))
        expected[first:last] = scores(ready.params, part if len(part) > 1 else part[0])[0][: last - first]
    if not np.isfinite(expected).all():
        raise InputError("the model gives NaN or infinite scores; it is broken.")
    if normalised:
        mean, std = ready.processor.image_mean, ready.processor.image_std
        inputs = [np.asarray(normalise(jnp.asarray(inputs[0]), mean, std)), *inputs[1:]]
    difference = Difference(0, 0.0, 0.0)
    with reporter.track("check", count) as advance:
        for found in compare(run, inputs, expected, batch=batch):
            advance(found.images - difference.images)
            difference = found
    return difference


def _takes(
    found: Described, specs: dict[str, jax.ShapeDtypeStruct], batch: int | None, normalised: bool
) -> dict[str, Any]:
    pixels = "RGB, normalised by preprocessing's mean and std" if normalised else "RGB, 0…255"
    pixels += f"; shorter side resized to {found.size} (bicubic), centre cropped"
    if len(specs["images"].shape) == 5:
        pixels += "; the image, then its self-blended images, made as `switches` say (r2m_jax.data.pairs.Pairs)"
    meanings = {
        "images": {"pixels": pixels},
        "foreground": {"meaning": "share of every patch, by rows, that is foreground (the face), 0…1"},
    }
    return {
        name: {"dtype": spec.dtype.name, "shape": [batch or "batch", *spec.shape[1:]]} | meanings.get(name, {})
        for name, spec in specs.items()
    }


def _gives() -> dict[str, Any]:
    return {
        "probability": {"dtype": "float32", "shape": ["batch"], "meaning": "of class 1, fake"},
        "logit": {"dtype": "float32", "shape": ["batch"], "meaning": "fake minus real; its sigmoid is the probability"},
    }


def _exporter(format: str) -> dict[str, str]:
    packages = {"stablehlo": ("jax", "jaxlib"), "onnx": ("jax2onnx", "onnx", "onnxruntime")}
    return {name: metadata.version(name) for name in packages.get(format, ("safetensors",))}
