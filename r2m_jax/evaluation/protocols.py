"""Named protocols: which images make up each column of a table of results.

Sources: DF40 (arXiv 2406.13495, Section 4), R²M (arXiv 2509.24367, Section 4 and Appendix C), CoRIT (arXiv
2603.24057, Tables I, II, III and VI), UniversalFakeDetect (arXiv 2302.10174, Tables 1 and 2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool

from r2m_jax.data.catalogue import DF40_METHODS, UNIVERSAL_METHODS, catalogue_names, find_method, nearest
from r2m_jax.data.named_sets import R2M_THREE
from r2m_jax.data.records import Record
from r2m_jax.errors import InputError

UNSEEN = ("deepfacelab", "heygen", "MidJourney", "whichfaceisreal", "stargan", "starganv2", "styleclip", "CollabDiff")
"""The eight sets R²M reports of DF40's nine of unknown domain (its Table 2); e4e has no real images of its own."""

METRICS = ("frame_auc", "video_auc", "eer", "ap", "acc")
"""What is printed of a protocol unless its source prints something else; frame and video values always together."""

_FAMILIES = ("FS", "FR", "EFS")
_DOMAINS = {"FF": "ff", "CDF": "cdf"}
_SEEN = tuple(m.name for m in DF40_METHODS if not m.unknown_domain)
_FOREIGN = tuple(name for name in catalogue_names() if name not in _SEEN)  # of FaceForensics++ itself, DFDC …
_CROSS = {"CDFv1": "CelebDFv1", "CDFv2": "CelebDFv2", "DFDCP": "DFDCP", "DFDC": "DFDC", "DFD": "DFD"}
_NEXT_GENERATION = {name: name for name in ("uniface", "e4s", "facedancer", "fsgan", "inswap")}
_MANIPULATIONS = {"DF": "FF-DF", "F2F": "FF-F2F", "FS": "FF-FS", "NT": "FF-NT"}


class Facts:
    """What records say of themselves as arrays, found once for any number of columns.

    Args:
        records: of an index or a score table.
    """

    def __init__(self, records: Sequence[Record]):
        self._records = records
        self.fake: Bool[np.ndarray, " n"] = np.asarray([bool(r.label) for r in records], np.bool_)

    @cached_property
    def family(self) -> np.ndarray:
        """Forgery families."""
        return np.asarray([r.family for r in self._records])

    @cached_property
    def method(self) -> np.ndarray:
        """Methods in the catalogue's spelling, where it knows them."""
        spelling = {name: getattr(find_method(name), "name", name) for name in {r.method for r in self._records}}
        return np.asarray([spelling[r.method] for r in self._records])

    @cached_property
    def domain(self) -> np.ndarray:
        """Where the footage is from."""
        return np.asarray([r.domain for r in self._records])

    @cached_property
    def dataset(self) -> np.ndarray:
        """The published set each record was read from."""
        return np.asarray([r.dataset for r in self._records])

    def of_set(self, name: str) -> Bool[np.ndarray, " n"]:
        """Records of one of DF40's sets, told by the data set, or by a folder where DF40's tree is one data set."""
        return np.asarray([name in sets for sets in self._sets], np.bool_)

    @cached_property
    def _sets(self) -> list[frozenset[str]]:
        places = [(record.dataset, record.path.rpartition("/")[0]) for record in self._records]
        named = {
            place: frozenset(
                m.name for part in (place[0], *place[1].split("/")) if (m := find_method(part, df40_only=True))
            )
            for place in set(places)
        }
        return [named[place] for place in places]

    def present(self, values: np.ndarray) -> list[str]:
        """Values that fake records have, in the order they first occur."""
        return list(dict.fromkeys(values[self.fake].tolist()))


