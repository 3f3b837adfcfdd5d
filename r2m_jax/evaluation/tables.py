"""Tables of metrics as data, Markdown, LaTeX and HTML."""

from __future__ import annotations

import csv
import html
import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from r2m_jax.errors import InputError


@dataclass(frozen=True)
class Table:
    """Rows of numbers in groups.

    Attributes:
        title: what the numbers are.
        columns: headings after the row's name.
        groups: group heading to the names of its rows, in order.
        values: row name to one number per column; NaN prints as a dash.
        lower_is_better: columns in which the smallest number is best.
        intervals: row name to one (low, high) per column, None or NaN where there is none.
        caption: sentences below the table, in HTML and LaTeX's comment.
        source: file the numbers were computed from, relative to the page; linked below the table.
        heading: of the rows' names.
        decimals: of all numbers.
        mark_best: set the best of a group in bold; off for numbers of which none is best, as counts and p-values.

    Raises:
        InputError: a row of a group has no numbers, or not one per column, or a number is infinite.
    """

    title: str
    columns: Sequence[str]
    groups: Mapping[str, Sequence[str]]
    values: Mapping[str, Sequence[float]]
    lower_is_better: frozenset[str] = frozenset()
    intervals: Mapping[str, Sequence[tuple[float, float] | None]] | None = None
    caption: str = ""
    source: str = ""
    heading: str = "Model"
    decimals: int = 3
    mark_best: bool = True

    def __post_init__(self) -> None:
        width = len(self.columns)
        for row in (row for rows in self.groups.values() for row in rows):
            if len(self.values.get(row, ())) != width or len((self.intervals or {}).get(row, self.columns)) != width:
                raise InputError(f"row {row!r} of table {self.title!r} needs {width} numbers, one for every column.")
            if any(math.isinf(value) for value in self.values[row]):
                raise InputError(f"row {row!r} of table {self.title!r} holds an infinite number.")

    def is_best(self, row: str, column: int) -> bool:
        """Whether a row holds the best number of a column within its group (groups of one have no best)."""
        group = next(rows for rows in self.groups.values() if row in rows)
        numbers = [self.values[name][column] for name in group if not math.isnan(self.values[name][column])]
        if len(numbers) < 2 or not self.mark_best:
            return False
        best = min(numbers) if self.columns[column] in self.lower_is_better else max(numbers)
        return self.values[row][column] == best

    def interval(self, row: str, column: int) -> tuple[float, float] | None:
        """Ends of a cell's interval, None where it has none."""
        pair = ((self.intervals or {}).get(row) or [None] * len(self.columns))[column]
        return None if pair is None or math.isnan(pair[0]) or math.isnan(pair[1]) else pair

    def markdown(self) -> str:
        """GitHub-flavoured Markdown; the best of a group in bold, intervals in brackets."""
        lines = [
            "| " + " | ".join(_cell(text) for text in (self.title, *self.columns)) + " |",
            "|---" * (len(self.columns) + 1) + "|",
        ]
        for group, rows in self.groups.items():
            lines.append(f"| *{_cell(group)}* |" + " |" * len(self.columns))
            for row in rows:
                cells = []
                for column, text in enumerate(self._texts(row)):
                    ends = self._ends(row, column)
                    bold = f"**{text}**" if self.is_best(row, column) else text
                    cells.append(f"{bold} ({_span(*ends)})" if ends else bold)
                lines.append(f"| {_cell(row)} | " + " | ".join(cells) + " |")
        if self.caption:
            lines += ["", self.caption]
        if self.source:
            lines += ["", f"Computed from [{self.source}]({quote(self.source)})."]
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """Comma-separated values in full precision; a column with intervals has their ends in two more.

        The group is the first column; a number that is missing, NaN, is an empty cell.
        """
        ends = [any(self.interval(row, column) for row in self.values) for column in range(len(self.columns))]
        heads = [
            [name, *([f"{name} low", f"{name} high"] if has else [])]
            for name, has in zip(self.columns, ends, strict=True)
        ]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["Group", self.heading, *itertools.chain(*heads)])
        for group, rows in self.groups.items():
            for row in rows:
                cells: list[object] = []
                for column, value in enumerate(self.values[row]):
                    cells.append("" if math.isnan(value) else float(value))
                    cells += (self.interval(row, column) or ("", "")) if ends[column] else ()
                writer.writerow([group, row, *cells])
        return text.getvalue()

    def latex(self) -> str:
        """A booktabs tabular; the best of a group in bold, intervals in brackets and smaller."""
        heads = " & ".join(_tex(column) for column in self.columns)
        lines = [f"% {text}" for text in (self.title, self.caption, self.source and f"from {self.source}") if text]
        lines += [
            r"\begin{tabular}{l" + "r" * len(self.columns) + "}",
            r"\toprule",
            rf"{_tex(self.heading)} & {heads} \\",
        ]
        for group, rows in self.groups.items():
            lines += [
                r"\midrule",
                rf"\multicolumn{{{len(self.columns) + 1}}}{{l}}{{\emph{{{_tex(group)}}}}} \\",
            ]
            for row in rows:
                cells = []
                for column, text in enumerate(self._texts(row)):
                    ends, text = self._ends(row, column), _signed(text, "$-$")
                    bold = rf"\textbf{{{text}}}" if self.is_best(row, column) else text
                    smaller = r" {\scriptsize [%s, %s]}"
                    cells.append(bold + (smaller % tuple(_signed(end, "$-$") for end in ends) if ends else ""))
                lines.append(rf"{_tex(row)} & {' & '.join(cells)} \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"

    def html(self) -> str:
        """A table element; the best of a group is marked up as strong.

        On a page of :func:`r2m_jax.evaluation.report.page` its headings sort the rows of every group, the better end
        first; elsewhere, and without scripts, it is a plain table.
        """
        heads = "".join(
            f'<th scope="col" data-first="{"ascending" if column in self.lower_is_better else "descending"}">'
            f"{html.escape(column)}</th>"
            for column in self.columns
        )
        parts = [
            f'<table class="sortable"><caption>{html.escape(self.title)}</caption>',
            f'<thead><tr><th scope="col" data-first="ascending">{html.escape(self.heading)}</th>{heads}</tr></thead>',
        ]
        for group, rows in self.groups.items():
            span = len(self.columns) + 1
            parts.append(
                f'<tbody><tr class="group"><th colspan="{span}" scope="rowgroup">{html.escape(group)}</th></tr>'
            )
            for row in rows:
                cells = "".join(self._cell(row, column, text) for column, text in enumerate(self._texts(row)))
                parts.append(f'<tr><th scope="row">{html.escape(row)}</th>{cells}</tr>')
            parts.append("</tbody>")
        return "".join([*parts, "</table>"])

    def _cell(self, row: str, column: int, text: str) -> str:
        value, ends = self.values[row][column], self._ends(row, column)
        shown = _signed(text, "−")
        shown = f"<strong>{shown}</strong>" if self.is_best(row, column) else shown
        if ends:
            shown += f" <small>{_signed(_span(*ends), '−')}</small>"
        return f"<td>{shown}</td>" if math.isnan(value) else f'<td data-value="{value!r}">{shown}</td>'

    def _texts(self, row: str) -> list[str]:
        return ["–" if math.isnan(value) else self._text(value) for value in self.values[row]]

    def _ends(self, row: str, column: int) -> tuple[str, str] | None:
        pair = self.interval(row, column)
        return None if pair is None else (self._text(pair[0]), self._text(pair[1]))

    def _text(self, value: float) -> str:
        return f"{round(float(value), self.decimals) + 0.0:.{self.decimals}f}"  # no minus before a zero


def _span(low: str, high: str) -> str:
    """Two numbers as a range, which a dash could not join where one is negative."""
    return f"{low} to {high}" if "-" in low + high else f"{low}–{high}"


def _signed(text: str, minus: str) -> str:
    return text.replace("-", minus)


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "η": "eta", "θ": "theta", "κ": "kappa",
    "λ": "lambda", "μ": "mu", "ρ": "rho", "σ": "sigma", "τ": "tau", "φ": "phi",
}  # fmt: skip
_TEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "²": r"$^2$", "₀": r"$_0$",
    "×": r"$\times$", "±": r"$\pm$", "≤": r"$\leq$", "≥": r"$\geq$", "−": r"$-$", "→": r"$\to$",
    **{sign: rf"\{sign}" for sign in "_%&#${}"}, **{letter: rf"$\{name}$" for letter, name in _GREEK.items()},
}  # fmt: skip
_SPECIAL = re.compile("|".join(map(re.escape, _TEX)))


def _tex(text: str) -> str:
    return _SPECIAL.sub(lambda found: _TEX[found.group()], text)
