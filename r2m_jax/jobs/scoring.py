"""Several models over the same images: every image is decoded once per input size, whatever the number of models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float32

from r2m_jax.data.pipeline import Decoding, RecordSource, evaluation_batches
from r2m_jax.data.records import Record
from r2m_jax.errors import InputError
from r2m_jax.evaluation.scores import ScoreTable
from r2m_jax.jobs.kinds import Described, Source, describe, forward
from r2m_jax.models import Params, TowerOptions
from r2m_jax.parallel import available_cores, check, data_mesh, gather, gather_arrays, replicate, shard_batch
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
    models: Mapping[str, Source],
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
    while the devices compute, and no image is kept. Several processes divide the images between them; all get the
    scores of all.

    Args:
        models: model directories, or detectors in memory, by name.
        records: images and frames of videos.
        reporter: told of the progress.
        batch_size: images at a time over the devices of each process; rounded up to a multiple of their number.
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
    stock = {name: _described(name, model, options, headed=not features) for name, model in models.items()}
    order = list(_passes(stock, share))
    for sentence in {model.remark(records) for model in stock.values()} - {""}:
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
        mine = run.pass_over(
            {name: stock[name] for name in names}, what + (f" (pass {number} of {len(order)})" * (len(order) > 1))
        )
        seen &= run.put_together(names, mine)
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

    def pass_over(self, models: Mapping[str, Described], what: str) -> Bool[np.ndarray, " n"]:
        """Decode every image once and score it with these models; which images were read."""
        count, calls = len(self.records), {}
        params: dict[str, Params] = {}
        for name, model in models.items():
            ready = model.load()
            if not self.features and not ready.trained:
                raise _headless(name)
            if model.alike not in self.compiled:
                self.compiled[model.alike] = forward(ready, features=self.features)
            calls[name], params[name] = self.compiled[model.alike], replicate(self.mesh, ready.params)
            self.logits[name] = np.zeros(count, np.float32)
            if self.features:
                self.pooled[name] = np.zeros((count, ready.width), np.float32)
        seen = np.zeros(count, np.bool_)
        one = next(iter(models.values()))
        decoding = Decoding(one.size, self.workers, prepare=one.prepare, on_corrupt="error" if self.strict else "skip")
        process, processes = jax.process_index(), jax.process_count()
        stream = evaluation_batches(
            RecordSource(self.records), batch_size=processes * self.batch_size, shard=(process, processes),
            decoding=decoding,
        )  # fmt: skip
        with stream, self.reporter.track(f"score with {what}", -(-count // processes)) as advance:
            waiting: tuple[Any, dict[str, Any]] | None = None
            for batch in stream:
                inputs = shard_batch(self.mesh, one.given(batch))
                started = {name: calls[name](params[name], inputs) for name in models}
                # Results are fetched one batch late, so that the devices have work while the host waits and decodes.
                if waiting is not None:
                    advance(self._keep(*waiting, seen))
                waiting = batch, started
                check()
            if waiting is not None:
                advance(self._keep(*waiting, seen))
            self.unreadable |= stream.unreadable
        return seen

    def put_together(self, names: Sequence[str], seen: np.ndarray) -> Bool[np.ndarray, " n"]:
        """Take from every process the rows that are its own; which images were read by any."""
        kept = {"logits": self.logits, "pooled": self.pooled}
        mine = {f"{kind} {name}": rows[name][seen] for kind, rows in kept.items() for name in names if name in rows}
        each = gather_arrays({"places": np.flatnonzero(seen), **mine})
        whole = np.zeros(len(seen), np.bool_)
        for theirs in each:
            places = theirs.pop("places")
            whole[places] = True
            for key, values in theirs.items():
                kind, _, name = key.partition(" ")
                kept[kind][name][places] = values
        for faults in gather(json.dumps(self.unreadable).encode()):
            self.unreadable |= json.loads(faults)
        return whole

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


def _described(name: str, model: Source, options: TowerOptions | None, headed: bool) -> Described:
    # Directories compute as this run is told to, detectors in memory as they were made to.
    found = describe(model, options if isinstance(model, Path) else None, name=name)
    if headed and not found.headed:
        raise _headless(name)
    return found


def _headless(name: str) -> InputError:
    return InputError(f"{name} has no trained head, so it cannot tell fake from real; train or merge one.")


def _passes(stock: Mapping[str, Described], share: int) -> Iterator[list[str]]:
    """Names of the models of each pass: of one input, no more parameters together than the budget, at least one."""
    for seen in dict.fromkeys(_pictures(model) for model in stock.values()):
        names: list[str] = []
        used = 0
        for name, model in stock.items():
            if _pictures(model) != seen:
                continue
            if names and used + model.bytes > share:
                yield names
                names, used = [], 0
            names.append(name)
            used += model.bytes
        yield names


def _pictures(model: Described) -> tuple[Any, ...]:
    """What is made of pictures for a model; equal for those that share a pass."""
    return model.size, model.prepare, model.inputs
