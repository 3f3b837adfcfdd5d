"""What the folders of a path tell in DF40, FaceForensics++ and Celeb-DF: class, method, domain, split, clip.

The layouts are those users of DF40 have on disk: ``M/ff/frames/VID``, ``M/cdf/frames/VID``, ``M/ff/VID`` and
``M/cdf/<folder of Celeb-DF>/VID`` for whole synthesis, ``DF40_train/M/frames/VID``, ``M/fake/frames/VID`` with
``M/real/VID``, and flat folders of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from r2m_jax.data import catalogue
from r2m_jax.data.records import SPLITS

CELEB_DF = {"celeb-real": 0, "youtube-real": 0, "celeb-synthesis": 1}
"""Folders of Celeb-DF, lower case, and their class."""

_DOMAINS = {
    **{"ff": "ff", "faceforensics++": "ff", "cdf": "cdf", "celeb-df-v1": "cdf", "celeb-df-v2": "cdf"},
    **{"actors": "dfd", "deepfakedetection": "dfd"},  # inside FaceForensics++, with other footage
}
_MARKERS = {"frames", "videos", "real", "fake", "original_sequences", "manipulated_sequences", "youtube", "actors"}
_SPLIT_NAMES = {"df40_train": "train", "valid": "val", "validation": "val"} | {name: name for name in SPLITS}


@dataclass(frozen=True)
class Place:
    """What a folder tells; empty strings and None where it does not."""

    label: int | None = None
    method: str = ""
    family: str = ""
    domain: str = ""
    compression: str = ""
    split: str = ""
    video: str = ""


def place_of(path: str) -> Place:
    """What the folders of a listed path tell (its last component is the file)."""
    return place(tuple(part for part in path.replace("\\", "/").split("/")[:-1] if part))


@lru_cache(maxsize=65536)
def place(parts: tuple[str, ...]) -> Place:
    """What a folder tells.

    A folder of Celeb-DF inside a method's folder (``pixart/cdf/Celeb-real/id0_0000``) holds fakes made after it, so
    a method decides over such names; a folder called ``real`` inside a method's folder holds real images.

    Args:
        parts: components of the folder, the outermost first.
    """
    lower = [part.lower() for part in parts]
    found, at = _method(parts, lower)
    label = _label(lower, found is not None)
    if at < 0:
        at = next((i for i, part in enumerate(lower) if part in _MARKERS or part in CELEB_DF), len(parts))
    after = [part for part, low in zip(parts[at + 1 :], lower[at + 1 :], strict=True) if not _says(low)]
    domain = next((_DOMAINS[part] for part in reversed(lower) if part in _DOMAINS), "")
    split = next((_SPLIT_NAMES[part] for part in reversed(lower) if part in _SPLIT_NAMES), "")
    return Place(
        label=label,
        method=found.name if found and label != 0 else "",
        family=found.family if found and label != 0 else "",
        domain=domain or ("ff" if "df40_train" in lower else ""),
        compression=next((part for part in reversed(lower) if part in catalogue.COMPRESSIONS), ""),
        split=split,
        video="/".join(after),
    )


def is_method_folder(name: str) -> bool:
    """Whether a folder's name is one of DF40's 40 methods."""
    return catalogue.find_method(name, df40_only=True) is not None


def _method(parts: Sequence[str], lower: Sequence[str]) -> tuple[catalogue.Method | None, int]:
    if "manipulated_sequences" in lower:
        at = lower.index("manipulated_sequences") + 1
        name = catalogue.FACEFORENSICS_FOLDERS.get(parts[at], "") if at < len(parts) else ""
        if name:
            return catalogue.find_method(name), at
    if "original_sequences" in lower:
        return None, -1
    inside = next((i + 1 for i, part in enumerate(lower) if part.startswith("df40")), None)
    # Without DF40's own folder the innermost name counts: /home/lia/simswap/frames/000 is simswap.
    for at in range(inside, len(parts)) if inside is not None else reversed(range(len(parts))):
        found = catalogue.find_method(parts[at], df40_only=True)
        if found:
            return found, at
    if "celeb-synthesis" in lower:
        old = "celeb-df-v1" in lower
        return catalogue.find_method("CelebDFv1" if old else "CelebDFv2"), lower.index("celeb-synthesis")
    return None, -1


def _label(lower: Sequence[str], has_method: bool) -> int | None:
    if "real" in lower or "original_sequences" in lower:
        return 0
    if has_method or "fake" in lower or "manipulated_sequences" in lower:
        return 1
    return next((CELEB_DF[part] for part in lower if part in CELEB_DF), None)


def _says(part: str) -> bool:
    known = (_MARKERS, _DOMAINS, _SPLIT_NAMES, catalogue.COMPRESSIONS, CELEB_DF)
    return any(part in names for names in known)
