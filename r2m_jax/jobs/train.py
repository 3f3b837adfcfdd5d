"""``r2m train``: from a recipe to a model directory, through a run that can be stopped and resumed at any step."""

from __future__ import annotations

import itertools
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml
from jax.sharding import Mesh

from r2m_jax.atomic import atomic_directory, disk_errors
from r2m_jax.checkpoints import provenance
from r2m_jax.data.faces.crop_folders import common_framing
from r2m_jax.data.index import index_file
from r2m_jax.errors import InputError
from r2m_jax.evaluation.metrics import auc, video_auc
from r2m_jax.evaluation.scores import sigmoid
from r2m_jax.jobs.run_folder import RunFolder
from r2m_jax.jobs.training_data import TrainingData, training_data
from r2m_jax.jobs.training_lessons import ask
from r2m_jax.jobs.training_model import start
from r2m_jax.jobs.training_report import TrainingReport
from r2m_jax.jobs.training_start import Start
from r2m_jax.jobs.training_streams import Streams, streams
from r2m_jax.models import Params
from r2m_jax.parallel import data_mesh, is_first, replicate
from r2m_jax.progress import Reporter
from r2m_jax.recipes import TrainRecipe
from r2m_jax.training import (
    Hook,
    Sharpness,
    TrainState,
    build_optimizer,
    compiled,
    fit,
    init_state,
    keep_zeros,
    lora,
    supervised,
    train_step,
)
from r2m_jax.training.log import FILE as LOG
from r2m_jax.training.log import RunLog
from r2m_jax.training.pruned import zeros
from r2m_jax.training.run_state import RunStates, load_params, save_params

FREE = ("out", "window", "states", "fsdp", "data.workers", "data.timeout", "validation.batch_size")
"""Keys that may change between the parts of an interrupted run: they change results by rounding at most."""


@dataclass(frozen=True)
class Outcome:
    """What a finished run made.

    Attributes:
        directory: the model.
        steps: done.
        validation: of the parameters kept; empty when nothing was validated.
    """

    directory: Path
    steps: int
    validation: dict[str, float]


@dataclass
class _Run:
    recipe: TrainRecipe
    data: TrainingData
    start: Start
    streams: Streams
    mesh: Mesh
    total: int
    state: TrainState
    step: Callable[..., Any]
    best: dict[str, float] = field(default_factory=dict)
    waited: int = 0


def train(recipe: TrainRecipe, *, reporter: Reporter, overwrite: bool = False) -> Outcome:
    """Train, or go on with a run that was stopped.

    Args:
        recipe: what to do.
        reporter: told of the progress.
        overwrite: replace a finished model, and start a stopped run anew.

    Raises:
        InputError: the recipe, the base, the data or the output is unusable, or the loss left the finite numbers.
        r2m_jax.training.Interrupted: by SIGINT or SIGTERM, after the state was saved.
    """
    target = recipe.directory
    if target.exists() and not overwrite and any(target.iterdir()):
        raise InputError(f"{target} already exists; choose another out=… or pass --overwrite.")
    begun = time.monotonic()
    data = training_data(recipe.data)
    begin = start(recipe)
    with RunFolder(target, recipe, free=FREE, anew=overwrite) as folder, disk_errors(folder.path):
        run = _prepare(recipe, data, begin, reporter)
        params, validation, steps = _train(run, folder, reporter)
        if is_first():
            seconds = round(time.monotonic() - begun, 1)
            _write(run, params, folder.path, overwrite, steps=steps, validation=validation, seconds=seconds)
    return Outcome(target, steps, validation)


def _prepare(recipe: TrainRecipe, data: TrainingData, begin: Start, reporter: Reporter) -> _Run:
    mesh = data_mesh(fsdp=recipe.fsdp)
    if recipe.batch_size % mesh.size:
        raise InputError(
            f"batch_size={recipe.batch_size} does not divide over {mesh.size} devices; choose one that does."
        )
    counted = ", ".join(f"{n} {what}" for what, n in data.summary()["train"].items())
    reporter.say(
        f"{recipe.kind} {recipe.name}: {len(data.train)} images to learn from ({counted}), {len(data.val)} val"
    )
    flows = streams(recipe, data, begin, mesh, reporter)
    total = recipe.steps or len(flows.train)
    optimizer = build_optimizer(recipe.optimizer, total)
    if recipe.model.keep_zeros:
        optimizer = keep_zeros(optimizer)
        reporter.say(f"{_zeros(begin):,} weights are zero in {begin.directory} and stay so")
    state = init_state(begin.params, optimizer, recipe.seed, begin.trainable, average=recipe.average is not None)
    learning, teacher = begin.learning, begin.teacher if flows.asks else None
    frozen = None if recipe.model.cache_features else begin.frozen
    step = train_step(
        learning.forward if learning else begin.logits, optimizer, flows.inputs, trainable=begin.trainable,
        average=recipe.average, sharpness=Sharpness(**recipe.sam.model_dump()) if recipe.sam else None,
        frozen=partial(ask, teacher=teacher) if teacher else frozen, loss=learning.loss if learning else supervised,
    )  # fmt: skip
    advance = compiled(step, state, mesh)
    if teacher:
        # Given to every step: what a compiled function merely closes over becomes part of its program.
        answering = replicate(mesh, teacher.params)
        return _Run(recipe, data, begin, flows, mesh, total, state, lambda *given: advance(*given, answering))
    return _Run(recipe, data, begin, flows, mesh, total, state, advance)


