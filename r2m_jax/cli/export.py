"""``r2m export``: a model for other runtimes."""

from __future__ import annotations

from pathlib import Path

from r2m_jax.errors import InputError
from r2m_jax.jobs.export import export
from r2m_jax.progress import Reporter


def run(
    model: Path,
    *,
    format: str,
    out: Path,
    dtype: str,
    batch: str,
    normalise: bool,
    check: Path | None,
    int8: str | None,
    tolerance: float | None,
    overwrite: bool,
) -> None:
    """Export, and say how large the artifact is and how far it is from the model.

    Raises:
        InputError: see :func:`r2m_jax.jobs.export.export`.
    """
    if batch != "dynamic" and not batch.isdecimal():
        raise InputError(f"--batch {batch} is no number of images; give 1 or more, or dynamic.")
    made = export(
        model,
        out,
        format=format,
        dtype=dtype,
        batch=None if batch == "dynamic" else int(batch),
        normalised=not normalise,
        check=check,
        int8=int8,
        tolerance=tolerance,
        overwrite=overwrite,
        reporter=Reporter(),
    )
    found = made.difference
    print(f"written    {made.artifact}, {made.size / 1e6:.1f} MB, in {made.seconds[0]:.1f} s")
    print(
        f"checked    {found.images} images in {made.seconds[1]:.1f} s: max |Δ probability| {found.probability:.2g} "
        f"(at most {made.tolerance:g}), max |Δ logit| {found.logit:.2g}"
    )
    if made.times is not None:
        before, after, images = made.times
        print(
            f"runs       {after * 1e3:.1f} ms for a batch of {images} on this CPU, float32 {before * 1e3:.1f} ms "
            f"({before / after:.2f} times faster)"
        )
    print(f"record     {made.record}")
