"""Batches decoded by Grain's workers: one stream per (source, seed), whatever the workers and processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, cast

import grain
import numpy as np
from absl import flags
from jaxtyping import Bool, Int32, UInt8
from PIL import Image

from r2m_jax.data.images import resize_and_crop
from r2m_jax.data.pipeline.in_memory import Batch
from r2m_jax.data.pipeline.sampling import Plan, Sampling, in_order, plan
from r2m_jax.data.pipeline.sources import RecordSource, Source
from r2m_jax.data.records import Record
from r2m_jax.errors import InputError, Stuck

Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""``transform(image, rng)``: uint8 [size, size, 3] to the same, random choices from ``rng`` alone."""


class Preparation(Protocol):
    """Makes the arrays of one image, for models that see more than its pixels; can be pickled."""

    @property
    def arrays(self) -> Mapping[str, tuple[tuple[int, ...], type]]:
        """Shape and dtype by name."""

    def __call__(self, picture: Image.Image, record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Arrays of the upright picture; random choices from ``rng`` alone."""


_AT_ONCE = 32  # images of a batch where batches are only a way of reading
ATTEMPTS = 16  # unreadable images in a row after which a data set is given up


class IndexedBatch(Batch):
    """A :class:`Batch` whose rows can be joined back to the source's records.

    ``index`` int32 [B]: number of the record, -1 in rows of padding. ``valid`` bool [B]: whether the row counts;
    rows of padding and of images left out are black, with the label -1.
    """

    index: Int32[np.ndarray, b]
    valid: Bool[np.ndarray, b]


@dataclass(frozen=True)
class Decoding:
    """How samples are read; nothing of it but ``size``, ``exact``, ``transform`` and ``prepare`` changes what is read.

    Attributes:
        size: sides of the images in pixels.
        workers: decoders working side by side; 0 decodes in the calling thread.
        processes: let the workers be processes (started afresh, not forked) instead of threads. Pillow lets go of
            Python's lock while it decodes and resizes, so threads do until a ``transform`` holds it.
        prefetch: batches each worker has ready.
        exact: decode in full. Else large JPEG images are shrunk by the decoder to no less than twice ``size``, see
            :func:`r2m_jax.data.images.decode_image`.
        transform: applied to every image, with a generator seeded by (seed, epoch, place in the epoch).
        prepare: makes the arrays of a batch, in place of resizing, cropping and ``transform``, with such a generator,
            of images decoded in full (``exact`` or not: what records tell in pixels is of these).
        on_corrupt: ``error`` stops at an image that cannot be read; ``skip`` goes on and notes it in
            :attr:`BatchIterator.unreadable`.
        timeout: seconds to wait for a batch; then what the workers read is named, instead of waiting for ever for a
            disk or a network that does not answer.
    """

    size: int = 224
    workers: int = 2
    processes: bool = False
    prefetch: int = 2
    exact: bool = True
    transform: Transform | None = None
    prepare: Preparation | None = None
    on_corrupt: Literal["error", "skip"] = "error"
    timeout: float = 600.0


def batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    epochs: int = 1,
    sampling: Sampling = "natural",
    shard: tuple[int, int] = (0, 1),
    drop_remainder: bool = True,
    decoding: Decoding = Decoding(),
) -> BatchIterator:
    """Shuffled batches for training.

    An epoch has as many samples as the source has records; batches run over the borders of epochs. Under
    ``on_corrupt="skip"`` another image of the same class (and method, in ``per_method`` sampling) takes the place of
    one that cannot be read, so that batches stay full and balanced; ``index`` names the image that is there.

    Args:
        source: records and their images.
        batch_size: rows of a batch over all processes.
        seed: of the order and of the transform, 0 … 2³² − 1.
        epochs: passes.
        sampling: see :data:`~r2m_jax.data.pipeline.sampling.Sampling`.
        shard: (process index, process count); process i gets the i-th of equal parts of every batch, so that the
            batches over all processes are the same for any count.
        drop_remainder: leave out the last incomplete batch of the run, else it is padded.
        decoding: size, workers, transform, policy.

    Raises:
        InputError: the options do not fit the source or each other.
    """
    order = plan(source.records, sampling, seed)
    if drop_remainder and order.length * epochs < batch_size:
        raise InputError(f"{order.length} images do not fill one batch of {batch_size}; choose a smaller batch.")
    samples = order.length * epochs
    if drop_remainder:
        samples -= samples % batch_size
    settings = {
        "samples": samples, "records": order.length, "batch_size": batch_size, "seed": seed, "sampling": sampling,
    }  # fmt: skip
    return BatchIterator(_Batches(source, order, seed, samples, batch_size, shard, decoding, replace=True), settings)


def evaluation_batches(
    source: Source,
    *,
    batch_size: int,
    shard: tuple[int, int] = (0, 1),
    decoding: Decoding = Decoding(),
) -> BatchIterator:
    """Batches of every record once, in order, over any number of processes.

    All processes get equally many batches of the same shape, as a computation over several processes needs; what is
    left over is padding (``valid`` false). Under ``on_corrupt="skip"`` the row of an image that cannot be read keeps
    its ``index`` and is not ``valid``; nothing takes its place.

    Args:
        source: records and their images.
        batch_size: rows of a batch over all processes.
        shard: (process index, process count).
        decoding: size, workers, transform (seeded by (0, 0, index)), policy.

    Raises:
        InputError: the options do not fit the source or each other.
    """
    count = len(source.records)
    if not count:
        raise InputError("there is no image to evaluate.")
    settings = {"samples": count, "records": count, "batch_size": batch_size, "seed": 0, "sampling": "in order"}
    return BatchIterator(_Batches(source, in_order(count), 0, count, batch_size, shard, decoding, False), settings)


def decode_all(
    records: Sequence[Record],
    decoding: Decoding,
    out: UInt8[np.ndarray, "n h w 3"],
    *,
    on_progress: Callable[[int], None] = lambda count: None,
) -> None:
    """Fill an array, in memory or mapped from a file, with every record's image in order.

    Args:
        records: images and frames of videos.
        decoding: size, workers.
        out: takes the images.
        on_progress: told how many more are there.

    Raises:
        InputError: there is no record, or an image cannot be read.
    """
    with evaluation_batches(RecordSource(records), batch_size=_AT_ONCE, decoding=decoding) as stream:
        for batch in stream:
            places = batch["index"][batch["valid"]]
            out[places] = batch["image"][batch["valid"]]
            on_progress(len(places))


def read_ahead(
    dataset: grain.MapDataset, workers: int, *, processes: bool = False, prefetch: int = 2
) -> grain.DatasetIterator:
    """The elements of a random-access data set in order, made by workers that have begun; see :class:`Decoding`.

    Args:
        dataset: what is read.
        workers: working side by side; 0 works in the calling thread.
        processes: let them be processes instead of threads.
        prefetch: elements each has ready.
    """
    threads = 0 if processes else workers
    stream = dataset.to_iter_dataset(grain.ReadOptions(threads, threads * prefetch))
    if processes and workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain asks for its own flags, which only absl's app.run would parse
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(workers, prefetch))
    running = iter(stream)
    running.start_prefetch()
    return running


class BatchIterator(grain.DatasetIterator):
    """Iterates over batches; stands and resumes anywhere, also with other workers or another number of processes.

    A Grain iterator, so that Orbax and ``grain.checkpoint`` store its place: a small dict of numbers and strings.
    Use as a context manager, or call ``close``, to stop its workers early.

    Attributes:
        unreadable: why, by path, of the images left out or replaced so far.
    """

    def __init__(self, dataset: _Batches, settings: dict[str, Any]):
        super().__init__()
        self._dataset, self._settings = dataset, settings
        self._next = 0
        self._running: grain.DatasetIterator | None = None
        self._waiting: ThreadPoolExecutor | None = None
        self.unreadable: dict[str, str] = {}

    def __len__(self) -> int:
        """Batches of the whole run, those already given included."""
        return len(self._dataset)

    def __next__(self) -> IndexedBatch:
        self._assert_not_closed()
        self.start_prefetch()
        made = self._awaited()
        if made is None:
            raise StopIteration
        if made.faults and self._dataset.decoding.on_corrupt == "error":
            raise InputError(made.faults[0][1])
        if made.hopeless:
            raise InputError(f"{ATTEMPTS} images drawn in a row cannot be read; the last: {made.faults[-1][1]}")
        self._next += 1
        self.unreadable.update(made.faults)
        return made.batch

    def start_prefetch(self) -> None:
        """Start the workers before the first batch is asked for."""
        if self._running is not None:
            return
        decoding, dataset = self._dataset.decoding, grain.MapDataset.source(self._dataset)[self._next :]
        self._running = read_ahead(dataset, decoding.workers, processes=decoding.processes, prefetch=decoding.prefetch)
        self._waiting = ThreadPoolExecutor(1)

    def _awaited(self) -> _Made | None:
        """The next batch, None after the last."""
        assert self._running is not None
        assert self._waiting is not None
        limit = self._dataset.decoding.timeout
        coming = self._waiting.submit(next, self._running, None)
        try:
            return cast("_Made | None", coming.result(limit))
        except TimeoutError:
            if coming.done():  # a reader's own
                raise
            self._running = None  # closing it would wait for its workers
            self._waiting.shutdown(wait=False)
            raise Stuck(
                f"no batch has come for {limit:g} s{self._dataset.where()}; see whether the file system answers (the "
                "limit is data.timeout of a training recipe)."
            ) from None

    def get_state(self) -> dict[str, Any]:
        """Where the iterator stands; can be written as JSON."""
        return {"next": self._next, **self._settings, "unreadable": dict(self.unreadable)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to where ``get_state`` was called.

        Raises:
            InputError: the state is of a stream with other settings.
        """
        for name, value in self._settings.items():
            if state.get(name) != value:
                raise InputError(
                    f"the saved place in the data is of {name} {state.get(name)}, not {value}; resume with the "
                    "settings of the run that saved it."
                )
        self._stop()
        self._next = state["next"]
        self.unreadable = dict(state["unreadable"])

    def close(self) -> None:
        """Stop the workers."""
        self._stop()
        super().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stop(self) -> None:
        if self._running is not None:
            self._running.close()
            self._running = None
        if self._waiting is not None:
            self._waiting.shutdown(wait=False)
            self._waiting = None


@dataclass(frozen=True)
class _Made:
    """A batch and what went wrong on the way to it.

    An exception that leaves a worker process loses its type, so faults travel with the batch. An object of its own
    goes through a pipe (5 to 20 ms for 32 images of 224²), bare arrays through shared memory, of which containers
    have 64 MB and which Grain may leave behind at exit.
    """

    batch: IndexedBatch
    faults: list[tuple[str, str]]
    hopeless: bool


class _Batches:
    """Random access to the batches of one process, the form Grain reads."""

    def __init__(
        self,
        source: Source,
        order: Plan,
        seed: int,
        samples: int,
        batch_size: int,
        shard: tuple[int, int],
        decoding: Decoding,
        replace: bool,
    ):
        process, processes = shard
        if not 0 <= process < processes:
            raise InputError(f"process {process} of {processes} does not exist; they are counted from 0.")
        if batch_size < 1 or batch_size % processes:
            raise InputError(
                f"a batch of {batch_size} cannot be divided among {processes} processes; choose a multiple."
            )
        if decoding.on_corrupt not in ("error", "skip"):
            raise InputError(f"the policy {decoding.on_corrupt!r} for corrupt images is neither error nor skip.")
        self.decoding = decoding
        self._source, self._order, self._seed = source, order, seed
        self._samples, self._batch_size = samples, batch_size
        self._rows, self._first = batch_size // processes, process * (batch_size // processes)
        self._replace = replace and decoding.on_corrupt == "skip"
        self._reading: dict[int, tuple[str, float]] = {}  # by thread: what, since when

    def __len__(self) -> int:
        return -(-self._samples // self._batch_size)

    def __getitem__(self, number: int) -> _Made:
        size, prepare = self.decoding.size, self.decoding.prepare
        shapes: Mapping[str, Any] = prepare.arrays if prepare else {"image": ((size, size, 3), np.uint8)}
        made: dict[str, np.ndarray] = {
            name: np.zeros((self._rows, *shape), dtype) for name, (shape, dtype) in shapes.items()
        }
        label, index = np.full((2, self._rows), -1, np.int32)
        valid = np.zeros(self._rows, np.bool_)
        faults: list[tuple[str, str]] = []
        hopeless = False
        start = number * self._batch_size + self._first
        for row in range(min(self._rows, self._samples - start)):
            epoch, place = divmod(start + row, self._order.length)
            record = self._order.record(epoch, place)
            for attempt in range(1, ATTEMPTS + 1):
                index[row] = record
                try:
                    for name, array in self._sample(record, epoch, place).items():
                        made[name][row] = array
                    label[row], valid[row] = self._source.records[record].label, True
                    break
                except InputError as error:
                    faults.append((self._source.records[record].path, str(error)))
                    if not self._replace:
                        break
                    record = self._order.substitute(epoch, place, attempt)
            hopeless |= self._replace and not valid[row]
        batch = {**made, "label": label, "index": index, "valid": valid}
        return _Made(cast(IndexedBatch, batch), faults, hopeless)

    def where(self) -> str:
        """What this process's threads read at the moment, the longest first, for a message."""
        if self.decoding.processes and self.decoding.workers:
            return f": its {self.decoding.workers} worker processes hang"
        now = time.monotonic()
        busy = sorted((since, path) for path, since in self._reading.copy().values())
        said = ", ".join(f"{path} for {now - since:.0f} s" for since, path in busy[:3])
        return f": reading {said}" if said else ""

    def _sample(self, record: int, epoch: int, place: int) -> dict[str, np.ndarray]:
        thread = threading.get_ident()
        self._reading[thread] = self._source.records[record].path, time.monotonic()
        try:
            return self._decoded(record, epoch, place)
        finally:
            del self._reading[thread]

    def _decoded(self, record: int, epoch: int, place: int) -> dict[str, np.ndarray]:
        decoding = self.decoding
        if decoding.prepare is not None:
            rng = np.random.default_rng((self._seed, epoch, place))
            return decoding.prepare(self._source.image(record), self._source.records[record], rng)
        image = self._source.image(record, None if decoding.exact else 2 * decoding.size)
        pixels = resize_and_crop(image, decoding.size)
        if decoding.transform is None:
            return {"image": pixels}
        pixels = decoding.transform(pixels, np.random.default_rng((self._seed, epoch, place)))
        if pixels.dtype != np.uint8 or pixels.shape != (decoding.size, decoding.size, 3):
            raise TypeError(f"the transform gave {pixels.dtype} {pixels.shape}, not uint8 of the size it was given.")
        return {"image": pixels}
