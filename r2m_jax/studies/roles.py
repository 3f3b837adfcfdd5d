"""Which images are learnt, which are seen, and which are unseen: columns and lessons formed from records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool

from r2m_jax.data.catalogue import find_method
from r2m_jax.data.records import Record
from r2m_jax.errors import InputError
from r2m_jax.evaluation.protocols import UNSEEN, Column, Facts, Protocol, Selector, protocol

NEW = "new methods"


@dataclass(frozen=True)
class Lesson:
    """What a model is trained on: forgeries by these methods and the real images, of these domains."""

    methods: tuple[str, ...]
    domains: tuple[str, ...]

    def of(self, records: Sequence[Record]) -> Bool[np.ndarray, " n"]:
        """Which records those are."""
        return np.asarray(
            [r.domain in self.domains and (r.label == 0 or r.method in self.methods) for r in records], np.bool_
        )


@dataclass(frozen=True)
class Roles:
    """What images are to the models.

    Attributes:
        domain: models are trained in.
        families: family to the methods its specialist learns.
        unseen: methods no specialist learns.
        others: further domains that hold real images and forgeries of the families.
        trainable: those of ``others`` that have training images of every family.
    """

    domain: str
    families: Mapping[str, tuple[str, ...]]
    unseen: tuple[str, ...]
    others: tuple[str, ...]
    trainable: tuple[str, ...]

    def lesson(self, *families: str, domain: str | None = None, also: Iterable[str] = ()) -> Lesson:
        """What a model of some families learns, and of further methods."""
        methods = [method for family in families for method in self.families[family]]
        return Lesson((*methods, *also), (self.domain if domain is None else domain,))

    def seen(self, domain: str | None = None, group: str = "") -> list[Column]:
        """A column per family: its methods that are learnt, in a domain."""
        inside = self.domain if domain is None else domain
        return [
            Column(
                f"{family} {group}".strip(), Selector(methods=methods, domains=(inside,)), Selector(domains=(inside,)),
                group,
            )
            for family, methods in self.families.items()
        ]  # fmt: skip

    def new(self, records: Sequence[Record], methods: Collection[str] | None = None) -> list[Column]:
        """A column per unseen method, against the real images of its domain (the one trained in, where it is there)."""
        wanted = set(self.unseen if methods is None else methods)
        inside = {r.method for r in records if r.label and r.domain == self.domain}
        kept = [
            r
            for r in records
            if r.label == 0 or (r.method in wanted and (r.domain == self.domain or r.method not in inside))
        ]
        if not any(r.label for r in kept):
            return []
        return [
            Column(c.name, replace(c.fake, domains=c.real.domains), c.real, NEW)
            for c in protocol("one-vs-all", kept).columns
        ]


def named(records: Iterable[Record]) -> list[Record]:
    """Records in which every forgery has a family and a method; a missing one is called as the other."""
    return [
        replace(r, family=r.family or r.method or "fake", method=r.method or r.family or "fake") if r.label else r
        for r in records
    ]


def find_roles(
    train: Sequence[Record],
    test: Sequence[Record],
    *,
    domain: str | None = None,
    unseen: Sequence[str] | None = None,
    families: Collection[str] = (),
) -> Roles:
    """Tell the roles from the records.

    Args:
        train, test: of :func:`named`.
        domain: models are trained in; the most frequent of the training (else test) images when None.
        unseen: methods no specialist learns; when None those without training images, or R²M's eight sets where there
            are no training images at all.
        families: of specialists that are given; all families with images to learn from when empty.

    Raises:
        InputError: the domain, a method or a family is not there, or fewer than two families are.
    """
    learnt_from = [r for r in (train or test) if r.label]
    domains = Counter(r.domain for r in learnt_from)
    if domain is None:
        domain = domains.most_common(1)[0][0] if domains else ""
    elif domain not in domains:
        raise InputError(f"data.domain={domain!r} has no forgery to learn from; there are {', '.join(domains)}.")
    present = dict.fromkeys(r.method for r in test if r.label)
    if unseen is None:
        known = {r.method for r in train if r.label}
        new = [m for m in present if (m not in known if train else getattr(find_method(m), "name", m) in UNSEEN)]
    else:
        new = list(unseen)
        strangers = [m for m in new if m not in present]
        if strangers:
            raise InputError(f"data.unseen names {strangers[0]!r}, of which there is no test image.")
    methods: dict[str, dict[str, None]] = {}
    for r in learnt_from:
        if r.domain == domain and r.method not in new:
            methods.setdefault(r.family, {})[r.method] = None
    missing = [family for family in families if family not in methods]
    if missing:
        raise InputError(
            f"the specialist {missing[0]!r} is no family of the images; name specialists as families, of which there "
            f"are {', '.join(methods) or 'none'}."
        )
    chosen = {family: tuple(found) for family, found in methods.items() if not families or family in families}
    if len(chosen) < 2:
        raise InputError(
            f"specialists are merged by forgery family, and the images have {len(chosen)} in the domain {domain!r}; "
            "give an index with two or more, as r2m data forge makes."
        )
    others = [d for d in dict.fromkeys(r.domain for r in test if r.label) if d != domain and _whole(test, d, chosen)]
    return Roles(domain, chosen, tuple(new), tuple(others), tuple(d for d in others if _whole(train, d, chosen)))


def _whole(records: Sequence[Record], domain: str, families: Mapping[str, tuple[str, ...]]) -> bool:
    inside = [r for r in records if r.domain == domain]
    learnt = [{r.method for r in inside if r.label} & set(methods) for methods in families.values()]
    return any(r.label == 0 for r in inside) and all(learnt)


def as_protocol(name: str, title: str, columns: Iterable[Column], records: Sequence[Record]) -> Protocol:
    """Columns that have both classes among the records, as a protocol."""
    facts = Facts(records)
    kept = []
    for column in columns:
        chosen = column.within(facts)
        if (chosen & facts.fake).any() and (chosen & ~facts.fake).any():
            kept.append(column)
    return Protocol(name, title, tuple(kept), "this project")


def inside(formed: Protocol, records: Sequence[Record]) -> Bool[np.ndarray, " n"]:
    """Which records are in any column."""
    found = np.zeros(len(records), np.bool_)
    for column in formed.masks(records).values():
        found |= column
    return found
