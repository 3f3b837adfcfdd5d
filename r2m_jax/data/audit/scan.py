"""Facts about many files: in parallel, and kept between runs."""

from __future__ import annotations

import json
import multiprocessing
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from r2m_jax.data.audit.facts import Facts, examine
from r2m_jax.data.records import Record
from r2m_jax.errors import InputError

_CHUNK = 64  # files a process takes at a time; also how many are lost when the run is killed
_ALONE = 256  # below so many files, starting processes costs more than they save


def default_cache() -> Path:
    """Where facts are kept: ``$XDG_CACHE_HOME/r2m-jax/facts.sqlite``, below ``~/.cache`` when unset."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "r2m-jax" / "facts.sqlite"


def scan(
    records: Iterable[Record],
    *,
    cache: Path | None = None,
    workers: int = 2,
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, Facts]:
    """Facts about every file of some records, by path.

    A file is decoded once, however many records name it, and again only when its size or time of change differs from
    the cache's. Facts are stored as they come, so that an interrupted scan goes on where it stopped.

    Args:
        records: of the index.
        cache: SQLite file to keep facts in; None to keep none.
        workers: processes.
        on_progress: called with the number of files done since the last call, those of the cache included.

    Raises:
        InputError: the cache cannot be used.
    """
    films = {record.path: record.frame >= 0 for record in records}
    advance = on_progress or (lambda count: None)
    found: dict[str, Facts] = {}
    try:
        with closing(_open(cache)) as store:
            stamps = {path: _stamp(path) for path in films}
            found = _known(store, stamps)
            if found:
                advance(len(found))
            wanted = [path for path in films if path not in found]
            for batch in _examined(wanted, films, workers):
                found |= batch
                rows = [(path, *stamps[path], json.dumps(asdict(facts))) for path, facts in batch.items()]
                with store:
                    store.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?)", rows)
                advance(len(batch))
    except sqlite3.Error as error:
        raise InputError(f"the cache {cache} cannot be used ({error}); name another with --cache.") from None
    return found


def _open(cache: Path | None) -> sqlite3.Connection:
    if cache is None:
        store = sqlite3.connect(":memory:")
    else:
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{cache.parent} cannot be made ({error.strerror}); name a cache with --cache.") from None
        store = sqlite3.connect(cache, timeout=30)
    with store:
        store.execute("CREATE TABLE IF NOT EXISTS facts (path TEXT PRIMARY KEY, bytes INT, changed INT, json TEXT)")
    return store


def _stamp(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)  # noqa: PTH116  # 100,000 times
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _known(store: sqlite3.Connection, stamps: Mapping[str, tuple[int, int]]) -> dict[str, Facts]:
    known = {}
    for path, size, changed, text in store.execute("SELECT path, bytes, changed, json FROM facts"):
        # A missing file is looked for again: it may have arrived.
        if size >= 0 and stamps.get(path) == (size, changed):
            known[path] = Facts(**json.loads(text))
    return known


def _examined(wanted: Sequence[str], films: Mapping[str, bool], workers: int) -> Iterator[dict[str, Facts]]:
    named = [(path, films[path]) for path in wanted]
    chunks = [named[start : start + _CHUNK] for start in range(0, len(named), _CHUNK)]
    if workers == 1 or len(wanted) < _ALONE:
        yield from map(_examine_all, chunks)
        return
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        for future in as_completed([pool.submit(_examine_all, chunk) for chunk in chunks]):
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _examine_all(files: Sequence[tuple[str, bool]]) -> dict[str, Facts]:
    return {path: examine(path, film) for path, film in files}
