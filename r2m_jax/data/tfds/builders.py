"""Builders of the published data sets: each a name, a home page and how its layout is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from r2m_jax.data.tfds.core import RecordsBuilder


class Generic(RecordsBuilder):
    """Any records, e.g. those of an index."""

    name = "generic"


class Df40(RecordsBuilder):
    """DF40 (arXiv 2406.13495), folders of frames as its zips unpack."""

    name = "df40"
    HOMEPAGE = "https://github.com/YZY-stack/DF40"
    OPTIONS: ClassVar[Mapping[str, Any]] = {"layout": "df40", "dataset": "DF40"}


class FaceForensics(RecordsBuilder):
    """FaceForensics++ (arXiv 1901.08971), its video files; 32 frames of each, as DeepfakeBench takes."""

    name = "faceforensics"
    HOMEPAGE = "https://github.com/ondyari/FaceForensics"
    OPTIONS: ClassVar[Mapping[str, Any]] = {"layout": "videos", "frames": 32, "dataset": "FaceForensics++"}


class CelebDf(RecordsBuilder):
    """Celeb-DF v2 (arXiv 1909.12962), its video files; 32 frames of each, as DeepfakeBench takes."""

    name = "celeb_df"
    HOMEPAGE = "https://github.com/yuezunli/celeb-deepfakeforensics"
    OPTIONS: ClassVar[Mapping[str, Any]] = {"layout": "videos", "frames": 32, "dataset": "Celeb-DF-v2"}


class UniversalFakeDetect(RecordsBuilder):
    """The sets of CNNDetection and UniversalFakeDetect (arXiv 1912.11035, 2302.10174), ``0_real``/``1_fake``."""

    name = "universal_fake_detect"
    HOMEPAGE = "https://github.com/WisconsinAIVision/UniversalFakeDetect"
    OPTIONS: ClassVar[Mapping[str, Any]] = {"layout": "universal"}


class SynthBuster(RecordsBuilder):
    """SynthBuster (doi 10.1109/OJSP.2023.3337714), a folder per generator; the real RAISE-1k images come apart."""

    name = "synthbuster"
    HOMEPAGE = "https://zenodo.org/records/10066460"
    OPTIONS: ClassVar[Mapping[str, Any]] = {"layout": "synthbuster"}


BUILDERS = {
    builder.name: builder for builder in (Generic, Df40, FaceForensics, CelebDf, UniversalFakeDetect, SynthBuster)
}
"""The builders by name."""
