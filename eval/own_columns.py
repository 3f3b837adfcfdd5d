"""Compare detectors on columns of your own, for which there is no protocol. Copy and edit.

    python eval/own_columns.py INDEX MODEL... --out results

`r2m eval` does the same for the protocols it knows, and writes metrics, a report and provenance too.
"""

from pathlib import Path
from typing import Annotated

import typer

from r2m_jax.atomic import atomic_directory
from r2m_jax.data.index import index_file, read_index
from r2m_jax.data.records import select
from r2m_jax.evaluation.comparison import compare
from r2m_jax.evaluation.protocols import Column, Protocol, Selector
from r2m_jax.jobs.scoring import score_models
from r2m_jax.progress import Reporter

SWAPS_AND_TURNS = Protocol(
    name="own",
    title="faces replaced, faces moved",
    source="this file",
    columns=(
        Column("FS", fake=Selector(families=("FS",))),
        Column("FR", fake=Selector(families=("FR",))),
        Column("both", fake=Selector(families=("FS", "FR"))),
    ),
)


def main(index: Path, models: list[Path], out: Annotated[Path, typer.Option()], split: str = "test") -> None:
    """Score the split once with all models, compare them on the columns, write the scores and the table."""
    records = select(read_index(index_file(index)), split=split)
    scored = score_models({path.name: path for path in models}, records, reporter=Reporter())
    table = compare(scored.table, SWAPS_AND_TURNS).table("frame_auc")
    with atomic_directory(out) as folder:
        scored.table.write(folder / "scores.csv", relative_to=index_file(index).parent)
        (folder / "table.md").write_text(table.markdown(), encoding="utf-8")
    print(table.markdown(), end="")


if __name__ == "__main__":
    typer.run(main)
