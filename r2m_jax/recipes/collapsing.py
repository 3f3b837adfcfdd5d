"""The recipe of ``r2m collapse``: a frozen tower, images, and the probes that are trained on its layers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from r2m_jax.evaluation.collapse import ProbeTraining, RadiusSearch
from r2m_jax.recipes.merging import Section


class CollapseData(Section):
    """Images the probes are trained and tested on.

    Attributes:
        index: file or directory of an index.
        split, test_split: of the index, to train and to test probes on.
        families: forgery families, each probed against the real images by itself; all of the index when empty.
        limit: images at most in both splits together, as many of each family as real ones, three fifths to train on.
        image_size: side in pixels, a multiple of the tower's patch; the model's own when None.
    """

    index: Path
    split: Literal["train", "val", "test"] = "train"
    test_split: Literal["train", "val", "test"] = "test"
    families: list[str] = Field(default_factory=list)
    limit: int | None = Field(600, ge=20)
    image_size: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _two_splits(self) -> CollapseData:
        if self.split == self.test_split:
            raise ValueError(f"probes trained and tested on the split {self.split!r}; name two different ones")
        return self


class ProbeSettings(Section):
    """How probes are trained.

    Attributes:
        steps, batch_size, learning_rate, momentum: of SGD, see :class:`~r2m_jax.evaluation.collapse.ProbeTraining`.
        rho: radius of the training whose GSNR and curvature are followed; the default of SAM's paper.
        points: evaluations of that training.
    """

    steps: int = Field(600, ge=10)
    batch_size: int = Field(20, ge=1)
    learning_rate: float = Field(1e-2, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    rho: float = Field(0.05, ge=0)
    points: int = Field(40, ge=8)

    @model_validator(mode="after")
    def _points_fit(self) -> ProbeSettings:
        if self.points > self.steps:
            raise ValueError(f"{self.points} evaluations do not fit into {self.steps} steps")
        return self

    @property
    def training(self) -> ProbeTraining:
        """As the functions take it."""
        return ProbeTraining(self.steps, self.batch_size, self.learning_rate, self.momentum)


class RadiusSettings(Section):
    """Where critical radii are looked for, see :class:`~r2m_jax.evaluation.collapse.RadiusSearch`.

    Attributes:
        least, most, points: of the logarithmic grid.
        bisections: of the interval of the first collapse.
        margin: a probe is collapsed below an AUC of 0.5 plus this.
    """

    least: float = Field(1e-3, gt=0)
    most: float = Field(5.0, gt=0)
    points: int = Field(16, ge=2)
    bisections: int = Field(6, ge=0)
    margin: float = Field(0.05, gt=0, lt=0.5)

    @model_validator(mode="after")
    def _rises(self) -> RadiusSettings:
        if not self.least < self.most:
            raise ValueError(f"the radii go from {self.least:g} to {self.most:g}; give them in rising order")
        return self

    def search(self, seeds: int) -> RadiusSearch:
        """As the functions take it."""
        return RadiusSearch(self.least, self.most, self.points, self.bisections, self.margin, seeds)


class CollapseRecipe(Section):
    """Everything that decides a measurement.

    Attributes:
        model: model directory; only its tower counts, so it needs no head.
        data: images.
        layers: ``all`` blocks, or their numbers from 1 on.
        feature_norm: ``none``, the class token as it is; ``ln_post``, through the tower's last layer norm; or
            ``unit_rms``, divided by its root mean square over the training images of the layer. A critical radius is
            inversely proportional to the features' scale, so it decides what layers can be compared by.
        probe, radii: how probes are trained, and with which radii.
        seeds: starts and orders of the samples.
        landscape: points of each axis of the loss surfaces; odd.
        resamples: draws of the intervals of rank correlations.
        batch_size: images at a time in the tower.
        out: directory for the results.
    """

    model: Path
    data: CollapseData
    layers: Literal["all"] | list[int] = "all"
    feature_norm: Literal["none", "ln_post", "unit_rms"] = "none"
    probe: ProbeSettings = Field(default_factory=ProbeSettings)
    radii: RadiusSettings = Field(default_factory=RadiusSettings)
    seeds: int = Field(3, ge=1)
    landscape: int = Field(51, ge=3)
    resamples: int = Field(1000, ge=1)
    batch_size: int = Field(32, ge=1)
    out: Path

    @model_validator(mode="after")
    def _odd(self) -> CollapseRecipe:
        if self.landscape % 2 == 0:
            raise ValueError(f"a landscape of {self.landscape} points has no middle; give an odd number")
        return self
