"""Commands that score, compare and describe models, and their options; the work of each is in a module of its name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from r2m_jax.cli.processes import Coordinator, Joining, JoinTimeout, MultiProcess, Process, Processes, Profile


def compare(
    base: Annotated[Path, typer.Option(help="The common pretrained origin.")],
    specialist: Annotated[list[str], typer.Option(help="NAME=DIR; may be repeated.")],
    out: Annotated[Path, typer.Option(help="Directory for report.html, tables/ and compare.json.")],
    data: Annotated[
        Path | None, typer.Option(help="Index of images to measure the theory on: R1, R3, Proposition 1.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of the index; val when omitted.")] = None,
    limit: Annotated[int | None, typer.Option(help="Images at most, of all families; 48 when omitted.")] = None,
    rank: Annotated[
        str | None, typer.Option(help="Of R²M's residuals: a ratio (0.7, the default), a count or energy:0.9.")
    ] = None,
    density: Annotated[
        float | None, typer.Option(help="Share of entries kept before signs are compared; 0.2 when omitted.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images at a time.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing results.")] = False,
) -> None:
    """Show how specialists relate before they are merged: directions, spectra, conflicts, readings of R²M."""
    from r2m_jax.cli.compare import run

    run(
        specialists=specialist,
        index=data,
        split=split,
        limit=limit,
        flags={"base": base, "rank": rank, "density": density, "batch_size": batch_size, "out": out},
        overwrite=overwrite,
    )


def collapse(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[RECIPE] [KEY=VALUE]", help="A .yaml file; replacements.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Model directory; its tower is frozen, a head is not needed.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Index of images.")] = None,
    families: Annotated[
        str | None, typer.Option(help="FS,FR …, each against the real images; all when omitted.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Probes are trained on; train when omitted.")] = None,
    test_split: Annotated[str | None, typer.Option(help="Probes are tested on; test when omitted.")] = None,
    layers: Annotated[str | None, typer.Option(help="all (the default), or numbers of blocks: 5,10,12.")] = None,
    feature_norm: Annotated[str | None, typer.Option(help="none (the default), ln_post or unit_rms.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side in pixels; the model's own when omitted.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Starts and orders of the samples; 3 when omitted.")] = None,
    limit: Annotated[int | None, typer.Option(help="Images at most, of all kinds; 600 when omitted.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images at a time.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory for report.html, tables/, figures/, collapse.json.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing results.")] = False,
) -> None:
    """Probe every layer of a frozen tower: critical radius of SAM, signal-to-noise of gradients, curvature."""
    from r2m_jax.cli.collapse import run

    run(
        arguments or [],
        index=data,
        layers=layers,
        families=families,
        data={"split": split, "test_split": test_split, "limit": limit, "image_size": image_size},
        flags={
            "model": model, "feature_norm": feature_norm, "seeds": seeds, "batch_size": batch_size, "out": out,
        },
        overwrite=overwrite,
    )  # fmt: skip


def evaluate(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE] [KEY=VALUE]", help="A .yaml file, or a protocol's recipe that ships."),
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="NAME=DIR; may be repeated.")] = None,
    data: Annotated[Path | None, typer.Option(help="Index of images.")] = None,
    split: Annotated[str | None, typer.Option(help="Of the index; test when omitted.")] = None,
    from_scores: Annotated[
        Path | None, typer.Option(help="A score table, .csv or .parquet, instead of models and data.")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="families (the default), one-vs-all, cross-dataset, df40-p1 …, r2m-seen, ufd.")
    ] = None,
    video_key: Annotated[str | None, typer.Option(help="clip (the default), bench or df40.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="Model the others are tested against; the best of each column when omitted.")
    ] = None,
    intervals: Annotated[bool | None, typer.Option("--intervals/--no-intervals", help="Bootstrap by clip.")] = None,
    calibrate: Annotated[
        float | None, typer.Option(help="Store in each model the threshold of this false-positive rate.")
    ] = None,
    calibrate_split: Annotated[str | None, typer.Option(help="Whose real images decide; val when omitted.")] = None,
    scores: Annotated[str | None, typer.Option(help="Format of the score table: csv or parquet.")] = None,
    strict: Annotated[bool | None, typer.Option("--strict", help="Refuse images that cannot be read.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images at a time.")] = None,
    out: Annotated[Path | None, typer.Option(help="Directory for scores, metrics, tables and report.html.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing results.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the complete recipe and stop.")] = False,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process: Process = None,
    multi_process: MultiProcess = "auto",
    join_timeout: JoinTimeout = 300.0,
    profile: Profile = None,
) -> None:
    """Score models on images and compare them: metrics, intervals, tests, tables, a report."""
    from r2m_jax.cli.evaluate import run

    run(
        arguments or [],
        models=model or [],
        index=data,
        split=split,
        fpr=calibrate,
        calibrate_split=calibrate_split,
        flags={
            "from_scores": from_scores, "protocol": protocol, "video_key": video_key, "reference": reference,
            "intervals": intervals, "scores": scores, "strict": strict, "batch_size": batch_size, "out": out,
        },
        overwrite=overwrite,
        dry_run=dry_run,
        joining=Joining(coordinator, processes, process, multi_process, join_timeout),
        profile=profile,
    )  # fmt: skip


def study(
    arguments: Annotated[
        list[str],
        typer.Argument(metavar="NAME… [RECIPE] [KEY=VALUE]", help="table1, grid … or all; corit …; compression …."),
    ],
    index: Annotated[
        Path | None, typer.Option(help="Index of real and fake images; photographs are forged when omitted.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="A folder of photographs to forge instead of embedded ones.")
    ] = None,
    base: Annotated[Path | None, typer.Option(help="The pretrained origin; the one that ships when omitted.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few images and passes: under three minutes.")] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of every random choice.")] = None,
    out: Annotated[Path | None, typer.Option(help="Directory for report, tables, figures, scores and models.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace existing results; models are reused.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the complete recipe and stop.")] = False,
) -> None:
    """Repeat the paper's tables and figures: train, merge, score, compare, report."""
    from r2m_jax.cli.study import run

    run(
        arguments,
        quick=quick,
        index=index,
        images=images,
        flags={"base": base, "seed": seed, "out": out},
        overwrite=overwrite,
        dry_run=dry_run,
    )


