"""``r2m compare``: how specialists relate, before they are merged."""

from __future__ import annotations

import itertools
import json
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from r2m_jax.atomic import atomic_directory
from r2m_jax.checkpoints import load_detector, provenance
from r2m_jax.checkpoints.directory import read_config
from r2m_jax.checkpoints.names import assemble
from r2m_jax.checkpoints.preprocessing import read_processor
from r2m_jax.checkpoints.tensors import LazyTensor
from r2m_jax.data.index import index_file
from r2m_jax.evaluation.tables import Table
from r2m_jax.jobs.compare.page import Found, Reading, page_of, theory_tables
from r2m_jax.jobs.compare.task_vectors import tables
from r2m_jax.jobs.compare.theory import Merged, OnImages, measure, read_images
from r2m_jax.jobs.kinds import square_input
from r2m_jax.jobs.merge_inputs import Inputs, open_inputs
from r2m_jax.merging.chunks import Plan, plan
from r2m_jax.merging.diagnostics import MergeDiagnostics, as_json, explain
from r2m_jax.merging.engine import Coefficients
from r2m_jax.merging.interference import compare as compare_task_vectors
from r2m_jax.merging.interference import plain
from r2m_jax.merging.pieces import count_pieces
from r2m_jax.merging.r2m import R2M
from r2m_jax.merging.ranks import parse_rank
from r2m_jax.merging.screen import screen
from r2m_jax.merging.spectral import wide_arithmetic
from r2m_jax.merging.statistics import Statistics
from r2m_jax.merging.streaming import apply_stream, measure_stream
from r2m_jax.merging.theory import Tail, recovery
from r2m_jax.models import Detector, Params, parameter_shapes
from r2m_jax.parallel import data_mesh, one_lapack_thread
from r2m_jax.progress import Reporter
from r2m_jax.recipes.comparing import CompareRecipe

_SWITCHES: list[dict[str, str]] = [
    *({"scope": scope, "norm_matching": per} for scope in ("global", "leaf", "block") for per in ("global", "leaf")),
    {"eta": "eq6"}, {"origin": "theta_avg"}, {"origin": "theta_avg", "eta": "eq6"},
]  # fmt: skip
"""Readings of R²M, each centred and not: what decides core and residual, then where the merge starts and what η is."""


@dataclass(frozen=True)
class Compared:
    """What a comparison made.

    Attributes:
        directory: results.
        tables: of the whole task vectors and of their cosines.
        sentences: what stands out.
    """

    directory: Path
    tables: tuple[Table, ...]
    sentences: list[str]


def compare(recipe: CompareRecipe, *, reporter: Reporter, overwrite: bool = False) -> Compared:
    """Measure specialists and write the page, its tables and all numbers.

    Base and specialists are held in memory.

    Raises:
        InputError: models do not belong together, hold NaN or Inf or cannot be read; the index has not both classes;
            or the output is taken.
    """
    paths = {name: entry.path for name, entry in recipe.models.items()}
    with atomic_directory(recipe.out, overwrite) as folder:
        inputs = open_inputs(recipe.base, paths)
        files = [*inputs.files, *([index_file(recipe.data.index)] if recipe.data else [])]
        hashed = provenance.input_hashes(files)
        inputs.check_origin({item["sha256"] for item in hashed})
        base, specialists = _loaded(recipe)
        images = None
        if recipe.data is not None:
            first = next(iter(paths.values()))
            size = square_input(read_processor(first), str(first))
            images = read_images(
                recipe.data, size, {n: each.provenance for n, each in inputs.specialists.items()}, reporter
            )
        theta0 = jax.device_get(base.params["backbone"])
        thetas = [jax.device_get(each.params["backbone"]) for each in specialists.values()]
        names = list(specialists)
        with reporter.track("compare task vectors", count_pieces(theta0), "matrices") as advance:
            report = compare_task_vectors(theta0, thetas, names, density=recipe.density, advance=advance)
        reporter.say("screen the specialists")
        findings = screen(theta0, thetas, names)
        gram = report.whole.norms[:, None] * np.nan_to_num(report.whole.cosines) * report.whole.norms
        with tempfile.TemporaryDirectory(dir=folder) as scratch, one_lapack_thread():
            merger = _Merger(recipe, inputs, Path(scratch), reporter)
            readings, tail = merger.readings(), merger.tail()
            on_images: OnImages | None = None
            if images is not None:
                on_images = measure(
                    base, specialists, merger.merged(thetas), images, gram=gram, tail=tail,
                    batch_size=recipe.batch_size, reporter=reporter,
                )  # fmt: skip
        found = Found(
            recipe=recipe,
            report=report,
            findings=tuple(findings),
            readings=tuple(readings),
            recoveries={"centred": recovery(gram), "not centred": recovery(gram, centre=False)},
            tail=tail,
            on_images=on_images,
        )
        _write(folder, found, hashed)
    first_two = tables(report)
    return Compared(recipe.out, (first_two["specialists"], first_two["cosines"]), found.sentences())


def _loaded(recipe: CompareRecipe) -> tuple[Detector, dict[str, Detector]]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has no head", category=UserWarning)  # a base needs none
        base = load_detector(recipe.base)
    return base, {name: load_detector(entry.path) for name, entry in recipe.models.items()}