@dataclass(frozen=True)
class Selector:
    """Records told by what they say of themselves; every field that is not empty must fit.

    Attributes:
        families, methods, domains, datasets: any of these; methods in any spelling.
        without: none of these methods.
        set_: one of DF40's sets of unknown domain, by the data set or a folder of the path.
    """

    families: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    set_: str = ""

    def within(self, facts: Facts) -> Bool[np.ndarray, " n"]:
        """Which records fit, whatever their label."""
        fits = np.ones(len(facts.fake), np.bool_)
        for wanted, of in (
            (self.families, "family"), (self.methods, "method"), (self.domains, "domain"), (self.datasets, "dataset"),
        ):  # fmt: skip
            if wanted:
                names = [getattr(find_method(n), "name", n) for n in wanted] if of == "method" else list(wanted)
                fits &= np.isin(getattr(facts, of), names)
        if self.without:
            fits &= ~np.isin(facts.method, list(self.without))
        return fits & facts.of_set(self.set_) if self.set_ else fits

    def words(self) -> str:
        """The selection in words; empty for everything."""
        parts = [
            f"{what} {' or '.join(name or '(none)' for name in names)}"
            for what, names in (
                ("family", self.families), ("method", self.methods), ("domain", self.domains),
                ("data set", self.datasets), ("set", (self.set_,) if self.set_ else ()),
            )
            if names
        ]  # fmt: skip
        return ", ".join(parts)


@dataclass(frozen=True)
class Column:
    """One column of a table: some fake images and the real images they are told from.

    Attributes:
        name: heading.
        fake, real: which images of each class.
        group: heading over columns that are averaged together; empty for none.
    """

    name: str
    fake: Selector
    real: Selector = Selector()
    group: str = ""

    def mask(self, records: Sequence[Record]) -> Bool[np.ndarray, " n"]:
        """Which records the column is made of."""
        return self.within(Facts(records))

    def within(self, facts: Facts) -> Bool[np.ndarray, " n"]:
        """The same of facts already found."""
        return np.where(facts.fake, self.fake.within(facts), self.real.within(facts))


