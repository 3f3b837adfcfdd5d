"""The audit of a data set: everything counted, found and measured, as JSON values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from r2m_jax.data.audit.facts import Facts
from r2m_jax.data.audit.findings import Finding, find
from r2m_jax.data.audit.shortcut import MARGIN, Shortcut, shortcut, tables
from r2m_jax.data.records import Record

COUNTED = ("label", "family", "method", "domain", "dataset", "compression")
"""Columns whose values are counted by split."""

ALL = "all"


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        images: rows of the index.
        counts: per column and value, images by split.
        findings: errors first; those that were allowed are left out.
        shortcuts: metadata against the label, over all fakes (``all``) and per family.
        tables: format, size and quality against the label.
    """

    images: int
    counts: dict[str, dict[str, dict[str, int]]]
    findings: list[Finding]
    shortcuts: dict[str, Shortcut]
    tables: dict[str, list[dict[str, Any]]]

    @property
    def errors(self) -> list[Finding]:
        """Findings that spoil an evaluation."""
        return [finding for finding in self.findings if finding.severity == "error"]

    @property
    def warnings(self) -> list[Finding]:
        """Findings that may."""
        return [finding for finding in self.findings if finding.severity == "warning"]

    def as_json(self) -> dict[str, Any]:
        """JSON values; an AUC that could not be measured is null.

        ``images``: rows audited. ``counts``: column → value → split → images. ``findings``: list of ``name``,
        ``severity`` (error, warning), ``text``, ``count``, ``examples`` (the first five). ``metadata``: ``margin``;
        ``auc``: ``all`` or family → ``auc``, ``low``, ``high`` and ``single`` (property → AUC); ``tables``: property
        → list of ``value``, ``real``, ``fake``.
        """
        shortcuts = {
            name: {key: _number(value) for key, value in asdict(measured).items()}
            for name, measured in self.shortcuts.items()
        }
        return {
            "images": self.images,
            "counts": self.counts,
            "findings": [asdict(finding) for finding in self.findings],
            "metadata": {"margin": MARGIN, "auc": shortcuts, "tables": self.tables},
        }


def audit(records: Sequence[Record], facts: Mapping[str, Facts], allow: Collection[str] = (), seed: int = 0) -> Audit:
    """Count, look for what is wrong, and measure the shortcut.

    Args:
        records: of the index.
        facts: about their files, by path.
        allow: names of findings that are known and not to be reported.
        seed: of the shortcut's folds.
    """
    shortcuts = {ALL: shortcut(records, facts, seed)}
    families = sorted({record.family for record in records if record.family})
    for family in families if len(families) > 1 else ():
        kept = [record for record in records if record.family in ("", family) and (record.label == 0 or record.family)]
        shortcuts[family] = shortcut(kept, facts, seed)
    findings = find(records, facts)
    alarming = {name: measured for name, measured in shortcuts.items() if measured.alarming}
    if alarming:
        worst = max(alarming, key=lambda name: alarming[name].auc)
        telling = max(alarming[worst].single, key=lambda name: alarming[worst].single[name])
        text = (
            f"metadata alone tells {'fakes' if worst == ALL else worst + ' fakes'} from real images with AUC "
            f"{alarming[worst].auc:.3f} (most of all {telling}, {alarming[worst].single[telling]:.3f}); store all "
            "images alike, or a detector may learn this."
        )
        findings.append(Finding("shortcut", "warning", text, len(alarming), tuple(alarming)))
    return Audit(
        images=len(records),
        counts={column: _counted(records, column) for column in COUNTED},
        findings=[finding for finding in findings if finding.name not in allow],
        shortcuts=shortcuts,
        tables=tables(records, facts),
    )


def _counted(records: Sequence[Record], column: str) -> dict[str, dict[str, int]]:
    counted = Counter((_value(record, column), record.split) for record in records)
    rows: dict[str, dict[str, int]] = {}
    for (value, split), number in sorted(counted.items()):
        rows.setdefault(value, {})[split] = number
    return rows


def _value(record: Record, column: str) -> str:
    if column == "label" or (column in ("family", "method") and not record.label):
        return "fake" if record.label else "real"
    return str(getattr(record, column))


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