def predict(
    model: Annotated[Path, typer.Argument(help="Model directory.")],
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH…", help="Images, videos, folders, patterns; .txt, .csv, .json lists.")
    ],
    out: Annotated[Path | None, typer.Option(help="File for the rows: .csv, .tsv, .json or .jsonl.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
    threshold: Annotated[
        float | None, typer.Option(help="Fake is above it; the model's calibration, else 0.5, when omitted.")
    ] = None,
    faces: Annotated[
        str, typer.Option(help="Crop the largest face: always, never, or auto: if the model was trained on crops.")
    ] = "auto",
    explain: Annotated[
        Path | None, typer.Option(help="Directory for a picture per row of the patches that speak for fake and real.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images scored at a time.")] = 32,
    frames: Annotated[int, typer.Option(help="Evenly spaced frames of each video.")] = 32,
    per_frame: Annotated[bool, typer.Option("--per-frame", help="A row for every frame, not one per video.")] = False,
    workers: Annotated[int, typer.Option(help="Decoders working side by side.")] = 2,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse everything if one file cannot be scored.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing --explain directory.")] = False,
) -> None:
    """Probability of fake of images and videos."""
    from r2m_jax.cli.predict import run

    run(
        model,
        paths,
        out=out,
        as_json=as_json,
        threshold=threshold,
        faces=faces,
        explain=explain,
        batch_size=batch_size,
        frames=frames,
        per_frame=per_frame,
        workers=workers,
        strict=strict,
        overwrite=overwrite,
    )


def info(
    model: Annotated[Path, typer.Argument(help="Model directory.")],
    base: Annotated[
        Path | None, typer.Option(help="The pretrained origin; adds the norms of the model's task vector.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Show a model's architecture, preprocessing, head and provenance."""
    from r2m_jax.cli.info import run

    run(model, base=base, as_json=as_json)
