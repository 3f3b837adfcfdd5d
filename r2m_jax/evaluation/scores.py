"""The score table: one row per image and model, from which every metric can be computed again."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from r2m_jax.atomic import atomic_file
from r2m_jax.data.records import SPLITS, Record
from r2m_jax.errors import InputError

COLUMNS = (
    "path", "label", "method", "family", "domain", "dataset", "video", "frame", "split", "model", "probability",
    "logit",
)  # fmt: skip
CERTAIN = 1000.0
"""Logit that stands for a probability of exactly 1 (and its negative for 0): finite, and its sigmoid is 1 again."""

_IMAGE = COLUMNS[:-3]
_CSV, _PARQUET = ".csv", ".parquet"
_SUFFIXES = f"{_CSV} or {_PARQUET}"


def sigmoid(logits: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Probability of fake in float64, without overflow."""
    from scipy.special import expit

    return expit(np.asarray(logits, np.float64))


@dataclass
class ScoreTable:
    """Scores of several models on the same images.

    Attributes:
        records: the images, in the order scored.
        logits: per model the fake-minus-real logit of every image, float [n].
    """

    records: Sequence[Record]
    logits: dict[str, Float[np.ndarray, " n"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for model, logits in self.logits.items():
            self._check(model, logits)

    def add(self, model: str, logits: Float[np.ndarray, " n"]) -> None:
        """Add a model's scores.

        Raises:
            InputError: the model is there already, the number of scores is not that of the images, or a score is NaN
                or infinite.
        """
        if model in self.logits:
            raise InputError(f"the score table already holds a model called {model!r}.")
        self._check(model, logits)
        self.logits[model] = logits

    @property
    def labels(self) -> Int[np.ndarray, " n"]:
        """Label of every image, int [n]."""
        return np.asarray([record.label for record in self.records], np.int64)

    @property
    def families(self) -> list[str]:
        """Forgery families that occur, in order of first appearance."""
        return list(dict.fromkeys(record.family for record in self.records if record.label >= 1))

    @property
    def models(self) -> list[str]:
        """Names of the models, in the order added."""
        return list(self.logits)

    def probabilities(self, model: str) -> Float[np.ndarray, " n"]:
        """Probability of fake of every image, the sigmoid of the logit, float64 [n].

        Raises:
            InputError: the table holds no such model.
        """
        if model not in self.logits:
            raise InputError(f"the score table holds no model {model!r}, only {', '.join(self.logits) or 'none'}.")
        return sigmoid(self.logits[model])

    def where(self, mask: Bool[np.ndarray, " n"]) -> ScoreTable:
        """The table of the images at which ``mask``, bool [n], is true.

        Raises:
            InputError: the mask has another length.
        """
        if mask.shape != (len(self.records),):
            raise InputError(f"a mask of shape {mask.shape} does not choose among {len(self.records)} images.")
        records = list(itertools.compress(self.records, mask.tolist()))
        return ScoreTable(records, {model: logits[mask] for model, logits in self.logits.items()})

    def write(self, path: Path, relative_to: Path | None = None) -> None:
        """Write one row per image and model, as CSV or Parquet by the file's suffix, whole or not at all.

        The logit is written so that reading gives the very same number back; the CSV's probability has nine digits.

        Args:
            path: ends in ``.csv`` or ``.parquet``.
            relative_to: paths of images below this folder are stored relative to it.

        Raises:
            InputError: another suffix, or the place cannot be written.
        """
        path = Path(path)
        if path.suffix not in (_CSV, _PARQUET):
            raise InputError(f"{path} does not end in {_SUFFIXES}; name the score table so.")
        prefix = f"{Path(relative_to).as_posix()}/" if relative_to else ""
        images = [_columns_of(record, prefix) for record in self.records]
        with atomic_file(path) as aside:
            if path.suffix == _PARQUET:
                self._write_parquet(images, aside)
                return
            with aside.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(COLUMNS)
                for model, logits in self.logits.items():
                    numbers = zip(self.probabilities(model).tolist(), _exactly(logits).tolist(), strict=True)
                    writer.writerows(
                        (*image, model, f"{probability:.9g}", repr(logit))
                        for image, (probability, logit) in zip(images, numbers, strict=True)
                    )

    def _write_parquet(self, images: Sequence[tuple[Any, ...]], path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        types = {"label": pa.int8(), "frame": pa.int32(), "probability": pa.float64(), "logit": pa.float64()}
        schema = pa.schema([(n, types.get(n, pa.string())) for n in COLUMNS], metadata={"r2m_jax": "scores"})
        columns = list(zip(*images, strict=True)) or [()] * len(_IMAGE)
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for model, logits in self.logits.items():
                values = (*columns, [model] * len(images), self.probabilities(model), _exactly(logits))
                arrays = [pa.array(v, kind) for v, kind in zip(values, schema.types, strict=True)]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))

    def _check(self, model: str, logits: Float[np.ndarray, " n"]) -> None:
        if len(logits) != len(self.records):
            raise InputError(f"{model!r} has {len(logits)} scores for {len(self.records)} images.")
        broken = np.flatnonzero(~np.isfinite(logits))
        if len(broken):
            raise InputError(
                f"{len(broken)} of {len(logits)} scores of {model!r} are NaN or infinite, first that of "
                f"{self.records[broken[0]].path}; the model is broken."
            )


def read_scores(path: str | Path) -> ScoreTable:
    """Read a file that :meth:`ScoreTable.write` made, or any CSV or Parquet file of scores.

    Needed are the columns ``path``, ``label`` (0, 1 and more, ``real`` or ``fake``), ``model``, and ``logit`` or
    ``probability`` of fake; the logit counts where both are there. Of a probability p, log p / (1 − p) is kept, and
    ±:data:`CERTAIN` for exactly 1 and 0. Other columns of :class:`Record` are used where present, columns of your
    own are ignored. Rows may come in any order, but every model has to have scored the same images; images that are
    listed several times keep their multiplicity. Paths stay as written.

    Raises:
        InputError: the file cannot be read, lacks a column, is empty, holds an unknown label or split or a score that
            is no number (the message names the row, counted from 1 below the header), or models scored different
            images.
    """
    path = Path(path)
    columns = _read(path)
    missing = [name for name in ("path", "label", "model") if name not in columns]
    if "logit" not in columns and "probability" not in columns:
        missing.append("logit (or probability)")
    if missing:
        raise InputError(f"{path} lacks the column {' and '.join(missing)}; scores need path, label, model and logit.")
    if not columns["path"]:
        raise InputError(f"{path} holds no scores.")
    logits = _logits(columns, path)
    images: dict[Record, int] = {}
    numbers = np.asarray([images.setdefault(record, len(images)) for record in _records(columns, path)])
    rows: dict[str, list[int]] = {}
    for row, model in enumerate(columns["model"]):
        rows.setdefault(model, []).append(row)
    if "" in rows:
        raise InputError(f"{path}, row {rows[''][0] + 1}: the model has no name.")
    names, known = list(rows), list(images)
    first = numbers[rows[names[0]]]
    wanted = np.argsort(first, kind="stable")
    table = ScoreTable([known[number] for number in first])
    for model, own in rows.items():
        held = numbers[own]
        # Stable on both sides: the second listing of an image by one model goes with the second by another.
        order = np.argsort(held, kind="stable")
        if not np.array_equal(held[order], first[wanted]):
            raise InputError(f"{path}: {_difference(first, held, known, names[0], model)}")
        aligned = np.empty(len(own))
        aligned[wanted] = logits[own][order]
        table.add(model, aligned)
    return table


def _columns_of(record: Record, prefix: str) -> tuple[Any, ...]:
    return (
        Path(record.path).as_posix().removeprefix(prefix), record.label, record.method, record.family, record.domain,
        record.dataset, record.video, record.frame, record.split,
    )  # fmt: skip


def _exactly(logits: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return np.asarray(logits, np.float64)


def _read(path: Path) -> dict[str, list[str]]:
    """The known columns of the file, as stripped text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix not in (_CSV, _PARQUET):
        raise InputError(f"{path} does not end in {_SUFFIXES}; a score table does.")
    try:
        if path.suffix == _CSV:
            return _read_csv(path)
        present = pq.read_schema(path).names
        table = pq.read_table(path, columns=[name for name in COLUMNS if name in present])
        return {name: [_text(value) for value in table[name].to_pylist()] for name in table.column_names}
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a UTF-8 text file; a score table is CSV or ends in {_PARQUET}.") from None
    except (OSError, csv.Error, pa.ArrowException) as error:
        why = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise InputError(f"{path} cannot be read ({why}).") from None


def _read_csv(path: Path) -> dict[str, list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        places = {name: header.index(name) for name in COLUMNS if name in header}
        columns: dict[str, list[str]] = {name: [] for name in places}
        for number, row in enumerate(filter(None, rows), start=1):
            if len(row) != len(header):
                raise InputError(f"{path}, row {number}: {len(row)} fields under {len(header)} headings.")
            for name, place in places.items():
                columns[name].append(row[place].strip())
    return columns


def _text(value: Any) -> str:
    # repr of a float reads back as the same number, which is what the scores go through.
    return "" if value is None else repr(value) if isinstance(value, float) else str(value).strip()


def _logits(columns: dict[str, list[str]], path: Path) -> Float[np.ndarray, " n"]:
    name = "logit" if "logit" in columns else "probability"
    values = np.asarray([_number(text) for text in columns[name]])
    wrong = ~np.isfinite(values) if name == "logit" else ~((values >= 0) & (values <= 1))
    if wrong.any():
        row, wanted = int(np.argmax(wrong)), "finite number" if name == "logit" else "number in [0, 1]"
        raise InputError(
            f"{path}, row {row + 1}: the {name} {columns[name][row]!r} of {columns['path'][row]} is not a {wanted}; "
            f"{int(wrong.sum())} of {len(values)} scores are not."
        )
    if name == "logit":
        return values
    from scipy.special import logit

    return np.clip(logit(values), -CERTAIN, CERTAIN)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan


def _records(columns: dict[str, list[str]], path: Path) -> Iterator[Record]:
    names = [name for name in _IMAGE if name in columns]
    for row, values in enumerate(zip(*(columns[name] for name in names), strict=True), start=1):
        found: dict[str, Any] = dict(zip(names, values, strict=True))
        found |= {"label": _label(found["label"]), "frame": _whole(found.get("frame") or "-1")}
        found["split"] = found.get("split") or "test"
        for name, wanted in (("label", "real, fake, 0 or 1"), ("frame", "a whole number")):
            if found[name] is None:
                raise InputError(f"{path}, row {row}: the {name} {columns[name][row - 1]!r} is not {wanted}.")
        if found["split"] not in SPLITS:
            raise InputError(f"{path}, row {row}: the split {found['split']!r} is not one of {', '.join(SPLITS)}.")
        if not found["path"]:
            raise InputError(f"{path}, row {row}: the path is empty.")
        yield Record(**found)


def _label(text: str) -> int | None:
    number = {"real": 0, "fake": 1}.get(text.lower(), _whole(text))
    return None if number is None or number < 0 else min(number, 1)


def _whole(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _difference(
    first: Int[np.ndarray, " n"], other: Int[np.ndarray, " m"], images: Sequence[Record], one: str, two: str
) -> str:
    size = len(images)
    surplus = np.bincount(first, minlength=size) - np.bincount(other, minlength=size)
    image = int(np.flatnonzero(surplus)[0])
    more, less = (one, two) if surplus[image] > 0 else (two, one)
    return (
        f"{less!r} lacks {images[image].path}, which {more!r} scored, and {np.count_nonzero(surplus) - 1} more images "
        "differ; every model has to score the same images (with the same columns about them)."
    )
