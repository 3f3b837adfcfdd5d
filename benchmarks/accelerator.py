"""R²M, scoring and training on one GPU, each beside its floor and beside torch on the same device, in one run.

    python benchmarks/accelerator.py --out accelerator                               # a GPU: CLIP L/14, N = 3 and 6
    python benchmarks/accelerator.py --tower tiny --layers 2 --specialists 3 --images 8 --batch 4 --train-batch 2 \
        --patience 5 --no-torch-compile --out /tmp/accelerator                       # a CPU: all of it runs

Compiling takes much of the time; --part, --specialists and --kernel divide a run that has to be short.

1. Merging: trees in host memory to a tree in host memory, every kernel beside torch; compiling apart. Every contestant
   first merges the first --sample layers alone (with what lies outside the layers); its update is compared with one in
   float64 by full SVDs (NumPy), and what would take longer than --patience on the whole model is extrapolated from it,
   and marked. Updates of whole models are compared with that of `gram`. `randomized` cannot keep more than half of the
   ranks, and keeps 0.3. torch's SVDs are in float32, its Gram matrices and eigenvectors in float64, as ours.
2. Scoring: uint8 images in host memory to logits in host memory, results fetched one batch late, nothing pinned.
3. Training: train_throughput.py's step in bfloat16 with float32 parameters; operations are XLA's own count of two
   towers written out, carried on to the depth.

A floor is what the rates allow: the largest of bytes over PCIe, bytes over memory bandwidth and operations over peaks,
which could overlap; rates are published peaks of an H200 unless given. Prints tables and writes accelerator.json and
accelerator.md (tables for docs/performance.md) into OUT. Nothing is asserted. The merges are in accelerator_merges.py.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer
from accelerator_merges import KERNELS, Rates, Row, merge_part, spread, timed  # type: ignore[import-not-found]
from merge_peers import tower_config  # type: ignore[import-not-found]
from rich.console import Console
from rich.table import Table
from train_throughput import (  # type: ignore[import-not-found]
    DECAY,
    MEAN,
    RATE,
    STD,
    forward_flops,
    ours,
    pixels,
    theirs,
)
from transformers import CLIPVisionConfig

from r2m_jax import save_detector
from r2m_jax.atomic import atomic_text
from r2m_jax.checkpoints import image_processor, provenance
from r2m_jax.data.device import normalise
from r2m_jax.models import Detector, TowerOptions, apply_detector, init_backbone, init_head
from r2m_jax.training import adam_coupled_l2, image_inputs, init_state, train_step

Columns = Mapping[str, Callable[[Row], str]]


def main(
    out: Annotated[Path, typer.Option(help="Folder of what is written.")] = Path("accelerator"),
    part: Annotated[list[str] | None, typer.Option(help="merge, eval, train; may repeat; all without.")] = None,
    tower: Annotated[str, typer.Option(help="tiny, ViT-B/32, ViT-B/16, ViT-L/14.")] = "ViT-L/14",
    layers: Annotated[int | None, typer.Option(help="Of the tower; its own without.")] = None,
    specialists: Annotated[list[int] | None, typer.Option(min=3, max=8, help="May repeat; 3, 6.")] = None,
    kernel: Annotated[list[str] | None, typer.Option(help=f"May repeat; {', '.join(KERNELS)} without.")] = None,
    rank: float = 0.7,
    sample: Annotated[int, typer.Option(help="Layers that errors are measured in.")] = 1,
    repeat: Annotated[int, typer.Option(help="Timed runs, of which the median counts.")] = 3,
    patience: Annotated[float, typer.Option(help="Seconds a merge may take, or it is extrapolated.")] = 40.0,
    images: int = 2048,
    batch: Annotated[int, typer.Option(help="Images scored at a time.")] = 256,
    train_batch: int = 64,
    torch_compile: Annotated[bool, typer.Option(help="Also torch.compile, in training.")] = True,
    pcie: Annotated[float, typer.Option(help="GB/s one way: Gen 5, 16 lanes, 128 both ways.")] = 64.0,
    memory: Annotated[float, typer.Option(help="GB/s.")] = 4800.0,
    float64: Annotated[float, typer.Option(help="Tflop/s of products, on tensor cores.")] = 67.0,
    float32: Annotated[float, typer.Option(help="Tflop/s, without tensor cores.")] = 67.0,
    bfloat16: Annotated[float, typer.Option(help="Tflop/s, dense.")] = 989.0,
) -> None:
    """Measure, print, write. The rates' defaults: https://www.nvidia.com/en-us/data-center/h200/ (SXM)."""
    # torch shares the device; JAX would take three quarters of its memory. Read when JAX starts its first device.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    rates = Rates(pcie * 1e9, memory * 1e9, float64 * 1e12, float32 * 1e12, bfloat16 * 1e12)
    config = tower_config(tower, layers, None)
    device, why_not = torch_device()
    facts = {
        "date": dt.date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "platform": jax.devices()[0].client.platform_version.splitlines()[0],
        "tower": tower,
        "layers": config.num_hidden_layers,
        "versions": provenance.versions() | torch_versions(),
        "rates": asdict(rates),
    }
    remarks = [why_not] if why_not else []
    made: dict[str, list[Row]] = {}
    parts: dict[str, Callable[[], list[Row]]] = {
        "merge": lambda: merge_part(
            config, specialists or [3, 6], kernel or KERNELS, rank, sample, repeat, patience, rates, device, remarks
        ),
        "eval": lambda: eval_part(config, images, batch, repeat, rates, device),
        "train": lambda: train_part(config, train_batch, repeat, torch_compile, rates, device, remarks),
    }
    for wrong in {*(part or [])} - {*parts} | {*(kernel or [])} - {*KERNELS}:
        raise typer.BadParameter(f"{wrong} is unknown; there are {', '.join([*parts, *KERNELS])}.")
    for name in part or parts:
        try:
            rows = parts[name]()
        except RuntimeError as error:  # no room on the device; what else was measured stays
            remarks.append(f"{name}: {str(error).splitlines()[0]}")
            rows = []
        made[name] = rows
        print_table(TITLES[name], rows, COLUMNS[name])
        # After every part: what was measured stays if a later one fails.
        out.mkdir(parents=True, exist_ok=True)
        content = facts | {"remarks": remarks} | made
        atomic_text(out / "accelerator.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        atomic_text(out / "accelerator.md", markdown(facts, remarks, made))
    for sentence in remarks:
        print(sentence)
    print(f"Written: {out / 'accelerator.json'}, {out / 'accelerator.md'}")
    if not all(made.values()):
        raise typer.Exit(1)


# Torch


def torch_device() -> tuple[str | None, str]:
    """Where torch runs, on the device that JAX runs on, or a sentence why it does not."""
    try:
        import torch
    except ImportError:
        return None, "torch is not installed, so nothing stands beside r2m_jax."
    if jax.default_backend() == "cpu":
        return "cpu", ""
    if not torch.cuda.is_available():
        return None, "torch has no CUDA here, so nothing stands beside r2m_jax."
    return "cuda", ""


def torch_versions() -> dict[str, str]:
    try:
        import torch
    except ImportError:
        return {}
    return {"torch": torch.__version__, "torch's CUDA": torch.version.cuda or "none"}


# Scoring


def eval_part(config: Any, images: int, batch: int, repeat: int, rates: Rates, device: str | None) -> list[Row]:
    size = config.image_size
    pictures, _ = pixels(images, size)
    params = {"backbone": init_backbone(config, jax.random.key(0))}
    params["head"] = init_head(config.hidden_size, jax.random.key(1))
    rows, exact = [], None
    for dtype in ("bfloat16", "float32"):
        loops = {"r2m_jax": score_in_jax(config, params, dtype, pictures, batch)}
        if device:
            loops["torch"] = score_in_torch(config, params, dtype, pictures, batch, device)
        start = time.perf_counter()
        logits = {name: loop() for name, loop in loops.items()}
        first = time.perf_counter() - start
        for name, loop in loops.items():
            flops = forward_flops(config, size)
            floors = {"pcie": images * size**2 * 3 / rates.pcie, "operations": images * flops / rates.peak(dtype)}
            row = {"contestant": name, "dtype": dtype, "images": images, "batch": batch, "first_of_all_s": first}
            rows.append(row | spread(timed(loop, repeat)) | {"logits": logits[name], "floors": floors})
    exact = next(row["logits"] for row in rows if row["contestant"] == "r2m_jax" and row["dtype"] == "float32")
    for row in rows:
        row["from_float32"] = float(np.abs(row.pop("logits") - exact).max())
        row["images_s"] = images / row["seconds"]
    return rows


def score_in_jax(config: Any, params: Any, dtype: str, pictures: np.ndarray, batch: int) -> Callable[[], np.ndarray]:
    detector = apply_detector(config, TowerOptions(dtype=jnp.dtype(dtype)))
    logits = jax.jit(lambda params, images: detector(params, normalise(images, MEAN, STD)))
    placed = jax.device_put(params)

    def call() -> np.ndarray:
        return late(batches(pictures, batch), lambda images: logits(placed, images), np.asarray)

    return call


def score_in_torch(
    config: Any, params: Any, dtype: str, pictures: np.ndarray, batch: int, device: str
) -> Callable[[], np.ndarray]:
    import torch
    from transformers import CLIPVisionModel, logging

    logging.set_verbosity_error()  # that it has no place for the head, which is applied below
    kind = getattr(torch, dtype)
    with tempfile.TemporaryDirectory() as folder:
        save_detector(Detector.create(config, params, image_processor(config.image_size)), Path(folder) / "model")
        tower = CLIPVisionModel.from_pretrained(Path(folder) / "model").eval().to(device, kind)
    kernel, bias = (torch.tensor(np.asarray(params["head"][name])).to(device) for name in ("kernel", "bias"))

    def logits(images: np.ndarray) -> Any:
        scaled = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float().div_(255).sub_(MEAN[0]).div_(STD[0])
        return tower(scaled.to(kind)).pooler_output.float() @ kernel + bias

    def call() -> np.ndarray:
        with torch.inference_mode():
            return late(batches(pictures, batch), logits, lambda tensor: tensor.cpu().numpy())

    return call


def batches(pictures: np.ndarray, batch: int) -> Iterator[np.ndarray]:
    return (pictures[at : at + batch] for at in range(0, len(pictures), batch))


def late(given: Iterator[np.ndarray], run: Callable[[Any], Any], fetch: Callable[[Any], np.ndarray]) -> np.ndarray:
    """Results of all batches, each fetched when the next one has been started."""
    done, waiting = [], None
    for images in given:
        started = run(images)
        if waiting is not None:
            done.append(fetch(waiting))
        waiting = started
    return np.concatenate([*done, fetch(waiting)])


# Training


def train_part(
    config: Any, batch: int, repeat: int, torch_compile: bool, rates: Rates, device: str | None, failed: list[str]
) -> list[Row]:
    size, dtype = config.image_size, "bfloat16"
    flops = step_flops(config, batch)
    steps = {"r2m_jax": ours(config, size, dtype, "none", batch, None)}
    if device:
        others = theirs(config, size, dtype, batch)
        steps |= {name: step for name, step in others.items() if torch_compile or name != "torch.compile"}
    firsts: dict[str, float] = {}
    for name, step in list(steps.items()):
        try:
            firsts[name] = timed(step, 2)[0]
        except RuntimeError as error:  # as of a compiler that is not there
            failed.append(f"{name}: {str(error).splitlines()[0]}")
            del steps[name]
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(max(3, 3 * repeat)):  # in turn, so that other load falls on all alike
        for name, step in steps.items():
            taken[name] += timed(step, 1)
    rows = []
    for name, seconds in taken.items():
        row: Row = {"contestant": name, "dtype": f"{dtype}, float32 masters", "batch": batch, "first_s": firsts[name]}
        row |= spread(seconds) | {"flops": flops, "by_hand_flops": 3 * batch * forward_flops(config, size)}
        row["images_s"] = batch / row["seconds"]
        row["mfu"] = flops / row["seconds"] / rates.peak(dtype)
        rows.append(row | {"floors": {"operations": flops / rates.peak(dtype)}})
    return rows


def step_flops(config: Any, batch: int) -> float:
    """Floating-point operations of a step: those of a tower of one layer, and for every further one as the second adds.

    XLA counts the body of a scan once, and nothing in cuDNN's attention; so layers are written out, with attention as
    products.
    """
    optimizer, size = adam_coupled_l2(RATE, DECAY), config.image_size
    given = {
        "image": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
    }

    def count(layers: int) -> float:
        cut = CLIPVisionConfig(**config.to_diff_dict() | {"num_hidden_layers": layers})
        options = TowerOptions(dtype=jnp.bfloat16, attention="xla", unrolled=True)

        def start() -> Any:
            params = {"backbone": init_backbone(cut, jax.random.key(0)), "head": init_head(cut.hidden_size)}
            return init_state(params, optimizer, 0)

        step = train_step(apply_detector(cut, options), optimizer, image_inputs(MEAN, STD))
        counted: Any = jax.jit(step).lower(jax.eval_shape(start), given).cost_analysis()
        return float(counted["flops"])

    one, two = count(1), count(2)
    return one + (config.num_hidden_layers - 1) * (two - one)


# Times and tables


def shown(row: Row) -> str:
    if row.get("extrapolated_from"):
        return f"{row['seconds']:.3g} (extrapolated from layers: {row['extrapolated_from']})"
    return f"{row['seconds']:.3g} ({row['low']:.3g} … {row['high']:.3g})"


def optional(key: str, pattern: str, scale: float = 1.0) -> Callable[[Row], str]:
    return lambda row: "" if row.get(key) is None else format(row[key] * scale, pattern)


def floor(row: Row) -> str:
    name = max(row["floors"], key=lambda each: row["floors"][each])
    return f"{row['floors'][name]:.3g} ({name})"


COMMON: Columns = {"": lambda row: row["contestant"]}
COLUMNS: dict[str, Columns] = {
    "merge": {
        "N": lambda row: str(row["specialists"]),
        **COMMON,
        "rank": lambda row: f"{row['rank']:g}",
        "s": shown,
        "of which copying alone": optional("transfer_s", ".3g"),
        "floor, s": floor,
        "compile s": optional("compile_s", ".1f"),
        "device GB": optional("device_bytes", ".2f", 1e-9),
        "error": optional("error", ".1e"),
        "rounding": optional("rounding", ".1e"),
        "from gram": optional("from_gram", ".1e"),
    },
    "eval": {
        **COMMON,
        "dtype": lambda row: row["dtype"],
        "images/s": optional("images_s", ".4g"),
        "s": shown,
        "floor, s": floor,
        "logits from float32": optional("from_float32", ".1e"),
    },
    "train": {
        **COMMON,
        "batch": lambda row: str(row["batch"]),
        "images/s": optional("images_s", ".4g"),
        "s a step": shown,
        "floor, s": floor,
        "Gflop": optional("flops", ".4g", 1e-9),
        "MFU": optional("mfu", ".1%"),
        "first step s": optional("first_s", ".1f"),
    },
}
TITLES = {
    "merge": "R²M, host memory to host memory",
    "eval": "Scoring uint8 images in host memory",
    "train": "A training step in bfloat16 with float32 parameters",
}


def print_table(title: str, rows: Sequence[Row], columns: Columns) -> None:
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, justify="right" if name else "left")
    for row in rows:
        table.add_row(*(column(row) for column in columns.values()))
    Console(width=150).print(table)


def markdown(facts: Mapping[str, Any], remarks: Sequence[str], made: Mapping[str, Sequence[Row]]) -> str:
    """The tables as docs/performance.md takes them."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    rates = ", ".join(f"{name} {rate:.3g}" for name, rate in facts["rates"].items())
    text = [
        f"{facts['tower']}, {facts['layers']} layers; {facts['device']} ({facts['platform']}); {facts['date']}; "
        f"{versions}. Floors from rates per second, assumed: {rates}.",
        *remarks,
    ]
    for name, rows in made.items():
        columns = COLUMNS[name]
        lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
        lines += [" | ".join(column(row) for column in columns.values()) for row in rows]
        text += [f"### {TITLES[name]}", "\n".join(f"| {line} |" for line in lines)]
    return "\n\n".join(text) + "\n"


if __name__ == "__main__":
    typer.run(main)
