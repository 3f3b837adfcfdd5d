"""What the studies of CoRIT share: images, a frozen tower, and its tokens, computed once per setting and kept."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float32, Int
from PIL import Image

from r2m_jax.atomic import atomic_file, link_or_copy
from r2m_jax.checkpoints import load_detector
from r2m_jax.data.device import normalise
from r2m_jax.data.pipeline import Decoding, RecordSource, evaluation_batches
from r2m_jax.data.records import Record
from r2m_jax.errors import InputError
from r2m_jax.evaluation.robustness import Kind
from r2m_jax.jobs.corit import given, pairs_for, without_landmarks
from r2m_jax.jobs.kinds import square_input
from r2m_jax.models import Detector, Params
from r2m_jax.models.corit import CoritSettings, corit_outputs, corit_reading
from r2m_jax.parallel import available_cores, data_mesh, replicate, shard_batch
from r2m_jax.progress import Reporter
from r2m_jax.recipes.corit_studying import CoritStudyRecipe
from r2m_jax.studies.perturbed import perturbed_image

CLEAN: tuple[Kind | None, int] = (None, 0)
PLAIN = CoritSettings(rsi=False, rrm=False, hri=False, cgp="off")
"""A linear probe of the class token, UniFD's."""
TOKENS = "tokens"
ALL, WITHOUT = "all families", "without"
_ROWS = 256
"""Images normalised at a time."""


