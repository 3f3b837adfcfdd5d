"""Which images networks learn, which they are tested on, and which those that are transferred learn first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from r2m_jax.data.records import Record
from r2m_jax.data.selection import evenly
from r2m_jax.errors import InputError

LEAST = 4
"""Images of a class, below which there is nothing to learn or to tell."""


@dataclass(frozen=True)
class Chosen:
    """Images with their roles; of every role as many are real as are fake, or nearly.

    Attributes:
        train: of the methods that are learnt.
        test: of these and of those that are not.
        source: learnt first by networks that are transferred; None where there are none.
        unseen: methods that no network learns.
    """

    train: list[Record]
    test: list[Record]
    source: list[Record] | None
    unseen: tuple[str, ...]


def choose_images(
    records: Sequence[Record],
    source: Sequence[Record] | None,
    *,
    unseen: Sequence[str] | None,
    source_methods: Sequence[str],
    limit: int | None,
) -> Chosen:
    """Tell the roles of images from their methods.

    Args:
        records: of the images at hand, in both splits; every forgery has a method.
        source: of other images to learn first; None for none, or for ``source_methods``.
        unseen: methods no network learns; every second one by name when None.
        source_methods: methods that are learnt first.
        limit: at most so many forgeries of a split.

    Raises:
        InputError: a method is not there, or too few images of a role.
    """
    present = sorted({r.method for r in records if r.label})
    for what, given in (("data.unseen", unseen or ()), ("data.source_methods", source_methods)):
        strangers = [name for name in given if name not in present]
        if strangers:
            raise InputError(f"{what} names {strangers[0]!r}, but the forgeries are {', '.join(present) or 'none'}.")
    left = [name for name in present if name not in source_methods]
    new = tuple(left[1::2]) if unseen is None else tuple(name for name in left if name in unseen)
    learnt = [name for name in left if name not in new]
    if not learnt or not new:
        raise InputError(
            f"of the methods {', '.join(left) or '(none)'} some must be learnt and some not; set data.unseen."
        )
    splits = {name: [r for r in records if r.split == name] for name in ("train", "test")}
    train = _balanced(splits["train"], learnt, limit, "train")
    test = _balanced(splits["test"], learnt, limit, "test")
    test += [r for r in _balanced(splits["test"], new, limit, "test") if r.label]
    if source_methods:
        source = [r for r in splits["train"] if not r.label or r.method in source_methods]
    if source is not None:
        methods = sorted({r.method for r in source if r.label})
        source = _balanced(source, methods, limit, "train")
    return Chosen(train, test, source, new)


def _balanced(records: Sequence[Record], methods: Sequence[str], limit: int | None, split: str) -> list[Record]:
    fake = evenly([r for r in records if r.label and r.method in methods], limit)
    real = evenly([r for r in records if not r.label], len(fake))
    if min(len(fake), len(real)) < LEAST:
        raise InputError(
            f"the split {split!r} has {len(real)} real images and {len(fake)} by {', '.join(methods) or 'no method'}; "
            f"give {LEAST} or more of each."
        )
    return [*real, *fake]
