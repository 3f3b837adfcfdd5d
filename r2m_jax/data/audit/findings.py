"""What is wrong with a data set, told from its records and the facts about their files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import PurePath
from typing import Literal

from r2m_jax.data.audit.facts import MISSING, Facts
from r2m_jax.data.records import SPLITS, Record

Severity = Literal["error", "warning"]

NAMES = (
    "missing-files",
    "unreadable-files",
    "one-class",
    "two-labels",
    "val-is-test",
    "shared-images",
    "shared-videos",
    "shared-video-names",
    "repeated-images",
    "folder-collisions",
    "no-family",
    "shortcut",
)
"""Of all findings there are."""

_SHOWN = 5  # examples of a finding


@dataclass(frozen=True)
class Finding:
    """Something a user should know before trusting results on a data set.

    Attributes:
        name: by which it can be allowed.
        severity: errors spoil an evaluation, warnings may.
        text: one sentence with the numbers and what to do.
        count: how many files, clips or folders are concerned.
        examples: the first few of them.
    """

    name: str
    severity: Severity
    text: str
    count: int
    examples: tuple[str, ...] = ()


def find(records: Sequence[Record], facts: Mapping[str, Facts]) -> list[Finding]:
    """All findings but the shortcut, errors first.

    Args:
        records: of the index.
        facts: about their files, by path.
    """
    splits = list(_splits(records, facts))
    found = [
        *_files(records, facts),
        *_classes(records),
        *_labels(records, facts),
        *splits,
        *_videos(records, one="val-is-test" in {finding.name for finding in splits}),
        *_repeats(records, facts),
        *_folders(records),
        *_unnamed(records),
    ]
    return sorted(found, key=lambda finding: finding.severity != "error")


def content_of(record: Record, facts: Mapping[str, Facts]) -> str:
    """What an image shows, as a key: the digest of its pixels; for a frame of a film, the film's and its number."""
    content = facts[record.path].content or record.path
    return content if record.frame < 0 else f"{content}#{record.frame}"


def _finding(name: str, severity: Severity, text: str, examples: Iterable[str], count: int | None = None) -> Finding:
    listed = list(dict.fromkeys(examples))
    return Finding(name, severity, text, len(listed) if count is None else count, tuple(listed[:_SHOWN]))


def _files(records: Sequence[Record], facts: Mapping[str, Facts]) -> Iterable[Finding]:
    problems = {record.path: facts[record.path].problem for record in records if facts[record.path].problem}
    missing = [path for path, problem in problems.items() if problem == MISSING]
    broken = [f"{path} ({problem})" for path, problem in problems.items() if problem != MISSING]
    if missing:
        text = f"{len(missing)} files are missing; correct the paths or make the index again with --check-files."
        yield _finding("missing-files", "error", text, missing)
    if broken:
        text = f"{len(broken)} files cannot be read; get them again or take them out of the index."
        yield _finding("unreadable-files", "error", text, broken)


def _classes(records: Sequence[Record]) -> Iterable[Finding]:
    for split in SPLITS:
        labels = {record.label for record in records if record.split == split}
        if len(labels) == 1:
            absent = "fake" if labels == {0} else "real"
            text = f"the {split} split has no {absent} image, so no AUC can be computed on it; add some."
            yield _finding("one-class", "error", text, [split])


def _labels(records: Sequence[Record], facts: Mapping[str, Facts]) -> Iterable[Finding]:
    both = _grouped((content_of(r, facts), r.label, r.path) for r in records if not facts[r.path].problem)
    mixed = [" = ".join(sorted(paths[0] for paths in kinds.values())) for kinds in both.values() if len(kinds) > 1]
    if mixed:
        text = f"{len(mixed)} images are labelled both real and fake; remove one of each."
        yield _finding("two-labels", "error", text, mixed, len(mixed))