@dataclass(frozen=True)
class Tower:
    """Weights the tokens are computed with.

    Attributes:
        name: for the progress.
        backbone: parameters.
        key: a hash of them.
    """

    name: str
    backbone: Params
    key: str

    @classmethod
    def of(cls, name: str, backbone: Params) -> Tower:
        """With the hash of every parameter."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(backbone):
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return cls(name, backbone, digest.hexdigest())


@dataclass(frozen=True)
class Perturbed:
    """Images of records under one perturbation, in their own size; what is self-blended is perturbed before."""

    records: Sequence[Record]
    kind: Kind | None
    level: int
    seed: int

    def image(self, index: int, shortest: int | None = None) -> Image.Image:
        """Image ``index`` as RGB."""
        pixels = np.asarray(RecordSource(self.records).image(index))
        return Image.fromarray(perturbed_image(pixels, self.kind, self.level, seed=self.seed, index=index))


class Frozen:
    """Given to every study of CoRIT.

    Args:
        recipe: settings.
        base: the tower, with the processing.
        train, test: records heads are trained and tested on.
        folder: where tokens and models are kept.
        earlier: folder of an earlier run, of which they are taken where everything that decides them is the same.
        reporter: told what happens.

    Attributes:
        records: of both splits, training images first.
        labels, families, tested: of every image; families are empty for real ones.
        names: families, in order.
        trained, taken: names of models that were trained, and of files taken from an earlier run.
        size: of the input in pixels.
    """

    def __init__(
        self,
        recipe: CoritStudyRecipe,
        base: Detector,
        train: Sequence[Record],
        test: Sequence[Record],
        *,
        size: int,
        folder: Path,
        earlier: Path,
        reporter: Reporter,
    ):
        self.recipe, self.base, self.reporter, self.size = recipe, base, reporter, size
        self.records = [*train, *test]
        self.labels: Int[np.ndarray, " n"] = np.asarray([int(r.label > 0) for r in self.records])
        self.families = np.asarray([r.family if r.label else "" for r in self.records])
        self.tested: Bool[np.ndarray, " n"] = np.arange(len(self.records)) >= len(train)
        self.names = tuple(sorted(set(self.families) - {""}))
        self.notes: list[str] = []
        self.trained: list[str] = []
        self.taken: list[str] = []
        self.tower = Tower.of("the base", base.params["backbone"])
        self.folder, self.earlier = folder, earlier
        self._tokens = folder / TOKENS
        self._encoders: dict[tuple[CoritSettings, tuple[int, ...]], Callable[..., Array]] = {}
        self._readings: dict[str, Callable[..., Array]] = {}
        self._stamps = cache(_stamps)  # of the same records again and again

    def on(self, name: str, directory: Path) -> Frozen:
        """The same images for another tower, in the size it takes where the recipe names none.

        Raises:
            InputError: the directory is wrong or damaged, or the size no multiple of its patch.
        """
        base = open_tower(directory)
        size = self.recipe.data.image_size or square_input(base.processor, name)
        if size % base.config.patch_size:
            raise InputError(
                f"images of {size} pixels do not divide into patches of {base.config.patch_size} of {name}."
            )
        other = Frozen(
            self.recipe, base, self.train, self.test, size=size, folder=self.folder, earlier=self.earlier,
            reporter=self.reporter,
        )  # fmt: skip
        other.notes, other.taken = self.notes, self.taken
        other.tower = Tower(name, other.tower.backbone, other.tower.key)
        return other

    @property
    def test(self) -> list[Record]:
        """Records heads are tested on."""
        return [record for record, kept in zip(self.records, self.tested, strict=True) if kept]

    @property
    def train(self) -> list[Record]:
        """Records heads are trained on."""
        return [record for record, kept in zip(self.records, self.tested, strict=True) if not kept]

    @property
    def depth(self) -> int:
        """Blocks of the tower."""
        return int(self.base.config.num_hidden_layers)

    def tokens(
        self,
        settings: CoritSettings,
        layers: Sequence[int],
        *,
        tower: Tower | None = None,
        records: Sequence[Record] | None = None,
        condition: tuple[Kind | None, int] = CLEAN,
    ) -> Float32[np.ndarray, "n layers t d"]:
        """Class token and region tokens after some blocks (from 1), not normalised; mapped into memory from a file.

        A file of more blocks serves as well; what only the head depends on (fusion, norm) changes nothing.

        Args:
            settings: switches.
            layers: blocks.
            tower: the base's when None.
            records: of other images than those of the context.
            condition: perturbation of the images and its level.

        Raises:
            InputError: an image cannot be read, or a token is NaN or infinite.
        """
        tower, chosen = tower or self.tower, list(records if records is not None else self.records)
        kept = _tower_part(settings)
        processing = [list(self.base.processor.image_mean), list(self.base.processor.image_std)]
        facts = [tower.key, self.size, processing, str(self.base.options), repr(kept), condition, self.recipe.seed]
        about = json.dumps([*facts, self.stamps(chosen)])
        name = hashlib.sha256(about.encode()).hexdigest()[:32]
        everything = tuple(range(1, self.depth + 1))
        # What is read with and without hri is one pass.
        few = tuple(sorted({*layers, self.recipe.settings.resolved(self.base.config).fusion_layer or 1, self.depth}))
        if tower is self.tower and kept in map(_tower_part, (self.recipe.settings, PLAIN)):
            few = everything  # other studies read other blocks of these two
        for stored in (everything, few):
            for folder in (self._tokens, self.earlier / TOKENS):
                source = folder / _file(name, stored)
                if source.exists():
                    if source.parent != self._tokens:
                        self.taken.append(source.name)
                        self._tokens.mkdir(parents=True, exist_ok=True)
                        link_or_copy(source, self._tokens / source.name)
                    return np.load(source, mmap_mode="r")[:, [stored.index(layer) for layer in layers]]
        target = self._tokens / _file(name, few)
        what = f"tokens of {tower.name}, {_words(kept)}"
        if condition != CLEAN:
            what += f", {condition[0]} {condition[1]}"
        values = self._computed(kept, few, tower, chosen, condition, what)
        self._tokens.mkdir(parents=True, exist_ok=True)
        with atomic_file(target) as aside, aside.open("wb") as file:
            np.save(file, values)
        return np.load(target, mmap_mode="r")[:, [few.index(layer) for layer in layers]]

    def z(
        self,
        settings: CoritSettings,
        *,
        tower: Tower | None = None,
        records: Sequence[Record] | None = None,
        condition: tuple[Kind | None, int] = CLEAN,
    ) -> Float32[np.ndarray, "n f"]:
        """What the head reads (equation 24); of the class token alone without ``rsi``.

        Args:
            settings: switches.
            tower, records, condition: as of :meth:`tokens`.
        """
        chosen = settings.resolved(self.base.config)
        read = [chosen.fusion_layer or self.depth, self.depth] if chosen.hri else [self.depth]
        tokens = self.tokens(settings, read, tower=tower, records=records, condition=condition)
        return self.read(tokens, chosen, tower)

    def read(
        self, tokens: Float32[np.ndarray, "n r t d"], settings: CoritSettings, tower: Tower | None = None
    ) -> Float32[np.ndarray, "n f"]:
        """Tokens, normalised as the head wants them and in one row."""
        if settings.feature_norm not in self._readings:
            self._readings[settings.feature_norm] = jax.jit(
                corit_reading(self.base.config, settings, self.base.options)
            )
        reading = self._readings[settings.feature_norm]
        backbone = (tower or self.tower).backbone
        parts = [np.asarray(reading(backbone, tokens[at : at + _ROWS])) for at in range(0, len(tokens), _ROWS)]
        return np.concatenate(parts)

    def lessons(self, left_out: bool = True) -> dict[str, tuple[str, ...]]:
        """All families, and all but each one."""
        found = {ALL: self.names}
        if left_out and len(self.names) > 1:
            found |= {f"{WITHOUT} {name}": tuple(n for n in self.names if n != name) for name in self.names}
        return found

    def taught(self, families: Sequence[str]) -> Bool[np.ndarray, " n"]:
        """Which training images (of these alone) are real or of the families."""
        return np.isin(self.families[~self.tested], ["", *families])

    def stamps(self, records: Sequence[Record]) -> list[Any]:
        """Path, frame, size and time of change of every file that decides the tokens of records."""
        return self._stamps(tuple(records))

    def note(self, sentence: str) -> None:
        """Something readers of the page have to know, once."""
        if sentence and sentence not in self.notes:
            self.notes.append(sentence)

    def cited(self, name: str) -> str:
        """Where a score table is written, relative to the output."""
        return f"scores/{name}.{self.recipe.scores}"

    def release(self) -> None:
        """Nothing is forgotten between studies: they share programs, and tokens are files."""

    def _encoder(self, settings: CoritSettings, layers: tuple[int, ...]) -> Callable[..., Array]:
        """The compiled pass, one for all towers and conditions."""
        if (settings, layers) not in self._encoders:
            processor, places = self.base.processor, np.asarray(layers) - 1
            outputs = corit_outputs(self.base.config, settings, self.base.options)

            def encode(backbone: Params, streams: Array, foreground: Array) -> Array:
                images = normalise(streams, processor.image_mean, processor.image_std)
                return outputs(backbone, images, foreground).tokens[places].astype(np.float32)

            self._encoders[settings, layers] = jax.jit(encode)
        return self._encoders[settings, layers]

    def _computed(
        self, settings: CoritSettings, layers: Sequence[int], tower: Tower, records: Sequence[Record],
        condition: tuple[Kind | None, int], what: str,
    ) -> Float32[np.ndarray, "n layers t d"]:  # fmt: skip
        config, encode = self.base.config, self._encoder(settings, tuple(layers))
        if settings.region_tokens:
            self.note(without_landmarks(settings, records))
        mesh = data_mesh(jax.local_devices())
        backbone = replicate(mesh, tower.backbone)
        rows = -(-self.recipe.batch_size // mesh.devices.size) * mesh.devices.size
        prepare = pairs_for(settings, self.size, config.patch_size)
        decoding = Decoding(self.size, self.recipe.workers or available_cores(), prepare=prepare)
        shape = (len(records), len(layers), 1 + settings.region_tokens, config.hidden_size)
        values = np.empty(shape, np.float32)
        source = Perturbed(records, *condition, self.recipe.seed)
        stream = evaluation_batches(source, batch_size=rows, decoding=decoding)
        with stream, self.reporter.track(what, len(records)) as advance:
            for batch in stream:
                found = np.asarray(encode(backbone, *shard_batch(mesh, given(batch))))
                at = batch["index"][batch["valid"]]
                values[at] = np.moveaxis(found[:, batch["valid"]], 0, 1)
                advance(len(at))
        if not np.isfinite(values).all():
            raise InputError(f"{what} are NaN or infinite; the tower is broken.")
        return values


def open_tower(directory: Path) -> Detector:
    """A model whose tower counts; it needs no head."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has no head", category=UserWarning)
        return load_detector(directory)


