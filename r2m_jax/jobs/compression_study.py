"""``r2m study compression…``: images once into memory, networks trained from them, then tables and figures."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from r2m_jax.atomic import atomic_directory
from r2m_jax.checkpoints import provenance
from r2m_jax.data.index import index_file, read_index
from r2m_jax.data.pipeline import Decoding, decode_all
from r2m_jax.data.records import Record, select
from r2m_jax.evaluation.report import Section, bullets, page, tabulated
from r2m_jax.evaluation.tables import Table
from r2m_jax.jobs.study import Studied, forged_index, keep, known_studies, run_studies, under_way, write_results
from r2m_jax.jobs.study_page import reproduction, study_sections
from r2m_jax.parallel import available_cores
from r2m_jax.progress import Reporter
from r2m_jax.recipes.compression_studying import CompressionStudyRecipe
from r2m_jax.studies import Result
from r2m_jax.studies.compression import STUDIES, Workbench
from r2m_jax.studies.compression.bench import MODELS
from r2m_jax.studies.compression.images import Chosen, choose_images
from r2m_jax.studies.roles import named


def compression_study(recipe: CompressionStudyRecipe, *, reporter: Reporter, overwrite: bool = False) -> Studied:
    """Run studies of compression and write ``recipe.out``; it appears when all of it is done.

    Trained networks and forged images are kept in ``OUT.run`` until then and in ``OUT`` afterwards; a run that needs
    the same ones takes them up.

    Raises:
        InputError: a study is unknown, the images are unusable, the output is taken, or no study of those asked for can
            be done.
    """
    names = known_studies(recipe.studies, STUDIES, "compression")
    start = time.monotonic()
    with atomic_directory(recipe.out, overwrite) as aside, under_way(recipe.out) as run:
        chosen, key, hashed, said = _images(recipe, run, reporter)
        side, threads = recipe.data.image_size, recipe.workers or available_cores()

        def decode(records: Sequence[Record], what: str) -> UInt8[np.ndarray, "n h w 3"]:
            pixels = np.empty((len(records), side, side, 3), np.uint8)
            with reporter.track(f"decode {what}", len(records)) as advance:
                decode_all(records, Decoding(side, threads), pixels, on_progress=advance)
            return pixels

        context = Workbench(
            recipe, chosen.train, chosen.test, chosen.source, decode, key, folder=run, earlier=recipe.out,
            reporter=reporter, unseen=chosen.unseen,
        )  # fmt: skip
        for sentence in said:
            context.note(sentence)
        results, left_out, seconds = run_studies(names, STUDIES, context)
        notes = [*context.notes, *left_out.values()]
        images = run if recipe.data.index is None else index_file(recipe.data.index).parent
        write_results(aside, results, context.cited, images, notes, _page(recipe, context, results, notes))
        made = provenance.record(
            "compression-study", inputs=hashed, recipe=recipe.model_dump(mode="json"), seed=recipe.seed,
            seconds=round(time.monotonic() - start, 1), studies=seconds, left_out=left_out,
            trained=context.trained, taken=context.taken, devices=[str(d) for d in jax.devices()],
        )  # fmt: skip
        (aside / provenance.FILE).write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
        keep(recipe.out, run, aside, MODELS)
    shutil.rmtree(run, ignore_errors=True)  # not before the result is in its place
    return Studied(recipe.out, results, left_out, tuple(context.trained), tuple(context.taken))


def _images(
    recipe: CompressionStudyRecipe, run: Path, reporter: Reporter
) -> tuple[Chosen, Any, list[dict[str, Any]], list[str]]:
    """Images with their roles, what decides them, hashes of the indexes, and notes for readers."""
    data = recipe.data
    if data.index is None:
        index, key, said = forged_index(recipe, data.forging.size or data.image_size, run, reporter)
        unseen: Sequence[str] | None = data.forging.unseen
    else:
        index, unseen, said = index_file(data.index), data.unseen, []
        key = provenance.sha256(index)
    records = named(read_index(index))
    source: list[Record] | None = None
    decided: list[Any] = [key, data.image_size, data.limit, data.first, list(unseen or ())]
    hashed = provenance.input_hashes([index]) if data.index is not None else []
    if data.source is not None:
        file = index_file(data.source)
        hashed += provenance.input_hashes([file])
        decided.append(provenance.sha256(file))
        source = named(select(read_index(file), split="train"))
    chosen = choose_images(records, source, unseen=unseen, source_methods=data.first, limit=data.limit)
    return chosen, decided, hashed, said


def _page(
    recipe: CompressionStudyRecipe, context: Workbench, results: Mapping[str, Result], notes: Sequence[str]
) -> str:
    lead = (
        f"{len(results)} stud{'ies' if len(results) > 1 else 'y'} of a convolutional detector on images of "
        f"{recipe.data.image_size} pixels, {recipe.seeds} seed{'s' if recipe.seeds > 1 else ''} of everything. Every "
        "AUC follows from the score table named below it; metrics.json has all numbers. Sentences are made from them."
    )
    chosen = recipe.intervals
    certainty = [
        f"Intervals are {chosen.level:.0%}, from {chosen.resamples} resamples in which clips are drawn with "
        "replacement, real and fake ones apart, the same for all networks and columns of a table; of means over seeds. "
        "They say what other test images of the same kind would change.",
        "p-values are two-sided, of paired differences, and not corrected for their number.",
        "A finding is met or not by the sign of a difference, within the noise where its interval holds zero; so few "
        "images and passes decide little about networks trained on thousands.",
        "Seconds are of this machine, whatever else it was doing.",
    ]
    shown = [(r.method if r.label else "real") for r in context.test]
    counted = {
        "train": Counter(r.method if r.label else "real" for r in context.train),
        "test": Counter(shown),
        "source": Counter(r.method if r.label else "real" for r in context.source or ()),
    }
    kinds = ["real", *dict.fromkeys(name for each in counted.values() for name in each if name != "real")]
    images = Table(
        "Images", list(counted), {"Method": kinds},
        {kind: [each[kind] for each in counted.values()] for kind in kinds},
        heading="Method", decimals=0, mark_best=False,
    )  # fmt: skip
    sections = [
        *study_sections(STUDIES, results),
        Section("How sure this is", bullets([*certainty, *notes])),
        Section("The data", tabulated(images)),
        Section("Reproduce", reproduction(recipe, "Networks are in models/, one directory each (`r2m info`).")),
    ]
    return page("r2m study: compression", lead, sections)