@dataclass(frozen=True)
class Protocol:
    """Columns formed for certain records.

    Attributes:
        name: as asked for.
        title: what is measured.
        columns: those with real and fake images.
        source: where it is defined.
        train: what the models are trained on, where the protocol says.
        metrics: keys of the metrics it is reported in, the first of all first.
        notes: what was dropped, replaced or left out, a sentence each.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    source: str
    train: str = ""
    metrics: tuple[str, ...] = METRICS
    notes: tuple[str, ...] = ()

    def masks(self, records: Sequence[Record]) -> dict[str, Bool[np.ndarray, " n"]]:
        """The records of every column."""
        facts = Facts(records)
        return {column.name: column.within(facts) for column in self.columns}

    def groups(self) -> dict[str, list[str]]:
        """Names of columns under each heading, where there are at least two headings; else nothing."""
        found: dict[str, list[str]] = {}
        for column in self.columns:
            found.setdefault(column.group, []).append(column.name)
        return found if len(found) > 1 else {}


_Build = Callable[[Facts, list[str]], list[Column]]


@dataclass(frozen=True)
class _Definition:
    title: str
    source: str
    build: _Build
    train: str = ""
    metrics: tuple[str, ...] = METRICS


def protocol(name: str, records: Sequence[Record]) -> Protocol:
    """Form the columns of a protocol from records.

    An index of one's own, as of ``r2m data forge``, has neither the domains nor the methods of the published sets; the
    protocol then uses what is there, and says so in its notes.

    Args:
        name: a key of :data:`NAMES`.
        records: of one split, images listed twice counting twice.

    Raises:
        InputError: there is no such protocol, or no column would have both real and fake images.

    Example:
        >>> records = [Record("a.png", 0), Record("b.png", 1, family="FS"), Record("c.png", 1, family="EFS")]
        >>> [column.name for column in protocol("families", records).columns]
        ['FS', 'EFS']
    """
    if name not in _DEFINITIONS:
        raise InputError(f"there is no protocol {name!r}; {nearest(name, _DEFINITIONS)}")
    definition, facts = _DEFINITIONS[name], Facts(records)
    notes: list[str] = []
    kept = []
    missing = []
    for column in definition.build(facts, notes):
        chosen = column.within(facts)
        for kind, selector, has in (
            ("fake", column.fake, bool((chosen & facts.fake).any())),
            ("real", column.real, bool((chosen & ~facts.fake).any())),
        ):
            if not has:
                words = selector.words()
                missing.append(
                    f"the column {column.name} is left out: there is no {kind} image{' of ' + words if words else ''}."
                )
                break
        else:
            kept.append(column)
    if not kept:
        reason = missing[0].partition(": ")[2] if missing else "there is no fake image."
        raise InputError(f"the protocol {name} has no column with real and fake images: {reason}")
    return Protocol(
        name, definition.title, tuple(kept), definition.source, definition.train, definition.metrics,
        (*notes, *missing),
    )  # fmt: skip


def _is_own(facts: Facts) -> bool:
    """Whether no method of the index is of a published set."""
    return not any(find_method(name) for name in facts.present(facts.method))


def _all_families(facts: Facts, _: list[str]) -> list[Column]:
    return [Column(name or "no family", Selector(families=(name,))) for name in facts.present(facts.family)]


def _reals_for(facts: Facts, fake: Selector) -> Selector:
    """The real images that belong to some fakes: those of their data sets, or else of their domains.

    DF40's lists hold the real images of every list again; a column of one list is told from that list's own.
    """
    fakes = fake.within(facts) & facts.fake
    domains = tuple(dict.fromkeys(facts.domain[fakes].tolist()))
    datasets = tuple(dict.fromkeys(facts.dataset[fakes].tolist()))
    own = [Selector(domains=domains, datasets=(name,)) for name in datasets]
    if all((selector.within(facts) & ~facts.fake).any() for selector in own):
        return Selector(domains=domains, datasets=datasets)
    return Selector(domains=domains)


def _each_method(facts: Facts, notes: list[str]) -> list[Column]:
    """Every method against the real images of its data sets, or of the domains it was applied to."""
    columns, without = [], []
    for name in facts.present(facts.method):
        fake = Selector(methods=(name,))
        real = _reals_for(facts, fake)
        if not (real.within(facts) & ~facts.fake).any():
            real = Selector()
            without.append(name)
        columns.append(Column(name or "no method", fake, real))
    if without:
        notes.append(
            f"there is no real image of the domain of {', '.join(name or 'no method' for name in without)}: all real "
            "images stand against them."
        )
    return columns


def _each_dataset(facts: Facts, _: list[str]) -> list[Column]:
    names = dict.fromkeys(facts.dataset.tolist())
    return [Column(n or "no data set", Selector(datasets=(n,)), Selector(datasets=(n,))) for n in names]


def _own_methods(facts: Facts, notes: list[str], instead_of: str) -> list[Column]:
    notes.append(f"the index has none of {instead_of}: each of its own methods is a column.")
    return _each_method(facts, notes)


def _by_family(domains: Mapping[str, str], methods: Mapping[str, tuple[str, ...]] | None = None) -> _Build:
    """Families on domains; R²M's lists of methods, or whatever DF40 has of the family."""

    def build(facts: Facts, notes: list[str]) -> list[Column]:
        used: dict[str, tuple[str, ...]] = {group: (domain,) for group, domain in domains.items()}
        if not np.isin(facts.domain, list(_DOMAINS.values())).any():
            used = {"": ()}
            notes.append("the index has no domain ff or cdf: columns are formed from images of every domain.")
        lists = methods
        if lists is not None and _is_own(facts):
            lists = None
            notes.append("the index has none of R²M's methods: a family's column has every method of the family.")
        columns = []
        for group, inside in used.items():
            for family in _FAMILIES:
                listed = f"{family}All_{''.join(inside)}"
                if lists:
                    fake = Selector(methods=lists[family], domains=inside)
                elif (facts.fake & (facts.dataset == listed)).any():
                    fake = Selector(datasets=(listed,))
                else:
                    fake = Selector(families=(family,), domains=inside, without=_FOREIGN)
                name = f"{family} {group}" if len(used) > 1 else family
                columns.append(Column(name, fake, _reals_for(facts, fake), group))
        return columns

    return build


def _unseen(facts: Facts, notes: list[str]) -> list[Column]:
    if _is_own(facts):
        return _own_methods(facts, notes, "DF40's sets of unknown domain")
    columns, without = [], []
    for name in UNSEEN:
        fake, real = Selector(methods=(name,)), Selector(set_=name)
        if (fake.within(facts) & facts.fake).any() and not (real.within(facts) & ~facts.fake).any():
            real = Selector()
            without.append(name)
        columns.append(Column(name, fake, real))
    if without:
        notes.append(f"{', '.join(without)} came without real images: all real images of the index stand against them.")
    if (facts.method[facts.fake] == "e4e").any():
        notes.append("e4e is left out, as in R²M's table.")
    return columns


