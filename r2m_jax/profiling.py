"""Traces of some units in the middle of long work, for TensorBoard's profiler, XProf or Perfetto."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import jax

from r2m_jax.errors import InputError
from r2m_jax.progress import Advance, Reporter

_AFTER = 20  # units, e.g. steps or tensors: enough that programs are compiled and the page cache is warm
_FOR = 10  # units; traces grow by megabytes a step


class TracingReporter(Reporter):
    """A reporter that also has JAX trace what it follows: each kind of work once, when it is under way.

    It starts after some units (or half of them, if there are few) and ends some units later, between two of them. The
    trace of ``track("train FS", …)`` is in ``folder/train-fs``.

    Args:
        folder: for the traces.
        quiet: see :class:`~r2m_jax.progress.Reporter`.
    """

    def __init__(self, folder: Path, *, quiet: bool = False):
        super().__init__(quiet=quiet)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder} cannot be written ({error.strerror}); choose another --profile.") from None
        self._folder, self._seen = folder, set[Path]()

    @contextmanager
    def track(self, what: str, total: int, unit: str = "images", each: int = 1) -> Iterator[Advance]:
        """Follow, and trace."""
        place = self._folder / re.sub(r"\W+", "-", what).strip("-").lower()
        first, done, begun, ended = min(_AFTER, total // 2), 0, None, None
        again = place in self._seen
        self._seen.add(place)
        with super().track(what, total, unit, each) as advance:

            def traced(count: int = 1, note: str = "") -> None:
                nonlocal done, begun, ended
                advance(count, note)
                done += count
                if begun is None and first <= done < total and not again:
                    jax.profiler.start_trace(place)
                    begun = done
                elif begun is not None and ended is None and done >= min(begun + _FOR, total):
                    jax.profiler.stop_trace()
                    ended = done

            try:
                yield traced
            finally:
                if begun is not None and ended is None:
                    with suppress(RuntimeError):  # what ended the work is what matters
                        jax.profiler.stop_trace()
                    ended = done
        if begun is not None:
            self.say(f"{what}: {unit if each == 1 else 'steps'} {begun + 1} to {ended} traced in {place}")
        elif not again:
            self.say(f"{what}: too short to be traced")


def reporter(profile: Path | None, *, quiet: bool = False) -> Reporter:
    """Of a command that may have been given ``--profile``; a quiet process traces nothing."""
    return Reporter(quiet=quiet) if profile is None or quiet else TracingReporter(profile, quiet=quiet)
