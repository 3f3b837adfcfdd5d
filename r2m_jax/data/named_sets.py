"""Sets of the papers, by name: which records of an index a specialist or a protocol uses.

Sources: R2M (arXiv 2509.24367, Appendix B.2: three sets of eight methods, six sets of 31 methods, the extension with
real images of Celeb-DF), DF40 (arXiv 2406.13495, Section 4: its four protocols and the names of its lists).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from r2m_jax.data.catalogue import CATEGORIES, DF40_METHODS, find_method, nearest
from r2m_jax.data.records import SPLITS, Record
from r2m_jax.errors import InputError

SPLIT_SEED = 1024
"""R2M's ``manualSeed``; the paper does not state the seed of its split."""
FRACTIONS = (0.64, 0.16, 0.20)
"""Shares of train, val and test. The paper prints a test set of 20 %, a training set of four fifths of the rest, and a
validation set that is the sum of both, which leaks; here the three are disjoint."""

R2M_THREE = {
    "FS": ("fsgan", "faceswap", "facedancer", "blendface", "simswap", "mobileswap", "e4s", "inswap"),
    "FR": ("MRAA", "facevid2vid", "fomm", "sadtalker", "hyperreenact", "mcnet", "one_shot_free", "wav2lip"),
    "EFS": ("SiT", "ddpm", "DiT", "sd2.1", "pixart", "rddm", "VQGAN", "StyleGAN2"),
}
"""R2M's three specialists, 24 methods."""

R2M_SIX = {
    "S1": ("uniface", "simswap", "mobileswap", "faceswap", "fsgan"),
    "S2": ("inswap", "blendface", "e4s", "facedancer"),
    "S3": ("sadtalker", "tpsm", "fomm", "MRAA", "facevid2vid", "pirender"),
    "S4": ("hyperreenact", "danet", "lia", "mcnet", "one_shot_free", "wav2lip"),
    "S5": ("pixart", "StyleGANXL", "StyleGAN3", "DiT", "ddpm"),
    "S6": ("rddm", "StyleGAN2", "SiT", "VQGAN", "sd2.1"),
}
"""R2M's six specialists, 31 methods."""


@dataclass(frozen=True)
class NamedSet:
    """Fake images of some methods and the real images they are told from.

    Attributes:
        name: what a recipe asks for.
        methods: forgery methods, as the catalogue spells them.
        domain: domain of real and fake images; empty for any.
        dataset: for DF40's sets of unknown domain, the data set the real images are from; empty for any.
        resplit: train, val and test are drawn anew by :func:`split_by_video`.
    """

    name: str
    methods: tuple[str, ...]
    domain: str = ""
    dataset: str = ""
    resplit: bool = False


@dataclass(frozen=True)
class Selected:
    """Records of a named set, and by name what the set has and the data lack."""

    records: list[Record]
    lacking: list[str]


@dataclass(frozen=True)
class Protocol:
    """What is trained on and what is tested on, by the names of sets.

    Attributes:
        name: the paper's.
        train: one specialist per set.
        test: every specialist, or the merge, on each.
    """

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]


def _df40(family: str, unknown: bool) -> tuple[str, ...]:
    return tuple(m.name for m in DF40_METHODS if m.family == family and m.unknown_domain == unknown)


def _build() -> dict[str, NamedSet]:
    known = [m.name for m in DF40_METHODS if not m.unknown_domain]
    unknown = [m.name for m in DF40_METHODS if m.unknown_domain]
    sets = [NamedSet(f"r2m-{name.lower()}", methods) for name, methods in (R2M_THREE | R2M_SIX).items()]
    for domain in ("ff", "cdf"):
        sets += [
            NamedSet(f"r2m-{name.lower()}-{domain}", methods, domain) for name, methods in (R2M_THREE | R2M_SIX).items()
        ]
    sets += [
        NamedSet(f"r2m-{family.lower()}-cdf-real", methods, "cdf", resplit=True)
        for family, methods in R2M_THREE.items()
    ]
    sets.append(NamedSet("r2m-all", tuple(m for methods in R2M_THREE.values() for m in methods)))
    sets.append(NamedSet("r2m-all-six", tuple(m for methods in R2M_SIX.values() for m in methods)))
    for domain in ("ff", "cdf"):
        sets += [NamedSet(f"{name}_{domain}", _df40(family, False), domain) for name, family in CATEGORIES.items()]
        sets += [NamedSet(f"{name}_{domain}", (name,), domain) for name in known]
    sets += [NamedSet(name, (name,), dataset=name) for name in unknown]
    return {named.name: named for named in sets}


