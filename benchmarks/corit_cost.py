"""What CoRIT costs: its forward pass against a plain one, its training step's memory against full fine-tuning's.

    python benchmarks/corit_cost.py [--model ViT-L/14] [--batch 20] [--time-batch 2] [--dtype float32]

Operations are XLA's own count of towers of two and three layers, written out (a scan's body is counted once, whatever
its length), carried on to the depth. Memory is what the compiled training step needs beside parameters and batch
(temporaries), and with its arguments; nothing is run for it. The times are medians of a few calls on random weights.
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
from transformers import CLIPVisionConfig

from r2m_jax.models import PRESETS, TowerOptions, apply_detector, apply_tower, init_backbone, init_head, vision_config
from r2m_jax.models.corit import CoritSettings, apply_corit_head, corit_features, init_corit_head
from r2m_jax.training import (
    OptimizerRecipe,
    Sharpness,
    build_optimizer,
    image_inputs,
    init_state,
    matching,
    pair_inputs,
    train_step,
    unchanged,
)

MIB = 2**20


def main(
    model: Annotated[str, typer.Option(help=f"One of {', '.join(PRESETS)}.")] = "ViT-L/14",
    batch: Annotated[int, typer.Option(help="Images of a training step, for the memory.")] = 20,
    time_batch: Annotated[int, typer.Option(help="Images of a timed forward pass; 0 times nothing.")] = 2,
    repeats: Annotated[int, typer.Option(help="Timed calls.")] = 5,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
) -> None:
    config, options = vision_config(model), TowerOptions(dtype=jnp.dtype(dtype))
    settings = CoritSettings().resolved(config)
    plain = operations(config, lambda c: _plain(c, options), 1)
    corit = operations(config, lambda c: _corit(c, settings, options), settings.streams)
    alone = CoritSettings(cgp="off").resolved(config)
    single = operations(config, lambda c: _corit(c, alone, options), 1)
    print(f"{model}, {dtype}, {jax.default_backend()}")
    print(f"operations an image: plain {plain / 1e9:.1f} G, CoRIT {corit / 1e9:.1f} G ({corit / plain:.3f} x),")
    print(f"  region tokens without self-blending {single / 1e9:.1f} G ({single / plain:.3f} x)")
    if time_batch:
        weights = init_backbone(config, jax.random.key(0))
        calls = {
            "plain": (_plain(config, options), 1),
            "CoRIT": (_corit(config, settings, options), settings.streams),
            "cgp=off": (_corit(config, alone, options), 1),
        }
        timed = seconds(calls, weights, config, time_batch, repeats)
        told = ", ".join(f"{name} {t:.2f} s ({t / timed['plain']:.3f} x)" for name, t in timed.items())
        print(f"forward of {time_batch} images: {told}")
    full, head = (memory(step) for step in steps(config, settings, options, batch))
    names = ("temporaries", "with parameters, optimiser and batch")
    for name, theirs, ours in zip(names, full, head, strict=True):
        print(f"training step of {batch}, {name}: full fine-tuning {theirs:.0f} MiB, ", end="")
        print(f"CoRIT {ours:.0f} MiB ({100 * ours / theirs:.1f} %)")


def _plain(config: Any, options: TowerOptions) -> Callable[..., Any]:
    tower = apply_tower(config, options)
    return lambda backbone, streams, foreground: tower(backbone, streams[:, 0]).pooled


def _corit(config: Any, settings: CoritSettings, options: TowerOptions) -> Callable[..., Any]:
    settings = CoritSettings(
        cgp=settings.cgp, fusion_layer=min(settings.fusion_layer or 1, config.num_hidden_layers - 1)
    )
    return corit_features(config, settings, options)


def _inputs(config: Any, batch: int, streams: int) -> tuple[Any, Any]:
    side = config.image_size
    return (
        jax.ShapeDtypeStruct((batch, streams, side, side, 3), jnp.float32),
        jax.ShapeDtypeStruct((batch, (side // config.patch_size) ** 2), jnp.float32),
    )


def operations(config: Any, build: Callable[[Any], Callable[..., Any]], streams: int) -> float:
    """Floating-point operations of one image: those of two layers, and for every further one as the third adds."""

    def count(layers: int) -> float:
        cut = CLIPVisionConfig(**config.to_diff_dict() | {"num_hidden_layers": layers})
        backbone = jax.eval_shape(lambda: init_backbone(cut, jax.random.key(0)))
        with unrolled_scans():
            lowered = jax.jit(build(cut)).lower(backbone, *_inputs(cut, 1, streams))
        counted: Any = lowered.cost_analysis()
        return float(counted["flops"])

    two, three = count(2), count(3)
    return two + (config.num_hidden_layers - 2) * (three - two)


class unrolled_scans:
    """Scans written out layer by layer while programs are traced, so that the count sees every block."""

    def __enter__(self) -> None:
        self._scan = jax.lax.scan
        jax.lax.scan = lambda body, init, xs, **options: self._scan(body, init, xs, **{**options, "unroll": True})

    def __exit__(self, *_: object) -> None:
        jax.lax.scan = self._scan


def seconds(
    calls: dict[str, tuple[Callable[..., Any], int]], weights: Any, config: Any, batch: int, repeats: int
) -> dict[str, float]:
    rng = np.random.default_rng(0)
    ready = {}
    for name, (call, streams) in calls.items():
        given = [jnp.asarray(rng.random(leaf.shape), leaf.dtype) for leaf in _inputs(config, batch, streams)]
        compiled = jax.jit(call)
        jax.block_until_ready(compiled(weights, *given))
        ready[name] = (compiled, given)
    taken: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(repeats):  # in turn, so that other load falls on all alike
        for name, (compiled, given) in ready.items():
            begun = time.perf_counter()
            jax.block_until_ready(compiled(weights, *given))
            taken[name].append(time.perf_counter() - begun)
    return {name: statistics.median(times) for name, times in taken.items()}


def steps(config: Any, settings: CoritSettings, options: TowerOptions, batch: int) -> tuple[Any, Any]:
    """Compiled steps: full fine-tuning as ``r2m train specialist`` does it, and ``r2m train corit``."""
    backbone = jax.eval_shape(lambda: init_backbone(config, jax.random.key(0)))
    side = config.image_size
    label = jax.ShapeDtypeStruct((batch,), jnp.int32)
    mean = std = (0.5, 0.5, 0.5)

    adam = build_optimizer(OptimizerRecipe(), 1000)
    head = jax.eval_shape(lambda: init_head(config.hidden_size))
    state = jax.eval_shape(lambda p: init_state(p, adam, 0), {"backbone": backbone, "head": head})
    images = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8)
    full = train_step(apply_detector(config, options), adam, image_inputs(mean, std, unchanged))
    first = jax.jit(full, donate_argnums=0).lower(state, {"image": images, "label": label}).compile()

    sgd = build_optimizer(OptimizerRecipe(name="sgd", momentum=0.9, weight_decay=0.0), 1000)
    head = jax.eval_shape(lambda: init_corit_head(config, settings))
    params = {"backbone": backbone, "head": head}
    trainable = matching(["head/.*"], params)
    state = jax.eval_shape(lambda p: init_state(p, sgd, 0, trainable), params)
    features = corit_features(config, settings, options)
    ours = train_step(
        lambda params, z: apply_corit_head(params["head"], z), sgd, pair_inputs(mean, std), trainable=trainable,
        sharpness=Sharpness(0.05), frozen=lambda params, inputs: features(params["backbone"], *inputs),
    )  # fmt: skip
    _, foreground = _inputs(config, batch, 2)
    pairs = jax.ShapeDtypeStruct((batch, settings.streams, side, side, 3), jnp.uint8)
    fed = {"image": pairs, "foreground": foreground, "label": label}
    return first, jax.jit(ours, donate_argnums=0).lower(state, fed).compile()


def memory(compiled: Any) -> tuple[float, float]:
    """MiB of a compiled step: its temporaries, and those with its arguments and what of its results is new."""
    found = compiled.memory_analysis()
    temporary = found.temp_size_in_bytes
    whole = temporary + found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return temporary / MIB, whole / MIB


if __name__ == "__main__":
    typer.run(main)
