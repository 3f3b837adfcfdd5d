"""``r2m predict``: rows to the terminal, a pipe or a file, what is to be said of them to stderr."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, cast

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from r2m_jax.jobs.predict import FaceMode, PredictRequest, predict
from r2m_jax.jobs.predict.rows import Row, RowWriter, Summary
from r2m_jax.progress import Reporter

_SHOWN = 200  # rows of the table on a terminal
_SPOOLED = 2**20  # bytes kept in memory before they go to a temporary file


def run(
    model: Path,
    paths: Sequence[str],
    *,
    out: Path | None,
    as_json: bool,
    threshold: float | None,
    faces: str,
    explain: Path | None,
    batch_size: int,
    frames: int,
    per_frame: bool,
    workers: int,
    strict: bool,
    overwrite: bool,
) -> None:
    """Score and print.

    Raises:
        InputError: see :func:`r2m_jax.jobs.predict.predict`.
    """
    request = PredictRequest(
        model, paths, threshold, cast(FaceMode, faces), frames, per_frame, batch_size, workers, strict
    )
    reporter = Reporter()
    try:
        with _printing(as_json=as_json, silent=out is not None and not as_json, hold=strict) as emit:
            summary = predict(request, emit=emit, reporter=reporter, out=out, explain=explain, overwrite=overwrite)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the rows has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    for sentence in sentences(summary):
        reporter.say(sentence)
    for place in filter(None, (out, explain)):
        reporter.say(f"written {place}")


def sentences(summary: Summary) -> Iterator[str]:
    """What is to be said of a prediction."""
    scored = summary.rows - summary.failed
    yield f"{summary.fake} fake, {scored - summary.fake} real of {scored} scored"
    if summary.failed:
        yield f"{summary.failed} could not be scored, e.g. {summary.first_error}"
    if summary.faceless:
        yield f"{summary.faceless} frames without a face are not part of their films' means"
    if summary.several:
        yield f"{summary.several} images show several faces; the largest was scored"
    yield from summary.sentences


@contextmanager
def _printing(*, as_json: bool, silent: bool, hold: bool) -> Iterator[Callable[[Row], None]]:
    """What rows are given to: a table on a terminal, JSON or CSV elsewhere, nothing if the block raises at once.

    Rows are held back until the first that is no error (to the end, if ``hold``), so that a run that fails as a whole
    prints nothing.
    """
    stdout = sys.stdout  # the terminal's progress bar takes sys.stdout over while it runs
    if silent:
        yield lambda row: None
    elif not as_json and stdout.isatty():
        shown: list[Row] = []
        more = 0

        def keep(row: Row) -> None:
            nonlocal more
            if len(shown) < _SHOWN:
                shown.append(row)
            else:
                more += 1

        yield keep
        print_table(shown, more, Console(file=stdout, highlight=False))
    else:
        with SpooledTemporaryFile(_SPOOLED, "w+", encoding="utf-8", newline="") as spool:
            held = _Held(spool, stdout)
            writer = RowWriter(held, "json" if as_json else "csv")

            def write(row: Row) -> None:
                writer.write(row)
                if not hold and not row.error:
                    held.release()

            yield write
            writer.close()
            held.release()


def print_table(rows: Sequence[Row], more: int, console: Console) -> None:
    """Rows for people; how many are not shown."""
    table = Table("p(fake)", "", "file", box=None, pad_edge=False)
    table.columns[0].justify = "right"
    for row in rows:
        where = escape(row.path)
        if row.frame is not None:
            where += f", frame {row.frame}"
        if row.frames is not None:
            where += f" ({row.frames} frames)"
        if row.probability is None:
            table.add_row("", "[yellow]error[/]", f"[yellow]{escape(row.error)}[/]")
        else:
            colour = "red" if row.prediction == "fake" else "green"
            table.add_row(f"{row.probability:.4f}", f"[{colour}]{row.prediction}[/]", where)
    console.print(table)
    if more:
        console.print(f"… and {more} more; --out FILE keeps them all")


class _Held:
    """Text that waits in a temporary file until it is released; from then on it goes straight through."""

    def __init__(self, spool: IO[str], stream: IO[str]):
        self._spool: IO[str] | None = spool
        self._stream = stream

    def write(self, text: str) -> int:
        return (self._spool or self._stream).write(text)

    def release(self) -> None:
        if self._spool is not None:
            self._spool.seek(0)
            shutil.copyfileobj(self._spool, self._stream)
            self._spool = None
