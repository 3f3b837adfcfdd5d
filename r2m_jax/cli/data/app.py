"""The commands of ``r2m data`` and their options; each command's work is in the module of its name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="data",
    help="Index, audit, crop, forge and prepare data.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def index(
    sources: Annotated[
        list[Path], typer.Argument(help="Lists or folders, read in order; real images are often a source of their own.")
    ],
    out: Annotated[Path, typer.Option(help="Index to write, .parquet or .csv.")],
    layout: Annotated[str, typer.Option(help="How the sources are laid out; recognised when omitted.")] = "auto",
    root: Annotated[Path | None, typer.Option(help="What relative paths of a list are relative to.")] = None,
    strip_prefix: Annotated[str | None, typer.Option(help="Leading folders to take off a list's paths.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames per clip; all when omitted.")] = None,
    frame_selection: Annotated[str, typer.Option(help="even, bench (first n, sorted) or df40 (first n).")] = "even",
    named_set: Annotated[str | None, typer.Option("--set", help="Keep a paper's set, e.g. r2m-fs or FSAll_ff.")] = None,
    split_seed: Annotated[int, typer.Option(help="Seed of the sets that are split anew by video.")] = 1024,
    label: Annotated[
        list[str] | None, typer.Option(help="NAME=real or NAME=fake for an unknown label; may be repeated.")
    ] = None,
    compression: Annotated[str | None, typer.Option(help="Read only raw, c23 or c40.")] = None,
    dataset: Annotated[str, typer.Option(help="Name of the data set instead of the source's.")] = "",
    domain: Annotated[str, typer.Option(help="Domain instead of the source's.")] = "",
    family: Annotated[str, typer.Option(help="Family of methods the catalogue does not know.")] = "",
    split: Annotated[str, typer.Option(help="Split of files whose place does not tell.")] = "test",
    dedup: Annotated[bool, typer.Option("--dedup", help="Keep an image a list repeats once.")] = False,
    check_files: Annotated[bool, typer.Option("--check-files", help="Leave out files that do not exist.")] = False,
    fakes_only: Annotated[bool, typer.Option("--fakes-only", help="Accept data without real images.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing index.")] = False,
) -> None:
    """List the images of published or own data, with class, family, method, domain, clip and split."""
    from r2m_jax.cli.data.index import run

    run(
        sources,
        out,
        layout=layout,
        root=root,
        strip_prefix=strip_prefix,
        frames=frames,
        frame_selection=frame_selection,
        named_set=named_set,
        split_seed=split_seed,
        labels=label or [],
        compression=compression,
        dataset=dataset,
        domain=domain,
        family=family,
        split=split,
        dedup=dedup,
        check_files=check_files,
        fakes_only=fakes_only,
        overwrite=overwrite,
    )


@app.command()
def check(
    index: Annotated[Path, typer.Argument(help="Index, or a folder that holds index.csv or index.parquet.")],
    as_json: Annotated[Path | None, typer.Option("--json", help="File for everything found.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Where facts about files are kept between runs.")] = None,
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 2,
    max_images: Annotated[
        int | None, typer.Option(help="Look at so many only, evenly spaced; leaks among the others go unseen.", min=1)
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
    allow: Annotated[list[str] | None, typer.Option(help="Name of a finding you know of; may be repeated.")] = None,
) -> None:
    """Audit an index: files, leaks, collisions, and what metadata alone gives away."""
    from r2m_jax.cli.data.check import run

    run(
        index,
        as_json=as_json,
        cache=cache,
        workers=workers,
        max_images=max_images,
        strict=strict,
        allow=allow or [],
    )


@app.command()
def crop(
    source: Annotated[
        Path, typer.Argument(help="Photographs and videos: an index or list, or a folder (with --label also one file).")
    ],
    out: Annotated[Path, typer.Option(help="Folder to make, or of a stopped run to go on with.")],
    size: Annotated[int, typer.Option(help="Sides of the crops in pixels.", min=1)] = 256,
    margin: Annotated[float, typer.Option(help="Field of view, as a multiple of ArcFace's crop.")] = 1.3,
    frames: Annotated[int, typer.Option(help="Evenly spaced frames of each clip.")] = 32,
    no_face: Annotated[
        str, typer.Option(help="Images without a face: skip (and count), error, or centre (crop the middle).")
    ] = "skip",
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 2,
    label: Annotated[str | None, typer.Option(help="Class of all files, real or fake, where folders do not tell.")] = (
        None
    ),
    family: Annotated[str, typer.Option(help="Family of fakes whose method is unknown: FS, FR, EFS or FE.")] = "",
    method: Annotated[str, typer.Option(help="With --label fake: method of all files.")] = "",
    domain: Annotated[str, typer.Option(help="Domain instead of the source's.")] = "",
    dataset: Annotated[str, typer.Option(help="Name of the data set instead of the source's.")] = "",
    split: Annotated[str, typer.Option(help="Split of files whose place does not tell.")] = "test",
    layout: Annotated[str, typer.Option(help="Layout of the source, as in r2m data index.")] = "auto",
    root: Annotated[Path | None, typer.Option(help="Folder that relative paths of a list are relative to.")] = None,
) -> None:
    """Find the largest face of photographs and video frames, align and crop it as DeepfakeBench does."""
    from r2m_jax.cli.data.crop import run

    run(
        source,
        out,
        size=size,
        margin=margin,
        frames=frames,
        no_face=no_face,
        workers=workers,
        label=label,
        family=family,
        method=method,
        domain=domain,
        dataset=dataset,
        split=split,
        layout=layout,
        root=root,
    )


@app.command()
def forge(
    images: Annotated[
        Path | None, typer.Argument(help="Real images: an index, a folder with index.csv, or a folder of photographs.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory to make.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Forging method; may be repeated. All when omitted.")] = None,
    family: Annotated[list[str] | None, typer.Option(help="All methods of FS, FR or EFS; may be repeated.")] = None,
    camera: Annotated[
        list[str] | None, typer.Option(help="Camera that records real and forged images alike; may be repeated.")
    ] = None,
    per_image: Annotated[int, typer.Option(help="Methods of each family that forge an image; 0 for all.")] = 1,
    size: Annotated[int, typer.Option(help="Sides of the images in pixels.")] = 256,
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
    effort: Annotated[float, typer.Option(help="Share of the training of methods that learn.")] = 1.0,
    landmarks: Annotated[bool, typer.Option(help="Look for faces; without, the middle of an image is one.")] = True,
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 2,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing directory.")] = False,
    list_methods: Annotated[bool, typer.Option("--list", help="Show methods and cameras, and stop.")] = False,
) -> None:
    """Make labelled forgery families from real images."""
    from r2m_jax.cli.data.forge import run

    run(
        images,
        out,
        methods=method or [],
        families=family or [],
        cameras=camera or [],
        per_image=per_image,
        size=size,
        seed=seed,
        effort=effort,
        landmarks=landmarks,
        workers=workers,
        overwrite=overwrite,
        list_methods=list_methods,
    )


@app.command()
def prepare(
    index: Annotated[Path, typer.Argument(help="An index, or the folder of a data set named by --name.")],
    data_dir: Annotated[Path, typer.Option(help="Where tensorflow-datasets keeps data sets.")],
    name: Annotated[str, typer.Option(help="Of the data set: any, or a published one, whose folder is read.")] = (
        "generic"
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a data set of that name.")] = False,
) -> None:
    """Write an index as a tensorflow-datasets data set of array_record files."""
    from r2m_jax.cli.data.prepare import run

    run(index, data_dir, name=name, overwrite=overwrite)