def _splits(records: Sequence[Record], facts: Mapping[str, Facts]) -> Iterable[Finding]:
    within: dict[str, dict[str, str]] = {split: {} for split in SPLITS}
    for record in records:
        if not facts[record.path].problem:
            within[record.split].setdefault(content_of(record, facts), record.path)
    for one, other in combinations(SPLITS, 2):
        shared = within[one].keys() & within[other].keys()
        if not shared:
            continue
        examples = sorted(within[other][content] for content in shared)
        smaller = min(len(within[one]), len(within[other]))
        if (one, other) == ("val", "test") and len(shared) == smaller:
            whole, rest = ("val", "test") if len(within["val"]) == smaller else ("test", "val")
            text = (
                f"all {len(shared)} images of {whole} are in {rest}, as in DF40's lists: whatever is chosen on val is "
                "chosen on test; split val off train."
            )
            yield _finding("val-is-test", "error", text, examples, len(shared))
        else:
            text = f"{len(shared)} images are in both {one} and {other}; keep each in one split."
            yield _finding("shared-images", "error", text, examples, len(shared))


def _videos(records: Sequence[Record], one: bool) -> Iterable[Finding]:
    """Videos whose frames are in several splits.

    Args:
        records: of the index.
        one: take val and test for one split: that they are the same is a finding of its own, and allowing it must not
            hide what they share with train.
    """
    splits: dict[tuple[str, str], set[str]] = defaultdict(set)
    footage: dict[tuple[str, str], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for record in records:
        if record.video:
            split = "test" if one and record.split == "val" else record.split
            splits[record.dataset, record.video].add(split)
            if record.domain:
                footage[record.domain, record.video][split].add(record.dataset)
    shared = {key: where for key, where in splits.items() if len(where) > 1}
    if shared:
        text = f"{len(shared)} videos have frames in several splits; split by video."
        examples = (f"{name} ({', '.join(sorted(where))})" for (_, name), where in shared.items())
        yield _finding("shared-videos", "error", text, examples, len(shared))
    # Sets made from one footage (FSAll_ff, FRAll_ff …) name a video alike: it should be in one split in all of them.
    across = {
        (domain, name): where
        for (domain, name), where in footage.items()
        if len(where) > 1 and not any((dataset, name) in shared for datasets in where.values() for dataset in datasets)
    }
    if across:
        text = (
            f"{len(across)} names of videos are in different splits of data sets with one domain, so probably one "
            "footage; split them alike, or give the domains different names."
        )
        examples = (f"{domain} {name} ({', '.join(sorted(where))})" for (domain, name), where in across.items())
        yield _finding("shared-video-names", "warning", text, examples, len(across))


def _repeats(records: Sequence[Record], facts: Mapping[str, Facts]) -> Iterable[Finding]:
    seen: dict[tuple[str, int, str], str] = {}
    repeats = []
    for record in records:
        if not facts[record.path].problem:
            key = content_of(record, facts), record.label, record.split
            if key in seen:
                repeats.append(f"{record.path} = {seen[key]}")
            else:
                seen[key] = record.path
    if repeats:
        text = f"{len(repeats)} images repeat an earlier one of the same label and split; each weighs that much more."
        yield _finding("repeated-images", "warning", text, repeats, len(repeats))


def _folders(records: Sequence[Record]) -> Iterable[Finding]:
    # DeepfakeBench's video is the name of the folder alone: equal names in different places become one video.
    places: dict[str, dict[PurePath, set[tuple[str, int, str]]]] = defaultdict(lambda: defaultdict(set))
    for record in records:
        if record.frame < 0:
            folder = PurePath(record.path).parent
            places[folder.name][folder].add(record.clip)
    merged = {name for name, folders in places.items() if len(folders) > 1 and len(set().union(*folders.values())) > 1}
    mixed = {name for name in merged if len({clip[1] for clips in places[name].values() for clip in clips}) > 1}
    if merged:
        text = (
            f"{len(merged)} folder names stand for several clips, {len(mixed)} of them for real and fake ones: "
            "DeepfakeBench's video AUC takes each for one video (ours goes by data set, label and video)."
        )
        yield _finding("folder-collisions", "warning", text, sorted(mixed) + sorted(merged - mixed))


def _unnamed(records: Sequence[Record]) -> Iterable[Finding]:
    fakes = [record for record in records if record.label]
    nameless = [record.path for record in fakes if not record.family]
    if nameless and len(nameless) < len(fakes):
        text = f"{len(nameless)} fake images have no family while others have; results per family leave them out."
        yield _finding("no-family", "warning", text, nameless)


def _grouped(triples: Iterable[tuple[str, int, str]]) -> dict[str, dict[int, list[str]]]:
    groups: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for key, kind, path in triples:
        groups[key][kind].append(path)
    return groups
