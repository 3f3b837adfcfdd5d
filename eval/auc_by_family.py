"""Score detectors on an index of images and print their AUC per forgery family. Copy and edit.

    python eval/auc_by_family.py INDEX.csv MODEL... --out results

Models of one architecture and normalisation share one compiled function. Writes scores.csv (one row per image and
model) and table.md.
"""

from pathlib import Path
from typing import Annotated

import typer

from r2m_jax import load_detector
from r2m_jax.atomic import atomic_directory
from r2m_jax.data.images import load_images
from r2m_jax.data.index import read_index
from r2m_jax.data.records import select
from r2m_jax.evaluation import ScoreTable, family_auc, score
from r2m_jax.evaluation.tables import Table
from r2m_jax.models import apply_detector
from r2m_jax.progress import Reporter


def main(index: Path, models: list[Path], out: Annotated[Path, typer.Option()], split: str = "test") -> None:
    """Decode the split once per input size, score it with every model, write the tables."""
    records = select(read_index(index), split=split)
    reporter, scores = Reporter(), ScoreTable(records)
    images, scorers = {}, {}
    for path in models:
        detector = load_detector(path)
        size = detector.processor.crop_size["height"]
        if size not in images:
            with reporter.track(f"decode at {size} px", len(records)) as advance:
                images[size] = load_images([r.path for r in records], size, on_progress=advance)
        mean, std = detector.processor.image_mean, detector.processor.image_std
        alike = (detector.config.to_json_string(), *mean, *std)
        if alike not in scorers:
            scorers[alike] = score(apply_detector(detector.config), mean, std, batch_size=32)
        with reporter.track(f"score {path.name}", len(records)) as advance:
            scores.add(path.name, scorers[alike](detector.params, images[size]))
            advance(len(records))
    aucs = family_auc(scores)
    columns = [*scores.families, "mean"]
    table = Table("AUC", columns, {"Models": list(aucs)}, {m: [v[c] for c in columns] for m, v in aucs.items()})
    with atomic_directory(out) as folder:
        scores.write_csv(folder / "scores.csv", relative_to=index.parent)
        (folder / "table.md").write_text(table.markdown(), encoding="utf-8")
    print(table.markdown(), end="")


if __name__ == "__main__":
    typer.run(main)
