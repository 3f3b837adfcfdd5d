"""Class tokens of every layer of a frozen tower, each image decoded and encoded once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from r2m_jax.checkpoints import load_detector
from r2m_jax.data.device import normalise
from r2m_jax.data.index import index_file, read_index
from r2m_jax.data.pipeline import Decoding, RecordSource, evaluation_batches
from r2m_jax.data.records import Record, select
from r2m_jax.data.selection import evenly
from r2m_jax.errors import InputError
from r2m_jax.evaluation.collapse import ProbeData
from r2m_jax.jobs.kinds import square_input
from r2m_jax.models import Detector, Params, apply_tower
from r2m_jax.parallel import available_cores, data_mesh, replicate, shard_batch
from r2m_jax.progress import Reporter
from r2m_jax.recipes.collapsing import CollapseData, CollapseRecipe

REAL = ""


@dataclass(frozen=True)
class LayerFeatures:
    """What the probes see.

    Attributes:
        layers: numbers of the blocks.
        values: class token after each of them, [layers, n, d].
        scales: root mean square of each layer's training features before any normalisation.
        families: of every image, empty for real ones.
        test: whether an image is tested on.
        names: families, in order.
        size: of the images in pixels.
    """

    layers: tuple[int, ...]
    values: Float[np.ndarray, "layers n d"]
    scales: Float[np.ndarray, " layers"]
    families: Any
    test: Bool[np.ndarray, " n"]
    names: tuple[str, ...]
    size: int

    def data(self, layer: int, family: str, tested_on: Sequence[str] | None = None) -> ProbeData:
        """Real images and those of a family; tested on those of other families where these are named."""
        place = self.layers.index(layer)
        trained = ~self.test & np.isin(self.families, [REAL, family])
        tested = self.test & np.isin(self.families, [REAL, *(tested_on or [family])])
        labels: Int[np.ndarray, " n"] = (self.families != REAL).astype(np.int64)
        return ProbeData(self.values[place][trained], labels[trained], self.values[place][tested], labels[tested])

    def counts(self) -> dict[str, tuple[int, int]]:
        """Images of every family, real ones first, to train and to test on."""
        own = {name or "real": self.families == name for name in (REAL, *self.names)}
        return {name: (int((mask & ~self.test).sum()), int((mask & self.test).sum())) for name, mask in own.items()}


def choose(data: CollapseData) -> tuple[list[Record], list[Record], tuple[str, ...]]:
    """Records to train and to test on, as many of each family as real ones where there are enough, and the families.

    Raises:
        InputError: a split lacks real images or a family, or the limit leaves fewer than four images of each.
    """
    index = index_file(data.index)
    return divide(read_index(index), data, index)


def divide(
    records: Sequence[Record], data: CollapseData, index: Path
) -> tuple[list[Record], list[Record], tuple[str, ...]]:
    """:func:`choose` from records of ``index`` that were read already."""
    known = sorted({record.family for record in records if record.label == 1})
    names = tuple(data.families or known)
    if not names or "" in names:
        raise InputError(f"{index} names no family for some forged images; name those to be probed with --families.")
    strangers = [name for name in names if name not in known]
    if strangers:
        raise InputError(f"{index} has no family {strangers[0]!r}; there are {', '.join(known)}.")
    share = None if data.limit is None else data.limit // (len(names) + 1)
    if share is not None and share < 10:
        raise InputError(f"{data.limit} images leave {share} of each kind; a probe needs 10, so raise the limit.")
    chosen = []
    for split, count in ((data.split, share and share - share * 2 // 5), (data.test_split, share and share * 2 // 5)):
        part = select(records, split=split)
        groups = {name: [r for r in part if (r.family if r.label else REAL) == name] for name in (REAL, *names)}
        for name, group in groups.items():
            if len(group) < 4:
                raise InputError(
                    f"{index} has {len(group)} {name or 'real'} images of the split {split!r}; a probe needs 4 or more."
                )
        least = min(map(len, groups.values())) if count is None else min(count, *map(len, groups.values()))
        chosen.append([record for group in groups.values() for record in evenly(group, least)])
    return chosen[0], chosen[1], names


def layer_features(recipe: CollapseRecipe, reporter: Reporter) -> LayerFeatures:
    """Encode the recipe's images.

    Raises:
        InputError: the model, the index or an image cannot be read, a layer does not exist, the image size is no
            multiple of the patch, or a feature is NaN or infinite.
    """
    train, test, names = choose(recipe.data)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has no head", category=UserWarning)
        detector = load_detector(recipe.model)
    layers = _layers(recipe, detector)
    size = recipe.data.image_size or square_input(detector.processor, str(recipe.model))
    patch = detector.config.patch_size
    if size % patch:
        raise InputError(f"images of {size} pixels do not divide into the tower's patches of {patch}; choose another.")
    records = [*train, *test]
    values = _encode(detector, records, layers, size, recipe, reporter)
    tested = np.arange(len(records)) >= len(train)
    scales = np.sqrt((values[:, ~tested].astype(np.float64) ** 2).mean(axis=(1, 2)))
    if recipe.feature_norm == "unit_rms":
        values = (values / scales[:, None, None]).astype(np.float32)
    families = np.asarray([record.family if record.label else REAL for record in records])
    return LayerFeatures(layers, values, scales, families, tested, names, size)


def _layers(recipe: CollapseRecipe, detector: Detector) -> tuple[int, ...]:
    depth = detector.config.num_hidden_layers
    wanted = tuple(range(1, depth + 1)) if recipe.layers == "all" else tuple(int(layer) for layer in recipe.layers)
    if not wanted or len(set(wanted)) < len(wanted) or not all(1 <= layer <= depth for layer in wanted):
        raise InputError(f"layers {recipe.layers} are not among the tower's blocks 1 to {depth}, each named once.")
    return wanted


def _encode(
    detector: Detector, records: Sequence[Record], layers: tuple[int, ...], size: int, recipe: CollapseRecipe,
    reporter: Reporter,
) -> Float[np.ndarray, "layers n d"]:  # fmt: skip
    tower = apply_tower(detector.config, detector.options)
    mean, std = detector.processor.image_mean, detector.processor.image_std
    after = detector.params["backbone"]["post_norm"] if recipe.feature_norm == "ln_post" else None

    @jax.jit
    def tokens(backbone: Params, images: UInt8[Array, "b h w 3"]) -> Float[Array, "b layers d"]:
        cls = tower(backbone, normalise(images, mean, std), hidden_states=layers).hidden[:, :, 0].astype(jnp.float32)
        if after is not None:
            centred = cls - cls.mean(axis=-1, keepdims=True)
            spread = jnp.sqrt((centred**2).mean(axis=-1, keepdims=True) + detector.config.layer_norm_eps)
            cls = centred / spread * after["scale"] + after["bias"]
        return jnp.moveaxis(cls, 0, 1)

    mesh = data_mesh(jax.local_devices())
    placed = replicate(mesh, detector.params["backbone"])
    batch_size = -(-recipe.batch_size // mesh.devices.size) * mesh.devices.size
    values = np.empty((len(layers), len(records), detector.config.hidden_size), np.float32)
    stream = evaluation_batches(
        RecordSource(records), batch_size=batch_size, decoding=Decoding(size, available_cores(), on_corrupt="error")
    )
    with stream, reporter.track(f"class tokens of {len(layers)} layers at {size} px", len(records)) as advance:
        for batch in stream:
            places = batch["index"][batch["valid"]]
            found = np.asarray(tokens(placed, shard_batch(mesh, batch["image"])))[batch["valid"]]
            values[:, places] = np.moveaxis(found, 0, 1)
            advance(len(places))
    if not np.isfinite(values).all():
        raise InputError(f"the tower of {recipe.model} gives NaN or infinite features; it is broken.")
    return values
