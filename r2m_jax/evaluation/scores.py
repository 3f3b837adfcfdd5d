"""The score table: one row per image and model."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float

from r2m_jax.atomic import atomic_text
from r2m_jax.data.records import Record
from r2m_jax.errors import InputError

COLUMNS = ("path", "label", "method", "family", "domain", "video", "model", "probability", "logit")


@dataclass
class ScoreTable:
    """Scores of several models on the same images.

    Attributes:
        records: the images, in the order scored.
        logits: per model the fake-minus-real logit of every image, float [n].
    """

    records: Sequence[Record]
    logits: dict[str, Float[np.ndarray, n]] = field(default_factory=dict)

    def add(self, model: str, logits: Float[np.ndarray, n]) -> None:
        """Add a model's scores.

        Raises:
            InputError: the model is there already, or the number of scores is not that of the images.
        """
        if model in self.logits:
            raise InputError(f"the score table already holds a model called {model!r}.")
        if len(logits) != len(self.records):
            raise InputError(f"{model!r} has {len(logits)} scores for {len(self.records)} images.")
        self.logits[model] = logits

    @property
    def labels(self) -> np.ndarray:
        """Label of every image, int [n]."""
        return np.asarray([record.label for record in self.records])

    @property
    def families(self) -> list[str]:
        """Forgery families that occur, in order of first appearance."""
        return list(dict.fromkeys(record.family for record in self.records if record.label == 1))

    def write_csv(self, path: Path, relative_to: Path | None = None) -> None:
        """Write one row per image and model; image paths below ``relative_to`` are stored relative to it."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(COLUMNS)
        for model, logits in self.logits.items():
            for record, logit in zip(self.records, logits.astype(float), strict=True):
                image = Path(record.path)
                if relative_to and image.is_relative_to(relative_to):
                    image = image.relative_to(relative_to)
                probability = np.exp(-np.logaddexp(0.0, -logit))  # sigmoid without overflow
                writer.writerow(
                    (image.as_posix(), record.label, record.method, record.family, record.domain, record.video,
                     model, f"{probability:.9g}", f"{logit:.9g}")
                )  # fmt: skip
        atomic_text(path, buffer.getvalue())
