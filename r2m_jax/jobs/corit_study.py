"""``r2m study corit…``: images and the tokens of a frozen tower once, then the tables and figures of CoRIT."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax

from r2m_jax.atomic import atomic_directory
from r2m_jax.checkpoints import provenance
from r2m_jax.checkpoints.preprocessing import read_processor
from r2m_jax.checkpoints.tensors import safetensors_files
from r2m_jax.data.index import index_file, read_index
from r2m_jax.errors import InputError
from r2m_jax.evaluation.report import Section, bullets, page, tabulated
from r2m_jax.evaluation.tables import Table
from r2m_jax.jobs.collapse_features import divide
from r2m_jax.jobs.kinds import square_input
from r2m_jax.jobs.merge_inputs import open_inputs
from r2m_jax.jobs.study import (
    MODELS,
    Studied,
    forged_index,
    keep,
    known_studies,
    read_base,
    run_studies,
    under_way,
    write_results,
)
from r2m_jax.jobs.study_page import reproduction, study_sections
from r2m_jax.models import Detector
from r2m_jax.progress import Reporter
from r2m_jax.recipes.collapsing import CollapseData
from r2m_jax.recipes.corit_studying import CoritStudyRecipe
from r2m_jax.studies import Result
from r2m_jax.studies.corit import STUDIES, Frozen
from r2m_jax.studies.corit.frozen import TOKENS


def corit_study(recipe: CoritStudyRecipe, *, reporter: Reporter, overwrite: bool = False) -> Studied:
    """Run studies of CoRIT and write ``recipe.out``; it appears when all of it is done.

    Tokens, trained specialists and forged images are kept in ``OUT.run`` until then and in ``OUT`` afterwards; a run
    that needs the same ones, also for other studies, takes them up.

    Raises:
        InputError: a study is unknown, the images or models are unusable, the output is taken, or no study of those
            asked for can be done.
    """
    names = known_studies(recipe.studies, STUDIES, "corit")
    start = time.monotonic()
    with atomic_directory(recipe.out, overwrite) as aside, under_way(recipe.out) as run:
        base, inputs = _base(recipe)
        size = recipe.data.image_size or square_input(base.processor, "the base")
        if size % base.config.patch_size:
            raise InputError(f"images of {size} pixels do not divide into patches of {base.config.patch_size}.")
        said: list[str] = []
        if recipe.data.index is not None:
            index = index_file(recipe.data.index)
        else:
            index, _, said = forged_index(recipe, recipe.data.forging.size or size, run, reporter)
        records = read_index(index)
        if recipe.data.by == "method":
            records = [replace(record, family=record.method) for record in records]
        train, test, _ = divide(records, CollapseData(index=index, limit=recipe.data.limit), index)
        context = Frozen(recipe, base, train, test, size=size, folder=run, earlier=recipe.out, reporter=reporter)
        for sentence in said:
            context.note(sentence)
        results, left_out, seconds = run_studies(names, STUDIES, context)
        notes = [*context.notes, *left_out.values()]
        images = run if recipe.data.index is None else index.parent
        write_results(aside, results, context.cited, images, notes, _page(recipe, context, results, notes))
        made = provenance.record(
            "corit-study", inputs=[*inputs, *_hashed(recipe)], recipe=recipe.model_dump(mode="json"), seed=recipe.seed,
            seconds=round(time.monotonic() - start, 1), studies=seconds, left_out=left_out,
            trained=context.trained, taken=context.taken, devices=[str(d) for d in jax.devices()],
        )  # fmt: skip
        (aside / provenance.FILE).write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
        keep(recipe.out, run, aside, TOKENS, MODELS)
    shutil.rmtree(run, ignore_errors=True)  # not before the result is in its place
    return Studied(recipe.out, results, left_out, tuple(context.trained), tuple(context.taken))


def _base(recipe: CoritStudyRecipe) -> tuple[Detector, list[dict[str, Any]]]:
    """The tower, with the specialists' processing where there are some, and the hashes of its files."""
    base, inputs = read_base(recipe.base)
    for given in (recipe.specialists, recipe.sharp_specialists):
        if given and recipe.base is not None:
            open_inputs(recipe.base, given)
            processor = read_processor(next(iter(given.values())))
            base = Detector.create(base.config, base.params, processor, options=base.options)
    return base, inputs


def _hashed(recipe: CoritStudyRecipe) -> list[dict[str, Any]]:
    given = [*recipe.specialists.values(), *recipe.sharp_specialists.values()]
    files = [file for path in given for file in safetensors_files(path)]
    if recipe.data.index is not None:
        files.append(index_file(recipe.data.index))
    return provenance.input_hashes(files)


def _page(recipe: CoritStudyRecipe, context: Frozen, results: Mapping[str, Result], notes: Sequence[str]) -> str:
    lead = (
        f"{len(results)} stud{'ies' if len(results) > 1 else 'y'} of heads on a frozen tower of {context.depth} "
        f"blocks, images of {context.size} pixels. Every number follows from the score table named below it; "
        "metrics.json has them all. Sentences are made from the numbers."
    )
    chosen, heads = recipe.intervals, recipe.heads
    certainty = [
        f"Intervals are {chosen.level:.0%}, from {chosen.resamples} resamples in which clips are drawn with "
        "replacement, real and fake ones apart, the same for all rows and columns of a table; of means over seeds, "
        "where there are seeds. They say what other test images of the same kind would change.",
        f"All heads are trained alike, {heads.steps} batches of {heads.batch_size} at a rate of "
        f"{heads.learning_rate:g} whatever their width: a rate chosen for each might order them otherwise.",
        "p-values are two-sided, of paired differences, and not corrected for their number.",
    ]
    shown = [family or "real" for family in context.families]
    counted = Counter(zip(shown, context.tested.tolist(), strict=True))
    kinds = ["real", *context.names]
    images = Table(
        "Images", ["train", "test"], {"Family": kinds},
        {kind: [counted[kind, False], counted[kind, True]] for kind in kinds},
        heading="Family", decimals=0, mark_best=False,
    )  # fmt: skip
    sections = [
        *study_sections(STUDIES, results),
        Section("How sure this is", bullets([*certainty, *notes])),
        Section("The data", tabulated(images)),
        Section("Reproduce", reproduction(recipe, "Tokens are in tokens/; the same command takes them up.")),
    ]
    return page("r2m study: CoRIT", lead, sections)
