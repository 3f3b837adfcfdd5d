"""What the published sets call things: methods and their families, label strings, data sets and their domains.

Sources: DF40 (arXiv 2406.13495, Table 2, and the label table of its code), DeepfakeBench (arXiv 2307.01426),
UniversalFakeDetect (arXiv 2302.10174), CNNDetection (arXiv 1912.11035), SynthBuster (doi 10.1109/OJSP.2023.3337714).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from r2m_jax.errors import InputError

FAMILIES = {
    "FS": "face swapping",
    "FR": "face reenactment",
    "EFS": "entire face synthesis (and whole images, for sets that are not of faces)",
    "FE": "face editing (and editing or restoration of whole images)",
}
COMPRESSIONS = ("raw", "c23", "c40")


@dataclass(frozen=True)
class Method:
    """A forgery method.

    Attributes:
        name: as DF40's folders and the R2M paper spell it.
        family: a key of :data:`FAMILIES`.
        aliases: other spellings; case, ``-``, ``_``, ``.`` and spaces never matter.
        unknown_domain: one of DF40's nine sets that are only tested on (its protocol 3), neither ff nor cdf.
    """

    name: str
    family: str
    aliases: tuple[str, ...] = ()
    unknown_domain: bool = False


DF40_METHODS = (
    Method("fsgan", "FS"),
    Method("faceswap", "FS"),
    Method("simswap", "FS"),
    Method("inswap", "FS", ("inswapper",)),
    Method("blendface", "FS"),
    Method("uniface", "FS"),
    Method("mobileswap", "FS", ("mobilefaceswap",)),
    Method("e4s", "FS"),
    Method("facedancer", "FS"),
    Method("deepfacelab", "FS", (), True),
    Method("fomm", "FR"),
    Method("facevid2vid", "FR", ("face_vid2vid", "fs_vid2vid")),
    Method("wav2lip", "FR"),
    Method("MRAA", "FR"),
    Method("one_shot_free", "FR", ("oneshot", "one_shot")),
    Method("pirender", "FR"),
    Method("tpsm", "FR", ("tpsmm",)),
    Method("lia", "FR"),
    Method("danet", "FR", ("dagan",)),
    Method("sadtalker", "FR"),
    Method("mcnet", "FR"),
    Method("hyperreenact", "FR"),
    Method("heygen", "FR", (), True),
    Method("VQGAN", "EFS"),
    Method("StyleGAN2", "EFS"),
    Method("StyleGAN3", "EFS"),
    Method("StyleGANXL", "EFS"),
    Method("sd2.1", "EFS", ("stable_diffusion_2.1", "sd21")),
    Method("ddpm", "EFS", ("ddim",)),
    Method("rddm", "EFS"),
    Method("pixart", "EFS", ("pixart-alpha", "pixart-α")),
    Method("DiT", "EFS", ("DiT-XL/2",)),
    Method("SiT", "EFS", ("SiT-XL/2",)),
    Method("MidJourney", "EFS", ("midjourney6", "mj"), True),
    Method("whichfaceisreal", "EFS", ("whichisreal",), True),
    Method("CollabDiff", "FE", ("collaborative_diffusion",), True),
    Method("e4e", "FE", (), True),
    Method("stargan", "FE", (), True),
    Method("starganv2", "FE", ("stargan2",), True),
    Method("styleclip", "FE", (), True),
)
"""The 40 methods of DF40: 10 FS, 13 FR, 12 EFS, 5 FE."""

FACEFORENSICS_METHODS = (
    Method("FF-DF", "FS", ("Deepfakes",)),
    Method("FF-F2F", "FR", ("Face2Face",)),
    Method("FF-FS", "FS"),  # its folder is called FaceSwap, which is a method of DF40 too: see FACEFORENSICS_FOLDERS
    Method("FF-NT", "FR", ("NeuralTextures",)),
    Method("FaceShifter", "FS", ("FF-FH", "FF-SH", "FSh")),
)
FACEFORENSICS_FOLDERS = {
    "Deepfakes": "FF-DF",
    "Face2Face": "FF-F2F",
    "FaceSwap": "FF-FS",
    "NeuralTextures": "FF-NT",
    "FaceShifter": "FaceShifter",
    "DeepFakeDetection": "DFD",
}
"""Folders below ``manipulated_sequences`` of FaceForensics++."""

OTHER_METHODS = (
    Method("sd1.5", "EFS", ("sd15",)),  # in DF40's label table, not one of its 40
    Method("DFD", "FS", ("DeepFakeDetection",)),
    Method("CelebDFv1", "FS", ("Celeb-DF-v1",)),
    Method("CelebDFv2", "FS", ("Celeb-DF-v2", "Celeb-synthesis")),
    Method("DFDCP", "FS"),
    Method("DFDC", "FS"),
    Method("DeeperForensics", "FS", ("DeeperForensics-1.0",)),
    Method("UADFV", "FS"),
    Method("roop", "FS"),
    Method("adm", "EFS"),
    Method("sdv4", "EFS"),
    Method("sdv5", "EFS"),
    Method("vqdm", "EFS"),
    Method("wukong", "EFS"),
)

UNIVERSAL_METHODS = (
    Method("progan", "EFS"),
    Method("cyclegan", "FE"),
    Method("biggan", "EFS"),
    Method("stylegan", "EFS"),
    Method("gaugan", "EFS"),
    Method("stargan", "FE"),
    Method("deepfake", "FS"),
    Method("seeingdark", "FE", ("sitd",)),
    Method("san", "FE"),
    Method("crn", "EFS"),
    Method("imle", "EFS"),
    Method("guided", "EFS"),
    Method("ldm_200", "EFS"),
    Method("ldm_200_cfg", "EFS"),
    Method("ldm_100", "EFS"),
    Method("glide_100_27", "EFS"),
    Method("glide_50_27", "EFS"),
    Method("glide_100_10", "EFS"),
    Method("dalle", "EFS"),
)
"""The 19 test keys of UniversalFakeDetect, in its order."""

SHARED_REALS = {
    "imagenet": ("guided",),
    "laion": ("ldm_200", "ldm_200_cfg", "ldm_100", "glide_100_27", "glide_50_27", "glide_100_10", "dalle"),
}
"""UniversalFakeDetect's folders of real images and the diffusion test keys that share them."""

