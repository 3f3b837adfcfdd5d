"""The models of a study: given, taken from an earlier run, or trained; kept as model directories."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8

from r2m_jax.checkpoints import load_detector, provenance, save_detector
from r2m_jax.checkpoints.directory import read_provenance
from r2m_jax.data.records import Record
from r2m_jax.errors import InputError
from r2m_jax.models import Detector, Params, apply_detector
from r2m_jax.parallel import data_mesh
from r2m_jax.progress import Reporter
from r2m_jax.studies.result import Unavailable
from r2m_jax.studies.roles import Lesson
from r2m_jax.training import FineTuner, FineTuning, Sharpness, Window, image_inputs, train_step


@dataclass(frozen=True)
class Model:
    """A model that is loaded when it is needed.

    Attributes:
        key: unlike that of any other model of the run.
        load: its parameters.
    """

    key: str
    load: Callable[[], Params]


class SharpTuner(FineTuner):
    """A :class:`~r2m_jax.training.FineTuner` that trains with SAM.

    Args:
        begin, settings, mesh: as there.
        sharpness: SAM's.
    """

    def __init__(self, begin: Detector, settings: FineTuning, mesh: Mesh, sharpness: Sharpness):
        super().__init__(begin, settings, mesh)
        logits = apply_detector(begin.config, begin.options)
        inputs = image_inputs(begin.processor.image_mean, begin.processor.image_std)
        step = train_step(logits, self._optimizer(1), inputs, sharpness=sharpness)
        self._step = jax.jit(step, donate_argnums=0)


class Stock:
    """Models by lesson.

    Args:
        begin: what they are trained from, with the head they start with.
        settings: of the training; None where nothing may be trained.
        decided_by: further JSON values that decide the result: hashes of base and data.
        folder: where they are kept.
        earlier: folder of an earlier run, whose models are taken where everything that decides them is the same.
        records: training images.
        pixels: gives them decoded, uint8 [n, h, w, 3]; asked for when something is trained.
        inputs: of the provenance.
        reporter: told what happens.
        sharpness: SAM's, for models trained with it.
    """

    def __init__(
        self,
        begin: Detector,
        settings: FineTuning | None,
        decided_by: Mapping[str, Any],
        *,
        folder: Path,
        earlier: Path,
        records: Sequence[Record],
        pixels: Callable[[], UInt8[np.ndarray, "n h w 3"]],
        inputs: Sequence[Mapping[str, Any]],
        reporter: Reporter,
        sharpness: Sharpness | None = None,
    ):
        self._sharpness = sharpness
        self._begin, self._settings, self._decided_by = begin, settings, dict(decided_by)
        self._folder, self._earlier = folder, earlier
        self._records, self._pixels, self._inputs = records, pixels, list(inputs)
        self._reporter = reporter
        self._tuner: FineTuner | None = None
        self._given: dict[Lesson, Path] = {}
        self._known: dict[Lesson, Params] = {}
        self.trained: list[str] = []
        self.taken: list[str] = []

    def give(self, lesson: Lesson, directory: Path) -> None:
        """Use a model directory instead of training."""
        self._given[lesson] = directory

    def get(self, name: str, lesson: Lesson) -> Model:
        """The model of a lesson; ``name`` becomes its folder's.

        Raises:
            Unavailable: it is not given and may not be trained.
            InputError: it cannot be trained on what there is.
        """
        if lesson not in self._given and self._settings is None:
            raise Unavailable(
                f"it needs the model {name}, which was not given and may not be trained (train=true lets it)"
            )
        if lesson not in self._given and lesson not in self._known:
            self._known[lesson] = self._kept(name, lesson) or self._train(name, lesson)
        return Model(name, lambda: self._load(lesson))

    def seconds(self, name: str) -> float:
        """How long training took, whenever that was.

        Raises:
            Unavailable: it was given, not trained here.
        """
        found = read_provenance(self._folder / file_name(name)).get("seconds")
        if found is None:
            raise Unavailable(f"it needs the time the training of {name} took, which is not known")
        return float(found)

    def _load(self, lesson: Lesson) -> Params:
        if lesson not in self._known:
            self._known[lesson] = load_detector(self._given[lesson]).params
        return self._known[lesson]

    def _key(self, lesson: Lesson) -> str:
        assert self._settings is not None
        what = {**self._decided_by, "lesson": [lesson.methods, lesson.domains], "training": vars(self._settings)}
        if self._sharpness is not None:
            what["sam"] = vars(self._sharpness)
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def _kept(self, name: str, lesson: Lesson) -> Params | None:
        target = self._folder / file_name(name)
        for place in (target, self._earlier / file_name(name)):
            if place.is_dir() and read_provenance(place).get("decided_by") == self._key(lesson):
                if place != target:
                    shutil.rmtree(target, ignore_errors=True)
                    shutil.copytree(place, target)
                self.taken.append(name)
                return load_detector(target).params
        return None

    def _train(self, name: str, lesson: Lesson) -> Params:
        chosen = np.flatnonzero(lesson.of(self._records))
        labels = [self._records[int(place)].label for place in chosen]
        if set(labels) != {0, 1}:
            lacking = "real" if 0 not in labels else "fake"
            raise InputError(f"there is no {lacking} training image of {', '.join(lesson.domains)} for {name}.")
        assert self._settings is not None
        if self._tuner is None:
            if self._sharpness is None:
                self._tuner = FineTuner(self._begin, self._settings, data_mesh())
            else:
                self._tuner = SharpTuner(self._begin, self._settings, data_mesh(), self._sharpness)
        batch = self._settings.batch_size
        images = self._pixels()[chosen]
        begun = time.monotonic()
        with self._reporter.track(f"train {name}", self._tuner.steps(len(images)), each=batch) as advance:

            def on_window(window: Window) -> None:
                advance(len(window.loss), note=f"loss {window.loss.mean():.3f}")

            params = self._tuner.run(images, labels, on_window)
        made = provenance.record(
            "specialist" if not name.startswith("all-in-one") else "all_in_one",
            inputs=self._inputs, seed=self._settings.seed, name=name,
            recipe={
                **vars(self._settings), "methods": list(lesson.methods), "domains": list(lesson.domains),
                "sam": None if self._sharpness is None else vars(self._sharpness),
            },
            images=len(images), seconds=round(time.monotonic() - begun, 2), decided_by=self._key(lesson),
        )  # fmt: skip
        detector = self._begin.replace_params(params)
        save_detector(detector, self._folder / file_name(name), provenance=made, overwrite=True)
        self.trained.append(name)
        return params


def file_name(name: str) -> str:
    """A name as a plain ASCII file or folder name."""
    spelt = name.replace("²", "2").replace("θ₀", "theta0").replace("α", "alpha").replace("λ", "lambda")
    return re.sub(r"[^A-Za-z0-9._]+", "-", spelt).strip("-.") or "model"
