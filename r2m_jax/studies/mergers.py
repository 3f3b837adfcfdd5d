"""All mergers of the recipe for one team of specialists, from one factorisation."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import jax

from r2m_jax import merging
from r2m_jax.merging import MergeDiagnostics
from r2m_jax.merging.sweep import Sweep
from r2m_jax.models import Params
from r2m_jax.parallel import one_lapack_thread
from r2m_jax.progress import Reporter
from r2m_jax.recipes.studying import Merger
from r2m_jax.studies.stock import Model


class Merges:
    """Merged models of a team; the team is loaded and factorised when the first is asked for.

    Args:
        base: backbone θ₀.
        team: specialists by name.
        reporter: told of the factorisation.

    Attributes:
        seconds: spent on merging so far, compilation included.
        diagnostics: of the R²M merges made so far, by name.
    """

    def __init__(self, base: Params, team: Mapping[str, Model], reporter: Reporter):
        self.team = dict(team)
        self._base, self._reporter = base, reporter
        self._loaded: dict[str, Params] = {}
        self._sweeps: dict[bool, Sweep] = {}
        self.seconds = 0.0
        self.diagnostics: dict[str, MergeDiagnostics] = {}

    def head(self, how: str = "average") -> Params:
        """``average``, ``norm_matched`` or a specialist's."""
        heads = {name: each["head"] for name, each in self._specialists().items()}
        if how in heads:
            return heads[how]
        return {"average": merging.average_heads, "norm_matched": merging.norm_matched_heads}[how](list(heads.values()))

    def model(self, name: str, merger: Merger, **changes: Any) -> Model:
        """A merge with the averaged head, by its name; ``changes`` replace parameters of the merger."""
        recipe = merger.recipe(tuple(self.team), **changes)
        members = ", ".join(model.key for model in self.team.values())

        def load() -> Params:
            begun = time.monotonic()
            thetas = [each["backbone"] for each in self._specialists().values()]
            settings = recipe.settings()
            if recipe.method == "ties":
                backbone = merging.ties(self._base, thetas, **settings)
            else:
                backbone, found = self._sweep(thetas, bool(settings.get("fused_qkv"))).merge(recipe.linear_method())
                if found is not None:
                    self.diagnostics[name] = found
            jax.block_until_ready(backbone)
            self.seconds += time.monotonic() - begun
            return {"backbone": backbone, "head": self.head()}

        return Model(f"{name} of {members}", load)

    def seconds_again(self, merger: Merger) -> float:
        """How long factorisation and merge take once everything is compiled; done anew to be timed."""
        self.model("warm-up", merger).load()
        thetas = [each["backbone"] for each in self._specialists().values()]
        recipe = merger.recipe(tuple(self.team))
        begun = time.monotonic()
        if recipe.method == "ties":
            jax.block_until_ready(merging.ties(self._base, thetas, **recipe.settings()))
        else:
            fused = bool(recipe.settings().get("fused_qkv"))
            with one_lapack_thread():
                sweep = Sweep(self._base, thetas, fused_qkv=fused)
                jax.block_until_ready(sweep.merge(recipe.linear_method())[0])
        return time.monotonic() - begun

    def pretrained(self) -> Model:
        """The base with the averaged head."""
        members = ", ".join(model.key for model in self.team.values())
        return Model(f"base of {members}", lambda: {"backbone": self._base, "head": self.head()})

    def _specialists(self) -> dict[str, Params]:
        if not self._loaded:
            self._loaded = {name: model.load() for name, model in self.team.items()}
        return self._loaded

    def _sweep(self, thetas: list[Params], fused: bool) -> Sweep:
        if fused not in self._sweeps:
            begun = time.monotonic()
            with one_lapack_thread():
                self._sweeps[fused] = Sweep(self._base, thetas, fused_qkv=fused)
            self._reporter.say(f"factorise {len(thetas)} specialists: {time.monotonic() - begun:.1f} s")
        return self._sweeps[fused]