def _zeros(begin: Start) -> int:
    count = zeros({name: tree for name, tree in begin.params.items() if name != "statistics"})
    if not count:
        raise InputError(f"model.keep_zeros is set, but {begin.directory} has no weight that is zero; prune it first.")
    return count


def _train(run: _Run, folder: RunFolder, reporter: Reporter) -> tuple[Params, dict[str, float], int]:
    """Train to the end: parameters to keep, on the host, what val says of them, and the number of steps."""
    recipe, stream = run.recipe, run.streams.train
    with ExitStack() as stack:
        stack.callback(stream.close)
        states = stack.enter_context(RunStates(folder.states, recipe.states.keep))
        done = _resume(run, states, reporter)
        log = RunLog(folder.path, done) if is_first() else None
        if log:
            stack.callback(log.close)
        advance = stack.enter_context(reporter.track(f"train {recipe.name}", run.total - done, each=recipe.batch_size))
        report = TrainingReport(recipe, run.total, log, advance)
        stop = stack.enter_context(_stop_signals())

        def save(step: int, state: TrainState) -> bool:
            states.save(state, {"data": stream.get_state(), "best": run.best, "waited": run.waited})
            return False

        def save_and_wait(step: int, state: TrainState) -> None:
            save(step, state)
            states.wait()

        hooks = []
        if run.streams.validate and recipe.validation.every != 0:
            passes = max(1.0, run.total * recipe.batch_size / len(run.data.train))
            every = recipe.validation.every or math.ceil(run.total / passes)
            hooks.append(Hook(every, lambda step, state: _validate(run, step, state, folder.path, report)))
        if recipe.states.every:
            hooks.append(Hook(recipe.states.every, save))
        batches: Iterator[Any] = itertools.islice(stream, run.total - done)  # type: ignore[call-overload]
        state = fit(
            run.step, run.state, batches, mesh=run.mesh, window=recipe.window, on_window=report.window, hooks=hooks,
            stop=stop, on_stop=save_and_wait,
        )  # fmt: skip
        if recipe.validation.select == "val" and run.best:
            return load_params(folder.path / "best", run.state.params), run.best, int(state.step)
        params = jax.tree.map(np.asarray, replicate(run.mesh, state.averaged()))
        return params, report.last_validation, int(state.step)


def _resume(run: _Run, states: RunStates, reporter: Reporter) -> int:
    if states.latest is None:
        return 0
    run.state, notes = states.load(run.state, run.mesh)
    run.streams.train.set_state(notes["data"])
    run.best, run.waited = notes["best"], notes["waited"]
    reporter.say(f"going on after step {int(run.state.step)} of {run.total}")
    return int(run.state.step)


def _validate(run: _Run, step: int, state: TrainState, folder: Path, report: TrainingReport) -> bool:
    """Measure on val; True when the run has waited long enough for something better."""
    assert run.streams.validate is not None
    settings, params = run.recipe.validation, state.averaged()
    logits = run.streams.validate(replicate(run.mesh, params)).astype(np.float64)
    labels = np.asarray([r.label for r in run.data.val])
    measured = {
        # Cross-entropy of two logits that differ by x: log(1 + e^-x), x towards the right class.
        "loss": float(np.mean(np.logaddexp(0.0, np.where(labels == 1, -logits, logits)))),
        "frame_auc": auc(labels, logits),
        "video_auc": video_auc(run.data.val, sigmoid(logits)),
    }
    report.validation(step, measured)
    if settings.select == "last" and settings.patience is None:
        return False
    value = measured[settings.metric]
    if math.isnan(value):
        raise InputError(
            "the split val has images of one class only, so no AUC to select by; use validation.select=last."
        )
    better = not run.best or value > run.best[settings.metric]
    run.waited = 0 if better else run.waited + 1
    if better:
        run.best = measured | {"step": step}
        if settings.select == "val":
            save_params(folder / "best", params)
    return settings.patience is not None and run.waited >= settings.patience


def _write(run: _Run, params: Params, folder: Path, overwrite: bool, **facts: Any) -> None:
    """The model directory, with the run's log beside the model."""
    recipe, begin = run.recipe, run.start
    if recipe.model.lora:
        params = lora.fold(params, recipe.model.lora.alpha)
    framing = common_framing(record.path for record in run.data.train)
    made = provenance.record(
        recipe.kind,
        inputs=provenance.input_hashes([*begin.files, index_file(recipe.data.index)]),
        recipe=recipe.model_dump(mode="json"),
        seed=recipe.seed,
        name=recipe.name,
        images=run.data.summary(),
        face_crops=asdict(framing) if framing else None,
        unreadable=run.streams.train.unreadable,
        devices=[str(device) for device in jax.devices()],
        **facts,
    )
    with atomic_directory(recipe.directory, overwrite) as aside:
        begin.save(params, aside / "model", made)
        for item in (aside / "model").iterdir():
            item.rename(aside / item.name)
        (aside / "model").rmdir()
        for name in (LOG, "tensorboard"):
            (folder / name).rename(aside / name)
        settings = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        (aside / "recipe.yaml").write_text(settings, encoding="utf-8")


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Whether SIGINT or SIGTERM has come; a second SIGINT interrupts at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set  # signals are the main thread's
        return

    def note(number: int, frame: object) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
