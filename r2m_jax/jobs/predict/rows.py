"""What a prediction says of a file, a film or a frame, and the forms it is written in: CSV, JSON, JSON Lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, cast, get_args

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from r2m_jax.errors import InputError
from r2m_jax.jobs.predict.media import Taken

COLUMNS = ("path", "frame", "frames", "probability", "logit", "prediction", "threshold", "error")

Form = Literal["csv", "tsv", "json", "jsonl"]


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        path: the file.
        threshold: a probability strictly above it is called fake.
        frame: number of the frame, None for images and whole films.
        frames: how many frames a film's probability is the mean of, None elsewhere.
        probability: of fake, None where there is none.
        logit: log(p / (1 - p)) of the probability p, finite where p rounds to 1.
        error: why there is no probability.
    """

    path: str
    threshold: float
    frame: int | None = None
    frames: int | None = None
    probability: float | None = None
    logit: float | None = None
    error: str = ""

    @property
    def prediction(self) -> str | None:
        """``real`` or ``fake``."""
        return None if self.probability is None else "fake" if self.probability > self.threshold else "real"

    def values(self) -> dict[str, Any]:
        """By column; probability and logit with nine digits, which tell any two float32 logits apart."""
        return {
            "path": self.path,
            "frame": self.frame,
            "frames": self.frames,
            "probability": None if self.probability is None else float(f"{self.probability:.9g}"),
            "logit": None if self.logit is None else float(f"{self.logit:.9g}"),
            "prediction": self.prediction,
            "threshold": self.threshold,
            "error": self.error or None,
        }


@dataclass
class MeanProbability:
    """The mean of probabilities as it grows, kept in logarithms: means next to 0 and 1 have exact logits too.

    Attributes:
        count: of probabilities so far.
    """

    count: int = 0
    _fake: float = field(default=-np.inf)  # log of the sum of probabilities of fake, and of real
    _real: float = field(default=-np.inf)

    def add(self, logits: Float[np.ndarray, " k"]) -> None:
        """Take in frames by their logits."""
        self.count += len(logits)
        if len(logits):
            self._fake = float(np.logaddexp(self._fake, np.logaddexp.reduce(-np.logaddexp(0.0, -logits))))
            self._real = float(np.logaddexp(self._real, np.logaddexp.reduce(-np.logaddexp(0.0, logits))))

    @property
    def logit(self) -> float:
        """Of the mean; NaN before anything was taken in."""
        return self._fake - self._real


@dataclass
class Summary:
    """What came out.

    Attributes:
        rows: all, those with an error included.
        failed: rows with an error.
        fake: rows above the threshold.
        images: images and frames scored.
        several: of them, those with more than one face.
        faceless: frames without a face, of films that have others.
        first_error: of the first file that cannot be scored.
        sentences: on the threshold and the faces.
    """

    rows: int = 0
    failed: int = 0
    fake: int = 0
    images: int = 0
    several: int = 0
    faceless: int = 0
    first_error: str = ""
    sentences: list[str] = field(default_factory=list)

    def count(self, row: Row) -> None:
        """Take in a row."""
        self.rows += 1
        self.failed += bool(row.error)
        self.fake += row.prediction == "fake"
        self.first_error = self.first_error or row.error


Scored: TypeAlias = tuple[Row, Any, int]
"""A row, what the model took of the image to explain it by (None with an error), its frame's number (-1: an image)."""


class Rows:
    """Rows of scored items: of images and frames at once, of films when their last part is there.

    Args:
        threshold: of every row.
        per_frame: a row for every frame of a film.
        summary: told of images and faces.
    """

    def __init__(self, threshold: float, per_frame: bool, summary: Summary):
        self._threshold, self._per_frame, self._summary = threshold, per_frame, summary
        self._film = _Film()

    def __call__(self, taken: Taken, logits: Float[np.ndarray, " k"]) -> Iterator[Scored]:
        """The rows that are complete with this item."""
        item = taken.item
        self._summary.images += len(logits)
        self._summary.several += taken.several
        if item.is_video and not self._per_frame:
            self._film.add(taken, logits)
            if item.part == item.parts - 1:
                yield self._whole(item.path)
                self._film = _Film()
            return
        for number in sorted({*taken.frames, *taken.faceless}):
            frame = number if number >= 0 else None
            if number in taken.faceless:
                where = item.path if frame is None else f"{item.path}, frame {frame}"
                yield Row(item.path, self._threshold, frame, error=f"{where}: no face was found."), None, number
                continue
            at = taken.frames.index(number)
            logit = float(logits[at])
            yield Row(item.path, self._threshold, frame, None, float(expit(logit)), logit), taken.of(at), number
        if taken.error:
            yield Row(item.path, self._threshold, item.frame if item.frame >= 0 else None, error=taken.error), None, -1

    def _whole(self, path: str) -> Scored:
        film = self._film
        if film.error or not film.mean.count:
            reason = film.error or f"{path}: no face was found in any of {film.faceless} frames."
            return Row(path, self._threshold, error=reason), None, -1
        self._summary.faceless += film.faceless
        mean = film.mean
        row = Row(path, self._threshold, None, mean.count, float(expit(mean.logit)), mean.logit)
        return row, film.image, film.frame


@dataclass
class _Film:
    """What is known of a film so far; the image is that of the frame most like a fake."""

    mean: MeanProbability = field(default_factory=MeanProbability)
    faceless: int = 0
    error: str = ""
    image: Any = None
    frame: int = -1
    highest: float = -np.inf

    def add(self, taken: Taken, logits: Float[np.ndarray, " k"]) -> None:
        """Take in a part of the film."""
        self.mean.add(logits)
        self.faceless += len(taken.faceless)
        self.error = self.error or taken.error
        if len(logits) and logits.max() > self.highest:
            at = int(logits.argmax())
            self.highest, self.image, self.frame = float(logits[at]), taken.of(at), taken.frames[at]


class Text(Protocol):
    """Anything that text is written to."""

    def write(self, text: str, /) -> object:
        """Add to it."""


class RowWriter:
    """Rows one by one as text; call ``close`` after the last.

    Args:
        file: written to as rows come.
        form: of the rows; ``json`` is one list.
    """

    def __init__(self, file: Text, form: Form):
        self._file, self._form, self._count = file, form, 0
        if form in ("csv", "tsv"):
            self._table = csv.writer(file, "excel-tab" if form == "tsv" else "excel", lineterminator="\n")
            self._table.writerow(COLUMNS)

    def write(self, row: Row) -> None:
        """Add a row."""
        values = row.values()
        if self._form in ("csv", "tsv"):
            self._table.writerow(["" if value is None else value for value in values.values()])
        else:
            lead = "" if self._form == "jsonl" else ",\n" if self._count else "[\n"
            end = "\n" if self._form == "jsonl" else ""
            self._file.write(lead + json.dumps(values, ensure_ascii=False, allow_nan=False) + end)
        self._count += 1

    def close(self) -> None:
        """Write what comes after the last row."""
        if self._form == "json":
            self._file.write("\n]\n" if self._count else "[]\n")


def form_of(path: Path, forms: Sequence[str] = get_args(Form)) -> Form:
    """The form that a file's name asks for.

    Raises:
        InputError: none is known by that suffix.
    """
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in forms:
        raise InputError(f"--out {path} does not say a format; end its name in .{', .'.join(forms)}.")
    return cast(Form, suffix)
