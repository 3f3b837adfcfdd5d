"""``r2m convert``: choices checked, conversion run, report printed."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.markup import escape

from r2m_jax.checkpoints.convert import ConversionReport, Normalisation, convert
from r2m_jax.errors import InputError
from r2m_jax.models import ACTIVATIONS

DTYPES = ("float32", "bfloat16", "float16")


def run(
    source: str,
    target: Path,
    *,
    base: str | None,
    dtype: str | None,
    activation: str | None,
    normalisation: str,
    ignore: list[str],
    overwrite: bool,
) -> None:
    """Convert and print what matched, what was left out and what was inferred."""
    for option, value, choices in (
        ("--dtype", dtype, DTYPES),
        ("--activation", activation, ACTIVATIONS),
        ("--normalisation", normalisation, get_args(Normalisation)),
    ):
        if value is not None and value not in choices:
            raise InputError(f"{option} {value} is unknown; choose one of {', '.join(choices)}.")
    report = convert(
        source,
        target,
        base=base,
        dtype=dtype,
        activation=activation,
        normalisation=normalisation,  # type: ignore[arg-type]  # checked above
        ignore=ignore,
        overwrite=overwrite,
    )
    print_report(report, target)


def print_report(report: ConversionReport, target: Path) -> None:
    """One line per group of tensors; per-layer names are folded into one pattern."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"source     {escape(report.kind)}")
    console.print(f"matched    {len(report.matched)} tensors, {report.parameters:,} parameters")
    for reason, names in _by_reason(report.left_out).items():
        console.print(
            f"left out   {len(names)} tensors: {escape(reason)} ({escape(names[0])}{' …' * (len(names) > 1)})"
        )
    for name in report.ignored:
        console.print(f"ignored    {escape(name)}")
    for statement in report.inferred:
        console.print(f"inferred   {escape(statement)}")
    console.print("unmatched  none")
    console.print(f"written    {escape(str(target))}")


def _by_reason(left_out: list[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, reason in left_out:
        groups.setdefault(reason, []).append(name)
    return groups
