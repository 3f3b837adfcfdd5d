"""The cost model of a merge: measured here, checked on merges here, and what it says of larger models and machines.

    python benchmarks/scale.py                                  # two to four minutes on two cores, alone on the machine
    python benchmarks/scale.py --busy                           # others compute here too: processor time, not wall time
    python benchmarks/scale.py --quick --machine rates.json     # smallest checks; the rates kept for merge --dry-run
    python benchmarks/scale.py --no-check --machine rates.json  # the tables from kept rates

1. Rates of this machine, each from small programs of its own (r2m_jax.jobs.calibrating), and eigenproblems of sizes
   that were not fitted.
2. Whole merges, file to file, in this process and from empty caches, of towers whose width is none that a rate was
   measured on; model / measured, in wall seconds and core seconds. Nothing is fitted to them.
3. R²M of three specialists for four models on 1 to 256 devices: this machine's cores, in processes of as many as there
   are here, and an accelerator whose rates are assumed (ACCELERATOR; published peaks times stated shares of them).
Nothing is asserted. merge_peers.py makes the models.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import math
import os
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import jax
import ml_dtypes
import numpy as np
import typer
from merge_peers import NAMES, prepare, tensor_shapes, tower_config  # type: ignore[import-not-found]
from rich.console import Console
from rich.table import Table

from r2m_jax.checkpoints import provenance
from r2m_jax.checkpoints.tensors import LazyTensor
from r2m_jax.jobs.calibrating import EIGENPROBLEMS, calibrate, eigenproblem_seconds, read_machine, write_machine
from r2m_jax.jobs.merge import merge
from r2m_jax.jobs.merge_inputs import open_inputs
from r2m_jax.merging.averaging import WeightAveraging
from r2m_jax.merging.chunks import MEMORY, plan
from r2m_jax.merging.estimate import Estimate, Machine, Memory, estimate, memory, passes
from r2m_jax.merging.r2m import R2M
from r2m_jax.merging.selection import attention_and_mlp
from r2m_jax.parallel import data_mesh, one_device_per_core
from r2m_jax.progress import Reporter
from r2m_jax.recipes import load_recipe
from r2m_jax.recipes.merging import MergeRecipe

console = Console(width=None if sys.stdout.isatty() else 150)
Shapes = Mapping[str, LazyTensor]

HELD_OUT_EIGENPROBLEMS = (384, 768, 1536)

CHECKS: tuple[tuple[str, int, int, int], ...] = (
    # method, width, layers, specialists
    ("r2m", 384, 12, 2),
    ("r2m", 640, 6, 3),
    ("r2m", 896, 3, 4),
    ("cart", 640, 6, 3),
    ("ties", 1280, 4, 3),
    ("task_arithmetic", 1280, 4, 3),
)
QUICK: tuple[tuple[str, int, int, int], ...] = (("r2m", 384, 2, 2), ("cart", 320, 2, 3), ("ties", 384, 2, 3))

PEAK = 67e12
"""Operations per second of an H100 SXM, float64 on tensor cores and float32 without them, as published
(https://www.nvidia.com/en-us/data-center/h100/)."""

ACCELERATOR = Machine(
    name="8 × H100 SXM, assumed",
    devices=8,
    cores=112,
    devices_are_cores=False,
    products=0.5 * PEAK,
    wide_products=0.5 * PEAK,
    # "Less than 3 %" of an H100 is what published eigensolvers use (https://arxiv.org/abs/2410.02170): 2 % of 9·s³
    # operations, and .03 s at s = 1024 for what does not fill the device.
    cubes=9 / (0.02 * PEAK),
    squares=3e-8,
    moved=0.5 * 3.35e12,  # of the published bandwidth of its memory
    read=5e9,
    written=2e9,
    hashed=1.7e9,  # one thread
    compiled=0.25,
    compiled_truncating=0.75,
    memory=80e9,
)
ASSUMED = (
    "assumed of the accelerator: half of the published peaks for products (67 Tflop/s, float64 and float32) and for "
    "memory (3.35 TB/s); 2 % of the peak for the 9·s³ operations of an eigenproblem, and 30 ns·s²; files read at "
    "5 GB/s and written at 2 GB/s by every host of 8, hashed at 1.7 GB/s; 0.25 s a program, 0.75 s one that truncates"
)
DEVICES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SPECIALISTS = 3


def rates(machine: Machine) -> None:
    table = Table(title=f"Rates of {machine.name}, a device with all of them busy", title_justify="left")
    for name in ("float32 Gflop/s", "float64 Gflop/s", "eigenproblem s", "elementwise GB/s"):
        table.add_column(name, justify="right")
    for name in ("read GB/s", "written GB/s", "hashed GB/s", "s per program, truncating"):
        table.add_column(name, justify="right")
    files = [f"{rate / 1e9:.2f}" for rate in (machine.moved, machine.read, machine.written, machine.hashed)]
    eigen = f"{machine.cubes:.2e}·s³ + {machine.squares:.2e}·s²"
    products = [f"{rate / 1e9:.0f}" for rate in (machine.products, machine.wide_products)]
    table.add_row(*products, eigen, *files, f"{machine.compiled:.2f}, {machine.compiled_truncating:.2f}")
    console.print(table)


def check_eigenproblems(machine: Machine, sizes: Sequence[int], busy: bool) -> list[dict[str, Any]]:
    table = Table(title=f"Eigenproblems, fitted to {', '.join(map(str, EIGENPROBLEMS))}", title_justify="left")
    for name in ("s", "measured s", "model s", "model / measured"):
        table.add_column(name, justify="right")
    rows = []
    for size in sizes:
        measured = eigenproblem_seconds(size, processor_time=busy)
        model = machine.cubes * size**3 + machine.squares * size**2
        rows.append({"size": size, "measured": measured, "model": model})
        table.add_row(str(size), f"{measured:.4f}", f"{model:.4f}", f"{model / measured:.2f}")
    console.print(table)
    return rows


def check(
    machine: Machine, work: Path, cases: Sequence[tuple[str, int, int, int]], repeat: int
) -> list[dict[str, Any]]:
    """Merges that the model knows nothing of: model and measured."""
    rows = []
    for method, width, layers, count in cases:
        folder = work / f"d{width}-L{layers}-N{count}"
        prepare(folder, tower="ViT-B/16", layers=layers, width=width, specialists=count)
        models = {name: str(folder / name) for name in NAMES[:count]}
        recipe = load_recipe(
            MergeRecipe, "merge", None, [f"out={folder / 'out'}"],
            {"base": str(folder / "base"), "models": models, "method": method},
        )  # fmt: skip
        wall, core = [], []
        for _ in range(repeat):
            jax.clear_caches()
            shutil.rmtree(folder / "out", ignore_errors=True)
            start, used = time.perf_counter(), time.process_time()
            merge(recipe, reporter=Reporter(quiet=True))
            wall.append(time.perf_counter() - start)
            core.append(time.process_time() - used)
        shutil.rmtree(folder / "out", ignore_errors=True)
        model = of_recipe(recipe, machine)
        rows.append(
            {
                "method": method, "width": width, "layers": layers, "specialists": count,
                "wall": statistics.median(wall), "core": statistics.median(core), "model_wall": model.seconds,
                "model_core": sum(phase.busy for phase in model.phases),
                "phases": [dataclasses.asdict(phase) for phase in model.phases],
            }
        )  # fmt: skip
        console.print(f"{method}, width {width}: wall {rows[-1]['wall']:.1f} s, core {rows[-1]['core']:.1f} s")
    show_check(rows)
    return rows


def of_recipe(recipe: MergeRecipe, machine: Machine) -> Estimate:
    """As merge --dry-run has it."""
    inputs = open_inputs(recipe.base, {name: entry.path for name, entry in recipe.models.items()})
    base, thetas = inputs.base.tower, [each.tower for each in inputs.specialists.values()]
    method = None if recipe.method == "ties" else recipe.linear_method()
    cut = plan(method or WeightAveraging(), base, thetas, memory=recipe.memory * 2**20, devices=machine.devices)
    files = [float(file.stat().st_size) for file in inputs.files]
    return estimate([passes(method, cut, [base, *thetas])], machine, files)


def show_check(rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table(title="Whole merges, starting apart", title_justify="left")
    for name in ("method", "width", "layers", "N", "wall s", "model", "ratio", "core s", "model", "ratio"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for row in rows:
        what = [str(row[name]) for name in ("method", "width", "layers", "specialists")]
        for kind in ("wall", "core"):
            measured, model = row[kind], row[f"model_{kind}"]
            what += [f"{measured:.1f}", f"{model:.1f}", f"{model / measured:.2f}"]
        table.add_row(*what)
    console.print(table)


# What the model says of other models and machines


def unread(shapes: Mapping[str, tuple[int, ...]], dtype: Any) -> Shapes:
    def load(rows: slice | None) -> np.ndarray:
        raise NotImplementedError("only the shapes of these tensors exist")

    return {name: LazyTensor(shape, np.dtype(dtype), load) for name, shape in shapes.items()}


def llama(layers: int, width: int, inner: int, of_keys: int, words: int = 32000) -> dict[str, tuple[int, ...]]:
    """Tensors of Llama 2 (https://arxiv.org/abs/2307.09288), keys and values of fewer heads in the largest."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (words, width), "model.norm.weight": (width,)}
    for layer in range(layers):
        here = f"model.layers.{layer}"
        for name, rows in (("q", width), ("k", of_keys), ("v", of_keys), ("o", width)):
            shapes[f"{here}.self_attn.{name}_proj.weight"] = (rows, width)
        shapes |= {f"{here}.mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        shapes[f"{here}.mlp.down_proj.weight"] = (width, inner)
        shapes |= {f"{here}.{name}.weight": (width,) for name in ("input_layernorm", "post_attention_layernorm")}
    return shapes | {"lm_head.weight": (words, width)}


@cache
def zoo() -> dict[str, Shapes]:
    big = tower_config("ViT-L/14", 48, None)
    big.hidden_size, big.intermediate_size = (
        1664,
        8192,
    )  # https://huggingface.co/laion/CLIP-ViT-bigG-14-laion2B-39B-b160k
    return {
        "ViT-L/14": unread(tensor_shapes(tower_config("ViT-L/14", None, None)), np.float32),
        "ViT-bigG/14": unread(tensor_shapes(big), np.float32),
        "7 B": unread(llama(32, 4096, 11008, 4096), ml_dtypes.bfloat16),
        "70 B": unread(llama(80, 8192, 28672, 1024), ml_dtypes.bfloat16),
    }


def spread(shapes: Shapes, machine: Machine, devices: int) -> tuple[Estimate, Memory, int]:
    """R²M on so many devices, in processes of those of a machine: time, memory and budget of a process."""
    each = min(devices, machine.devices)
    cores = max(1, machine.cores * each // machine.devices) if machine.devices_are_cores else machine.cores
    own = dataclasses.replace(machine, devices=each, cores=cores)
    models, method = [shapes] * (SPECIALISTS + 1), R2M(rank=0.7)
    # Chunks of a matrix for every device keep all of them busy.
    matrices = [math.prod(leaf.shape) for name, leaf in shapes.items() if attention_and_mlp(name, leaf)]
    budget = max(MEMORY, 8 * len(models) * max(matrices) * each)
    cuts = [
        plan(
            method, shapes, models[1:], memory=budget * (devices // each), devices=each,
            processes=devices // each, process=process,
        )
        for process in range(devices // each)
    ]  # fmt: skip
    needed = max((memory(cut, models, each) for cut in cuts), key=lambda found: found.host)
    return estimate([passes(method, cut, models) for cut in cuts], own), needed, budget


def scale(machine: Machine) -> list[dict[str, Any]]:
    """Time on 1 to 256 devices, and what bounds it."""
    title = f"R²M, rank 0.7, three specialists: {machine.name} and more of them"
    table = Table(title=title, title_justify="left")
    table.add_column("devices", justify="right")
    for name in zoo():
        table.add_column(f"{name} (balance)", justify="right")
    rows: list[dict[str, Any]] = []
    for devices in DEVICES:
        cells = []
        for name, shapes in zoo().items():
            found, needed, budget = spread(shapes, machine, devices)
            rows.append(
                {
                    "model": name, "devices": devices, "seconds": found.seconds, "balance": found.balance,
                    "host": needed.host, "device": needed.device, "budget": budget,
                }
            )  # fmt: skip
            cells.append(f"{in_words(found.seconds)} ({found.balance:.2f})")
        table.add_row(str(devices), *cells)
    console.print(table)
    largest = Table(title="Memory at the most, GB", title_justify="left")
    for name in ("model", "files of one, GB", "buffers of a process", "each device", "--memory by process, MiB"):
        largest.add_column(name, justify="left" if name == "model" else "right")
    for name, shapes in zoo().items():
        whole = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in shapes.values())
        row = max((row for row in rows if row["model"] == name), key=lambda row: row["host"])
        sizes = [f"{size / 1e9:.1f}" for size in (whole, row["host"], row["device"])]
        over = " (more than there is)" if row["device"] > machine.memory else ""
        largest.add_row(name, *sizes[:2], sizes[2] + over, str(row["budget"] // 2**20))
    console.print(largest)
    return rows


def in_words(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def main(
    work: Path = Path("/tmp/scale-bench"),
    machine: Annotated[Path | None, typer.Option(help="Rates: read if there, else measured and written.")] = None,
    busy: Annotated[bool, typer.Option("--busy", help="Measure processor time: others use the machine.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="The smallest checks.")] = False,
    checks: Annotated[bool, typer.Option("--check/--no-check", help="Merge, and compare.")] = True,
    repeat: Annotated[int, typer.Option(help="Merges of each kind; the median counts.")] = 1,
    out: Path = Path("/tmp/scale-bench/results.json"),
) -> None:
    """Measure, check, tell."""
    one_device_per_core()
    start = time.perf_counter()
    if machine is not None and machine.exists():
        found = read_machine(machine)
    else:
        found = calibrate(repeat=3 if quick else 5, processor_time=busy)
        if machine is not None:
            write_machine(machine, found)
    rates(found)
    content: dict[str, Any] = {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "versions": provenance.versions(),
        "load": os.getloadavg(),
        "devices": data_mesh(jax.local_devices()).size,
        "busy": busy,
        "machine": dataclasses.asdict(found),
    }
    if checks:
        content["eigenproblems"] = check_eigenproblems(found, HELD_OUT_EIGENPROBLEMS[: 2 if quick else 3], busy)
        content["merges"] = check(found, work.resolve(), QUICK if quick else CHECKS, repeat)
    content["here"], content["assumed"] = scale(found), scale(ACCELERATOR)
    console.print(ASSUMED)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    console.print(f"written {out}, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    typer.run(main)
