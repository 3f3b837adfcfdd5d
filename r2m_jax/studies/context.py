"""What studies are made of: images with their roles, models, merges and scores, each made once a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Bool, Float32, UInt8

from r2m_jax.data.records import Record
from r2m_jax.errors import InputError
from r2m_jax.evaluation.inference import filled_batches
from r2m_jax.evaluation.protocols import Protocol
from r2m_jax.evaluation.scores import ScoreTable
from r2m_jax.jobs.kinds import describe, forward
from r2m_jax.models import Detector
from r2m_jax.progress import Reporter
from r2m_jax.recipes.studying import Merger, StudyRecipe
from r2m_jax.studies.measuring import Measured, measure
from r2m_jax.studies.mergers import Merges
from r2m_jax.studies.result import Unavailable
from r2m_jax.studies.roles import Lesson, Roles, inside
from r2m_jax.studies.stock import Model, Stock

PRETRAINED, ALL_IN_ONE = "Pretrained, averaged head", "All-in-one"
BEFORE, ALONE, JOINT, MERGED = "Before fine-tuning", "Specialists", "Joint training", "Merged, without training"


@dataclass(frozen=True)
class Roster:
    """Models that are compared.

    Attributes:
        models: by the name they are shown under.
        groups: heading to names.
    """

    models: Mapping[str, Model]
    groups: Mapping[str, Sequence[str]]


class Context:
    """Given to every study.

    Args:
        recipe: settings.
        begin: the base, with the processing all models share.
        roles: of the images.
        test: records of the test images.
        pixels: gives them decoded, uint8 [n, h, w, 3]; asked for when something is scored.
        stock: models.
        reporter: told what happens.
    """

    def __init__(
        self,
        recipe: StudyRecipe,
        begin: Detector,
        roles: Roles,
        test: Sequence[Record],
        pixels: Callable[[], UInt8[np.ndarray, "n h w 3"]],
        stock: Stock,
        reporter: Reporter,
    ):
        self.recipe, self.begin, self.roles, self.stock, self.reporter = recipe, begin, roles, stock, reporter
        self.test = list(test)
        self.notes: list[str] = []
        self._pixels = pixels
        self._logits: dict[str, np.ndarray] = {}
        self._merges: dict[tuple[str, ...], Merges] = {}
        self._forward = forward(describe(begin).load(), features=True)

    # Models

    def specialist(self, family: str, domain: str | None = None) -> Model:
        """The specialist of a family, in the domain models are trained in or another."""
        lesson = self.roles.lesson(family, domain=domain)
        return self.stock.get(family if domain in (None, self.roles.domain) else f"{family}-{domain}", lesson)

    def specialists(self) -> dict[str, Model]:
        """One per family."""
        return {family: self.specialist(family) for family in self.roles.families}

    def trained(self, name: str, lesson: Lesson) -> Model:
        """Any other model.

        Raises:
            Unavailable: it is not given and may not be trained.
        """
        return self.stock.get(name, lesson)

    def all_in_one(self) -> Model:
        """The jointly trained model.

        Raises:
            Unavailable: it is not given and may not be trained.
        """
        return self.trained("all-in-one", self.roles.lesson(*self.roles.families))

    def merges(self, team: Mapping[str, Model]) -> Merges:
        """Merges of a team, which is factorised once."""
        key = tuple(model.key for model in team.values())
        if key not in self._merges:
            self._merges[key] = Merges(self.begin.params["backbone"], team, self.reporter)
        return self._merges[key]

    def release(self) -> None:
        """Forget the factorised teams of one study; that of the specialists, which most studies share, stays."""
        key = tuple(self.roles.families)
        self._merges = {team: merges for team, merges in self._merges.items() if team == key}

    def merged(self, team: Mapping[str, Model], suffix: str = "") -> dict[str, Model]:
        """Every merger of the recipe, its name followed by ``suffix``."""
        merges = self.merges(team)
        return {name + suffix: merges.model(name, merger) for name, merger in self.recipe.mergers.items()}

    def roster(self) -> Roster:
        """The rows of the paper's Table 1: pretrained, specialists, all-in-one where there is one, all mergers."""
        team = self.specialists()
        models = {PRETRAINED: self.merges(team).pretrained()}
        models |= {f"Specialist {family}": model for family, model in team.items()}
        groups: dict[str, list[str]] = {BEFORE: [PRETRAINED], ALONE: [f"Specialist {family}" for family in team]}
        try:
            models[ALL_IN_ONE] = self.all_in_one()
            groups[JOINT] = [ALL_IN_ONE]
        except Unavailable as reason:
            self.note(f"All-in-one is left out: {reason}.")
        merged = self.merged(team)
        return Roster(models | merged, groups | {MERGED: list(merged)})

    def readings(self) -> tuple[list[str], list[str]]:
        """Names of the mergers that are R²M, and of the others."""
        own = [name for name, merger in self.recipe.mergers.items() if merger.method == "r2m"]
        return own, [name for name in self.recipe.mergers if name not in own]

    def printed(self) -> tuple[str, Merger]:
        """R²M with the fewest settings: the paper's own reading, of which heads and settings are studied.

        Raises:
            Unavailable: no merger of the recipe is R²M.
        """
        own, _ = self.readings()
        if not own:
            raise Unavailable("no merger of the recipe is R²M")
        count = {name: len(self.recipe.mergers[name].parameters.model_dump(exclude_none=True)) for name in own}
        name = min(own, key=lambda each: count[each])
        return name, self.recipe.mergers[name]

    # Scores

    def scores(self, models: Mapping[str, Model], formed: Protocol, what: str) -> ScoreTable:
        """Scores of models on the test images of any column; what was scored before is not scored again."""
        mask = inside(formed, self.test)
        unique = {model.key: model for model in models.values()}
        missing = {
            key: np.flatnonzero(mask & np.isnan(self._logits.setdefault(key, np.full(len(mask), np.nan, np.float32))))
            for key in unique
        }
        total = sum(map(len, missing.values()))
        if total:
            with self.reporter.track(f"score {what}", total) as advance:
                for key, places in missing.items():
                    if len(places):
                        self._logits[key][places] = self.score(unique[key], self._pixels(), places, advance)[0]
        table = ScoreTable([record for record, wanted in zip(self.test, mask, strict=True) if wanted])
        for name, model in models.items():
            table.add(name, self._logits[model.key][mask])
        return table

    def measured(self, models: Mapping[str, Model], formed: Protocol, name: str) -> tuple[ScoreTable, Measured]:
        """The score table ``name`` and what is measured on it."""
        table = self.scores(models, formed, name)
        return table, measure(table, formed, self.recipe.intervals, self.cited(name))

    def features(
        self, models: Mapping[str, Model], mask: Bool[np.ndarray, " n"], what: str
    ) -> dict[str, Float32[np.ndarray, "k d"]]:
        """Pooled output of the test images in ``mask``, by model."""
        places, pixels = np.flatnonzero(mask), self._pixels()
        with self.reporter.track(f"features for {what}", len(places) * len(models)) as advance:
            return {
                name: self.score(model, pixels, places, advance, features=True)[1] for name, model in models.items()
            }

    def score(
        self,
        model: Model,
        images: UInt8[np.ndarray, "n h w 3"],
        places: Sequence[int] | np.ndarray | None = None,
        advance: Callable[..., None] = lambda count: None,
        *,
        features: bool = False,
    ) -> tuple[Float32[np.ndarray, " k"], Float32[np.ndarray, "k d"]]:
        """Logits of some of the images and, if asked for, their pooled output (else ``[k, 0]``).

        Raises:
            InputError: a score is NaN or infinite.
        """
        chosen = np.arange(len(images)) if places is None else np.asarray(places)
        params = jax.device_put(model.load())
        margins, pooled = [], []
        for filled, count in filled_batches(images, chosen, self.recipe.batch_size):
            margin, output = self._forward(params, filled)
            margins.append(np.asarray(margin)[:count])
            pooled.append(np.asarray(output)[:count] if features else np.empty((count, 0), np.float32))
            advance(count)
        logits, vectors = np.concatenate(margins), np.concatenate(pooled)
        if not np.isfinite(logits).all():
            raise InputError(
                f"{model.key} gives {int((~np.isfinite(logits)).sum())} NaN or infinite scores; it is broken."
            )
        return logits, vectors

    # Words

    def cited(self, name: str) -> str:
        """Where a score table is written, relative to the output."""
        return f"scores/{name}.{self.recipe.scores}"

    def note(self, sentence: str) -> None:
        """Something readers of the page have to know, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)