SYNTHBUSTER_METHODS = tuple(
    Method(name, "EFS")
    for name in (
        "dalle2",
        "dalle3",
        "firefly",
        "glide",
        "midjourney-v5",
        "stable-diffusion-1-3",
        "stable-diffusion-1-4",
        "stable-diffusion-2",
        "stable-diffusion-xl",
    )
)
"""The nine generators of SynthBuster, named as its folders."""

LABELS = {
    **dict.fromkeys(("FF-real", "DFD_real", "CelebDFv1_real", "CelebDFv2_real", "DFDCP_Real", "DFDC_Real"), 0),
    **dict.fromkeys(("DF_real", "UADFV_Real", "roop_Real"), 0),
    **dict.fromkeys(("FF-DF", "FF-F2F", "FF-FS", "FF-NT", "FF-FH", "FF-SH", "DFD_fake", "CelebDFv1_fake"), 1),
    **dict.fromkeys(("CelebDFv2_fake", "DFDCP_FakeA", "DFDCP_FakeB", "DFDC_Fake", "DF_fake", "UADFV_Fake"), 1),
    "roop_Fake": 1,
}
"""Label strings of DeepfakeBench; those of DF40 (``simswap_Fake`` …) follow the rule of :func:`class_of`."""

DOMAINS = {
    "FaceForensics++": "ff",
    "FF-DF": "ff",
    "FF-F2F": "ff",
    "FF-FS": "ff",
    "FF-NT": "ff",
    "FaceShifter": "ff",
    "DeepFakeDetection": "dfd",
    "Celeb-DF-v1": "cdf",
    "Celeb-DF-v2": "cdf",
    "DFDCP": "dfdcp",
    "DFDC": "dfdc",
    "DeeperForensics-1.0": "ff",  # its target videos are those of FaceForensics++
    "UADFV": "uadfv",
    "synthbuster": "raise",
}
"""Data sets of DeepfakeBench and where their footage is from."""

