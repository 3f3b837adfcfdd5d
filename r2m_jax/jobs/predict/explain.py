"""Pictures of what a model's scores come from, one per row of a prediction."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r2m_jax.atomic import atomic_directory
from r2m_jax.checkpoints import provenance
from r2m_jax.data.device import normalise
from r2m_jax.errors import InputError
from r2m_jax.evaluation.explain import draw, explainer
from r2m_jax.evaluation.refinement import draw_masks, kept_shares
from r2m_jax.jobs.kinds import Described, Inputs, Ready, describe
from r2m_jax.jobs.predict.rows import Row
from r2m_jax.models import TowerOptions
from r2m_jax.models.corit import CoritDetector, corit_outputs

TABLE = "explanations.csv"
_COLUMNS = ("file", "path", "frame")


class Method(NamedTuple):
    """How a kind of model is explained.

    Attributes:
        columns: of the table, after those of the picture.
        explain: of what the model took of an image and a title, PNG bytes and the lines of the table.
    """

    columns: Sequence[str]
    explain: Callable[[Inputs, str], tuple[bytes, Sequence[Sequence[Any]]]]


def relevance(found: Described, ready: Ready) -> Method:
    """Integrated gradients: patches that speak for fake and for real (:mod:`r2m_jax.evaluation.explain`).

    Computes in float32 whatever the model is stored in: the map must add up.
    """
    # Recomputing activations lets several points of the way fit where one did, at a third more work.
    exact = describe(ready.detector, TowerOptions(remat="full")).load()
    attribute, params, processor = explainer(exact.logits, found.patch), _float32(ready), ready.processor

    def explain(image: Inputs, title: str) -> tuple[bytes, Sequence[Sequence[Any]]]:
        pixels = np.asarray(normalise(jnp.asarray(image)[None], processor.image_mean, processor.image_std))[0]
        seen = attribute(params, pixels, np.zeros_like(pixels))  # zeros: the colour `mean`
        numbers = (seen.logit, seen.baseline, float(seen.patches.sum()), seen.gap)
        return draw(image, seen, title), [(*(f"{n:.6g}" for n in numbers), seen.steps)]

    return Method(("logit", "baseline_logit", "map_sum", "gap", "steps"), explain)


def masks(ready: Ready) -> Method:
    """Region Refinement Masks: patches each region keeps in every layer (:mod:`r2m_jax.evaluation.refinement`).

    Raises:
        InputError: the detector has no region tokens, hence no masks.
    """
    detector = ready.detector
    settings, processor, params = detector.settings, ready.processor, _float32(ready)
    if not settings.region_tokens:
        raise InputError("--explain draws the masks of a CoRIT model's regions, and this one has none (rsi is off).")
    outputs = jax.jit(corit_outputs(detector.config, settings))

    def explain(inputs: Inputs, title: str) -> tuple[bytes, Sequence[Sequence[Any]]]:
        streams, foreground = inputs
        images = normalise(jnp.asarray(streams)[None], processor.image_mean, processor.image_std)
        out = outputs(params["backbone"], images, jnp.asarray(foreground)[None])
        both = np.asarray(ready.head(params, out.features))[0]
        regions, kept, empty = np.asarray(out.regions)[0], np.asarray(out.masks)[:, 0], np.asarray(out.empty)[:, 0]
        shares = kept_shares(regions, kept)
        lines = [
            (f"{both[1] - both[0]:.6g}", layer + 1, name, int(regions[k].sum()), int(kept[layer, k].sum()),
             f"{shares[layer, k]:.4g}", int(empty[layer, k]))
            for layer in range(len(kept)) for k, name in enumerate(settings.regions)
        ]  # fmt: skip
        return draw_masks(streams, regions, kept, empty, settings.regions, title), lines

    return Method(("logit", "layer", "region", "patches", "kept", "share", "whole_region"), explain)


def _float32(ready: Ready) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), ready.params)


class Explanations:
    """A directory that fills with ``<number>_<name>.png`` and lines of numbers for each in ``explanations.csv``."""

    def __init__(self, folder: Path, method: Method):
        self._folder, self._table = folder, (folder / TABLE).open("w", encoding="utf-8", newline="")
        self._rows = csv.writer(self._table, lineterminator="\n")
        self._rows.writerow((*_COLUMNS, *method.columns))
        self._explain = method.explain
        self._count = 0

    def add(self, row: Row, inputs: Inputs, frame: int) -> None:
        """Explain an image that was scored.

        Args:
            row: what was said of it; a film's row is explained by one of its frames.
            inputs: as the model took it.
            frame: its number, -1 for images.
        """
        self._count += 1
        path = Path(row.path)
        name = f"{self._count:06d}_{path.stem}{f'_{frame}' if frame >= 0 else ''}.png"
        title = f"{path.name}{f', frame {frame}' if frame >= 0 else ''}: p(fake) = {row.probability:.3f}"
        picture, lines = self._explain(inputs, title)
        (self._folder / name).write_bytes(picture)
        for line in lines:
            self._rows.writerow((name, row.path, frame if frame >= 0 else "", *line))

    def finish(self, made: Mapping[str, Any]) -> None:
        """Say what made the pictures; the last thing to be written."""
        (self._folder / provenance.FILE).write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")

    def close(self) -> None:
        """Close the table."""
        self._table.close()


@contextmanager
def explanations(target: Path, found: Described, ready: Ready, *, overwrite: bool) -> Iterator[Explanations]:
    """Explanations that become ``target`` when the block ends without an exception.

    Raises:
        InputError: the place is taken or cannot be written, or the model has nothing that could be drawn.
    """
    method = masks(ready) if isinstance(ready.detector, CoritDetector) else relevance(found, ready)
    with atomic_directory(target, overwrite) as aside:
        pictures = Explanations(aside, method)
        try:
            yield pictures
        finally:
            pictures.close()
