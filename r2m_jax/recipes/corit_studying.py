"""The recipe of ``r2m study corit…``: images, a frozen tower, how heads are trained on it, and what is varied."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from r2m_jax.evaluation.collapse import ProbeTraining
from r2m_jax.models.corit import AREAS, CoritSettings
from r2m_jax.recipes.collapsing import ProbeSettings, RadiusSettings
from r2m_jax.recipes.evaluating import Intervals
from r2m_jax.recipes.merging import Section
from r2m_jax.recipes.studying import Merger, Robustness, StudyData, StudyTraining


class CoritStudyData(StudyData):
    """Images; as of the other studies but for the number.

    Attributes:
        limit: use at most so many images in both splits together, as many of each family as real ones, three fifths to
            train heads on.
        by: what is learnt and left out, forgery families or methods; the latter for FaceForensics++, whose
            manipulations Table VI leaves out one by one. Score tables then name the method as family too.
        image_size: sides of the tower's input in pixels; the base's own when None.
    """

    limit: int | None = Field(None, ge=40)
    by: Literal["family", "method"] = "family"
    image_size: int | None = Field(None, ge=8)


class HeadTraining(Section):
    """How heads are trained on z, SGD with SAM.

    Attributes:
        steps, batch_size, learning_rate, momentum: of SGD. The paper has batches of 20; its rate is lost.
        rho: SAM's radius.
    """

    steps: int = Field(1000, ge=10)
    batch_size: int = Field(20, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    rho: float = Field(0.05, ge=0)

    @property
    def training(self) -> ProbeTraining:
        """As the functions take it."""
        return ProbeTraining(self.steps, self.batch_size, self.learning_rate, self.momentum)


class Ablation(Section):
    """What ``corit-ablation`` varies; all but what the head alone depends on is another pass through the tower.

    Attributes:
        components: switches of Table VIII.
        alternatives: to the rest: ``drawn`` self-blending, ``read_only`` attention, ``maximum`` pooling (Table IX) and
            ``cross_attention`` (Table XIII).
        regions: combinations of :data:`~r2m_jax.models.corit.AREAS` (Table IX).
        random_regions: numbers of regions in a random partition.
        gamma: coherence coefficients (Table XI).
        fusion_layers: L' (Table XII); four over the depth when None.
    """

    components: bool = True
    alternatives: tuple[Literal["drawn", "read_only", "maximum", "cross_attention"], ...] = (
        "drawn", "read_only", "maximum", "cross_attention",
    )  # fmt: skip
    regions: tuple[tuple[str, ...], ...] = (
        ("foreground",), ("boundary",), ("background",), ("foreground", "boundary"), ("foreground", "background"),
        ("boundary", "background"),
    )  # fmt: skip
    random_regions: tuple[int, ...] = (1, 3, 5)
    gamma: tuple[float, ...] = (0.0, 0.5, 0.9, 1.3)
    fusion_layers: tuple[int, ...] | None = None

    @model_validator(mode="after")
    def _known(self) -> Ablation:
        strangers = [area for areas in self.regions for area in areas if area not in AREAS]
        if strangers or not all(self.regions):
            raise ValueError(f"regions are lists of {', '.join(AREAS)}, not {strangers or 'empty ones'}")
        if any(count < 1 for count in self.random_regions):
            raise ValueError("random_regions are numbers of 1 or more")
        return self


class Collapsing(Section):
    """What ``corit-collapse`` measures.

    Attributes:
        layers: numbers of blocks; the ends of the quarters of the depth when None.
        scale: ``none``, features as they are; ``length``, each layer's scaled to a root mean square length of √d,
            without which critical radii, inversely proportional to it, compare scales more than signals.
        probe, radii, seeds, resamples: as of ``r2m collapse``.
    """

    layers: tuple[int, ...] | None = None
    scale: Literal["none", "length"] = "length"
    probe: ProbeSettings = ProbeSettings()
    radii: RadiusSettings = RadiusSettings()
    seeds: int = Field(3, ge=1)
    resamples: int = Field(1000, ge=1)


class Bridge(Section):
    """What ``corit-bridge`` merges.

    Attributes:
        mergers: by the name they are shown under.
        training: of specialists that are not given.
        rho: SAM's radius for the second set of specialists.
    """

    mergers: dict[str, Merger] = Field(min_length=1)
    training: StudyTraining
    rho: float = Field(0.05, gt=0)


class CoritStudyRecipe(Section):
    """Everything that decides the studies of CoRIT.

    Attributes:
        studies: names of :data:`r2m_jax.studies.corit.STUDIES`; all when empty.
        base: model directory of the frozen tower; the one that ships when None.
        backbones: further towers by name, for ``corit-backbones``.
        specialists, sharp_specialists: models by the name of their family, trained from the base without and with SAM,
            for ``corit-bridge``; trained where neither is given.
        seed: of patches, forgeries and the specialists' training.
        seeds: starts and orders of the samples of every head.
        data: images.
        corit: switches that are varied from.
        heads: how heads are trained.
        ablation, robustness, collapse, bridge: see there.
        intervals: bootstrap by clip.
        batch_size: images at a time in the tower.
        scores: format of the score tables.
        workers: processes that forge and threads that decode; one per core when None.
        out: directory for everything.
    """

    studies: tuple[str, ...] = ()
    base: Path | None = None
    backbones: dict[str, Path] = Field(default_factory=dict)
    specialists: dict[str, Path] = Field(default_factory=dict)
    sharp_specialists: dict[str, Path] = Field(default_factory=dict)
    seed: int = Field(0, ge=0)
    seeds: int = Field(3, ge=1)
    data: CoritStudyData
    corit: CoritSettings = CoritSettings()
    heads: HeadTraining = HeadTraining()
    ablation: Ablation = Ablation()
    robustness: Robustness = Robustness()
    collapse: Collapsing = Collapsing()
    bridge: Bridge
    intervals: Intervals = Intervals()
    batch_size: int = Field(32, ge=1)
    scores: Literal["csv", "parquet"] = "csv"
    workers: int | None = Field(None, ge=1)
    out: Path

    @property
    def settings(self) -> CoritSettings:
        """Switches; patches of photographs hold no aligned face, so their foreground is in the centre."""
        if self.data.index is None and self.corit.rule == "face":
            return replace(self.corit, rule="centre")
        return self.corit

    @model_validator(mode="after")
    def _fits_together(self) -> CoritStudyRecipe:
        if not (self.corit.rsi and self.corit.rrm and self.corit.hri) or self.corit.cgp == "off":
            raise ValueError("the studies switch parts of CoRIT off themselves; leave corit.rsi, rrm, hri and cgp on")
        if self.corit.rule == "user":
            raise ValueError("corit.rule=user takes masks given in Python; choose another rule")
        for name, given in (("specialists", self.specialists), ("sharp_specialists", self.sharp_specialists)):
            if given and (len(given) < 2 or self.base is None or self.data.index is None):
                raise ValueError(f"{name} are two or more, with their base (base=DIR) and images (data.index=INDEX)")
        return self
