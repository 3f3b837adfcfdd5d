"""Any known checkpoint to a model directory, with an account of every tensor."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from r2m_jax.checkpoints import provenance
from r2m_jax.checkpoints.convolutional import (
    assemble_convolutional,
    recognise_convolutional,
    save_convolutional,
)
from r2m_jax.checkpoints.directory import PROJECTION, cast, write_directory
from r2m_jax.checkpoints.foreign import Parts, recognise
from r2m_jax.checkpoints.inference import infer_config
from r2m_jax.checkpoints.names import assemble, disassemble, stored_name
from r2m_jax.checkpoints.preprocessing import BLACK, CLIP_MEAN, CLIP_STD, HALF, UNIT, image_processor
from r2m_jax.checkpoints.sharded import finite
from r2m_jax.checkpoints.sources import ORBAX, Source, open_source
from r2m_jax.checkpoints.tensors import LazyTensor, names_in_words
from r2m_jax.errors import InputError
from r2m_jax.models import Params, init_head, parameter_shapes
from r2m_jax.models.convolutional import ConvolutionalDetector, Plan, plan_name, trained_parameters
from r2m_jax.trees import count_parameters, refuse_non_finite

Normalisation = Literal["auto", "clip", "half"]


@dataclass
class ConversionReport:
    """What became of every tensor of the source.

    Attributes:
        kind: what the source is.
        matched: ``(name in the file, name written)``.
        left_out: ``(name, why)`` of tensors no detector needs.
        ignored: names the user asked to ignore.
        inferred: statements about what the source did not say.
        parameters: scalars written.
    """

    kind: str
    matched: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    inferred: list[str] = field(default_factory=list)
    parameters: int = 0


def convert(
    source: str,
    target: Path,
    *,
    base: str | None = None,
    dtype: str | None = None,
    activation: str | None = None,
    normalisation: Normalisation = "auto",
    ignore: Sequence[str] = (),
    overwrite: bool = False,
) -> ConversionReport:
    """Convert a checkpoint to a model directory; an Orbax store in the memory that one tensor takes.

    Args:
        source: see :func:`~r2m_jax.checkpoints.sources.open_source`.
        target: the directory to make.
        base: where the source lacks a tower, a config or processing, it is taken from this one (any source).
        dtype: of the parameters written; None keeps what is stored.
        activation: ``quick_gelu`` or ``gelu`` for sources without a config (when omitted gelu for a ViT, else
            quick_gelu, as in OpenAI's weights, which DeepfakeBench and DF40 fine-tune).
        normalisation: of 0…1 RGB: ``clip`` (OpenAI's mean and std), ``half`` (0.5, DeepfakeBench and DF40), or
            ``auto``: the source's own, else half for DeepfakeBench names and clip for others.
        ignore: regular expressions of tensor names to leave out.
        overwrite: replace an existing directory.

    Returns:
        The report; nothing is written unless every tensor is accounted for.

    Raises:
        InputError: the source is no known checkpoint, lacks tensors, holds unknown ones, or NaN.
    """
    opened = open_source(source)
    report = ConversionReport(opened.kind)
    tensors = _without_ignored(opened.tensors, ignore, report)
    if found := recognise_convolutional(tensors):
        if base or activation:
            raise InputError(f"{source} is a convolutional network, which takes no --base and no --activation.")
        _convert_convolutional(opened, tensors, *found, report, target, source, dtype, normalisation, overwrite)
        return report
    parts = recognise(tensors, source)
    report.kind = f"{opened.kind}, {parts.layout.replace('_', ' ')} names"
    if parts.unmatched:
        raise InputError(
            f"{source} has tensors that are no part of a detector: {names_in_words(parts.unmatched)}; "
            "leave them out with --ignore REGEX."
        )
    beside = open_source(base) if base else None
    base_parts = recognise(beside.tensors, str(base)) if beside else None
    config, tower = _tower(opened, parts, beside, base_parts, activation, source, report)
    projection = parts.projection or (base_parts.projection if base_parts else None)
    head = _head(parts, projection, config.hidden_size, source, report)
    if opened.kind == ORBAX and parts.tower:
        written = _one_by_one(tower, head, config, dtype, source)
        report.parameters = sum(math.prod(tensor.shape) for tensor in written.values())
    else:
        params = assemble(tower, {"backbone": parameter_shapes(config)["backbone"]}, source) | {"head": head}
        refuse_non_finite(params, source)
        written = disassemble(cast(params, dtype))
        report.parameters = count_parameters(params)
    processor = _processor(opened, parts, beside, config.image_size, normalisation, report)

    report.matched = [(name, ours) for ours, name in parts.sources.items()]
    report.left_out = sorted(parts.left_out.items())
    if projection is not None:
        written[PROJECTION] = projection
    files = opened.files + (beside.files if beside else [])
    write_directory(
        target,
        config=config,
        tensors=written,
        processor=processor,
        provenance=provenance.record(
            "converted",
            inputs=provenance.input_hashes(files),
            recipe={"source": source, "base": base, "dtype": dtype, "normalisation": normalisation},
            source_kind=report.kind,
            revision=opened.revision,
            head="stored" if parts.head else "zero",
            inferred=report.inferred,
        ),
        overwrite=overwrite,
    )
    return report


def _one_by_one(
    tower: dict[str, LazyTensor], head: Params, config: Any, dtype: str | None, source: str
) -> dict[str, LazyTensor]:
    """What is written of tensors that are to stay unread until then."""
    held = {stored_name(name): tensor for name, tensor in tower.items()}
    held["head.weight"], held["head.bias"] = LazyTensor.of(head["kernel"].T), LazyTensor.of(head["bias"])
    wanted = disassemble(parameter_shapes(config))
    for name in sorted(wanted.keys() | held.keys()):
        there, needed = (side[name].shape if name in side else None for side in (held, wanted))
        if there != needed:
            raise InputError(f"{source}: {name} has shape {there}, but this architecture needs {needed}.")
    return finite(held, None if dtype is None else np.dtype(dtype), source)


def _convert_convolutional(
    opened: Source,
    tensors: dict[str, LazyTensor],
    plan: Plan,
    names: dict[str, str],
    report: ConversionReport,
    target: Path,
    source: str,
    dtype: str | None,
    normalisation: Normalisation,
    overwrite: bool,
) -> None:
    """A network of a plan that ships, whose tensors were told by their order and shapes."""
    params = assemble_convolutional({ours: tensors[name] for name, ours in names.items()}, plan, source)
    refuse_non_finite(params, source)
    report.kind = f"{opened.kind}, convolutional network {plan_name(plan)}"
    report.matched = list(names.items())
    report.left_out = [(name, "count of batches, which nothing reads") for name in tensors if name not in names]
    report.inferred.append("layers: by the order of the file's tensors and their shapes")
    report.parameters = count_parameters(trained_parameters(params))
    mean, std = {"auto": (BLACK, UNIT), "clip": (CLIP_MEAN, CLIP_STD), "half": (HALF, HALF)}[normalisation]
    if normalisation == "auto":
        report.inferred.append("normalisation: none beside 0…1 (the source says none; --normalisation for others)")
    save_convolutional(
        ConvolutionalDetector.create(plan, cast(params, dtype), image_processor(plan.image_size, mean, std)),
        target,
        provenance=provenance.record(
            "converted",
            inputs=provenance.input_hashes(opened.files),
            recipe={"source": source, "dtype": dtype, "normalisation": normalisation},
            source_kind=report.kind,
            head="stored",
            inferred=report.inferred,
        ),
        overwrite=overwrite,
    )


def _without_ignored(
    tensors: dict[str, LazyTensor], patterns: Sequence[str], report: ConversionReport
) -> dict[str, LazyTensor]:
    try:
        compiled = [re.compile(pattern) for pattern in patterns]
    except re.error as error:
        raise InputError(f"--ignore {error.pattern!r} is not a regular expression ({error}).") from None
    report.ignored = [name for name in tensors if any(pattern.fullmatch(name) for pattern in compiled)]
    return {name: tensor for name, tensor in tensors.items() if name not in set(report.ignored)}


def _tower(
    opened: Source,
    parts: Parts,
    beside: Source | None,
    base_parts: Parts | None,
    activation: str | None,
    source: str,
    report: ConversionReport,
) -> tuple[Any, dict[str, LazyTensor]]:
    if not parts.tower:
        if beside is None or base_parts is None or not base_parts.tower:
            raise InputError(f"{source} holds only a head; pass --base with the CLIP model it was trained on.")
        report.inferred.append("the tower is the base's")
        opened, parts = beside, base_parts
    config = opened.config or (beside.config if beside else None)
    if config is None:
        config, inferred = infer_config(parts.tower, activation, source)
        report.inferred += inferred
    elif activation and activation != config.hidden_act:
        raise InputError(f"--activation {activation} contradicts the config, which says {config.hidden_act}.")
    elif opened.config is None:
        report.inferred.append("the config is the base's")
    return config, parts.tower


def _head(parts: Parts, projection: LazyTensor | None, d: int, source: str, report: ConversionReport) -> Params:
    """Two logits on the pooled output, float as stored; zeros where the source has no head."""
    if not parts.head:
        report.inferred.append("head: the source has none; zeros were written (p(fake) = 0.5 until it is trained)")
        return {name: np.asarray(leaf) for name, leaf in init_head(d).items()}
    if parts.head.keys() != {"head.weight", "head.bias"}:
        raise InputError(f"{source} has only one of the head's weight and bias.")
    weight, bias = parts.head["head.weight"].read(), parts.head["head.bias"].read()
    if weight.ndim != 2 or bias.shape != weight.shape[:1] or weight.shape[0] not in (1, 2):
        raise InputError(
            f"{source}: a head of shapes {weight.shape} and {bias.shape} is no classifier of two classes or one logit."
        )
    if parts.layout == "universal_fake_detect":
        if projection is None:
            raise InputError(f"{source} works on CLIP's projected embedding; pass --base with a visual projection.")
        if projection.shape != (weight.shape[1], d):
            raise InputError(
                f"{source} takes {weight.shape[1]} features, but the base projects {d} to {projection.shape[0]}."
            )
        # Both maps are linear, so the projection is folded into the head; float64 keeps the fold exact.
        weight = (weight.astype(np.float64) @ projection.read().astype(np.float64)).astype(np.float32)
        report.inferred.append("head: the base's visual projection was folded into it")
    if weight.shape[1] != d:
        raise InputError(f"{source}: the head takes {weight.shape[1]} features, but the tower gives {d}.")
    if weight.shape[0] == 1:
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
        report.inferred.append("head: one logit became two, (0, logit): the same probability of fake")
    return {"kernel": np.ascontiguousarray(weight.T), "bias": bias}


def _cropping(processor: Any, size: int, report: ConversionReport) -> Any:
    """A processor that resizes the shorter side and crops; a ViT's, which squashes images to a square, becomes one."""
    if "shortest_edge" in dict(processor.size):
        return processor
    report.inferred.append(
        f"processing: the shorter side is resized to {size} px (bicubic) and the centre cropped, where the source "
        "resizes both sides to a square; the same for square images but for the filter"
    )
    return image_processor(size, processor.image_mean, processor.image_std)


def _processor(
    opened: Source,
    parts: Parts,
    beside: Source | None,
    size: int,
    normalisation: Normalisation,
    report: ConversionReport,
) -> Any:
    if normalisation == "auto":
        if opened.processor is not None:
            return _cropping(opened.processor, size, report)
        if parts.layout == "deepfakebench":
            report.inferred.append("normalisation: mean = std = 0.5, as DeepfakeBench and DF40 train")
            return image_processor(size, HALF, HALF)
        if parts.layout == "vit" and (beside is None or beside.processor is None):
            report.inferred.append("normalisation: mean = std = 0.5, as ViTs of the hub take")
            return image_processor(size, HALF, HALF)
        if beside is not None and beside.processor is not None:
            report.inferred.append("normalisation: the base's")
            return beside.processor
        report.inferred.append("normalisation: OpenAI CLIP's mean and std (the source says none)")
        return image_processor(size, CLIP_MEAN, CLIP_STD)
    mean, std = (CLIP_MEAN, CLIP_STD) if normalisation == "clip" else (HALF, HALF)
    return image_processor(size, mean, std)