SETS = _build()
"""Every set by name: ``r2m-fs`` … ``r2m-s6`` in any domain, in one with ``-ff`` or ``-cdf``, split anew with
``-cdf-real``; and DF40's ``FSAll_ff`` … ``simswap_cdf``."""


def _build_protocols() -> dict[str, Protocol]:
    ff, cdf = (tuple(f"{name}_{domain}" for name in CATEGORIES) for domain in ("ff", "cdf"))
    single = tuple(f"{m.name}_ff" for m in DF40_METHODS if not m.unknown_domain)
    unknown = tuple(m.name for m in DF40_METHODS if m.unknown_domain)
    three, three_cdf, six = (
        tuple(f"r2m-{name.lower()}-{domain}" for name in names)
        for names, domain in ((R2M_THREE, "ff"), (R2M_THREE, "cdf"), (R2M_SIX, "ff"))
    )
    both = (*three, *(f"{name}-real" for name in three_cdf))
    unseen = tuple(name for name in unknown if name != "e4e")  # R2M reports eight of the nine
    protocols = (
        Protocol("df40-p1", ff, ff),
        Protocol("df40-p2", ff, cdf),
        Protocol("df40-p3", ff, unknown),
        Protocol("df40-p4", single, single),
        Protocol("r2m-three", three, (*three, *three_cdf, *unseen)),
        Protocol("r2m-six", six, (*three, *three_cdf, *unseen)),
        Protocol("r2m-cdf-real", both, both),
    )
    return {protocol.name: protocol for protocol in protocols}


PROTOCOLS = _build_protocols()
"""DF40's protocols 1 to 4 (same domain, other domain, unknown, one against all) and R2M's three experiments."""


def named_set(name: str) -> NamedSet:
    """The set of a name, in any spelling of its method (``ddim_ff`` is ``ddpm_ff``).

    Raises:
        InputError: there is none; the nearest names and those there are follow.
    """
    if name in SETS:
        return SETS[name]
    stem, joint, domain = name.rpartition("_")
    for spelling, ending in ((name, ""), (stem, joint + domain)):
        method = find_method(spelling, df40_only=True)
        if method and method.name + ending in SETS:
            return SETS[method.name + ending]
    by_lower = {known.lower(): known for known in SETS}
    if name.lower() in by_lower:
        return SETS[by_lower[name.lower()]]
    raise InputError(f"there is no set {name!r}; {nearest(name, SETS)}")


