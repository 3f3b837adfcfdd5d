"""``r2m predict``: the probability of fake of images and films, decoded, scored and written as they come."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import grain
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from r2m_jax.atomic import atomic_file, atomic_text
from r2m_jax.checkpoints import provenance
from r2m_jax.checkpoints.tensors import safetensors_files
from r2m_jax.data.faces.crop_folders import Framing
from r2m_jax.data.faces.landmarks import require_dlib
from r2m_jax.data.pipeline import read_ahead
from r2m_jax.errors import InputError
from r2m_jax.jobs.kinds import Described, Inputs, Ready, forward
from r2m_jax.jobs.predict.explain import explanations
from r2m_jax.jobs.predict.inputs import gather
from r2m_jax.jobs.predict.media import Faces, Media, Taken
from r2m_jax.jobs.predict.model import expected_framing, load_model, threshold_of
from r2m_jax.jobs.predict.rows import Row, Rows, RowWriter, Summary, form_of
from r2m_jax.parallel import data_mesh, replicate, shard_batch
from r2m_jax.progress import Reporter

FaceMode = Literal["auto", "always", "never"]
FACE_MODES: tuple[str, ...] = get_args(FaceMode)

_PROCESSES_FROM = 256  # items; below, starting processes (seconds each) costs more than finding faces one by one
_PATIENCE = 8  # batches' worth of items that wait for a batch to fill, before it is scored as it is
_NAMED = 10  # files named on the terminal of those that cannot be scored; all are in the rows


@dataclass(frozen=True)
class PredictRequest:
    """What is asked for.

    Attributes:
        model: directory.
        paths: files, folders, patterns and lists, see :func:`r2m_jax.jobs.predict.inputs.gather`.
        threshold: a probability strictly above it is called fake; None takes the model's calibration, else 0.5.
        faces: crop the largest face: ``always``, ``never``, or ``auto``: where the model was trained on face crops and
            the image is none yet.
        frames: evenly spaced frames of each video.
        per_frame: a row for each of them instead of one for their mean.
        batch_size: images scored at a time.
        workers: decoders working side by side.
        strict: refuse everything if one file cannot be scored.
    """

    model: Path
    paths: Sequence[str]
    threshold: float | None = None
    faces: FaceMode = "auto"
    frames: int = 32
    per_frame: bool = False
    batch_size: int = 32
    workers: int = 2
    strict: bool = False


def predict(
    request: PredictRequest,
    *,
    emit: Callable[[Row], None],
    reporter: Reporter,
    out: Path | None = None,
    explain: Path | None = None,
    overwrite: bool = False,
) -> Summary:
    """Score files one after the other; neither images nor rows pile up, whatever their number.

    Args:
        request: what to do.
        emit: told every row as soon as it is known, in the order of the files.
        reporter: told of the progress, and of the first files that cannot be scored.
        out: file for the rows (.csv, .tsv, .json or .jsonl), replaced at the end; what made it goes to
            ``OUT.r2m.json``.
        explain: directory for a picture of every row, see :mod:`r2m_jax.jobs.predict.explain`.
        overwrite: replace an existing ``explain``.

    Raises:
        InputError: the model or a setting is unusable, a list cannot be read, no file can be scored, or one cannot
            under ``strict``.
    """
    _check(request)
    form = form_of(out) if out is not None else None
    if out is not None and out.resolve() in {Path(path).resolve() for path in request.paths}:
        raise InputError(f"--out {out} would replace one of the files to score; choose another output.")
    threshold, origin = threshold_of(request.model, request.threshold)
    work = gather(request.paths, request.frames)
    found, ready = load_model(request.model)
    faces, remarks = _faces(request, ready)
    summary = Summary(sentences=[origin, *remarks, *_fallbacks(found, faces)])
    rows, mesh = Rows(threshold, request.per_frame, summary), data_mesh(jax.local_devices())
    media = Media(work, found.size, request.frames, faces, found.prepare, found.inputs)
    with ExitStack() as stack:
        writers = [emit]
        if out is not None and form is not None:
            aside = stack.enter_context(atomic_file(out))
            writer = RowWriter(stack.enter_context(aside.open("w", encoding="utf-8", newline="")), form)
            writers.append(writer.write)
        pictures = None
        if explain is not None:
            pictures = stack.enter_context(explanations(explain, found, ready, overwrite=overwrite))
        # Threads of one process share dlib's detector and wait for each other; Pillow and PyAV work side by side.
        processes = faces is not None and len(work) >= _PROCESSES_FROM
        stream = read_ahead(grain.MapDataset.source(media), request.workers, processes=processes)
        stack.enter_context(closing(stream))
        advance = stack.enter_context(reporter.track("score", len(work), "files"))
        size = -(-request.batch_size // mesh.size) * mesh.size  # a batch divides over the devices
        for taken, logits in in_batches(stream, _scorer(ready, mesh), size):
            for row, image, frame in rows(taken, logits):
                summary.count(row)
                if row.error and request.strict:
                    raise InputError(f"{row.error.removesuffix('.')}; leave it out, or run without --strict.")
                if row.error and summary.failed <= _NAMED:
                    reporter.say(f"warning: {row.error}")
                for write in writers:
                    write(row)
                if pictures is not None and image is not None:
                    pictures.add(row, image, frame)
            advance()
        if summary.failed == summary.rows:
            raise InputError(f"none of {summary.rows} files can be scored; the first: {summary.first_error}")
        made = _made(request, threshold, faces, summary) if out is not None or pictures is not None else {}
        if pictures is not None:
            pictures.finish(made)
        if out is not None:
            writer.close()
            atomic_text(out.with_name(f"{out.name}.{provenance.FILE}"), json.dumps(made, indent=2) + "\n")
    return summary


def _check(request: PredictRequest) -> None:
    for name in ("frames", "batch_size"):
        if getattr(request, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(request, name)} is not positive.")
    if request.workers < 0:
        raise InputError(f"--workers {request.workers} is negative; 0 decodes without workers.")
    if request.faces not in FACE_MODES:
        raise InputError(f"--faces {request.faces!r} is unknown; choose {', '.join(FACE_MODES)}.")
    if not request.paths:
        raise InputError("give images, videos, folders, patterns or lists to score.")


def _faces(request: PredictRequest, ready: Ready) -> tuple[Faces | None, list[str]]:
    """How faces are cropped, and what is to be said of it."""
    expected = expected_framing(ready.provenance)
    if request.faces == "never":
        return None, []
    if request.faces == "auto" and expected is None:
        return None, [
            f"whole images are scored: {request.model} does not say that it was trained on face crops "
            "(--faces always crops all the same)"
        ]
    require_dlib()
    framing = expected or Framing()
    what = "every image" if request.faces == "always" else "images that are no crops yet"
    said = f"the largest face of {what} is cropped to {framing.size} pixels with the margin {framing.margin:g}"
    return Faces(framing, spare_crops=request.faces == "auto"), [said]


def _fallbacks(found: Described, faces: Faces | None) -> list[str]:
    """What is to be said of images whose face nothing but their place in a crop tells."""
    if found.prepare is None or found.prepare.foreground != "face":
        return []
    if faces is None:
        return ["the ellipse of an aligned crop stands for the face of every image"]
    # Faces that are cropped here come with their landmarks.
    return ["the ellipse of an aligned crop stands for the face of crops"] if faces.spare_crops else []


def _scorer(ready: Ready, mesh: Mesh) -> Callable[[Inputs], jax.Array]:
    """Fake-minus-real logits of a batch, over all local devices; returns before they are computed."""
    scores, params = forward(ready), replicate(mesh, ready.params)
    return lambda inputs: scores(params, shard_batch(mesh, inputs))[0]


def in_batches(
    stream: Iterable[Taken], score: Callable[[Inputs], Any], size: int
) -> Iterator[tuple[Taken, Float[np.ndarray, " k"]]]:
    """Score the images of items in batches of one size, whatever the number of images of each; order is kept.

    One batch is computed while the next is decoded. The last is filled up with black. Items without images take their
    place among the others, and make a batch be scored early when they pile up.

    Args:
        stream: decoded items.
        score: logits ``[size]`` of images ``[size, …]``, or of a tuple of them and what else the model takes.
        size: of a batch.

    Yields:
        Item, and the logits of its images, float64.

    Raises:
        InputError: a logit is NaN or infinite.
    """
    waiting: deque[Taken] = deque()
    images: list[Inputs] = []
    running: deque[tuple[Any, int]] = deque()
    known: deque[float] = deque()

    def filled(*rows: np.ndarray) -> np.ndarray:
        batch = np.zeros((size, *rows[0].shape), rows[0].dtype)
        batch[: len(rows)] = rows
        return batch

    def start() -> None:
        running.append((score(jax.tree.map(filled, *images)), len(images)))
        images.clear()

    def collect(left: int) -> None:
        while len(running) > left:
            result, count = running.popleft()
            logits = np.asarray(result)[:count].astype(np.float64)
            if not np.isfinite(logits).all():
                raise InputError("scores are NaN or infinite; the model is broken.")
            known.extend(logits)

    def ready() -> Iterator[tuple[Taken, np.ndarray]]:
        while waiting and len(known) >= len(waiting[0].images):
            taken = waiting.popleft()
            yield taken, np.array([known.popleft() for _ in taken.images], np.float64)

    for taken in stream:
        waiting.append(taken)
        for place in range(len(taken.images)):
            images.append(taken.of(place))
            if len(images) == size:
                start()
                collect(1)
        if len(waiting) > _PATIENCE * size:
            if images:
                start()
            collect(0)
        yield from ready()
    if images:
        start()
    collect(0)
    yield from ready()


def _made(request: PredictRequest, threshold: float, faces: Faces | None, summary: Summary) -> dict[str, Any]:
    settings = asdict(request) | {"model": str(request.model), "paths": list(request.paths), "threshold": threshold}
    return provenance.record(
        "predictions",
        inputs=provenance.input_hashes(safetensors_files(request.model)),
        recipe=settings,
        face_crops=asdict(faces.framing) if faces else None,
        counts={name: value for name, value in asdict(summary).items() if isinstance(value, int)},
        says=summary.sentences,
        devices=[str(device) for device in jax.local_devices()],
    )
