"""``r2m data prepare``: an index, or a data set as published, becomes a tensorflow-datasets data set."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from r2m_jax.data.index import read_index
from r2m_jax.data.records import Record
from r2m_jax.errors import InputError
from r2m_jax.progress import Reporter


def run(index: Path, data_dir: Path, *, name: str, overwrite: bool) -> None:
    """Prepare and print where the data set is and how to read it."""
    records = _records(index, name)
    from r2m_jax.data.tfds.prepare import prepare

    reporter = Reporter()
    with reporter.track("prepare", len(records)) as advance:
        folder = prepare(records, data_dir, name, overwrite=overwrite, on_progress=advance)
    splits = Counter(record.split for record in records)
    print(f"written  {folder} ({', '.join(f'{split} {count}' for split, count in splits.items())})")
    print(f"read     tfds.data_source({name!r}, data_dir={str(data_dir)!r}, split={next(iter(splits))!r})")


def _records(index: Path, name: str) -> list[Record]:
    if not index.is_dir():
        return read_index(index)
    from r2m_jax.data.tfds.builders import BUILDERS

    builder = BUILDERS.get(name)
    if builder is None or not builder.OPTIONS:
        known = ", ".join(other for other, each in BUILDERS.items() if each.OPTIONS)
        raise InputError(f"{index} is a folder: give an index, or --name with the data set it holds ({known}).")
    return builder.read(index)
