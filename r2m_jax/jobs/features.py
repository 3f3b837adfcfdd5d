"""Features of a frozen tower, computed once per (tower, images, preprocessing) and kept."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32

from r2m_jax.atomic import atomic_file
from r2m_jax.data.device import normalise
from r2m_jax.data.pipeline import Decoding, RecordSource, evaluation_batches
from r2m_jax.data.records import Record
from r2m_jax.errors import InputError
from r2m_jax.jobs.corit import encoder, given
from r2m_jax.models import Params, apply_tower
from r2m_jax.models.clip_vision import TowerOptions
from r2m_jax.models.corit import CoritSettings
from r2m_jax.parallel import gather_rows, is_first, own_rows, replicate, shard_batch
from r2m_jax.progress import Reporter


def default_cache() -> Path:
    """``$XDG_CACHE_HOME/r2m-jax/features``, by default under ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "r2m-jax" / "features"


def features_of(
    records: Sequence[Record],
    backbone: Params,
    config: object,
    *,
    options: TowerOptions,
    mean: Sequence[float],
    std: Sequence[float],
    decoding: Decoding,
    batch_size: int,
    mesh: Mesh,
    weights: str,
    cache: Path,
    reporter: Reporter,
    what: str,
    corit: CoritSettings | None = None,
) -> Float32[np.ndarray, "n d"]:
    """Pooled output, or CoRIT's z, of every image, from the cache where it is there.

    Args:
        records: of images and video frames.
        backbone, config, options: the tower.
        mean, std: normalisation.
        decoding: size of the input, workers; unreadable images are an error.
        batch_size: rows at a time over all devices.
        mesh: devices.
        weights: hash of the tower's weights.
        cache: folder of the stored features.
        reporter: told of the progress.
        what: is computed, for the progress.
        corit: compute z under these switches, of what ``decoding.prepare`` makes for them.

    Raises:
        InputError: an image cannot be read, or a feature is NaN or infinite.
    """
    files: list[Any] = [(r.path, r.frame, _stamp(r.path)) for r in records]
    if corit is not None:
        files = [repr(corit), [_stamp(r.landmarks) for r in records if r.landmarks], *files]
    settings = [weights, decoding.size, decoding.exact, list(mean), list(std), str(options), files]
    name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]
    stored = cache / f"{name}.npy"
    if stored.exists():
        reporter.say(f"features of {what}: {len(records)} from {stored}")
        return np.load(stored)
    seen: Callable[[Any], Any]
    if corit is None:
        tower, seen = apply_tower(config, options), itemgetter("image")
        encode = jax.jit(lambda params, images: tower(params, normalise(images, mean, std)).pooled)
    else:
        encode, seen = jax.jit(encoder(config, corit, options, mean, std)), given
    placed = replicate(mesh, backbone)
    shard = (jax.process_index(), jax.process_count())
    parts, places = [], []
    batches = evaluation_batches(RecordSource(records), batch_size=batch_size, shard=shard, decoding=decoding)
    with batches, reporter.track(f"features of {what}", len(records)) as advance:
        for batch in batches:
            parts.append(own_rows(encode(placed, shard_batch(mesh, seen(batch)))))
            places.append(np.where(batch["valid"], batch["index"], -1))
            advance(min(batch_size, len(records) - (len(parts) - 1) * batch_size))
    rows, order = gather_rows((np.concatenate(parts), np.concatenate(places)))
    features = np.empty((len(records), rows.shape[1]), np.float32)
    features[order[order >= 0]] = rows[order >= 0]
    if not np.isfinite(features).all():
        raise InputError("features are NaN or infinite; the tower is broken, or bfloat16 too coarse for it.")
    if is_first():
        cache.mkdir(parents=True, exist_ok=True)
        with atomic_file(stored) as aside, aside.open("wb") as file:
            np.save(file, features)
    return features


def _stamp(path: str) -> tuple[int, int]:
    """Size and time of change: another image under the same name is not taken for the old one."""
    try:
        facts = Path(path).stat()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from None
    return facts.st_size, facts.st_mtime_ns
