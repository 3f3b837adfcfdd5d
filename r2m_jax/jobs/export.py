"""``r2m export``: a model directory to one artifact that runs elsewhere, checked before it appears."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from r2m_jax.atomic import atomic_directory, atomic_file
from r2m_jax.checkpoints import load_detector, preprocessing, provenance
from r2m_jax.checkpoints.directory import CONFIG_FILE, cast
from r2m_jax.checkpoints.names import PREFIX, assemble
from r2m_jax.checkpoints.single_file import CLASSES, describe, read_description, write_single_file
from r2m_jax.checkpoints.tensors import open_safetensors, safetensors_files
from r2m_jax.data.device import normalise
from r2m_jax.data.images import image_files, load_images
from r2m_jax.errors import InputError
from r2m_jax.evaluation import score
from r2m_jax.export import (
    PLATFORMS,
    Difference,
    Run,
    check_images,
    compare,
    image_spec,
    open_onnx,
    open_stablehlo,
    scoring,
    unrolled_detector,
    write_onnx,
    write_stablehlo,
)
from r2m_jax.models import Detector, TowerOptions, apply_detector, parameter_shapes
from r2m_jax.progress import Reporter
from r2m_jax.trees import count_parameters

Format = Literal["stablehlo", "onnx", "safetensors"]
DTYPES = ("float32", "bfloat16", "float16")
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 2e-2}
"""By the artifact's dtype: how far a probability may be from the float32 model's."""

_LARGEST = 2 * 10**9
"""Bytes of parameters a program may hold: protocol buffers (ONNX) and FlatBuffers (StableHLO) end at 2 GiB."""

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
    """

    artifact: Path
    record: Path
    size: int
    difference: Difference
    tolerance: float
    seconds: tuple[float, float]


