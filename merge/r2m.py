"""Merge fine-tuned specialists into one detector by R²M, in one jitted call. Copy and edit.

`r2m merge` does the same, checks that the models belong together, and knows the other methods.

    python merge/r2m.py BASE SPECIALIST SPECIALIST... --out merged

BASE is the model directory all specialists were fine-tuned from (`r2m convert` makes one of any CLIP checkpoint).
"""

import warnings
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import typer

from r2m_jax import load_detector, save_detector
from r2m_jax.checkpoints import provenance
from r2m_jax.checkpoints.tensors import safetensors_files
from r2m_jax.merging import average_heads, explain, r2m
from r2m_jax.merging.diagnostics import as_json


def main(
    base: Path,
    specialists: list[Path],
    out: Annotated[Path, typer.Option()],
    rank: float = 0.7,
    alpha: float = 0.5,
    centering: str = "centered",
    origin: str = "theta0",
) -> None:
    """Load, merge, say what the merge is made of, save with provenance."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a base needs no head
        theta0 = load_detector(base)
    detectors = [load_detector(path) for path in specialists]
    thetas = [detector.params for detector in detectors]
    settings: dict[str, Any] = {"rank": rank, "alpha": alpha, "centering": centering, "origin": origin}
    merge = jax.jit(partial(r2m, **settings))
    result = merge(theta0.params["backbone"], [theta["backbone"] for theta in thetas])
    for sentence in explain(result.diagnostics, [path.name for path in specialists]):
        print(sentence)
    merged = detectors[0].replace_params(  # with the processing the specialists were trained with
        {"backbone": result.params, "head": average_heads([theta["head"] for theta in thetas])}
    )
    files = [file for path in [base, *specialists] for file in safetensors_files(path)]
    made = provenance.record(
        "merged",
        inputs=provenance.input_hashes(files),
        recipe={"method": "r2m", **settings},
        diagnostics=as_json(result.diagnostics),
    )
    save_detector(merged, out, provenance=made)
    print(f"written {out}")


if __name__ == "__main__":
    typer.run(main)
