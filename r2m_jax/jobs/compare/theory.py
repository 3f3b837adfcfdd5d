"""What the theory of R²M says, measured on images: R1, R3 and Proposition 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from r2m_jax.data.device import normalise
from r2m_jax.data.index import index_file, read_index
from r2m_jax.data.pipeline import Decoding, decode_all
from r2m_jax.data.records import Record, select
from r2m_jax.data.selection import evenly
from r2m_jax.errors import InputError
from r2m_jax.merging.theory import (
    Expansion,
    Proposition,
    Remainder,
    Tail,
    common_axis,
    expansion,
    kappa_weights,
    off_axis,
    off_axis_bound,
    proposition_1,
    remainder_order,
    response_norm,
    separation,
)
from r2m_jax.models import Detector, Params, apply_tower
from r2m_jax.parallel import available_cores
from r2m_jax.progress import Reporter
from r2m_jax.recipes.comparing import ComparingData

_STEPS = 5
"""Of the power iteration for ‖H‖: the leading direction stands out, and each costs six passes over all images."""


@dataclass(frozen=True)
class Images:
    """Images of an index, and which of them make up each specialist's task.

    Attributes:
        pixels: [n, h, w, 3].
        labels: 0 real, 1 fake.
        tasks: name of a specialist to its images, real ones included.
        notes: what was left out, a sentence each.
    """

    pixels: UInt8[np.ndarray, "n h w 3"]
    labels: Int[np.ndarray, " n"]
    tasks: dict[str, Bool[np.ndarray, " n"]]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Merged:
    """A merge θ₀ + core + η residual, to be measured.

    Attributes:
        params: of the tower.
        core: coefficients of its core on the task vectors; None if it has none.
        eta: scale of its residual.
    """

    params: Params
    core: Float[np.ndarray, " n"] | None = None
    eta: float = 0.0


@dataclass(frozen=True)
class OffAxis:
    """R3 of one merge.

    Attributes:
        kappa: in weight space, about the core.
        bound: ε' of A.20 on all images, times the C of the truncation.
        all_images: ε' measured, all images being one task.
        tasks: ε' measured on each specialist's task.
    """

    kappa: float
    bound: float
    all_images: float
    tasks: dict[str, float]


@dataclass(frozen=True)
class OnImages:
    """What was measured; models are specialists and merges by name.

    Attributes:
        counts: (real, fake) images of every task.
        remainders: R1 image by image, of every model.
        orders: the power of the step that the remainder grows with, from one batch.
        separations: R1 of the separation vector of every task, of every model.
        response_norm: ‖H‖ over all images.
        off_axis: R3 of the merges with a core.
        propositions: Proposition 1 on every merge; empty without tasks.
        notes: what was left out, a sentence each.
    """

    counts: dict[str, tuple[int, int]]
    remainders: dict[str, Remainder]
    orders: dict[str, float]
    separations: dict[str, dict[str, Remainder]]
    response_norm: float
    off_axis: dict[str, OffAxis]
    propositions: dict[str, Proposition]
    notes: tuple[str, ...]


def read_images(data: ComparingData, size: int, made: Mapping[str, Mapping[str, Any]], reporter: Reporter) -> Images:
    """Choose and decode as many real images as of each family.

    Args:
        data: which.
        size: of the models' input.
        made: provenance of the specialists by name: a task is real images and those of the families that a specialist
            was trained on, or, where that is not recorded, of the family it is called after.
        reporter: told of the progress.

    Raises:
        InputError: the split has not both classes, or an image cannot be read.
    """
    records = select(read_index(index_file(data.index)), split=data.split)
    real = [record for record in records if record.label == 0]
    fake = [record for record in records if record.label == 1]
    if not real or not fake:
        raise InputError(
            f"{data.index} has {len(real)} real and {len(fake)} fake images of split {data.split!r}; both are needed, "
            "so choose another split."
        )
    present = sorted({record.family for record in fake})
    families = {name: _families(name, each, present) for name, each in made.items()}
    notes = [
        f"{name} has no task: neither its r2m.json nor its name says which of the families {', '.join(present)} it "
        "is for."
        for name, found in families.items()
        if not found
    ]
    groups = [real, *([record for record in fake if record.family == family] for family in present)]
    each = None if data.limit is None else max(1, data.limit // len(groups))
    chosen = [record for group in groups for record in evenly(group, each)]
    own = np.array([record.family if record.label else "" for record in chosen])
    labels = np.array([record.label for record in chosen])
    tasks = {name: (labels == 0) | np.isin(own, found) for name, found in families.items() if found}
    return Images(_decoded(chosen, size, reporter), labels, tasks, tuple(notes))


def _families(name: str, made: Mapping[str, Any], present: Sequence[str]) -> list[str]:
    recorded = made.get("recipe", {}).get("data", {}).get("families")
    if recorded is not None:
        return [family for family in present if not recorded or family in recorded]
    return [family for family in present if family.lower() == name.lower()]


def _decoded(records: Sequence[Record], size: int, reporter: Reporter) -> UInt8[np.ndarray, "n h w 3"]:
    pixels = np.empty((len(records), size, size, 3), np.uint8)
    with reporter.track(f"decode at {size} px", len(records)) as advance:
        decode_all(records, Decoding(size, available_cores()), pixels, on_progress=advance)
    return pixels


def measure(
    base: Detector,
    specialists: Mapping[str, Detector],
    merged: Mapping[str, Merged],
    images: Images,
    *,
    gram: Float[np.ndarray, "n n"],
    tail: Tail,
    batch_size: int,
    reporter: Reporter,
) -> OnImages:
    """R1, R3 and Proposition 1 of specialists and merges, from one pass over the images for each.

    Args:
        base: the origin, with the preparation of images.
        specialists: by name; their heads are those of Proposition 1.
        merged: by name.
        images: of the tasks.
        gram: ⟨τᵢ, τⱼ⟩ of the specialists in their order.
        tail: what truncation discards of their residuals.
        batch_size: images at a time.
        reporter: told of the progress.
    """
    tower = apply_tower(base.config, base.options)
    mean, std = (getattr(next(iter(specialists.values())).processor, key) for key in ("image_mean", "image_std"))

    def features(params: Params, batch: UInt8[Array, "b h w 3"]) -> Array:
        return tower(params, normalise(batch, mean, std)).pooled

    theta0 = base.params["backbone"]
    models = {name: each.params["backbone"] for name, each in specialists.items()}
    models |= {name: each.params for name, each in merged.items()}
    cuts = range(batch_size, len(images.labels), batch_size)
    batches, labels = np.split(images.pixels, cuts), np.split(images.labels, cuts)
    with reporter.track("features and their derivatives", len(models) * len(images.labels)) as advance:
        expanded = {
            name: expansion(features, theta0, params, batches, advance=advance) for name, params in models.items()
        }
    reporter.say("the response's norm, and the order of the remainders")
    norm = response_norm(features, theta0, batches, labels, steps=_STEPS)
    orders = {
        name: remainder_order(features, theta0, params, batches[:1], (1.0, 0.5)) for name, params in models.items()
    }
    tasks = images.tasks
    return OnImages(
        counts={
            name: (int((images.labels[mask] == 0).sum()), int((images.labels[mask] == 1).sum()))
            for name, mask in tasks.items()
        },
        remainders={name: each.of_images() for name, each in expanded.items()},
        orders=orders,
        separations={
            task: {name: each.where(mask).of_separation(images.labels[mask]) for name, each in expanded.items()}
            for task, mask in tasks.items()
        },
        response_norm=norm,
        off_axis={
            name: _off_axis(name, each, expanded, list(specialists), images, gram, tail, norm)
            for name, each in merged.items()
            if each.core is not None
        },
        propositions=_propositions(specialists, merged, expanded, images),
        notes=images.notes,
    )


def _off_axis(
    name: str,
    merge: Merged,
    expanded: Mapping[str, Expansion],
    specialists: Sequence[str],
    images: Images,
    gram: Float[np.ndarray, "n n"],
    tail: Tail,
    norm: float,
) -> OffAxis:
    """J is linear: J core = Σ cᵢ J τᵢ, and what is left of J(θ* - θ₀) is J(η residual)."""
    assert merge.core is not None
    core = sum(c * expanded[each].linear for c, each in zip(merge.core, specialists, strict=True))
    residual = expanded[name].linear - core
    everything = np.ones(len(images.labels), np.bool_)
    responses = {
        task: (separation(residual[mask], images.labels[mask]), separation(core[mask], images.labels[mask]))
        for task, mask in {**images.tasks, "": everything}.items()
    }
    whole, whole_core = responses.pop("")
    axis = common_axis(np.stack([own for _, own in responses.values()] or [whole_core]))
    kappa = kappa_weights(gram, merge.core)
    length = float(np.linalg.norm(whole_core))
    bound = off_axis_bound(kappa, tail.tail_energy, merge.eta, norm, tail.mean_norm, length)
    return OffAxis(
        kappa=kappa,
        bound=tail.constant * bound,
        all_images=off_axis(whole, whole_core, axis),
        tasks={task: off_axis(rest, own, axis) for task, (rest, own) in responses.items()},
    )


def _propositions(
    specialists: Mapping[str, Detector],
    merged: Mapping[str, Merged],
    expanded: Mapping[str, Expansion],
    images: Images,
) -> dict[str, Proposition]:
    if not images.tasks:
        return {}
    heads = [jax.device_get(specialists[task].params["head"]) for task in images.tasks]
    masks = list(images.tasks.values())
    labels = [images.labels[mask] for mask in masks]
    found = {}
    for name in merged:
        features = expanded[name].base + expanded[name].change
        found[name] = proposition_1([features[mask] for mask in masks], labels, heads)
    return found
