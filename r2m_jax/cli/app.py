"""Commands and their options. Whatever is slow to import is imported inside the command that needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from r2m_jax.cli.data.app import app as data
from r2m_jax.cli.processes import Coordinator, Joining, JoinTimeout, MultiProcess, Process, Processes
from r2m_jax.version import __version__

Profile = Annotated[
    Path | None, typer.Option(help="Directory for a trace of some units in the middle, by JAX's profiler.")
]

app = typer.Typer(
    name="r2m",
    help="Deepfake detectors that are merged, not retrained.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a traceback is a bug report; it should look like one
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"r2m-jax {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Directory for everything the demo makes.")] = Path("demo-out"),
    quick: Annotated[bool, typer.Option("--quick", help="Fewer images and passes: about a minute.")] = False,
    images: Annotated[
        Path | None, typer.Option(help="A folder of your own photographs instead of the embedded ones.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random choice.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output directory.")] = False,
) -> None:
    """Forge data, train specialists, merge them, evaluate everything, write report.html."""
    from r2m_jax.cli.demo import run

    run(out, quick=quick, images=images, seed=seed, overwrite=overwrite)


@app.command()
def train(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="RECIPE [KEY=VALUE]", help="A .yaml file or a shipped recipe, and replacements in it."),
    ] = None,
    deepfakebench: Annotated[
        Path | None, typer.Option(help="Settings of a DeepfakeBench or DF40 detector .yaml, below the replacements.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing model; start a stopped run anew.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the complete recipe and stop.")] = False,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process: Process = None,
    multi_process: MultiProcess = "auto",
    join_timeout: JoinTimeout = 300.0,
    profile: Profile = None,
) -> None:
    """Fine-tune a specialist, an all-in-one model or a probe; the same command goes on with a stopped run."""
    from r2m_jax.cli.train import run

    run(
        arguments or [],
        deepfakebench=deepfakebench,
        overwrite=overwrite,
        dry_run=dry_run,
        joining=Joining(coordinator, processes, process, multi_process, join_timeout),
        profile=profile,
    )


@app.command()
def merge(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE] [KEY=VALUE]", help="A .yaml file, or the directory of an earlier merge."),
    ] = None,
    base: Annotated[Path | None, typer.Option(help="The common pretrained origin.")] = None,
    specialist: Annotated[list[str] | None, typer.Option(help="NAME=DIR; may be repeated.")] = None,
    method: Annotated[
        str | None, typer.Option(help="weight_averaging, task_arithmetic, ties, cart or r2m (the default).")
    ] = None,
    rank: Annotated[str | None, typer.Option(help="r2m, cart: a ratio (0.7), a count (100) or energy:0.9.")] = None,
    alpha: Annotated[float | None, typer.Option(help="r2m, task_arithmetic.")] = None,
    k: Annotated[int | None, typer.Option(help="r2m: core directions.")] = None,
    centering: Annotated[str | None, typer.Option(help="r2m: centered or uncentered.")] = None,
    origin: Annotated[str | None, typer.Option(help="r2m: theta0 or theta_avg.")] = None,
    eta: Annotated[str | None, typer.Option(help="r2m: eff or eq6.")] = None,
    scope: Annotated[str | None, typer.Option(help="r2m: core and eta over global, leaf or block.")] = None,
    norm_matching: Annotated[str | None, typer.Option(help="r2m: residuals' norms equal globally or per leaf.")] = None,
    density: Annotated[float | None, typer.Option(help="ties: share of entries kept.")] = None,
    scale: Annotated[float | None, typer.Option(help="ties, cart.")] = None,
    reduce: Annotated[str | None, typer.Option(help="task_arithmetic, cart: sum or mean.")] = None,
    variant: Annotated[str | None, typer.Option(help="original or paper, where they differ.")] = None,
    fused_qkv: Annotated[
        bool | None, typer.Option("--fused-qkv", help="r2m, cart: truncate query, key and value as one matrix.")
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="average (the default), norm_matched, or a specialist's name.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; the base's when omitted.")] = None,
    memory: Annotated[int | None, typer.Option(help="Budget in MiB for the parameters being worked on.")] = None,
    screen: Annotated[bool, typer.Option("--screen", help="Warn of broken or poisoned specialists first.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse what the screen finds.")] = False,
    out: Annotated[Path | None, typer.Option(help="Model directory to make.")] = None,
    add: Annotated[list[str] | None, typer.Option(help="NAME=DIR to put beside those of an earlier merge.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="NAME to leave out of an earlier merge.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing model.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the complete recipe and, on stderr, what it takes; then stop.")
    ] = False,
    machine: Annotated[
        Path | None,
        typer.Option(help="With --dry-run: file with a machine's rates; this one's are measured and written if new."),
    ] = None,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process: Process = None,
    multi_process: MultiProcess = "auto",
    join_timeout: JoinTimeout = 300.0,
    profile: Profile = None,
) -> None:
    """Merge specialists into one model, without training."""
    from r2m_jax.cli.merge import run

    run(
        arguments or [],
        specialists=specialist or [],
        add=add or [],
        remove=remove or [],
        flags={
            "base": base, "method": method, "head": head, "dtype": dtype, "memory": memory, "out": out,
            "screen": "refuse" if strict else "warn" if screen else None,
        },
        parameters={
            "rank": rank, "alpha": alpha, "k": k, "centering": centering, "origin": origin, "eta": eta,
            "scope": scope, "norm_matching": norm_matching, "density": density, "scale": scale, "reduce": reduce,
            "variant": variant, "fused_qkv": fused_qkv,
        },
        overwrite=overwrite,
        dry_run=dry_run,
        machine=machine,
        joining=Joining(coordinator, processes, process, multi_process, join_timeout),
        profile=profile,
    )  # fmt: skip


@app.command()
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


@app.command()
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


@app.command()
def sweep(
    arguments: Annotated[
        list[str], typer.Argument(metavar="RECIPE [KEY=VALUE]", help="A .yaml file, or `paper` for the paper's grids.")
    ],
    out: Annotated[Path | None, typer.Option(help="Directory for table, maps, scores and the best recipe.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing results.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the complete recipe and stop.")] = False,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process: Process = None,
    multi_process: MultiProcess = "auto",
    join_timeout: JoinTimeout = 300.0,
) -> None:
    """Try a grid of mergers from one factorisation, score each on validation images, keep the best recipe."""
    from r2m_jax.cli.sweep import run

    run(
        arguments,
        out=out,
        overwrite=overwrite,
        dry_run=dry_run,
        joining=Joining(coordinator, processes, process, multi_process, join_timeout),
    )


@app.command("eval")
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


@app.command()
def study(
    arguments: Annotated[
        list[str],
        typer.Argument(metavar="NAME… [RECIPE] [KEY=VALUE]", help="table1, grid … or all; corit-probe … or corit."),
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


@app.command()
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


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Directory, .safetensors, .pth/.pt/.bin file, or hub id.")],
    target: Annotated[Path, typer.Argument(help="Model directory to write.")],
    base: Annotated[
        str | None,
        typer.Option(help="CLIP model to take what the source lacks from (tower, config, processing)."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16 for the parameters; as stored when omitted."),
    ] = None,
    activation: Annotated[str | None, typer.Option(help="quick_gelu or gelu, for a source without a config.")] = None,
    normalisation: Annotated[
        str, typer.Option(help="clip, half (mean = std = 0.5) or auto: the source's own, else by its kind.")
    ] = "auto",
    ignore: Annotated[
        list[str] | None,
        typer.Option(help="Regular expression of tensor names to leave out; may be repeated."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing directory.")] = False,
) -> None:
    """Turn any known checkpoint into a model directory, and say what became of every tensor."""
    from r2m_jax.cli.convert import run

    run(
        source,
        target,
        base=base,
        dtype=dtype,
        activation=activation,
        normalisation=normalisation,
        ignore=ignore or [],
        overwrite=overwrite,
    )


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="Model directory with a trained or merged head.")],
    format: Annotated[str, typer.Option("--format", help="stablehlo, onnx or safetensors.")],
    out: Annotated[Path, typer.Option(help="File with the format's suffix, or directory.")],
    dtype: Annotated[str, typer.Option(help="Of the parameters: float32, bfloat16 or float16.")] = "float32",
    batch: Annotated[str, typer.Option(help="Images the program takes at a time, or dynamic.")] = "dynamic",
    normalise: Annotated[
        bool,
        typer.Option("--normalise/--no-normalise", help="Take uint8 RGB and normalise inside, or normalised float32."),
    ] = True,
    check: Annotated[
        Path | None, typer.Option(help="Folder of images to compare with the model on; built-in ones when omitted.")
    ] = None,
    int8: Annotated[
        str | None,
        typer.Option(help="onnx: dynamic or static (calibrated on the --check images) int8 products."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing artifact.")] = False,
) -> None:
    """Write a model for other runtimes, and check that it scores the same there."""
    from r2m_jax.cli.export import run

    run(
        model,
        format=format,
        out=out,
        dtype=dtype,
        batch=batch,
        normalise=normalise,
        check=check,
        int8=int8,
        overwrite=overwrite,
    )


@app.command()
def compress(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL|RECIPE [KEY=VALUE]", help="A model directory, or a recipe; replacements in it."),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="prune, channels, heads, layers, int8, int4, low-rank or task-vector.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Share removed: of weights, or of channels, heads or layers.")
    ] = None,
    keep: Annotated[int | None, typer.Option(help="channels, heads, layers: how many are kept, instead.")] = None,
    scope: Annotated[str | None, typer.Option(help="prune: by tensor (the default) or global.")] = None,
    sparse: Annotated[bool | None, typer.Option("--sparse", help="prune: store what is left, not the zeros.")] = None,
    granularity: Annotated[
        str | None, typer.Option(help="int8, int4, task-vector: a scale by channel (the default) or by tensor.")
    ] = None,
    rank: Annotated[str | None, typer.Option(help="low-rank: a ratio (0.25), a count (64) or energy:0.9.")] = None,
    base: Annotated[Path | None, typer.Option(help="task-vector: what the model was fine-tuned from.")] = None,
    bits: Annotated[int | None, typer.Option(help="task-vector: 2 to 8, 8 when omitted.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Regular expression of names; may be repeated.")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Names to leave as they are; may be repeated.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Time and memory, before and after.")] = False,
    out: Annotated[Path | None, typer.Option(help="Model directory to make.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing model.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the complete recipe and stop.")] = False,
) -> None:
    """Make a model smaller: pruned, narrower, shallower, of integers or of low rank; say what is saved and changed."""
    from r2m_jax.cli.compress import run

    run(
        arguments or [],
        flags={
            "method": method, "rate": rate, "keep": keep, "scope": scope, "sparse": sparse,
            "granularity": granularity, "rank": rank, "base": base, "bits": bits, "only": only, "skip": skip,
            "out": out,
        },
        measure=measure,
        overwrite=overwrite,
        dry_run=dry_run,
    )  # fmt: skip


@app.command()
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