class _Merger:
    """R²M under its readings, from one factorisation of the residuals."""

    def __init__(self, recipe: CompareRecipe, inputs: Inputs, scratch: Path, reporter: Reporter):
        self._base = inputs.base.tower
        self._thetas = [each.tower for each in inputs.specialists.values()]
        self._names = list(inputs.specialists)
        self._config = recipe.base
        self._scratch = scratch
        self._reporter = reporter
        self._mesh = data_mesh(jax.local_devices())
        self._method = R2M(rank=parse_rank(recipe.rank))
        self._plan: Plan = plan(self._method, self._base, self._thetas, devices=self._mesh.size)
        pieces = sum(len(chunk.pieces) for chunk in self._plan.chunks)
        with reporter.track("factorise the residuals", pieces, "tensors") as advance:
            self._statistics: Statistics = measure_stream(
                self._method, self._plan, self._base, self._thetas, names=self._names, scratch=scratch,
                mesh=self._mesh, advance=advance,
            )  # fmt: skip

    def readings(self) -> list[Reading]:
        """What each reading makes of these specialists."""
        found = []
        for centering, more in itertools.product(("centered", "uncentered"), _SWITCHES):
            chosen: dict[str, Any] = {"centering": centering, **more}
            method = replace(self._method, **chosen)
            diagnostics = self._resolved(method)[1]
            found.append(Reading(method, diagnostics, tuple(explain(diagnostics, self._names))))
        return found

    def _resolved(self, method: R2M) -> tuple[Coefficients, MergeDiagnostics]:
        # Not compiled: every reading would be another program, and all share the single operations.
        with wide_arithmetic():
            found: tuple[Coefficients, MergeDiagnostics] = jax.tree.map(
                np.asarray, method.resolve(self._statistics, self._plan.where)
            )
        return found

    def tail(self) -> Tail:
        """What truncation discards, from the same statistics as a merge."""
        count = len(self._thetas)
        gram, tails = np.asarray(self._statistics.gram).sum(axis=0), np.asarray(self._statistics.tails).sum(axis=0)
        norms = np.diagonal(gram)[:count]
        return Tail(np.sqrt(np.maximum(norms, 0)), np.sqrt(np.clip(np.diagonal(tails), 0, norms)))

    def merged(self, thetas: list[Params]) -> dict[str, Merged]:
        """The merges the theory is measured on."""
        mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0, dtype=np.float64).astype(np.float32), *thetas)
        return {
            "weight averaging": Merged(mean),
            "R²M as printed": self._merge(self._method),
            "R²M, uncentered": self._merge(replace(self._method, centering="uncentered")),
        }

    def _merge(self, method: R2M) -> Merged:
        coefficients, diagnostics = self._resolved(method)
        out = {name: np.empty(tensor.shape, np.float32) for name, tensor in self._base.items()}

        def write(name: str, values: np.ndarray, row: int) -> None:
            if out[name].ndim:
                out[name][row : row + len(values)] = values
            else:
                out[name][...] = values.reshape(())

        self._reporter.say(f"merge: R²M, {method.centering}")
        apply_stream(
            method, self._plan, self._base, self._thetas, coefficients, write, names=self._names,
            scratch=self._scratch, dtype=np.dtype(np.float32), mesh=self._mesh,
        )  # fmt: skip
        shapes = {"backbone": parameter_shapes(read_config(self._config))["backbone"]}
        params = assemble({name: LazyTensor.of(values) for name, values in out.items()}, shapes, "the merge")
        core: Float[np.ndarray, " n"] = np.asarray(diagnostics.core_coefficients, np.float64)
        return Merged(params["backbone"], core, float(diagnostics.eta))


def _write(folder: Path, found: Found, hashed: list[dict[str, Any]]) -> None:
    recipe = found.recipe.model_dump(mode="json")
    made = provenance.record("comparison", inputs=hashed, recipe=recipe)
    for name, text in (
        ("compare.json", json.dumps(_numbers(found), indent=2, allow_nan=False) + "\n"),
        ("report.html", page_of(found)),
        (provenance.FILE, json.dumps(made, indent=2) + "\n"),
    ):
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "tables").mkdir()
    for name, table in (tables(found.report) | theory_tables(found)).items():
        (folder / "tables" / f"{name}.md").write_text(table.markdown(), encoding="utf-8")
        (folder / "tables" / f"{name}.tex").write_text(table.latex(), encoding="utf-8")


def _numbers(found: Found) -> dict[str, Any]:
    readings = [
        {"name": reading.name, "diagnostics": as_json(reading.diagnostics), "says": reading.sentences}
        for reading in found.readings
    ]
    theory: Mapping[str, Any] = {
        "recovery": found.recoveries,
        "tail": {"norms": found.tail.norms, "tails": found.tail.tails, "tail_energy": found.tail.tail_energy},
        "on_images": found.on_images,
    }
    numbers: dict[str, Any] = plain(
        {"task_vectors": found.report.as_json(), "screen": list(found.findings), "readings": readings, "theory": theory}
    )
    return numbers
