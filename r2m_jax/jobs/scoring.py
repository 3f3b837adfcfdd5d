"""Several models over the same images: every image is decoded once per input size, whatever the number of models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float32, UInt8

from r2m_jax.checkpoints import load_corit, load_detector
from r2m_jax.checkpoints.corit import is_corit, read_corit_settings
from r2m_jax.checkpoints.directory import open_detector_weights, read_config
from r2m_jax.checkpoints.preprocessing import read_processor
from r2m_jax.data.device import normalise
from r2m_jax.data.pairs import Pairs
from r2m_jax.data.pipeline import Decoding, RecordSource, evaluation_batches
from r2m_jax.data.records import Record
from r2m_jax.errors import InputError
from r2m_jax.evaluation.scores import ScoreTable
from r2m_jax.jobs.corit import encoder, given, pairs_for, without_landmarks
from r2m_jax.models import Detector, Params, TowerOptions, apply_head, apply_tower
from r2m_jax.models.corit import CoritDetector, CoritSettings, apply_corit_head
from r2m_jax.parallel import available_cores, data_mesh, replicate, shard_batch
from r2m_jax.progress import Reporter

MEMORY = 8192
"""Default budget for parameters, MiB: a dozen CLIP B/16 or six L/14 in float32."""


@dataclass(frozen=True)
class Scored:
    """What a pass over the images gave.

    Attributes:
        table: scores of the images that could be read.
        features: per model what its head reads of each of them (the pooled output, z of a CoRIT model), float32
            [n, d]; empty unless asked for.
        unreadable: why, by path, of the others.
        left_out: how many those are (frames of one damaged video share its path).
        passes: how often the images were decoded.
    """

    table: ScoreTable
    features: dict[str, Float32[np.ndarray, "n d"]]
    unreadable: dict[str, str]
    left_out: int
    passes: int


def score_models(
    models: Mapping[str, Path | Detector | CoritDetector],
    records: Sequence[Record],
    *,
    reporter: Reporter,
    batch_size: int = 32,
    workers: int | None = None,
    memory: int = MEMORY,
    options: TowerOptions | None = None,
    features: bool = False,
    strict: bool = False,
) -> Scored:
    """Score images with models of any sizes, normalisations and architectures.

    Models of one input size share a pass over the images as far as their parameters fit ``memory`` together (CoRIT
    models, which see self-blended images too, with those that blend alike); models of one architecture and
    normalisation share one compiled function. Batches stream: decoding the next ones goes on
    while the devices compute, and no image is kept.

    Args:
        models: model directories, or detectors in memory, by name.
        records: images and frames of videos.
        reporter: told of the progress.
        batch_size: images at a time over all local devices; rounded up to a multiple of their number.
        workers: decoding threads; one per core when None.
        memory: MiB of parameters kept at a time.
        options: how towers of directories compute; float32 when None. Detectors bring their own.
        features: return what heads read too; models without a head are then welcome.
        strict: refuse images that cannot be read, instead of leaving them out.

    Raises:
        InputError: there is no model or image, a model is broken, prepares images in a way this loop does not, or has
            no head, an image cannot be read under ``strict``, or none can be.
    """
    if not models:
        raise InputError("there is no model to score with; name one.")
    mesh = data_mesh(jax.local_devices())
    devices = mesh.devices.size
    # Devices of a CPU share one memory, and each has a copy of the parameters.
    share = memory * 2**20 // (devices if jax.default_backend() == "cpu" else 1)
    stock = {name: _open(name, model, options, headed=not features) for name, model in models.items()}
    order = list(_passes(stock, share))
    said = {without_landmarks(model.settings, records) for model in stock.values() if model.settings}
    for sentence in said - {""}:
        reporter.say(sentence)
    run = _Run(
        records=records,
        batch_size=-(-batch_size // devices) * devices,
        workers=workers if workers is not None else available_cores(),
        mesh=mesh,
        features=features,
        strict=strict,
        reporter=reporter,
    )
    seen = np.ones(len(records), np.bool_)
    for number, names in enumerate(order, start=1):
        what = f"{len(names)} model{'s' * (len(names) > 1)} at {stock[names[0]].size} px"
        seen &= run.pass_over(
            {name: stock[name] for name in names}, what + (f" (pass {number} of {len(order)})" * (len(order) > 1))
        )
    if not seen.any():
        raise InputError(
            f"none of the {len(records)} images can be read; the first: {next(iter(run.unreadable.values()))}"
        )
    left_out = int((~seen).sum())
    if left_out:
        reporter.say(
            f"{left_out} of {len(records)} images cannot be read and are left out; the first: "
            f"{next(iter(run.unreadable.values()))}"
        )
    table = ScoreTable([record for record, whole in zip(records, seen, strict=True) if whole])
    for name in models:
        table.add(name, run.logits[name][seen])
    pooled = {name: run.pooled[name][seen] for name in models} if features else {}
    return Scored(table, pooled, run.unreadable, left_out, len(order))


@dataclass(frozen=True)
class _Model:
    """A model not yet loaded; ``alike`` is equal for those that share a compiled function."""

    size: int
    patch: int
    bytes: int
    alike: tuple[Any, ...]
    load: Callable[[], Detector | CoritDetector]
    settings: CoritSettings | None = None

    @property
    def prepare(self) -> Pairs | None:
        """What makes its inputs of pictures; None where pixels are all."""
        return None if self.settings is None else pairs_for(self.settings, self.size, self.patch)


@dataclass
class _Run:
    """One pass after another over the same images."""

    records: Sequence[Record]
    batch_size: int
    workers: int
    mesh: Any
    features: bool
    strict: bool
    reporter: Reporter
    logits: dict[str, Float32[np.ndarray, " n"]] = field(default_factory=dict)
    pooled: dict[str, Float32[np.ndarray, "n d"]] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    compiled: dict[tuple[Any, ...], Callable[..., tuple[Array, Array]]] = field(default_factory=dict)

    def pass_over(self, models: Mapping[str, _Model], what: str) -> Bool[np.ndarray, " n"]:
        """Decode every image once and score it with these models; which images were read."""
        count, calls = len(self.records), {}
        params: dict[str, Params] = {}
        for name, model in models.items():
            detector = model.load()
            if not self.features and not np.any(np.asarray(detector.params["head"]["kernel"])):
                raise _headless(name)
            if model.alike not in self.compiled:
                self.compiled[model.alike] = _forward(detector, self.features)
            calls[name], params[name] = self.compiled[model.alike], replicate(self.mesh, detector.params)
            self.logits[name] = np.zeros(count, np.float32)
            if self.features:
                self.pooled[name] = np.zeros((count, _width(detector)), np.float32)
        seen = np.zeros(count, np.bool_)
        one = next(iter(models.values()))
        decoding = Decoding(one.size, self.workers, prepare=one.prepare, on_corrupt="error" if self.strict else "skip")
        stream = evaluation_batches(RecordSource(self.records), batch_size=self.batch_size, decoding=decoding)
        with stream, self.reporter.track(f"score with {what}", count) as advance:
            waiting: tuple[Any, dict[str, Any]] | None = None
            for batch in stream:
                images = shard_batch(self.mesh, batch["image"] if one.prepare is None else given(batch))
                started = {name: calls[name](params[name], images) for name in models}
                # Results are fetched one batch late, so that the devices have work while the host waits and decodes.
                if waiting is not None:
                    advance(self._keep(*waiting, seen))
                waiting = batch, started
            if waiting is not None:
                advance(self._keep(*waiting, seen))
            self.unreadable |= stream.unreadable
        return seen

    def _keep(self, batch: Any, results: Mapping[str, tuple[Array, Array]], seen: np.ndarray) -> int:
        """Store a batch's results in the places of its records; how many places those are."""
        valid = batch["valid"]
        places = batch["index"][valid]
        seen[places] = True
        for name, (margin, pooled) in results.items():
            self.logits[name][places] = np.asarray(margin)[valid]
            broken = ~np.isfinite(self.logits[name][places])
            if self.features:
                self.pooled[name][places] = np.asarray(pooled)[valid]
                broken |= ~np.isfinite(self.pooled[name][places]).all(axis=1)
            if broken.any():
                raise InputError(
                    f"{name} gives NaN or infinite scores (first for {self.records[places[broken][0]].path}); the "
                    "model is broken."
                )
        return int((batch["index"] >= 0).sum())


