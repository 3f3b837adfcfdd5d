"""Low-rank adapters: a kernel W becomes W + (alpha / rank) A B, of which A and B alone are trained.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, https://arxiv.org/abs/2106.09685. The
adapters live beside the detector's parameters under ``lora/`` and are folded into them at the end, so that what comes
out is a specialist like any other, whose task vector has the adapters' rank.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from r2m_jax.errors import InputError
from r2m_jax.models import Params
from r2m_jax.trees import flatten, unflatten

Result = TypeVar("Result")
PREFIX = "lora"


def attach(params: Params, targets: Sequence[str], rank: int, key: Key[Array, ""]) -> Params:
    """Parameters with fresh adapters: A normal with variance 1 / inputs, B zero, so that nothing changes at first.

    Args:
        params: of a detector.
        targets: regular expressions of whole leaf paths, kernels [layers…, inputs, outputs].
        rank: inner size of A [layers…, inputs, rank] and B [layers…, rank, outputs].
        key: of the draw.

    Raises:
        InputError: a pattern matches nothing, or a leaf that is no kernel, or one smaller than the rank.
    """
    flat = flatten(params)
    chosen: list[str] = []
    for pattern in targets:
        found = [path for path in flat if re.fullmatch(pattern, path)]
        if not found:
            raise InputError(f"the adapter target {pattern!r} matches none of the parameters, {next(iter(flat))} ….")
        chosen += [path for path in found if path not in chosen]
    adapters: dict[str, Array] = {}
    for number, path in enumerate(chosen):
        shape = flat[path].shape
        if not path.endswith("kernel") or len(shape) < 2 or min(shape[-2:]) < rank:
            raise InputError(f"{path} {list(shape)} takes no adapter of rank {rank}; choose kernels at least so large.")
        inner = jax.random.normal(jax.random.fold_in(key, number), (*shape[:-1], rank)) * shape[-2] ** -0.5
        adapters[f"{path}/a"], adapters[f"{path}/b"] = inner, jnp.zeros((*shape[:-2], rank, shape[-1]))
    return {**params, PREFIX: unflatten(adapters)}


def fold(params: Params, alpha: float) -> Params:
    """The detector's parameters with the adapters added in, without ``lora``; products in float32."""
    plain = flatten({name: tree for name, tree in params.items() if name != PREFIX})
    adapters = flatten(params[PREFIX])
    for path in sorted({path.rpartition("/")[0] for path in adapters}):
        a, b = adapters[f"{path}/a"], adapters[f"{path}/b"]
        added = alpha / a.shape[-1] * jnp.matmul(a, b, precision="highest")
        plain[path] = (plain[path] + added).astype(plain[path].dtype)
    return unflatten(plain)


def adapted(function: Callable[[Params, Any], Result], alpha: float) -> Callable[[Params, Any], Result]:
    """A function of a detector's parameters, e.g. its logits, for parameters with adapters."""
    return lambda params, inputs: function(fold(params, alpha), inputs)
