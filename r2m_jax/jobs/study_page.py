"""The page of ``r2m study``: every study as a section of sentences, tables and figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import yaml
from pydantic import BaseModel

from r2m_jax.checkpoints.provenance import versions
from r2m_jax.data.records import Record
from r2m_jax.evaluation.report import Section, bullets, drawing, page, paragraphs, preformatted, tabulated
from r2m_jax.evaluation.tables import Table
from r2m_jax.recipes.studying import StudyRecipe
from r2m_jax.studies import STUDIES, Context, Result, Study

KEPT = "Models are in models/, one directory each (`r2m info` describes them); the same command takes them up."


def page_of(recipe: StudyRecipe, context: Context, results: Mapping[str, Result], notes: Sequence[str]) -> str:
    """The whole page.

    Args:
        recipe: what was asked for.
        context: tells of data and models.
        results: by study, in the order shown.
        notes: sentences for readers.
    """
    roles = context.roles
    many = len(results)
    lead = (
        f"{many} stud{'ies' if many > 1 else 'y'} of {len(roles.families)} specialists and "
        f"{len(recipe.mergers)} ways to merge them. Every number follows from the score table named below it; "
        "metrics.json has them all. Sentences are made from the numbers."
    )
    sections = study_sections(STUDIES, results)
    sections += [
        Section("How sure this is", bullets([*_certainty(recipe), *notes])),
        Section("The data", _data(context)),
        Section("Reproduce", reproduction(recipe)),
    ]
    return page("r2m study", lead, sections)


def study_sections(studies: Mapping[str, Study], results: Mapping[str, Result]) -> list[Section]:
    """A section per study: sentences, tables, figures."""
    found = []
    for name, result in results.items():
        source = f"Repeats {studies[name].source}; r2m study {name}."
        parts = [f'<p class="soft">{source}</p>', bullets(result.sentences)]
        parts += [tabulated(table) for table in result.tables.values()]
        parts += [drawing(figure.svg, figure.caption) for figure in result.figures.values()]
        found.append(Section(studies[name].title, "".join(parts)))
    return found


def _certainty(recipe: StudyRecipe) -> list[str]:
    chosen = recipe.intervals
    return [
        f"Intervals are {chosen.level:.0%}, from {chosen.resamples} resamples in which clips are drawn with "
        "replacement, real and fake ones apart, the same for all models and columns of a table. They say what other "
        "test images of the same kind would change.",
        "p-values are two-sided, of paired differences, and not corrected for their number; a model picked as the best "
        "by the same scores looks a little better than it is.",
        "Every model was trained once, from one seed: what another seed would change is in no interval.",
    ]


def _data(context: Context) -> str:
    roles, test = context.roles, context.test
    families = {family: ", ".join(methods) for family, methods in roles.families.items()}
    lines = [f"{family} learns {methods}." for family, methods in families.items()]
    lines.append(f"Learnt by no specialist: {', '.join(roles.unseen) or 'none'}.")
    lines.append(
        f"Models are trained in the domain {roles.domain or '(unnamed)'}; others: {', '.join(roles.others) or 'none'}."
    )
    kinds = list(dict.fromkeys(_kind(record) for record in test))
    counted = Counter((_kind(record), record.domain) for record in test)
    domains = list(dict.fromkeys(record.domain for record in test))
    table = Table(
        "Test images", [domain or "(unnamed)" for domain in domains], {"Kind": kinds},
        {kind: [counted[kind, domain] for domain in domains] for kind in kinds},
        heading="Method", decimals=0, mark_best=False,
    )  # fmt: skip
    return bullets(lines) + tabulated(table)


def _kind(record: Record) -> str:
    return f"{record.family}: {record.method}" if record.label else "real"


def reproduction(recipe: BaseModel, kept: str = KEPT) -> str:
    """The recipe as YAML, versions, and what of the run is kept for others."""
    text = yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)
    return preformatted(text) + paragraphs(
        [
            ", ".join(f"{name} {version}" for name, version in versions().items()) + ".",
            kept,
        ]
    )
