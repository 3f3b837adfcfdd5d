"""Leaves of nested dicts by their path, written ``layers/attn/q/kernel``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from r2m_jax.errors import InputError

Tree = dict[str, Any]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict from path to leaf, in sorted order.

    Example:
        >>> flatten({"head": {"kernel": 1, "bias": 0}})
        {'head/bias': 0, 'head/kernel': 1}
    """
    flat: dict[str, Any] = {}
    for key in sorted(tree):
        value = tree[key]
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[prefix + key] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> Tree:
    """The nested dicts that :func:`flatten` took apart."""
    tree: Tree = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def count_parameters(tree: Mapping[str, Any]) -> int:
    """Number of scalars in all leaves (anything with a ``shape``)."""
    return sum(math.prod(leaf.shape) for leaf in flatten(tree).values())


def same_structure(expected: Mapping[str, Any], given: Mapping[str, Any], what: str) -> None:
    """Check that ``given`` has exactly the leaves of ``expected``, with the same shapes.

    Args:
        expected, given: trees of anything with a ``shape``.
        what: names ``given`` in the message.

    Raises:
        InputError: leaves are missing, unknown or of another shape; the first few are named.
    """
    wanted, got = flatten(expected), flatten(given)
    problems = [f"lacks {path}" for path in wanted if path not in got]
    problems += [f"has the unknown leaf {path}" for path in got if path not in wanted]
    problems += [
        f"has {path} of shape {tuple(got[path].shape)} instead of {tuple(wanted[path].shape)}"
        for path in wanted
        if path in got and tuple(got[path].shape) != tuple(wanted[path].shape)
    ]
    if problems:
        more = f" and {len(problems) - 3} more differences" if len(problems) > 3 else ""
        raise InputError(f"{what} {', '.join(problems[:3])}{more}.")


def refuse_non_finite(tree: Mapping[str, Any], what: str) -> None:
    """Raise when any leaf holds NaN or Inf.

    Raises:
        InputError: names ``what`` and the first leaf concerned.
    """
    for path, leaf in flatten(tree).items():
        array = np.asarray(leaf)
        finite = np.isfinite(array if array.dtype.itemsize > 2 else array.astype(np.float32))
        if not finite.all():
            raise InputError(f"{what}: {path} holds {int((~finite).sum())} values that are NaN or infinite.")
