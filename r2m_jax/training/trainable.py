"""What is trained: leaves chosen by path, apart from those that stay as they are."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

from jaxtyping import Array

from r2m_jax.errors import InputError
from r2m_jax.models import Params
from r2m_jax.trees import flatten, unflatten

Trainable: TypeAlias = Callable[[str], bool]
"""Whether the leaf at a path such as ``backbone/layers/attn/q/kernel`` is trained."""


def everything(path: str) -> bool:
    """Full fine-tuning."""
    return True


def matching(patterns: Sequence[str], params: Params) -> Trainable:
    """Leaves whose path one of the regular expressions matches from its start to its end.

    Example: ``["head/.*", "backbone/.*norm.*"]`` trains the head and the layer norms.

    Args:
        patterns: regular expressions.
        params: that they are for.

    Raises:
        InputError: a pattern is no regular expression, or matches no leaf.
    """
    try:
        compiled = [re.compile(pattern) for pattern in patterns]
    except re.error as error:
        raise InputError(f"{error.pattern!r} is not a regular expression ({error}).") from None
    paths = list(flatten(params))
    for pattern in compiled:
        if not any(pattern.fullmatch(path) for path in paths):
            raise InputError(f"{pattern.pattern!r} matches no parameter; paths look like {paths[0]} and {paths[-1]}.")
    return lambda path: any(pattern.fullmatch(path) for pattern in compiled)


def split(params: Params, trainable: Trainable) -> tuple[dict[str, Array], dict[str, Array]]:
    """Trained and other leaves, each as a dict from path to leaf.

    Raises:
        InputError: nothing is to be trained.
    """
    flat = flatten(params)
    moving = {path: leaf for path, leaf in flat.items() if trainable(path)}
    if not moving:
        raise InputError("no parameter is to be trained; choose at least the head.")
    return moving, {path: leaf for path, leaf in flat.items() if path not in moving}


def join(moving: dict[str, Array], still: dict[str, Array]) -> Params:
    """The tree that :func:`split` took apart."""
    return unflatten({**moving, **still})
