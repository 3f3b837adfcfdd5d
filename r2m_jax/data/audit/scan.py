"""Facts about many files: in parallel, and kept between runs."""

from __future__ import annotations

import json
import multiprocessing
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from r2m_jax.data.audit.facts import Facts, examine
from r2m_jax.data.records import Record
from r2m_jax.errors import InputError

_CHUNK = 64  # files a process takes at a time; also how many are lost when the run is killed
_ALONE = 256  # below so many files, starting processes costs more than they save
_TABLE = "facts_2"  # a new name whenever what is noted of a file changes, so that old facts are not taken for new


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
    the cache's. Facts are stored as they come, so that an interrupted scan goes on where it stopped. Files with a
    problem are looked at every time: they may have arrived, or become readable, without a change of their own.

    Args:
        records: of the index.
        cache: SQLite file to keep facts in; None to keep none.
        workers: processes.
        on_progress: called with the number of files done since the last call, those of the cache included.

    Raises:
        InputError: the cache cannot be used, or a process was ended from outside.
    """
    films = {record.path: record.frame >= 0 for record in records}
    advance = on_progress or (lambda count: None)
    found: dict[str, Facts] = {}
    try:
        with closing(_open(cache)) as store:
            keys = {path: _key(path, film) for path, film in films.items()}
            found = _known(store, keys)
            if found:
                advance(len(found))
            wanted = [path for path in films if path not in found]
            for batch in _examined(wanted, films, workers):
                found |= batch
                sound = ((path, facts) for path, facts in batch.items() if not facts.problem)
                rows = [(*keys[path], json.dumps(asdict(facts))) for path, facts in sound]
                with store:
                    store.executemany(f"INSERT OR REPLACE INTO {_TABLE} VALUES (?, ?, ?, ?, ?)", rows)
                advance(len(batch))
    except BrokenProcessPool:
        raise InputError(
            "a process that reads files was ended from outside, perhaps for want of memory; give the command again "
            "with --workers 1, it goes on where it stopped."
        ) from None
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
        store.execute(
            f"CREATE TABLE IF NOT EXISTS {_TABLE} "
            "(path TEXT, film INT, bytes INT, changed INT, json TEXT, PRIMARY KEY (path, film))"
        )
    return store


Key = tuple[str, bool, int, int]
"""What facts are kept under: absolute path, whether it was read as a film, size and time of change."""


def _key(path: str, film: bool) -> Key:
    # One cache serves runs from different folders, where a relative path means different files.
    place = os.path.abspath(path)  # noqa: PTH100  # 100,000 times
    try:
        status = os.stat(path)  # noqa: PTH116  # 100,000 times
    except OSError:
        return place, film, -1, -1
    return place, film, status.st_size, status.st_mtime_ns


def _known(store: sqlite3.Connection, keys: Mapping[str, Key]) -> dict[str, Facts]:
    query = f"SELECT json FROM {_TABLE} WHERE path = ? AND film = ? AND bytes = ? AND changed = ?"
    rows = ((path, store.execute(query, key).fetchone()) for path, key in keys.items())
    return {path: Facts(**json.loads(row[0])) for path, row in rows if row}


def _examined(wanted: Sequence[str], films: Mapping[str, bool], workers: int) -> Iterator[dict[str, Facts]]:
    named = [(path, films[path]) for path in wanted]
    chunks = [named[start : start + _CHUNK] for start in range(0, len(named), _CHUNK)]
    if workers == 1 or len(wanted) < _ALONE:
        yield from map(_examine_all, chunks)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        for future in as_completed([pool.submit(_examine_all, chunk) for chunk in chunks]):
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    # A process of a pool whose parent was killed would wait for work for ever.
    def watch(parent: multiprocessing.process.BaseProcess) -> None:
        parent.join()
        os._exit(1)

    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=watch, args=(parent,), daemon=True).start()


def _examine_all(files: Sequence[tuple[str, bool]]) -> dict[str, Facts]:
    return {path: examine(path, film) for path, film in files}