CATEGORIES = {"FSAll": "FS", "FRAll": "FR", "EFSAll": "EFS"}
"""DF40's collective sets (``FSAll_ff``, ``FSAll_cdf`` …) and their families."""

_REAL = re.compile(r"(?:[_-]real|_Real)$|^real$")
_FAKE = re.compile(r"(?:[_-]fake|_Fake[A-Z]?)$|^fake$")
_SEPARATORS = re.compile(r"[-_.\s/]")
_DOMAIN_SUFFIX = re.compile(r"_(ff|cdf)$")


def _plain(name: str) -> str:
    return _SEPARATORS.sub("", name).lower()


def _spellings(methods: Iterable[Method]) -> dict[str, Method]:
    return {_plain(spelling): method for method in methods for spelling in (method.name, *method.aliases)}


# Where two catalogues share a spelling (stargan, deepfakes' faceswap), DF40's method wins: it comes last.
_BY_SPELLING = _spellings(
    (*SYNTHBUSTER_METHODS, *UNIVERSAL_METHODS, *OTHER_METHODS, *FACEFORENSICS_METHODS, *DF40_METHODS)
)
_DF40_BY_SPELLING = _spellings(DF40_METHODS)


@lru_cache(maxsize=8192)  # asked once per folder
def find_method(name: str, *, df40_only: bool = False) -> Method | None:
    """The method a name stands for, in any spelling; None where the catalogue has none of that name."""
    return (_DF40_BY_SPELLING if df40_only else _BY_SPELLING).get(_plain(name))


def method(name: str) -> Method:
    """The method a name stands for.

    Raises:
        InputError: the catalogue has no such method; the nearest names are given.
    """
    found = find_method(name)
    if found is None:
        raise InputError(f"the method {name!r} is not in the catalogue; {nearest(name, catalogue_names())}")
    return found


def catalogue_names() -> list[str]:
    """Names of all methods, without repetition."""
    return list(dict.fromkeys(method.name for method in _BY_SPELLING.values()))


def nearest(name: str, available: Iterable[str]) -> str:
    """``did you mean … ? Available: …`` for an error message."""
    names = list(available)
    by_lower = {candidate.lower(): candidate for candidate in names}
    close = [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=3)]
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{hint}Available: {', '.join(names)}."


def class_of(label: str, extra: Mapping[str, int] | None = None) -> int | None:
    """0 real, 1 fake or None for a label string.

    ``extra`` decides first, then :data:`LABELS`, then the ending: ``_real``, ``_Real``, ``-real`` and ``_fake``,
    ``_Fake``, ``_FakeA`` … (DeepfakeBench's and DF40's spellings), then bare ``real``/``fake``/``0``/``1``.
    """
    for table in (extra or {}, LABELS):
        if label in table:
            return table[label]
    if label in ("0", "1"):
        return int(label)
    return 0 if _REAL.search(label) else 1 if _FAKE.search(label) else None


def unknown_label(label: str, where: str) -> InputError:
    """The error for a label string :func:`class_of` does not know: it names the label and how to add it."""
    return InputError(
        f"{where}: the label {label!r} is unknown (not in the label table, and it ends in neither _real nor _fake); "
        f"pass --label {label}=real or --label {label}=fake."
    )


def method_of_label(label: str) -> tuple[str, str]:
    """Method and family a fake's label string names: ``simswap_Fake`` → simswap, FS; ``FSAll_Fake`` → no method, FS."""
    stem = (
        label if label in LABELS and label.startswith("FF-") else re.sub(r"[_-](?:[Ff]ake[A-Z]?|[Rr]eal)$", "", label)
    )
    if stem in CATEGORIES:
        return "", CATEGORIES[stem]
    stem = {"DF": "DeeperForensics"}.get(stem, stem)
    found = find_method(stem)
    if found is None:
        return ("" if stem.lower().startswith("df40") or stem in ("fake", "1") else stem), ""
    return found.name, found.family


def domain_of(dataset: str) -> str:
    """Domain a data set's name tells, ``ff`` for ``FSAll_ff`` and ``FaceForensics++``; empty where it does not."""
    suffix = _DOMAIN_SUFFIX.search(dataset)
    return suffix[1] if suffix else DOMAINS.get(dataset, "")