def export(
    model: Path,
    out: Path,
    *,
    format: str,
    dtype: str = "float32",
    batch: int | None = None,
    normalised: bool = False,
    check: Path | None = None,
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
        overwrite: replace an existing artifact.
        reporter: told of progress.

    Raises:
        InputError: the format, the dtype or the model do not fit, the place is taken, or the artifact's scores differ
            from the model's by more than :data:`TOLERANCES`; then nothing is left behind.
    """
    _refuse(format, dtype, batch, normalised)
    with _place(out, format, overwrite) as (artifact, record, shown):
        detector = load_detector(model)
        if not np.asarray(detector.params["head"]["kernel"]).any():
            raise InputError(f"{model} has a zero head, p(fake) = 0.5 of every image; train or merge it first.")
        size = detector.processor.crop_size["height"]
        images = load_images(image_files(check), size) if check else check_images(size)
        beside = [model / name for name in (CONFIG_FILE, preprocessing.FILE, provenance.FILE)]
        inputs = provenance.input_hashes([*safetensors_files(model), *(file for file in beside if file.exists())])
        described = describe(detector.config, detector.processor, inputs)
        start = time.monotonic()
        reporter.say(f"write {shown[0]}")
        _write(artifact, format, detector, described, dtype=dtype, batch=batch, normalised=normalised)
        written = time.monotonic()
        run = _open(artifact, format, normalised)
        difference = _compare(detector, run, images, batch=batch, normalised=normalised, reporter=reporter)
        tolerance = TOLERANCES[dtype]
        if difference.probability > tolerance:
            raise InputError(
                f"{shown[0]} was not kept: its probabilities differ from the model's by up to "
                f"{difference.probability:.2g}, more than {tolerance:g}; choose "
                f"{'another --format' if dtype == 'float32' else '--dtype float32'}."
            )
        seconds = written - start, time.monotonic() - written
        made = provenance.record(
            "exported",
            inputs=inputs,
            recipe={"format": format, "dtype": dtype, "batch": batch or "dynamic", "normalise": not normalised},
            artifact={"bytes": artifact.stat().st_size, "sha256": provenance.sha256(artifact)},
            takes=None if format == "safetensors" else _takes(size, batch, normalised),
            gives=None if format == "safetensors" else _gives(),
            platforms=PLATFORMS if format == "stablehlo" else None,
            exporter=_exporter(format),
            classes=list(CLASSES),
            config=described["config"],
            preprocessing=described["preprocessing"],
            check={"on": str(check) if check else "built-in images", **asdict(difference), "tolerance": tolerance},
        )
        record.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
        return Exported(*shown, artifact.stat().st_size, difference, tolerance, seconds)


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


def _write(
    path: Path,
    format: str,
    detector: Detector,
    described: dict[str, Any],
    *,
    dtype: str,
    batch: int | None,
    normalised: bool,
) -> None:
    params = jax.tree.map(np.asarray, cast(detector.params, dtype))
    if format == "safetensors":
        write_single_file(path, params, described)
        return
    total = count_parameters(params) * np.dtype(dtype).itemsize
    if total > _LARGEST:
        raise InputError(
            f"{total / 1e9:.1f} GB of parameters do not fit a {format} file, which ends at 2 GB; "
            "choose a 16-bit --dtype or --format safetensors."
        )
    images = image_spec(detector.processor.crop_size["height"], batch=batch, normalised=normalised)
    if format == "stablehlo":
        # JAX has float16 attention neither on CPU nor on TPU, and a program is for all platforms; "xla" is the
        # implementation of attention they all have.
        compute = "float32" if dtype == "float16" else dtype
        logits = apply_detector(detector.config, TowerOptions(dtype=compute, attention="xla"))
        write_stablehlo(path, scoring(logits, params, detector.processor, normalised=normalised), images)
    else:
        logits = unrolled_detector(detector.config, TowerOptions(attention="xla"))
        function = scoring(logits, params, detector.processor, normalised=normalised)
        write_onnx(path, function, images, dtype=dtype, metadata=described)


def _open(path: Path, format: str, normalised: bool) -> Run:
    if format != "safetensors":
        return {"stablehlo": open_stablehlo, "onnx": open_onnx}[format](path)
    found = read_description(path)
    assert found is not None, "just written"
    config, processor = found
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in open_safetensors(path).items()}
    params = cast(assemble(tensors, parameter_shapes(config), str(path)), "float32")
    logits = apply_detector(config)
    # Parameters are an argument here: as constants they would be folded by the compiler, which takes long.
    scores = jax.jit(lambda params, images: scoring(logits, params, processor, normalised=normalised)(images))

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        probability, logit = scores(params, images)
        return np.asarray(probability), np.asarray(logit)

    return run


def _compare(
    detector: Detector, run: Run, images: np.ndarray, *, batch: int | None, normalised: bool, reporter: Reporter
) -> Difference:
    mean, std = detector.processor.image_mean, detector.processor.image_std
    expected = score(apply_detector(detector.config), mean, std, batch_size=16)(detector.params, images)
    given = np.asarray(normalise(jnp.asarray(images), mean, std)) if normalised else images
    difference = Difference(0, 0.0, 0.0)
    with reporter.track("check", len(images)) as advance:
        for found in compare(run, given, expected, batch=batch):
            advance(found.images - difference.images)
            difference = found
    return difference


def _takes(size: int, batch: int | None, normalised: bool) -> dict[str, Any]:
    pixels = "RGB, normalised by preprocessing's mean and std" if normalised else "RGB, 0…255"
    return {
        "images": {
            "dtype": "float32" if normalised else "uint8",
            "shape": [batch or "batch", size, size, 3],
            "pixels": f"{pixels}; shorter side resized to {size} (bicubic), centre cropped",
        }
    }


def _gives() -> dict[str, Any]:
    return {
        "probability": {"dtype": "float32", "shape": ["batch"], "meaning": "of class 1, fake"},
        "logit": {"dtype": "float32", "shape": ["batch"], "meaning": "fake minus real; its sigmoid is the probability"},
    }


def _exporter(format: str) -> dict[str, str]:
    packages = {"stablehlo": ("jax", "jaxlib"), "onnx": ("jax2onnx", "onnx", "onnxruntime")}
    return {name: metadata.version(name) for name in packages.get(format, ("safetensors",))}
