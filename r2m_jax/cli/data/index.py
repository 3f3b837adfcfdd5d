"""``r2m data index``: sources read, a set selected, the index written and what it holds printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from r2m_jax.data.index import write_index
from r2m_jax.data.named_sets import absent_classes, select_set
from r2m_jax.data.readers import read_source, require_reals
from r2m_jax.data.records import SPLITS, Record
from r2m_jax.data.selection import FrameSelection, deduplicate
from r2m_jax.errors import InputError

_CLASSES = {"real": 0, "fake": 1}
_INDEXES = (".parquet", ".csv")


def run(
    sources: Sequence[Path],
    out: Path,
    *,
    layout: str,
    root: Path | None,
    strip_prefix: str | None,
    frames: int | None,
    frame_selection: str,
    named_set: str | None,
    split_seed: int,
    labels: Sequence[str],
    compression: str | None,
    dataset: str,
    domain: str,
    family: str,
    split: str,
    dedup: bool,
    check_files: bool,
    fakes_only: bool,
    overwrite: bool,
) -> None:
    """Read the sources in order, write one index and print what it holds."""
    if out.suffix not in _INDEXES:
        raise InputError(f"{out} must end in {' or '.join(_INDEXES)}, which decides its format.")
    if out.exists() and not overwrite:
        raise InputError(f"{out} already exists; choose another output or pass --overwrite.")
    extra = _labels(labels)
    readings = [
        read_source(
            source,
            layout=layout,
            root=root,
            strip_prefix=strip_prefix,
            frames=frames,
            frame_selection=cast(FrameSelection, frame_selection),  # refused by read_source where unknown
            labels=extra,
            compression=compression,
            dataset=dataset,
            domain=domain,
            family=family,
            split=split,
            check_files=check_files,
        )
        for source in sources
    ]
    records = [record for reading in readings for record in reading.records]
    if dedup:
        records = deduplicate(records)
    if named_set is None:
        lacking = [] if fakes_only else absent_classes(records)
    else:
        selected = select_set(records, named_set, split_seed=split_seed)
        records, lacking = selected.records, selected.lacking
    if not fakes_only:
        require_reals(records, sources)
    write_index(records, out)
    console = Console(highlight=False, soft_wrap=True)
    for source, reading in zip(sources, readings, strict=True):
        console.print(f"read       {escape(str(source))}: {reading.layout}, {len(reading.records)} images")
        for kind, lines in (("note", reading.notes), ("warning", reading.warnings)):
            for line in lines:
                console.print(f"{kind:<10} {escape(line)}")
    for line in lacking:
        console.print(f"warning    {f'the set {escape(named_set)} is incomplete: ' if named_set else ''}{escape(line)}")
    console.print(_table(records))
    console.print(f"written    {escape(str(out))}: {len(records)} images")


def _labels(given: Sequence[str]) -> dict[str, int]:
    labels = {}
    for pair in given:
        name, _, kind = pair.rpartition("=")
        if not name or kind not in _CLASSES:
            raise InputError(f"--label {pair} is not of the form NAME=real or NAME=fake.")
        labels[name] = _CLASSES[kind]
    return labels


def _table(records: Sequence[Record]) -> Table:
    table = Table("family", "method", "domain", *SPLITS, "clips", title="images")
    for column in table.columns[3:]:
        column.justify = "right"
    counts: Counter[tuple[tuple[bool, str, str, str], str]] = Counter()
    clips: dict[tuple[bool, str, str, str], set[tuple[str, int, str]]] = {}
    for record in records:
        row = (bool(record.label), record.family, record.method, record.domain)
        counts[row, record.split] += 1
        clips.setdefault(row, set()).add(record.clip)
    for row in sorted(clips):
        fake, family, method, domain = row
        names = (family or "?", method or "?") if fake else ("real", "")
        table.add_row(
            *map(escape, (*names, domain)), *(str(counts[row, split] or "") for split in SPLITS), str(len(clips[row]))
        )
    return table
