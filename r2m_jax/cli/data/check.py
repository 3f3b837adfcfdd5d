"""``r2m data check``: an audit printed, and its verdict as exit code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from r2m_jax.atomic import atomic_text
from r2m_jax.data.audit import Audit, audit, default_cache, scan
from r2m_jax.data.audit.findings import NAMES
from r2m_jax.data.index import index_file, read_index
from r2m_jax.data.records import SPLITS, Record
from r2m_jax.errors import InputError
from r2m_jax.progress import Reporter

_MOST_ROWS = 60


def run(
    index: Path,
    *,
    as_json: Path | None,
    cache: Path | None,
    workers: int,
    max_images: int | None,
    strict: bool,
    allow: list[str],
) -> None:
    """Audit and print.

    Raises:
        InputError: there are errors (or warnings, when strict): the sentence says how many and of which kind.
    """
    unknown = sorted(set(allow) - set(NAMES))
    if unknown:
        raise InputError(f"there is no finding {unknown[0]!r} to allow; choose from {', '.join(NAMES)}.")
    path = index_file(index)
    listed = read_index(path)
    records = evenly(listed, max_images)
    reporter = Reporter()
    files = len({record.path for record in records})
    with reporter.track("reading files", files, unit="files") as advance:
        facts = scan(records, cache=cache or default_cache(), workers=workers, on_progress=advance)
    found = audit(records, facts, allow)
    print_audit(found, path, listed=len(listed))
    if as_json:
        told = {"index": str(path), "listed": len(listed), **found.as_json()}
        atomic_text(as_json, json.dumps(told, indent=2) + "\n")
    spoiling = found.findings if strict else found.errors
    if spoiling:
        kinds = ", ".join(dict.fromkeys(finding.name for finding in spoiling))
        raise InputError(f"{path} is not fit for use as it is: {kinds}; mend it, or --allow what you know of.")


def evenly(records: Sequence[Record], most: int | None) -> list[Record]:
    """At most so many records, evenly spaced: the same ones every time."""
    if most is None or most >= len(records):
        return list(records)
    return [records[number * len(records) // most] for number in range(most)]


def print_audit(found: Audit, path: Path, listed: int) -> None:
    """Counts, cross-tables, shortcut and findings, as tables a person reads.

    Args:
        found: what is printed.
        path: of the index.
        listed: images of the index, of which fewer may have been audited.
    """
    console = Console(soft_wrap=False, highlight=False)
    console.print(f"{escape(str(path))}: {found.images:,} images", soft_wrap=True)
    if found.images < listed:
        console.print(
            f"{listed - found.images:,} of {listed:,} images were left out (--max-images); leaks and duplicates among "
            "them are not seen.",
            soft_wrap=True,
        )
    table = Table(title="images by split", title_justify="left")
    for column in ("", "value", *SPLITS):
        table.add_column(column, justify="right" if column in SPLITS else "left")
    for column, rows in found.counts.items():
        if column == "label" or set(rows) - {"", "real", "fake"}:
            for number, (value, splits) in enumerate(list(rows.items())[:_MOST_ROWS]):
                cells = (f"{splits.get(split, 0):,}" for split in SPLITS)
                table.add_row(column if not number else "", escape(value) or "(none)", *cells)
            if len(rows) > _MOST_ROWS:
                table.add_row("", f"… {len(rows) - _MOST_ROWS} more", *[""] * len(SPLITS))
    console.print(table)
    table = Table(title="files against the label", title_justify="left")
    for column in ("", "value", "real", "fake"):
        table.add_column(column, justify="right" if column in ("real", "fake") else "left")
    for name, values in found.tables.items():
        for number, row in enumerate(values):
            table.add_row(name if not number else "", escape(row["value"]), f"{row['real']:,}", f"{row['fake']:,}")
    console.print(table)
    for name, measured in found.shortcuts.items():
        what = "all fakes" if name == "all" else f"{name} fakes"
        if measured.auc != measured.auc:
            console.print(f"metadata alone, {escape(what)}: too few images or videos of either label to measure")
            continue
        console.print(
            f"metadata alone, {escape(what)}: AUC {measured.auc:.3f} (95 % interval {measured.low:.3f} to "
            f"{measured.high:.3f})"
        )
    for finding in found.findings:
        colour = "red" if finding.severity == "error" else "yellow"
        console.print(f"[{colour}]{finding.severity}[/{colour}] {finding.name}: {escape(finding.text)}", soft_wrap=True)
        for example in finding.examples:
            console.print(f"    {escape(example)}", soft_wrap=True)
    if not found.findings:
        console.print("nothing found")
