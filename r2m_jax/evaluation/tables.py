"""Tables of metrics as data, Markdown, LaTeX and HTML."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows of numbers in groups.

    Attributes:
        title: what the numbers are.
        columns: headings after the row's name.
        groups: group heading to the names of its rows, in order.
        values: row name to one number per column; NaN prints as a dash.
        lower_is_better: columns in which the smallest number is best.
    """

    title: str
    columns: Sequence[str]
    groups: Mapping[str, Sequence[str]]
    values: Mapping[str, Sequence[float]]
    lower_is_better: frozenset[str] = frozenset()

    def is_best(self, row: str, column: int) -> bool:
        """Whether a row holds the best number of a column within its group (groups of one have no best)."""
        group = next(rows for rows in self.groups.values() if row in rows)
        numbers = [self.values[name][column] for name in group if not math.isnan(self.values[name][column])]
        if len(numbers) < 2:
            return False
        best = min(numbers) if self.columns[column] in self.lower_is_better else max(numbers)
        return self.values[row][column] == best

    def markdown(self) -> str:
        """GitHub-flavoured Markdown; the best of a group in bold."""
        lines = [
            f"| {self.title} | " + " | ".join(self.columns) + " |",
            "|---" * (len(self.columns) + 1) + "|",
        ]
        for group, rows in self.groups.items():
            lines.append(f"| *{group}* |" + " |" * len(self.columns))
            for row in rows:
                cells = [f"**{t}**" if self.is_best(row, i) else t for i, t in enumerate(self._texts(row))]
                lines.append(f"| {row} | " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"

    def latex(self) -> str:
        """A booktabs tabular; the best of a group in bold."""
        heads = " & ".join(_tex(column) for column in self.columns)
        lines = [
            f"% {self.title}",
            r"\begin{tabular}{l" + "r" * len(self.columns) + "}",
            r"\toprule",
            rf"Model & {heads} \\",
        ]
        for group, rows in self.groups.items():
            lines += [
                r"\midrule",
                rf"\multicolumn{{{len(self.columns) + 1}}}{{l}}{{\emph{{{_tex(group)}}}}} \\",
            ]
            for row in rows:
                cells = [rf"\textbf{{{t}}}" if self.is_best(row, i) else t for i, t in enumerate(self._texts(row))]
                lines.append(rf"{_tex(row)} & {' & '.join(cells)} \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"

    def html(self) -> str:
        """A table element; the best of a group is marked up as strong."""
        heads = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in self.columns)
        parts = [
            f"<table><caption>{html.escape(self.title)}</caption>",
            f'<thead><tr><th scope="col">Model</th>{heads}</tr></thead>',
        ]
        for group, rows in self.groups.items():
            span = len(self.columns) + 1
            parts.append(
                f'<tbody><tr class="group"><th colspan="{span}" scope="rowgroup">{html.escape(group)}</th></tr>'
            )
            for row in rows:
                cells = "".join(
                    f"<td><strong>{text}</strong></td>" if self.is_best(row, index) else f"<td>{text}</td>"
                    for index, text in enumerate(self._texts(row))
                )
                parts.append(f'<tr><th scope="row">{html.escape(row)}</th>{cells}</tr>')
            parts.append("</tbody>")
        return "".join([*parts, "</table>"])

    def _texts(self, row: str) -> list[str]:
        return ["–" if math.isnan(value) else f"{value:.3f}" for value in self.values[row]]


def _tex(text: str) -> str:
    return text.replace("²", r"$^2$").replace("_", r"\_").replace("%", r"\%").replace("&", r"\&")
