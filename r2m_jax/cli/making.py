"""Commands that make models, and their options; the work of each is in a module of its name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from r2m_jax.cli.processes import Coordinator, Joining, JoinTimeout, MultiProcess, Process, Processes, Profile


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
    tolerance: Annotated[
        float | None, typer.Option(help="How far a probability may be from the model's; by the artifact when omitted.")
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
        tolerance=tolerance,
        overwrite=overwrite,
    )
