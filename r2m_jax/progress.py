"""Progress of long work: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Advance = Callable[..., None]
"""``advance(count=1, note="")``: so many more units are done; ``note`` is shown beside the bar."""


class Reporter:
    """Says what is being done, how fast, and how long it will take.

    Args:
        every_s: seconds between plain lines when the output is no terminal.
        quiet: say nothing, as all processes of one computation but the first should.
    """

    def __init__(self, every_s: float = 10.0, *, quiet: bool = False):
        self._console = Console(file=sys.stderr, highlight=False, quiet=quiet)
        self._every = every_s

    def say(self, text: str) -> None:
        """One line."""
        self._console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def track(self, what: str, total: int, unit: str = "images", each: int = 1) -> Iterator[Advance]:
        """Show ``what`` while the block runs; ``each`` units count as one ``unit`` of the rate times ``each``."""
        start = time.monotonic()
        follow = self._bar if self._console.is_terminal else self._lines
        with follow(what, total, unit, each) as advance:
            yield advance
        seconds = time.monotonic() - start
        self.say(f"{what}: {total * each} {unit} in {seconds:.1f} s, {total * each / max(seconds, 1e-9):.0f} {unit}/s")

    @contextmanager
    def _bar(self, what: str, total: int, unit: str, each: int) -> Iterator[Advance]:
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        with Progress(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task(what, total=total, note="", rate="")

            def advance(count: int = 1, note: str = "") -> None:
                speed = bar.tasks[0].speed
                rate = f"{speed * each:.0f} {unit}/s" if speed else ""
                bar.update(task, advance=count, rate=rate, note=note or bar.tasks[0].fields["note"])

            yield advance

    @contextmanager
    def _lines(self, what: str, total: int, unit: str, each: int) -> Iterator[Advance]:
        start = last = time.monotonic()
        done = 0

        def advance(count: int = 1, note: str = "") -> None:
            nonlocal done, last
            done += count
            now = time.monotonic()
            if now - last < self._every or done >= total:
                return
            last = now
            left = (now - start) / done * (total - done)
            rate = done * each / (now - start)
            self.say(f"{what}: {done}/{total}, {rate:.0f} {unit}/s, {left:.0f} s left{'  ' + note if note else ''}")

        yield advance