def _by_method(names: Mapping[str, str], instead_of: str, domain: str = "") -> _Build:
    """A column for each heading's method, in one domain where the index has it."""

    def build(facts: Facts, notes: list[str]) -> list[Column]:
        if _is_own(facts):
            return _own_methods(facts, notes, instead_of)
        inside = (domain,) if domain and (facts.domain == domain).any() else ()
        if domain and not inside:
            notes.append(f"the index has no domain {domain}: columns are formed from images of every domain.")
        fakes = {shown: Selector(methods=(name,), domains=inside) for shown, name in names.items()}
        return [Column(shown, fake, _reals_for(facts, fake)) for shown, fake in fakes.items()]

    return build


def _universal(facts: Facts, notes: list[str]) -> list[Column]:
    if _is_own(facts):
        return _own_methods(facts, notes, "UniversalFakeDetect's sets")
    spelled: dict[str, list[str]] = {}
    for dataset in dict.fromkeys(facts.dataset.tolist()):
        spelled.setdefault(getattr(find_method(dataset), "name", dataset), []).append(dataset)
    selectors = {m.name: Selector(datasets=tuple(spelled.get(m.name, [m.name]))) for m in UNIVERSAL_METHODS}
    return [Column(name, selector, selector) for name, selector in selectors.items()]


_DF40, _R2M = "arXiv 2406.13495, Section 4", "arXiv 2509.24367, Section 4"
_DEFINITIONS = {
    "families": _Definition("each forgery family against all real images", "this project", _all_families),
    "one-vs-all": _Definition("each forgery method", f"{_DF40} (protocol 4)", _each_method, "one method each"),
    "cross-dataset": _Definition("each data set", "arXiv 2307.01426, Section 4", _each_dataset, "one data set"),
    "df40-p1": _Definition(
        "same domain, each forgery family", f"{_DF40} (protocol 1)", _by_family({"FF": "ff"}), "XAll_ff"
    ),
    "df40-p2": _Definition(
        "other domain, each forgery family", f"{_DF40} (protocol 2)", _by_family({"CDF": "cdf"}), "XAll_ff"
    ),
    "df40-p3": _Definition(
        "unknown forgery and domain, R²M's eight sets", f"{_DF40} (protocol 3); {_R2M}, Table 2", _unseen, "XAll_ff"
    ),
    "df40-seen": _Definition(
        "families on both domains", f"{_DF40} (protocols 1 and 2)", _by_family(_DOMAINS), "XAll_ff"
    ),
    "r2m-seen": _Definition(
        "R²M's eight methods a family on both domains", f"{_R2M}, Table 1", _by_family(_DOMAINS, R2M_THREE),
        "r2m-fs-ff, r2m-fr-ff, r2m-efs-ff",
    ),
    "ffpp-loo": _Definition(
        "leave one manipulation out", "CoRIT (arXiv 2603.24057), Table VI",
        _by_method(_MANIPULATIONS, "the manipulations of FaceForensics++"),
        "FaceForensics++ without the column's manipulation",
    ),
    "corit-cross": _Definition(
        "five data sets that were not learnt", "CoRIT (arXiv 2603.24057), Tables I (images) and II (clips)",
        _by_method(_CROSS, "the data sets CoRIT is compared on"), "FaceForensics++",
    ),
    "corit-df40": _Definition(
        "five face swaps of DF40 on the domain cdf", "CoRIT (arXiv 2603.24057), Table III",
        _by_method(_NEXT_GENERATION, "the five methods of DF40 that CoRIT is compared on", "cdf"),
        "FaceForensics++",
    ),
    "ufd": _Definition(
        "the 19 sets of UniversalFakeDetect", "arXiv 2302.10174, Tables 1 and 2", _universal, "progan",
        ("ap", "macc", "frame_auc", "acc_best_thr_oracle"),
    ),
}  # fmt: skip

NAMES = tuple(_DEFINITIONS)
"""Names of all protocols."""
