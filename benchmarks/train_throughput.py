"""Images/s and model FLOP utilisation of a training step, beside the same step in torch and transformers.

    python benchmarks/train_throughput.py --tower ViT-L/14 --dtype bfloat16 --batch 16 --batch 64 --batch 256   # a GPU
    python benchmarks/train_throughput.py --tower ViT-B/16 --dtype float32 --batch 8 --steps 3                  # a CPU

A step is forward, backward and update of every parameter (Adam with L2 in the gradient) on uint8 images that lie on the
device; flipping and normalising are part of it. Repetitions of all contestants alternate; the median counts. The floor
is three times the multiplications of the forward pass (two FLOPs each) over the peak: of a large matrix product
measured here in the same dtype, or --peak in TFLOP/s (H200: 989 for dense bfloat16, NVIDIA's data sheet).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer

from r2m_jax.models import apply_detector, init_backbone, init_head, vision_config
from r2m_jax.models.clip_vision import TowerOptions
from r2m_jax.parallel import data_mesh, distribute, shard_batch
from r2m_jax.training import Sharpness, adam_coupled_l2, compiled, image_inputs, init_state, train_step

MEAN = STD = (0.5, 0.5, 0.5)
RATE, DECAY = 1e-5, 5e-4

Contestant = Callable[[], None]
"""One step, finished when it returns."""


def main(
    tower: Annotated[str, typer.Option(help="ViT-B/32, ViT-B/16, ViT-L/14.")] = "ViT-L/14",
    size: Annotated[int, typer.Option(help="Sides of the images in pixels.")] = 224,
    dtype: str = "bfloat16",
    batch: Annotated[list[int] | None, typer.Option(help="May be repeated; 16, 64 and 256 without.")] = None,
    remat: Annotated[str, typer.Option(help="none, dots or full.")] = "none",
    steps: Annotated[int, typer.Option(help="Timed, of each contestant, after two that are not.")] = 10,
    peak: Annotated[float | None, typer.Option(help="TFLOP/s; measured without.")] = None,
    torch: Annotated[bool, typer.Option(help="Beside torch, eager and compiled.")] = True,
) -> None:
    """Print one line per batch size and contestant."""
    config = vision_config(tower)
    flops = 3 * forward_flops(config, size)
    top = peak * 1e12 if peak else measured_peak(dtype)
    print(f"{tower}, {size} px, {dtype}, remat {remat}; {jax.devices()[0].device_kind}, jax {jax.__version__}")
    print(
        f"{flops / 1e9:.1f} GFLOP an image and step, peak {top / 1e12:.2f} TFLOP/s: at most {top / flops:.1f} images/s"
    )
    for count in batch or [16, 64, 256]:
        contestants = {
            "r2m_jax Adam": ours(config, size, dtype, remat, count, None),
            "r2m_jax SAM": ours(config, size, dtype, remat, count, Sharpness(rho=0.05)),
        }
        if torch:
            contestants |= theirs(config, size, dtype, count)
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for repetition in range(steps + 2):
            for name, step in contestants.items():
                start = time.perf_counter()
                step()
                if repetition >= 2:
                    times[name].append(time.perf_counter() - start)
        base = statistics.median(times["r2m_jax Adam"])
        for name, taken in times.items():
            middle = statistics.median(taken)
            print(
                f"batch {count:>4}  {name:<20}{count / middle:>10.2f} images/s "
                f"({count / max(taken):.2f} … {count / min(taken):.2f})  MFU {count * flops / middle / top:>6.1%}  "
                f"time of Adam x {middle / base:.2f}"
            )


def forward_flops(config: Any, size: int) -> float:
    """Of the weight products and attention of one image; norms, softmax and activations are not counted."""
    width, inner, patches = config.hidden_size, config.intermediate_size, (size // config.patch_size) ** 2
    tokens = patches + 1
    layer = tokens * (8 * width**2 + 4 * width * inner) + 4 * tokens**2 * width
    return float(2 * patches * 3 * config.patch_size**2 * width + config.num_hidden_layers * layer)


def measured_peak(dtype: str, side: int | None = None) -> float:
    """FLOP/s of the best of ten products of two large square matrices."""
    side = side or (8192 if jax.default_backend() == "gpu" else 2048)
    a = jnp.ones((side, side), dtype)
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        product(a, a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def pixels(count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, size, size, 3), np.uint8), (np.arange(count) % 2).astype(np.int32)


def ours(config: Any, size: int, dtype: str, remat: Any, count: int, sharpness: Sharpness | None) -> Contestant:
    """A step of :func:`r2m_jax.training.train_step`."""
    mesh = data_mesh()
    params = {"backbone": init_backbone(config, jax.random.key(0)), "head": init_head(config.hidden_size)}
    optimizer = adam_coupled_l2(RATE, DECAY)
    state = init_state(params, optimizer, 0)
    logits = apply_detector(config, TowerOptions(dtype=jnp.dtype(dtype), remat=remat))
    step = compiled(train_step(logits, optimizer, image_inputs(MEAN, STD), sharpness=sharpness), state, mesh)
    images, labels = pixels(count, size)
    batch = shard_batch(mesh, {"image": images, "label": labels})
    held = [distribute(mesh, state)]

    def once() -> None:
        held[0], metrics = step(held[0], batch)
        metrics.loss.block_until_ready()
        jax.block_until_ready(held[0].params)

    return once


def theirs(config: Any, size: int, dtype: str, count: int) -> dict[str, Contestant]:
    """The same step as torch users write it: autocast for 16 bits, fused Adam where there is one."""
    import torch
    from transformers import CLIPVisionModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    images, labels = pixels(count, size)
    x, y = torch.tensor(images, device=device), torch.tensor(labels, device=device).long()
    grid = (size // config.patch_size) ** 2 != (config.image_size // config.patch_size) ** 2

    class Detector(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = CLIPVisionModel(config)
            self.head = torch.nn.Linear(config.hidden_size, 2)

        def forward(self, raw: Any) -> Any:
            scaled = raw.permute(0, 3, 1, 2).float().div_(255).sub_(0.5).div_(0.5)
            return self.head(self.tower(scaled, interpolate_pos_encoding=grid).pooler_output)

    def contestant(compile_it: bool) -> Contestant:
        torch.manual_seed(0)
        model = Detector().to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=RATE, weight_decay=DECAY, fused=device == "cuda")
        forward = torch.compile(model) if compile_it else model

        def once() -> None:
            flipped = torch.where(torch.rand(count, 1, 1, 1, device=device) < 0.5, x.flip(2), x)
            with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
                loss = torch.nn.functional.cross_entropy(forward(flipped), y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            loss.item()
            if device == "cuda":
                torch.cuda.synchronize()

        return once

    return {"torch eager": contestant(False), "torch.compile": contestant(True)}


if __name__ == "__main__":
    typer.run(main)