def protocol(name: str) -> Protocol:
    """The protocol of a name.

    Raises:
        InputError: there is none; the nearest names and those there are follow.
    """
    if name not in PROTOCOLS:
        raise InputError(f"there is no protocol {name!r}; {nearest(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def select_set(records: Sequence[Record], name: str, *, split_seed: int = SPLIT_SEED) -> Selected:
    """Records of a named set: the fake images of its methods and all real images of its domain.

    Args:
        records: what was read; in any order, which is kept.
        name: name of the set.
        split_seed: seed of the split, for the sets that are split anew.

    Returns:
        The records, and a sentence for every method, for real images and for every split without both classes, that
        the data lack.

    Raises:
        InputError: there is no such set, or the records hold none of its fake images.
    """
    wanted = named_set(name)
    methods = set(wanted.methods)
    chosen = [
        record
        for record in records
        if (not wanted.domain or record.domain == wanted.domain)
        and ((_name(record.method) in methods) if record.label else _is_real_of(record, wanted))
    ]
    where = f" in the domain {wanted.domain}" if wanted.domain else ""
    if not any(record.label for record in chosen):
        raise InputError(
            f"the set {wanted.name} is not in the data: no image of {', '.join(wanted.methods)}{where}; give their "
            "folders or lists as sources."
        )
    if wanted.resplit:
        chosen = split_by_video(chosen, split_seed)
    return Selected(chosen, _lacking(chosen, wanted, where))


def split_by_video(
    records: Sequence[Record], seed: int = SPLIT_SEED, fractions: tuple[float, float, float] = FRACTIONS
) -> list[Record]:
    """Draw train, val and test anew so that no footage is in two of them.

    The split of a record is a function of the seed and its footage (:func:`footage`) alone, through SHA-256: it does
    not depend on what else is in the data, so the specialists of one merge, and lists read on different days, agree
    on which videos are for testing. The shares are therefore met on average, not to the video.

    Args:
        records: any; their splits are replaced.
        seed: of the draw.
        fractions: shares of train, val and test, which add up to 1.

    Raises:
        InputError: the shares are negative or do not add up to 1.
    """
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9:
        raise InputError(f"the shares {fractions} of train, val and test are negative or do not add up to 1.")
    drawn: dict[str, str] = {}
    out = []
    for record in records:
        source = footage(record)
        if source not in drawn:
            digest = hashlib.sha256(f"{seed}/{source}".encode()).digest()
            place = int.from_bytes(digest[:8], "big") / 2**64
            drawn[source] = SPLITS[0 if place < fractions[0] else 1 if place < fractions[0] + fractions[1] else 2]
        out.append(replace(record, split=drawn[source]))
    return out


def footage(record: Record) -> str:
    """Name of the video a record was made from: Celeb-DF's fake ``id0_id16_0001`` is made on ``id0_0001``.

    So a real video and every fake made on it, by whatever method, share it; FaceForensics++'s ``001_870`` is made on
    ``001``.
    """
    name = record.video.rpartition("/")[2]
    swapped = re.fullmatch(r"(id\d+)_id\d+_(\d+)", name) or re.fullmatch(r"(\d{3})()_\d{3}", name)
    if not swapped:
        return name
    return f"{swapped[1]}_{swapped[2]}" if swapped[2] else swapped[1]


def _name(method: str) -> str:
    """The catalogue's spelling: an index of one's own may say ``ddim``."""
    found = find_method(method)
    return found.name if found else method


def _is_real_of(record: Record, wanted: NamedSet) -> bool:
    if not wanted.dataset:
        return True
    found = find_method(record.dataset, df40_only=True)
    # A tree of DF40's folders is one data set; which reals belong to which of its sets is told by the folder.
    return (found is not None and found.name == wanted.dataset) or _in_folder(record, wanted.dataset)


def _in_folder(record: Record, method: str) -> bool:
    folders = record.path.split("/")[:-1]
    return any((found := find_method(part, df40_only=True)) is not None and found.name == method for part in folders)


def _lacking(records: Sequence[Record], wanted: NamedSet, where: str) -> list[str]:
    present = {_name(record.method) for record in records if record.label}
    lacking = [f"no image of {method}{where}" for method in wanted.methods if method not in present]
    if not any(record.label == 0 for record in records):
        of = f" of the set {wanted.dataset}" if wanted.dataset else ""
        return [*lacking, f"no real image{where}{of}"]
    return lacking + absent_classes(records)


def absent_classes(records: Sequence[Record]) -> list[str]:
    """A sentence for every split that has images of one class only: no AUC can be computed there."""
    found: dict[str, set[int]] = {}
    for record in records:
        found.setdefault(record.split, set()).add(record.label)
    return [
        f"no {kind} image in the split {split}"
        for split, labels in found.items()
        for label, kind in enumerate(("real", "fake"))
        if label not in labels
    ]
