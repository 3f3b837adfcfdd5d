"""Which frames of a clip are used, and what happens to images listed twice."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from r2m_jax.data.records import Record
from r2m_jax.errors import InputError

FrameSelection = Literal["even", "bench", "df40"]
SELECTIONS: tuple[str, ...] = get_args(FrameSelection)

_DIGITS = re.compile(r"(\d+)")


def natural_key(name: str) -> tuple[tuple[str | int, ...], str]:
    """Sort key that counts: ``2.png`` before ``10.png``, ``seed0188.png`` after ``seed19.png``.

    Equal numbers written differently (``1.png``, ``01.png``) are told apart by the name itself, so that the order is
    total and never depends on the order the names came in.
    """
    parts = _DIGITS.split(name)
    parts[1::2] = map(int, parts[1::2])  # text and numbers take turns, text first
    return tuple(parts), name


def check_selection(how: str, n: int | None) -> None:
    """Refuse an unknown selection and a count below one.

    Raises:
        InputError: says which values there are.
    """
    if how not in SELECTIONS:
        raise InputError(f"the frame selection {how!r} is unknown; choose one of {', '.join(SELECTIONS)}.")
    if n is not None and n < 1:
        raise InputError(f"{n} frames per clip cannot be selected; ask for at least 1.")


def frame_indices(length: int, n: int | None, how: FrameSelection = "even") -> range | list[int]:
    """Indices of the frames of one clip that are used; all of them where the clip has no more than ``n``.

    ``even``: floor of ``n`` equal steps from the first frame to the last, in exact arithmetic. ``bench`` and ``df40``:
    the first ``n``, which is what DeepfakeBench and DF40 do (their ``total // n`` is taken after ``total`` is cut to
    ``n``); of 32 stored frames, 8 cover the first quarter of the clip.

    Args:
        length: frames of the clip.
        n: frames wanted, None for all.
        how: the rule.
    """
    if n is None or length <= n:
        return range(length)
    if how != "even":
        return range(n)
    return [0] if n == 1 else [i * (length - 1) // (n - 1) for i in range(n)]


def select_frames(paths: Sequence[str], n: int | None, how: FrameSelection = "even") -> list[str]:
    """Frames of one clip that are used.

    ``even`` and ``bench`` sort the files naturally by name first, since the lists of DeepfakeBench are in the order of
    a directory scan; ``df40`` takes the list as it is. Without ``n`` the list comes back as it is.

    Raises:
        InputError: the rule is unknown or ``n`` is below 1.
    """
    check_selection(how, n)
    if n is None:
        return list(paths)
    ordered = list(paths) if how == "df40" else sorted(paths, key=lambda path: natural_key(path.rpartition("/")[2]))
    return [ordered[i] for i in frame_indices(len(ordered), n, how)]


def evenly(records: Sequence[Record], limit: int | None) -> list[Record]:
    """At most ``limit`` of the records, at equal steps from the first to the last; all of them when None."""
    if limit is None or limit >= len(records):
        return list(records)
    return [records[place] for place in np.linspace(0, len(records) - 1, limit).round().astype(int)]


def deduplicate(records: Sequence[Record]) -> list[Record]:
    """The first of the records that share file, frame, label, split and data set.

    DF40's collective lists repeat their real images, which acts as a weight; dropping the repetitions changes the
    share of real images a detector is trained on.
    """
    seen: set[tuple[str, int, int, str, str]] = set()
    kept = []
    for record in records:
        key = (record.path, record.frame, record.label, record.split, record.dataset)
        if key not in seen:
            seen.add(key)
            kept.append(record)
    return kept
