"""``r2m study``: images, models and scores once, then every table and figure that follows from them."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from r2m_jax.atomic import atomic_directory, atomic_text, link_or_copy
from r2m_jax.checkpoints import image_processor, provenance, tiny_base
from r2m_jax.checkpoints.preprocessing import read_processor
from r2m_jax.checkpoints.tensors import safetensors_files
from r2m_jax.data.catalogue import nearest
from r2m_jax.data.index import index_file, read_index
from r2m_jax.data.pipeline import Decoding, decode_all
from r2m_jax.data.records import Record, select
from r2m_jax.data.selection import evenly
from r2m_jax.errors import InputError
from r2m_jax.jobs.kinds import square_input
from r2m_jax.jobs.merge_inputs import open_inputs
from r2m_jax.jobs.study_page import page_of
from r2m_jax.models import Detector, init_head
from r2m_jax.parallel import available_cores
from r2m_jax.progress import Reporter
from r2m_jax.recipes.compression_studying import CompressionStudyRecipe
from r2m_jax.recipes.corit_studying import CoritStudyRecipe
from r2m_jax.recipes.studying import StudyRecipe
from r2m_jax.studies import STUDIES, Context, Result, Study, Unavailable
from r2m_jax.studies.corit.frozen import open_tower
from r2m_jax.studies.forging import Bench
from r2m_jax.studies.roles import find_roles, named
from r2m_jax.studies.stock import Stock, file_name
from r2m_jax.training import FineTuning

DATA, MODELS = "data", "models"


@dataclass(frozen=True)
class Studied:
    """What was done.

    Attributes:
        directory: everything.
        results: by study.
        left_out: study to the reason.
        trained: names of the models that were trained.
        taken: names of those that were taken from an earlier run.
    """

    directory: Path
    results: dict[str, Result]
    left_out: dict[str, str]
    trained: tuple[str, ...]
    taken: tuple[str, ...]


def study(recipe: StudyRecipe, *, reporter: Reporter, overwrite: bool = False) -> Studied:
    """Run studies and write ``recipe.out``; it appears when all of it is done.

    Trained models and forged images are kept in a folder ``OUT.run`` until then, and in ``OUT`` afterwards; a run with
    the same settings, also of other studies, takes them up.

    Raises:
        InputError: a study is unknown, the images or models are unusable, the output is taken, or no study of those
            asked for can be done.
    """
    names = known_studies(recipe.studies, STUDIES, "all")
    start = time.monotonic()
    with atomic_directory(recipe.out, overwrite) as aside, under_way(recipe.out) as run:
        with tempfile.TemporaryDirectory(prefix="pixels-", dir=run) as scratch:
            context, inputs = _context(recipe, run, Path(scratch), reporter)
            results, left_out, seconds = run_studies(names, STUDIES, context)
        notes = [*context.notes, *left_out.values()]
        images = run if recipe.data.index is None else index_file(recipe.data.index).parent
        write_results(aside, results, context.cited, images, notes, page_of(recipe, context, results, notes))
        made = provenance.record(
            "study", inputs=inputs, recipe=recipe.model_dump(mode="json"), seed=recipe.seed,
            seconds=round(time.monotonic() - start, 1), studies=seconds, left_out=left_out,
            trained=context.stock.trained, taken=context.stock.taken, devices=[str(d) for d in jax.devices()],
        )  # fmt: skip
        (aside / provenance.FILE).write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
        (aside / MODELS).mkdir()
        keep(recipe.out, run, aside, MODELS)
    shutil.rmtree(run, ignore_errors=True)  # not before the result is in its place
    return Studied(recipe.out, results, left_out, tuple(context.stock.trained), tuple(context.stock.taken))


@contextmanager
def under_way(out: Path) -> Iterator[Path]:
    """The folder of what is worth keeping should the run stop; after an error it stays if it holds anything."""
    run = out.with_name(f"{out.name}.run")
    run.mkdir(parents=True, exist_ok=True)
    try:
        yield run
    except BaseException:
        if not any(part.is_dir() for part in run.iterdir()):
            shutil.rmtree(run, ignore_errors=True)
        raise


def known_studies(wanted: Sequence[str], studies: Mapping[str, Study], every: str) -> tuple[str, ...]:
    """The names asked for, each once; all of them where none is.

    Raises:
        InputError: there is no such study.
    """
    strangers = [name for name in wanted if name not in studies]
    if strangers:
        raise InputError(f"there is no study {strangers[0]!r}; {nearest(strangers[0], [*studies, every])}")
    return tuple(dict.fromkeys(wanted)) or tuple(studies)


def run_studies(
    names: Sequence[str], studies: Mapping[str, Study], context: Any
) -> tuple[dict[str, Result], dict[str, str], dict[str, float]]:
    """Results by study, reasons of those that cannot be done, and seconds.

    Args:
        names: to run.
        studies: by name.
        context: what each is given; it has a ``reporter`` and ``release()``, called after each.

    Raises:
        InputError: none can be done.
    """
    results: dict[str, Result] = {}
    left_out: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for number, name in enumerate(names, start=1):
        context.reporter.say(f"study {name} ({number} of {len(names)})")
        begun = time.monotonic()
        try:
            results[name] = studies[name].run(context)
        except Unavailable as reason:
            left_out[name] = f"{studies[name].title} is left out: {reason}."
            context.reporter.say(left_out[name])
        context.release()
        seconds[name] = round(time.monotonic() - begun, 1)
    if not results:
        raise InputError("no study can be done: " + " ".join(left_out.values()))
    return results, left_out, seconds


def _context(recipe: StudyRecipe, run: Path, scratch: Path, reporter: Reporter) -> tuple[Context, list[dict[str, Any]]]:
    begin, inputs = _base(recipe)
    size = square_input(begin.processor, "the base")
    records, key, said = _records(recipe, size, run, reporter)
    splits = {name: evenly(select(records, split=name), recipe.data.limit) for name in ("train", "test")}
    if not splits["test"]:
        raise InputError(f"{recipe.data.index} has no image of the split 'test' to compare models on.")
    train, test = (named(splits[name]) for name in ("train", "test"))
    unseen = recipe.data.forging.unseen if recipe.data.index is None else recipe.data.unseen
    roles = find_roles(train, test, domain=recipe.data.domain, unseen=unseen, families=tuple(recipe.specialists))
    threads = recipe.workers or available_cores()

    @cache
    def pixels(split: str) -> UInt8[np.ndarray, "n h w 3"]:
        return _decoded(splits[split], size, scratch / f"{split}.npy", threads, reporter)

    trains = recipe.training
    settings = FineTuning(
        trains.passes, trains.batch_size, trains.learning_rate, trains.weight_decay, recipe.seed
    )  # fmt: skip
    base = [item["sha256"] for item in inputs]
    stock = Stock(
        begin, settings if recipe.may_train else None, {"base": base, "data": key, "size": size},
        folder=run / MODELS, earlier=recipe.out / MODELS, records=train, pixels=lambda: pixels("train"),
        inputs=inputs, reporter=reporter,
    )  # fmt: skip
    for family, path in recipe.specialists.items():
        stock.give(roles.lesson(family), path)
    if recipe.all_in_one is not None:
        stock.give(roles.lesson(*roles.families), recipe.all_in_one)
    context = Context(recipe, begin, roles, test, lambda: pixels("test"), stock, reporter)
    for sentence in said:
        context.note(sentence)
    given = [path for path in (*recipe.specialists.values(), recipe.all_in_one) if path is not None]
    hashed = [*inputs, *provenance.input_hashes([file for path in given for file in safetensors_files(path)])]
    if recipe.data.index is not None:
        hashed += provenance.input_hashes([index_file(recipe.data.index)])
    return context, hashed


def read_base(given: Path | None) -> tuple[Detector, list[dict[str, Any]]]:
    """A model whose tower counts, the one that ships when None, and the hashes of its files."""
    directory = given or tiny_base()
    loaded = open_tower(directory)
    inputs = provenance.input_hashes(safetensors_files(directory))
    if given is None:
        for item in inputs:
            item["path"] = f"tiny_base/{Path(item['path']).name}"
    return loaded, inputs


def _base(recipe: StudyRecipe) -> tuple[Detector, list[dict[str, Any]]]:
    """The start of every model, with the processing all of them share, and its hashes."""
    directory = recipe.base or tiny_base()
    loaded, inputs = read_base(recipe.base)
    processor = loaded.processor
    if recipe.specialists:
        given = dict(recipe.specialists) | ({"all_in_one": recipe.all_in_one} if recipe.all_in_one else {})
        open_inputs(directory, given)
        processor = read_processor(next(iter(given.values())))
    elif recipe.data.index is None and recipe.data.forging.size is not None:
        processor = image_processor(recipe.data.forging.size, tuple(processor.image_mean), tuple(processor.image_std))
    head = init_head(loaded.config.hidden_size, jax.random.key(recipe.seed))
    params = {**loaded.params, "head": head}
    return Detector.create(loaded.config, params, processor, options=loaded.options), inputs


def _records(recipe: StudyRecipe, size: int, run: Path, reporter: Reporter) -> tuple[list[Record], str, list[str]]:
    """All records, what decides them, and what readers have to know of them."""
    data = recipe.data
    if data.index is not None:
        index = index_file(data.index)
        return read_index(index), f"{provenance.sha256(index)} {data.limit}", []
    index, key, said = forged_index(recipe, size, run, reporter)
    return read_index(index), key, said


def forged_index(
    recipe: StudyRecipe | CoritStudyRecipe | CompressionStudyRecipe, size: int, run: Path, reporter: Reporter
) -> tuple[Path, str, list[str]]:
    """Patches of photographs forged in ``run``, or taken from an earlier run; their index, what decides them, notes.

    Raises:
        InputError: the photographs are unusable or give too few patches.
    """
    bench = Bench(recipe.data, size, recipe.seed)
    key = bench.key()
    folder, marker = run / DATA, "study.json"
    if not _is_of(folder / marker, key):
        shutil.rmtree(folder, ignore_errors=True)
        if _is_of(recipe.out / DATA / marker, key):
            shutil.copytree(recipe.out / DATA, folder, copy_function=link_or_copy)
        else:
            counts = {split: len(pictures) for split, pictures in bench.photographs.items()}
            reporter.say(f"forge from {counts['train']} photographs to learn from and {counts['test']} held out")
            bench.forge(folder, recipe.workers or available_cores(), reporter)
            atomic_text(folder / marker, json.dumps({"decided_by": key}) + "\n")
    held = ", ".join(photograph.name for photograph in bench.photographs["test"])
    said = [
        f"Test images are patches of photographs no model saw ({held}); intervals are over patches, so they do not "
        "hold what other photographs would change."
    ]
    return folder / "index.csv", key, said


def _is_of(marker: Path, key: str) -> bool:
    return marker.is_file() and provenance.read_json(marker).get("decided_by") == key


def _decoded(
    records: Sequence[Record], size: int, file: Path, threads: int, reporter: Reporter
) -> UInt8[np.ndarray, "n h w 3"]:
    """Every image once, in a file that is mapped into memory: what is not used does not stay there."""
    pixels = np.lib.format.open_memmap(file, "w+", np.uint8, (len(records), size, size, 3))
    with reporter.track(f"decode {file.stem}", len(records)) as advance:
        decode_all(records, Decoding(size, threads), pixels, on_progress=advance)
    return pixels


def write_results(
    folder: Path,
    results: Mapping[str, Result],
    cited: Callable[[str], str],
    images: Path,
    notes: Sequence[str],
    report: str,
) -> None:
    """Everything of studies but data and models: tables, figures, score tables, ``metrics.json``, ``report.html``.

    Args:
        folder: to write to.
        results: by study.
        cited: path of a score table by its name.
        images: folder that paths in score tables are relative to.
        notes: what readers of the page have to know.
        report: the page.
    """
    for part in ("tables", "figures", "scores"):
        (folder / part).mkdir()
    for result in results.values():
        for name, table in result.tables.items():
            (folder / "tables" / f"{file_name(name)}.md").write_text(table.markdown(), encoding="utf-8")
            (folder / "tables" / f"{file_name(name)}.tex").write_text(table.latex(), encoding="utf-8")
            (folder / "tables" / f"{file_name(name)}.csv").write_text(table.csv(), encoding="utf-8")
        for name, figure in result.figures.items():
            (folder / "figures" / f"{file_name(name)}.svg").write_text(figure.svg, encoding="utf-8")
        for name, scores in result.scores.items():
            target = folder / cited(name)
            if not target.exists():
                scores.write(target, relative_to=images)
        for path, text in result.files.items():
            (folder / path).write_text(text, encoding="utf-8")
    metrics = {"studies": {name: result.metrics for name, result in results.items()}, "notes": notes}
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    (folder / "report.html").write_text(report, encoding="utf-8")


def keep(out: Path, run: Path, aside: Path, *parts: str) -> None:
    """Move what a run made into its result, and keep what an earlier result has besides; forged data of the run too.

    Args:
        out: the result, an earlier one perhaps.
        run: of :func:`under_way`.
        aside: where the new result is made.
        parts: names of their folders.
    """
    for part in parts:
        for source in (run / part, out / part):
            for item in sorted(source.iterdir()) if source.is_dir() else ():
                target = aside / part / item.name
                target.parent.mkdir(exist_ok=True)
                if target.exists():
                    continue
                if item.is_dir():
                    shutil.copytree(item, target, copy_function=link_or_copy)
                else:
                    link_or_copy(item, target)
    if (run / DATA).is_dir():
        shutil.copytree(run / DATA, aside / DATA, copy_function=link_or_copy)
