"""What a study is and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from r2m_jax.evaluation.scores import ScoreTable
from r2m_jax.evaluation.tables import Table


class Unavailable(Exception):
    """A study needs what there is not: a model that may not be trained, a second domain. One sentence says what."""


@dataclass(frozen=True)
class Figure:
    """A drawing with what it shows in words.

    Attributes:
        svg: the text of an SVG element.
        caption: below it.
    """

    svg: str
    caption: str


@dataclass(frozen=True)
class Result:
    """What a study found.

    Attributes:
        sentences: what the numbers say, made from them.
        tables: by file name without suffix, each citing the score table it was computed from.
        figures: by file name without suffix.
        scores: score tables by file name without suffix; studies that share images and models share a table.
        metrics: JSON values.
        files: further text files by path relative to the output, such as numbers that are no scores.
    """

    sentences: Sequence[str]
    tables: Mapping[str, Table]
    figures: Mapping[str, Figure] = field(default_factory=dict)
    scores: Mapping[str, ScoreTable] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A table or figure of a paper as a function.

    Attributes:
        name: on the command line.
        title: of its section of the page.
        source: what it repeats.
        run: given the context of its kind; raises :class:`Unavailable` where it cannot be done.
    """

    name: str
    title: str
    source: str
    run: Callable[[Any], Result]
