"""Pictures of what speaks for fake and for real, one per row of a prediction."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from r2m_jax.atomic import atomic_directory
from r2m_jax.checkpoints import provenance
from r2m_jax.data.device import normalise
from r2m_jax.evaluation.explain import draw, explainer
from r2m_jax.jobs.predict.rows import Row
from r2m_jax.models import Detector, TowerOptions, apply_detector

TABLE = "explanations.csv"
_COLUMNS = ("file", "path", "frame", "logit", "baseline_logit", "map_sum", "gap", "steps")


class Explanations:
    """A directory that fills with ``<number>_<name>.png`` and a line of numbers for each in ``explanations.csv``.

    Computes in float32 whatever the model is stored in: the map must add up.
    """

    def __init__(self, folder: Path, detector: Detector):
        self._folder, self._table = folder, (folder / TABLE).open("w", encoding="utf-8", newline="")
        self._rows = csv.writer(self._table, lineterminator="\n")
        self._rows.writerow(_COLUMNS)
        self._count = 0
        processor = detector.processor
        self._mean, self._std = processor.image_mean, processor.image_std
        self._params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), detector.params)
        # Recomputing activations lets several points of the way fit where one did, at a third more work.
        logits = apply_detector(detector.config, TowerOptions(remat="full"))
        self._explain = explainer(logits, detector.config.patch_size)

    def add(self, row: Row, image: UInt8[np.ndarray, "size size 3"], frame: int) -> None:
        """Explain an image that was scored.

        Args:
            row: what was said of it; a film's row is explained by one of its frames.
            image: as the model saw it.
            frame: its number, -1 for images.
        """
        pixels = np.asarray(normalise(jnp.asarray(image)[None], self._mean, self._std))[0]
        found = self._explain(self._params, pixels, np.zeros_like(pixels))  # zeros: the colour `mean`
        self._count += 1
        path = Path(row.path)
        name = f"{self._count:06d}_{path.stem}{f'_{frame}' if frame >= 0 else ''}.png"
        title = f"{path.name}{f', frame {frame}' if frame >= 0 else ''}: p(fake) = {row.probability:.3f}"
        (self._folder / name).write_bytes(draw(image, found, title))
        numbers = (found.logit, found.baseline, float(found.patches.sum()), found.gap)
        self._rows.writerow(
            (name, row.path, frame if frame >= 0 else "", *(f"{n:.6g}" for n in numbers), found.steps)
        )  # fmt: skip

    def finish(self, made: Mapping[str, Any]) -> None:
        """Say what made the pictures; the last thing to be written."""
        (self._folder / provenance.FILE).write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")

    def close(self) -> None:
        """Close the table."""
        self._table.close()


@contextmanager
def explanations(target: Path, detector: Detector, *, overwrite: bool) -> Iterator[Explanations]:
    """Explanations that become ``target`` when the block ends without an exception.

    Raises:
        InputError: the place is taken or cannot be written.
    """
    with atomic_directory(target, overwrite) as aside:
        pictures = Explanations(aside, detector)
        try:
            yield pictures
        finally:
            pictures.close()
