"""``r2m demo``."""

from __future__ import annotations

from pathlib import Path

from r2m_jax.demo import load_recipe, run_demo
from r2m_jax.progress import Reporter


def run(out: Path, *, quick: bool, images: Path | None, seed: int | None, overwrite: bool) -> None:
    """Run the demo and print its table and where everything is."""
    recipe = load_recipe("quick" if quick else "full", seed=seed)
    reporter = Reporter()
    run_demo(out, recipe, images=images, reporter=reporter, overwrite=overwrite)
    print((out / "table.md").read_text(encoding="utf-8"), end="")
    reporter.say(f"report: {out / 'report.html'}")