def _width(detector: Detector | CoritDetector) -> int:
    if isinstance(detector, CoritDetector):
        return detector.settings.width(detector.config)
    return int(detector.config.hidden_size)


def _forward(detector: Detector | CoritDetector, features: bool) -> Callable[..., tuple[Array, Array]]:
    """``(params, uint8 images) -> (fake-minus-real logits [b], pooled [b, d] or nothing [0])``, compiled."""
    mean, std = detector.processor.image_mean, detector.processor.image_std
    head: Callable[[Params, Array], Array] = apply_head
    if isinstance(detector, CoritDetector):
        encode, head = encoder(detector.config, detector.settings, detector.options, mean, std), apply_corit_head
    else:
        tower = apply_tower(detector.config, detector.options)

        def encode(backbone: Params, images: UInt8[Array, "b h w 3"]) -> Array:
            return tower(backbone, normalise(images, mean, std)).pooled

    @jax.jit
    def forward(params: Params, inputs: Any) -> tuple[Array, Array]:
        pooled = encode(params["backbone"], inputs)
        both = head(params["head"], pooled)
        return both[:, 1] - both[:, 0], pooled.astype(np.float32) if features else both[:0, 0]

    return forward


def _open(name: str, model: Path | Detector | CoritDetector, options: TowerOptions | None, headed: bool) -> _Model:
    settings = None
    if isinstance(model, CoritDetector):
        settings = model.settings
    elif not isinstance(model, Detector) and is_corit(model):
        settings = read_corit_settings(model)
    if isinstance(model, Detector | CoritDetector):
        config, processor, how = model.config, model.processor, model.options
        stored = sum(leaf.size * 4 for leaf in jax.tree.leaves(model.params))
    else:
        if not model.is_dir():
            raise InputError(f"the model {name}={model} is no directory; give one that has a config.json.")
        config, processor, how = read_config(model), read_processor(model), options or TowerOptions()
        tensors = open_detector_weights(model)
        if headed and "head.weight" not in tensors:
            raise _headless(name)
        stored = sum(4 * math.prod(tensor.shape) for tensor in tensors.values())
    size = square_input(processor, name)
    mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    alike = (config.to_json_string(), mean, std, str(how), settings)

    def load() -> Detector | CoritDetector:
        if isinstance(model, Detector | CoritDetector):
            return model
        return load_detector(model, options=how) if settings is None else load_corit(model, options=how)

    return _Model(size, config.patch_size, stored, alike, load, settings)


def _headless(name: str) -> InputError:
    return InputError(f"{name} has no trained head, so it cannot tell fake from real; train or merge one.")


def square_input(processor: Any, name: str) -> int:
    """Side of a model's input, for processors that resize the shorter side and crop the centre to it.

    Raises:
        InputError: the processor does something else.
    """
    crop, shortest = dict(processor.crop_size), dict(processor.size).get("shortest_edge")
    if crop["height"] != crop["width"] or shortest != crop["height"]:
        raise InputError(
            f"{name} resizes images to {shortest} px and crops {crop['height']} x {crop['width']}; only a resize and a "
            "square crop of one size are supported (size.shortest_edge and crop_size of preprocessor_config.json)."
        )
    return int(crop["height"])


def _passes(stock: Mapping[str, _Model], share: int) -> Iterator[list[str]]:
    """Names of the models of each pass: of one input, no more parameters together than the budget, at least one."""
    for seen in dict.fromkeys((model.size, model.prepare) for model in stock.values()):
        names: list[str] = []
        used = 0
        for name, model in stock.items():
            if (model.size, model.prepare) != seen:
                continue
            if names and used + model.bytes > share:
                yield names
                names, used = [], 0
            names.append(name)
            used += model.bytes
        yield names
