"""What the studies of compression share: images in memory, networks by how they came to be, scores, sizes and times."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8

from r2m_jax import compression
from r2m_jax.atomic import atomic_directory
from r2m_jax.checkpoints import image_processor, load_convolutional, provenance, save_convolutional
from r2m_jax.checkpoints.compressed import Record as Compressed
from r2m_jax.checkpoints.compressed import open_stored
from r2m_jax.checkpoints.directory import read_provenance
from r2m_jax.checkpoints.preprocessing import HALF
from r2m_jax.checkpoints.tensors import COMPRESSION_FILE, SafetensorsWriter, safetensors_files
from r2m_jax.compression import measures, storage
from r2m_jax.data.device import normalise
from r2m_jax.data.records import Record
from r2m_jax.errors import InputError
from r2m_jax.evaluation.inference import filled_batches
from r2m_jax.models import Params, apply_head
from r2m_jax.models.convolutional import (
    ConvolutionalDetector,
    Plan,
    apply_backbone,
    apply_convolutional,
    init_convolutional,
)
from r2m_jax.models.convolutional.plan import Place, plan_named
from r2m_jax.parallel import data_mesh
from r2m_jax.progress import Reporter
from r2m_jax.recipes.compression_studying import CompressionStudyRecipe
from r2m_jax.studies.compression.lessons import Pictures, Teaching, Trained, Tuner
from r2m_jax.studies.stock import file_name
from r2m_jax.training.loop import Window

TARGET, SOURCE = "target", "source"
MODELS = "models"


@dataclass(frozen=True)
class Course:
    """How a network comes to be.

    Attributes:
        name: of its folder.
        plan: of the network, without an adapter of its own.
        start: whose parameters it begins with; fresh ones when None.
        prune: share of every kernel's entries that is pruned before it is trained, and stays so; 0 for none.
        new_head: begin with a fresh last layer.
        adapter: put in before it is trained, and where; None for none.
        residual: of that adapter.
        learns: from the images at hand (``target``) or those before (``source``).
        trained: what of it.
        pace: which settings of the recipe: passes and rate of its training (``new``), ``tuning`` or ``transfer``.
        teacher: whose answers it learns too; None for labels alone.
    """

    name: str
    plan: Plan
    start: Course | None = None
    prune: float = 0.0
    new_head: bool = False
    adapter: Place | None = None
    residual: bool = False
    learns: str = TARGET
    trained: Trained = "all"
    pace: str = "new"
    teacher: Course | None = None

    @property
    def made(self) -> Plan:
        """The plan of what it becomes."""
        return self.plan if self.adapter is None else self.plan.with_adapter(self.adapter, self.residual)


@dataclass(frozen=True)
class Made:
    """A network that is compared.

    Attributes:
        course: how it came to be.
        int8: whether its linear layers are products of integers.
    """

    course: Course
    int8: bool = False


class Workbench:
    """Given to every study of compression.

    Args:
        recipe: settings.
        train, test: records of the images at hand.
        source: records that transferred networks learn first; None where there are none.
        decode: gives images of records, uint8 [n, h, w, 3].
        decided_by: JSON values that decide the images.
        folder: where networks are kept.
        earlier: folder of an earlier run, whose networks are taken where everything that decides them is the same.
        reporter: told what happens.
        unseen: methods that no network learns.

    Attributes:
        trained, taken: names of networks that were trained, and taken from an earlier run.
    """

    def __init__(
        self,
        recipe: CompressionStudyRecipe,
        train: Sequence[Record],
        test: Sequence[Record],
        source: Sequence[Record] | None,
        decode: Callable[[Sequence[Record], str], UInt8[np.ndarray, "n h w 3"]],
        decided_by: Any,
        *,
        folder: Path,
        earlier: Path,
        reporter: Reporter,
        unseen: Sequence[str],
    ):
        self.recipe, self.train, self.test, self.source = recipe, list(train), list(test), source
        self.reporter, self.folder, self.earlier = reporter, folder, earlier
        self.unseen = tuple(unseen)
        self.notes: list[str] = []
        self.trained: list[str] = []
        self.taken: list[str] = []
        self._decode, self._decided_by = decode, decided_by
        self._pictures: dict[str, Pictures] = {}
        self._tuners: dict[tuple[Plan, Trained], Tuner] = {}
        self._known: dict[tuple[Course, int], Params] = {}
        self._answers: dict[tuple[Course, int, str], Float32[np.ndarray, "2 n 2"]] = {}
        self._functions: dict[tuple[Plan, bool], Callable[..., Array]] = {}

    def plan(self, wanted: str | Plan) -> Plan:
        """A plan for the images at hand.

        Raises:
            InputError: there is none of that name, or the images are too small for it.
        """
        plan = plan_named(wanted) if isinstance(wanted, str) else wanted
        return replace(plan, image_size=self.recipe.data.image_size)

    # Networks

    def network(self, course: Course, seed: int) -> Params:
        """Parameters of a course, trained, or taken from an earlier run."""
        if (course, seed) not in self._known:
            self._known[course, seed] = self._kept(course, seed) or self._train(course, seed)
        return self._known[course, seed]

    def _kept(self, course: Course, seed: int) -> Params | None:
        target = self._place(course, seed)
        for place in (target, self.earlier / MODELS / target.name):
            if place.is_dir() and read_provenance(place).get("decided_by") == self._key(course, seed):
                if place != target:
                    shutil.rmtree(target, ignore_errors=True)
                    shutil.copytree(place, target)
                self.taken.append(target.name)
                return jax.tree.map(np.asarray, load_convolutional(target).params)
        return None

    def _train(self, course: Course, seed: int) -> Params:
        chosen, begun = self.recipe.training, time.monotonic()
        start, pictures = self._start(course, seed), self._learnt(course.learns)
        passes, rate = {
            "new": (chosen.passes, chosen.learning_rate),
            "tuning": (chosen.tuning_passes, chosen.tuning_rate),
            "transfer": (chosen.transfer_passes, chosen.transfer_rate),
        }[course.pace]
        teaching = self._teaching(course, seed, pictures)
        key = (course.made, course.trained)
        if key not in self._tuners:
            self._tuners[key] = Tuner(course.made, course.trained, chosen.batch_size, data_mesh())
        tuner = self._tuners[key]
        what = f"train {course.name}, seed {seed}"
        steps = tuner.steps(len(pictures.labels), passes)
        with self.reporter.track(what, steps, each=chosen.batch_size) as advance:

            def on_window(window: Window) -> None:
                advance(len(window.loss), note=f"loss {window.loss.mean():.3f}")

            # Networks of one seed see images in one order; it is another than that of a teacher's fresh start.
            params = tuner.run(
                start, pictures, teaching, passes=passes, rate=rate, seed=self.recipe.seed + seed, on_window=on_window
            )
        made = provenance.record(
            "student", inputs=[], seed=self.recipe.seed + seed, name=course.name,
            recipe={**chosen.model_dump(mode="json"), "course": repr(course)},
            seconds=round(time.monotonic() - begun, 2), decided_by=self._key(course, seed),
        )  # fmt: skip
        save_convolutional(
            _detector(course.made, params), self._place(course, seed), provenance=made, overwrite=True
        )  # fmt: skip
        self.trained.append(self._place(course, seed).name)
        return params

    def _start(self, course: Course, seed: int) -> Params:
        key = jax.random.key(self.recipe.seed + seed)
        fresh = init_convolutional(course.plan, key)
        params = fresh if course.start is None else self.network(course.start, seed)
        if course.prune:
            params = compression.apply_masks(
                params, compression.magnitude_masks(params, course.prune, select=_prunable)
            )
        if course.new_head:
            params = {**params, "head": fresh["head"]}
        if course.adapter is not None:
            detector = _detector(course.plan, params)
            params = detector.with_adapter(course.adapter, course.residual, jax.random.fold_in(key, 1)).params
        return params

    def _teaching(self, course: Course, seed: int, pictures: Pictures) -> Teaching | None:
        if course.teacher is None:
            return None
        chosen, which = self.recipe.training, (course.teacher, seed, course.learns)
        if which not in self._answers:
            params = self.network(course.teacher, seed)
            both = [self._logits(Made(course.teacher), params, side) for side in pictures.pixels]
            self._answers[which] = np.stack(both)
        return Teaching(self._answers[which], chosen.soft, chosen.hard, chosen.temperature)

    def _learnt(self, what: str) -> Pictures:
        if what not in self._pictures:
            records = self.train if what == TARGET else self.source
            assert records is not None
            labels = np.asarray([record.label for record in records])
            self._pictures[what] = Pictures.of(self._decode(records, what), labels)
        return self._pictures[what]

    def _place(self, course: Course, seed: int) -> Path:
        return self.folder / MODELS / file_name(f"{course.name}-seed{seed}")

    def _key(self, course: Course, seed: int) -> str:
        what = [self._decided_by, self.recipe.training.model_dump(mode="json"), self.recipe.seed + seed, repr(course)]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    # Scores

    @cached_property
    def _test_pixels(self) -> UInt8[np.ndarray, "n h w 3"]:
        return self._decode(self.test, "test")

    def margins(self, made: Made, seed: int) -> Float32[np.ndarray, " n"]:
        """Fake-minus-real logits of the test images.

        Raises:
            InputError: one is NaN or infinite.
        """
        both = self._logits(made, self.network(made.course, seed), self._test_pixels)
        if not np.isfinite(both).all():
            raise InputError(f"{made.course.name} gives scores that are NaN or infinite; lower training's rates.")
        return both[:, 1] - both[:, 0]

    def _logits(self, made: Made, params: Params, pixels: UInt8[np.ndarray, "n h w 3"]) -> Float32[np.ndarray, "n 2"]:
        function = self._function(made)
        params, found = self._ready(made, params), []
        for filled, count in filled_batches(pixels, np.arange(len(pixels)), self.recipe.batch_size):
            found.append(np.asarray(function(params, filled))[:count])
        return np.concatenate(found)

    def _function(self, made: Made) -> Callable[..., Array]:
        key = (made.course.made, made.int8)
        if key not in self._functions:
            logits = (integer_logits if made.int8 else apply_convolutional)(made.course.made)
            self._functions[key] = jax.jit(lambda params, images: logits(params, normalise(images, HALF, HALF)))
        return self._functions[key]

    def _ready(self, made: Made, params: Params) -> Params:
        ready: Params = jax.device_put(self.quantised(params) if made.int8 else params)
        return ready

    @staticmethod
    def quantised(params: Params) -> Params:
        """With linear kernels as int8, one scale a tensor."""
        return compression.quantise_tree(params, 8, "tensor", _linear)

    # Sizes and times

    def size(self, made: Made, seed: int = 0) -> measures.Size:
        """Of the network as stored; the statistics of batch normalisation are counted too."""
        self.network(made.course, seed)
        place = self._place(made.course, seed)
        if not made.int8:
            return measures.size(place)
        target = place.with_name(f"{place.name}-int8")
        if not target.is_dir():
            write_int8(place, target)
        return measures.size(target)

    def latency(self, made: Made, seed: int = 0) -> list[measures.Latency]:
        """Seconds for a batch, by the recipe's sizes; of the whole function, images being uint8 already decoded."""
        function, params, side = self._function(made), self.network(made.course, seed), self.recipe.data.image_size
        params, chosen = self._ready(made, params), self.recipe.timing
        return measures.latency(
            lambda images: function(params, images),
            lambda batch: jax.device_put(np.full((batch, side, side, 3), 128, np.uint8)),
            chosen.batches, runs=chosen.runs, warm_up=2,
        )  # fmt: skip

    # Words

    def cited(self, name: str) -> str:
        """Where a score table is written, relative to the output."""
        return f"scores/{name}.{self.recipe.scores}"

    def note(self, sentence: str) -> None:
        """Something readers of the page have to know, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def release(self) -> None:
        """Nothing large outlives a study but what the next needs too."""


def integer_logits(plan: Plan) -> Callable[[Params, Float[Array, "b h w 3"]], Float[Array, "b 2"]]:
    """A network whose linear layers are int8 products with activations quantised by the batch (dynamically).

    Args:
        plan: of the network.

    Returns:
        ``logits(params, images)`` of parameters whose linear kernels are :class:`~r2m_jax.compression.Quantised`.
    """
    body = apply_backbone(replace(plan, hidden=()))
    names = [f"fc{number}" for number in range(1, len(plan.hidden) + 1)]

    def logits(params: Params, images: Float[Array, "b h w 3"]) -> Float[Array, "b 2"]:
        x = body(params, images).features
        for name in names:
            layer: Mapping[str, Any] = params["backbone"][name]
            x = jax.nn.relu(compression.integer_dense(x, layer["kernel"]) + layer["bias"])
        head = params["head"]
        if isinstance(head["kernel"], compression.Quantised):
            return compression.integer_dense(x, head["kernel"]) + head["bias"]
        return jnp.asarray(apply_head(head, x))

    return logits


def write_int8(directory: Path, target: Path) -> None:
    """A network's directory with its linear kernels as int8, one scale a tensor.

    Raises:
        InputError: the directory cannot be read, or the target is taken.
    """
    stored = storage.Stored(open_stored(directory), {})
    made = storage.integers(stored, 8, granularity="tensor", select=_linear_tensor)
    with atomic_directory(target, False) as aside:
        writer = SafetensorsWriter(aside, made.tensors)
        for name, tensor in made.tensors.items():
            writer.write(name, tensor.read())
        writer.close()
        weights = {file.name for file in safetensors_files(directory)}
        for file in directory.iterdir():
            if file.is_file() and file.name not in weights:
                shutil.copyfile(file, aside / file.name)
        (aside / COMPRESSION_FILE).write_text(
            json.dumps(Compressed(made.entries).as_json(), indent=2) + "\n", encoding="utf-8"
        )  # fmt: skip


def _detector(plan: Plan, params: Params) -> ConvolutionalDetector:
    return ConvolutionalDetector.create(plan, params, image_processor(plan.image_size, HALF, HALF))


def _prunable(path: str, leaf: Any) -> bool:
    """Every convolution and linear weight, that of the last layer too, as the authors prune."""
    return path.endswith("/kernel")


def _linear(path: str, leaf: Any) -> bool:
    return path.endswith("/kernel") and leaf.ndim == 2


def _linear_tensor(name: str, tensor: Any) -> bool:
    return name.endswith(".weight") and len(tensor.shape) == 2