def _tower_part(settings: CoritSettings) -> CoritSettings:
    """The switches without those that only the head depends on: equal ones share their tokens."""
    if not settings.region_tokens:
        return PLAIN
    kept = replace(settings, hri=True, fusion="concat", fusion_layer=None, feature_norm="ln_post")
    return kept if settings.refined else replace(kept, rrm=False, cgp="off", gamma=0.0)


def _file(name: str, layers: Sequence[int]) -> str:
    return f"{name}-{'-'.join(map(str, layers))}.npy"


def _stamps(records: Sequence[Record]) -> list[Any]:
    """Path, frame, size and time of change of every file that decides the tokens."""
    found = []
    for record in records:
        for path in filter(None, (record.path, record.landmarks)):
            try:
                facts = Path(path).stat()
            except OSError as error:
                raise InputError(f"{path} cannot be read ({error.strerror}).") from None
            found.append((path, record.frame, facts.st_size, facts.st_mtime_ns))
    return found


def _words(settings: CoritSettings) -> str:
    if not settings.region_tokens:
        return "class token alone"
    random = settings.rule == "random"
    parts = [f"{settings.region_tokens} random regions" if random else "+".join(settings.regions)]
    parts.append(f"{settings.cgp} CGP, γ = {settings.gamma:g}" if settings.refined else "whole regions")
    if settings.pooling != "avg":
        parts.append(f"{settings.pooling} pooling")
    if settings.attention != "full":
        parts.append("read-only")
    return ", ".join(parts)
