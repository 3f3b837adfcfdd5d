"""What NNX costs over plain functions: tracing, compiling and running the CLIP tower, forward and gradient.

    python benchmarks/module_system.py [--layers 12]

The plain version is the same arithmetic written with ``jax.lax.scan`` over the stacked parameter dict, which is the
floor any module system sits on. The decision it supports is in docs/concepts.md.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import typer
from transformers import CLIPVisionConfig

from r2m_jax.models import apply_tower, init_backbone
from r2m_jax.models.clip_vision import quick_gelu


def plain_tower(config: Any) -> Callable[[Any, jax.Array], jax.Array]:
    """The tower without a module system (the config's own image size, quick-GELU)."""
    heads = config.num_attention_heads

    def norm(p: Any, x: jax.Array) -> jax.Array:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + config.layer_norm_eps)
        return scaled * p["scale"] + p["bias"]

    def linear(p: Any, x: jax.Array) -> jax.Array:
        return x @ p["kernel"] + p["bias"]

    def block(x: jax.Array, p: Any) -> tuple[jax.Array, None]:
        y = norm(p["norm1"], x)
        split = [linear(p["attn"][n], y).reshape(*y.shape[:2], heads, -1) for n in "qkv"]
        x = x + linear(p["attn"]["out"], jax.nn.dot_product_attention(*split).reshape(x.shape))
        y = linear(p["mlp"]["fc1"], norm(p["norm2"], x))
        return x + linear(p["mlp"]["fc2"], quick_gelu(y)), None

    def tower(p: Any, images: jax.Array) -> jax.Array:
        e, patch = p["embeddings"], (config.patch_size, config.patch_size)
        x = jax.lax.conv_general_dilated(
            images, e["patch"]["kernel"], patch, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        token = jnp.broadcast_to(e["class_token"], (x.shape[0], 1, x.shape[-1]))
        x = norm(p["pre_norm"], jnp.concatenate([token, x], 1) + e["position"])
        x, _ = jax.lax.scan(block, x, p["layers"])
        return norm(p["post_norm"], x[:, 0])

    return tower


def measure(function: Callable[..., Any], *arguments: Any, runs: int = 10) -> tuple[float, float, float]:
    """Seconds to trace, to compile, and the median run."""
    start = time.perf_counter()
    lowered = jax.jit(function).lower(*arguments)
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.perf_counter() - begin)
    return traced - start, done - traced, float(np.median(times))


def main(layers: int = 12, width: int = 384, batch: int = 4) -> None:
    """Measure both on a ViT of 64-wide heads at 224 px in patches of 16."""
    config = CLIPVisionConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=width // 64,
        image_size=224, patch_size=16,
    )  # fmt: skip
    start = time.perf_counter()
    nnx = apply_tower(config)
    print(f"building the NNX graph, once per config: {time.perf_counter() - start:.2f} s")
    params = init_backbone(config, jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (batch, 224, 224, 3))
    plain = plain_tower(config)
    print(f"largest difference: {float(jnp.abs(nnx(params, images).pooled - plain(params, images)).max()):.1e}")
    functions = {"NNX": lambda p, x: nnx(p, x).pooled, "plain": plain}
    for name, function in functions.items():
        for kind, measured in (("forward", function), ("gradient", jax.grad(lambda p, x, f=function: f(p, x).sum()))):
            trace, compile_, run = measure(measured, params, images)
            print(f"{name:6} {kind:9} trace {trace:.2f} s  compile {compile_:.2f} s  run {1e3 * run:.0f} ms")


if __name__ == "__main__":
    typer.run(main)
