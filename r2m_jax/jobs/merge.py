"""``r2m merge``: from a recipe to a merged model directory, file to file, in bounded memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from r2m_jax import merging
from r2m_jax.atomic import DiskError, atomic_text, disk_errors
from r2m_jax.checkpoints import provenance
from r2m_jax.checkpoints.directory import directory_in_parts
from r2m_jax.checkpoints.names import stored_name
from r2m_jax.checkpoints.tensors import LazyTensor, ShapeDtype
from r2m_jax.errors import InputError
from r2m_jax.jobs.merge_inputs import Inputs, open_inputs
from r2m_jax.merging.averaging import WeightAveraging
from r2m_jax.merging.chunks import Plan, plan
from r2m_jax.merging.cost import deal
from r2m_jax.merging.diagnostics import as_json
from r2m_jax.merging.screen import screen
from r2m_jax.merging.streaming import apply_stream, measure_stream, resolve
from r2m_jax.merging.ties_streaming import ties_stream
from r2m_jax.parallel import check, data_mesh, gather, gather_arrays, is_first, meet, one_lapack_thread
from r2m_jax.progress import Reporter
from r2m_jax.recipes.merging import MergeRecipe


@dataclass(frozen=True)
class Outcome:
    """What a merge made.

    Attributes:
        directory: the model.
        sentences: what the merge says about itself; empty for methods without diagnostics.
    """

    directory: Path
    sentences: list[str]


def merge(recipe: MergeRecipe, *, reporter: Reporter, overwrite: bool = False) -> Outcome:
    """Merge by a recipe and write the result with what made it.

    Leaves are dealt to the processes of the computation, their matrices spread over the devices of each; no process
    reads or holds more than its share. What was measured and written when a merge is interrupted waits in
    ``OUT.merge`` for the same command, which goes on from there (TIES, which factorises nothing, starts over).

    Args:
        recipe: what to do.
        reporter: told of the progress.
        overwrite: replace an existing model.

    Raises:
        InputError: a model cannot be read or does not belong to the others, holds NaN or Inf, or is found broken by a
            screen that refuses; a setting is out of range; or the output is taken.
    """
    if recipe.out.exists() and not overwrite and any(recipe.out.iterdir()):
        raise InputError(f"{recipe.out} already exists; choose another out or pass --overwrite.")
    inputs = open_inputs(recipe.base, {name: entry.path for name, entry in recipe.models.items()})
    with ThreadPoolExecutor(1) as beside, one_lapack_thread():
        # The inputs are hashed while they are merged; a file that belongs to another base is noticed before the end.
        own = deal([file.stat().st_size for file in inputs.files], jax.process_count()).shares[jax.process_index()]
        hashes = beside.submit(provenance.input_hashes, [inputs.files[number] for number in own])

        def hashed() -> list[dict[str, Any]]:
            mine = json.dumps(list(zip(own, hashes.result(), strict=True))).encode()
            found = dict(pair for theirs in gather(mine) for pair in json.loads(theirs))
            return [found[number] for number in range(len(inputs.files))]

        # What looks at whole models has one process hold them.
        warned = json.loads(meet(json.dumps(_screened(recipe, inputs, reporter) if is_first() else []))[0])
        with _scratch(recipe, inputs) as scratch:
            return _merge(recipe, inputs, scratch, hashed, warned, reporter, overwrite)


def _merge(
    recipe: MergeRecipe,
    inputs: Inputs,
    scratch: Path,
    hashes: Callable[[], list[dict[str, Any]]],
    warned: list[str],
    reporter: Reporter,
    overwrite: bool,
) -> Outcome:
    mesh = data_mesh(jax.local_devices())
    method = WeightAveraging() if recipe.method == "ties" else recipe.linear_method()
    base, thetas = inputs.base.tower, [each.tower for each in inputs.specialists.values()]
    cut = plan(
        method,
        base,
        thetas,
        fused_qkv=bool(recipe.parameters.fused_qkv),
        memory=recipe.memory * 2**20,
        devices=mesh.size,
        processes=jax.process_count(),
        process=jax.process_index(),
    )
    names = list(inputs.specialists)
    sentences, numbers, coefficients = [], {}, None
    if recipe.method != "ties":
        statistics = None
        if method.measures:
            with _tracked(reporter, "measure", cut) as advance:
                statistics = measure_stream(
                    method, cut, base, thetas, names=names, scratch=scratch, kernel=recipe.kernel, mesh=mesh,
                    advance=advance, exchange=gather_arrays,
                )  # fmt: skip
        coefficients, diagnostics = resolve(method, statistics, cut)
        if diagnostics is not None:
            sentences, numbers = merging.explain(diagnostics, names), as_json(diagnostics)
    head = _head(recipe, inputs)
    dtype = None if recipe.dtype is None else np.dtype(recipe.dtype)
    wanted = {stored_name(name): ShapeDtype(tensor.shape, dtype or tensor.dtype) for name, tensor in base.items()}
    wanted |= {name: ShapeDtype(value.shape, dtype or value.dtype) for name, value in head.items()}
    shares = [[stored_name(name) for name in share] for share in cut.shares]
    shares[0] += head
    with directory_in_parts(
        recipe.out, config=inputs.base.config, tensors=wanted, processing=inputs.processing, overwrite=overwrite,
        shares=shares, kept=scratch.parent / "model",
    ) as (writer, made):  # fmt: skip

        def write(name: str, values: np.ndarray, row: int) -> None:
            writer.write(stored_name(name), values, row)

        with _tracked(reporter, "merge", cut, passes=2 if recipe.method == "ties" else 1) as advance:
            if coefficients is None:
                thresholds = ties_stream(
                    cut, base, thetas, write, names=names, dtype=dtype, advance=advance, exchange=gather_arrays,
                    **recipe.settings(),
                )  # fmt: skip
                numbers = {"thresholds": thresholds.tolist()}
            else:
                there = _written(scratch) if writer.resumed else set()
                for name, count in (pair for n in there for p in cut.chunks[n].pieces for pair in p.counts(base)):
                    writer.keep(stored_name(name), count)
                apply_stream(
                    method, cut, base, thetas, coefficients, write, names=names, dtype=dtype, kernel=recipe.kernel,
                    mesh=mesh, scratch=scratch if method.measures else None, advance=advance, skip=there,
                    written=lambda n: atomic_text(scratch / f"{n}.written", _boot()),
                )  # fmt: skip
        for name, value in head.items() if is_first() else ():
            writer.write(name, value)
        hashed = hashes()
        inputs.check_origin({item["sha256"] for item in hashed})
        made |= provenance.record(
            "merged",
            inputs=hashed,
            recipe=recipe.model_dump(mode="json"),
            diagnostics=numbers,
            says=sentences,
            screen=warned,
            devices=[str(device) for device in jax.devices()],
        )
    return Outcome(recipe.out, sentences)


def _written(scratch: Path) -> set[int]:
    """Chunks whose results an interrupted merge wrote, unless the machine went down since: its disks may lack them."""
    noted = {int(path.stem): path.read_text(encoding="utf-8") for path in scratch.glob("*.written")}
    return {number for number, boot in noted.items() if boot == _boot()}


def _boot() -> str:
    """Of this start of this machine, where the system gives it a name."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text(encoding="ascii").strip() if path.exists() else ""


def earlier_recipe(directory: Path) -> dict[str, Any]:
    """The recipe a merged model was made by, to merge again with other models.

    Raises:
        InputError: the directory is no merge of this command, or one of its inputs has changed since.
    """
    path = directory / provenance.FILE
    made = provenance.read_json(path)
    recipe = made.get("recipe") if isinstance(made, dict) else None
    if not isinstance(recipe, dict) or made.get("kind") != "merged" or "models" not in recipe:
        raise InputError(f"{path} does not say how {directory} was merged; give --base and every --specialist.")
    for item in made.get("inputs", []):
        file = Path(item["path"])
        if not file.exists() or provenance.sha256(file) != item["sha256"]:
            what = "has changed since" if file.exists() else "is no longer there"
            raise InputError(f"{file}, of which {directory} was merged, {what}; give --base and every --specialist.")
    return {key: value for key, value in recipe.items() if key != "out"}


def _screened(recipe: MergeRecipe, inputs: Inputs, reporter: Reporter) -> list[str]:
    if recipe.screen == "off":
        return []
    reporter.say("screen the specialists")
    base = _arrays(inputs.base.tower)
    found = screen(base, [_arrays(each.tower) for each in inputs.specialists.values()], list(inputs.specialists))
    sentences = [finding.sentence for finding in found]
    if sentences and recipe.screen == "refuse":
        more = f" ({len(sentences) - 1} more findings; screen=warn merges all the same.)" if len(sentences) > 1 else ""
        raise InputError(sentences[0] + more)
    for sentence in sentences:
        reporter.say(f"warning: {sentence}")
    return sentences


def _arrays(tower: Mapping[str, LazyTensor]) -> dict[str, np.ndarray]:
    return {name: tensor.read() for name, tensor in tower.items()}


@contextmanager
def _scratch(recipe: MergeRecipe, inputs: Inputs) -> Iterator[Path]:
    """A folder of this process in ``OUT.merge``, which is gone when all is done.

    It holds what an interrupted merge of the same recipe and files, by as many processes, measured, and beside it in
    ``model`` what it wrote.
    """
    folder = recipe.out.with_name(f"{recipe.out.name}.merge")
    stats = [file.stat() for file in inputs.files]
    identity = json.dumps(
        {
            "recipe": recipe.model_dump(mode="json"),
            "files": [[str(f), s.st_size, s.st_mtime_ns] for f, s in zip(inputs.files, stats, strict=True)],
            "devices": jax.local_device_count(),
            "processes": jax.process_count(),
            "versions": provenance.versions(),
        }
    )
    noted, own = folder / "merge.json", folder / str(jax.process_index())
    try:
        if is_first():
            if folder.exists() and not (noted.exists() and noted.read_text(encoding="utf-8") == identity):
                shutil.rmtree(folder)
            folder.mkdir(parents=True, exist_ok=True)
            atomic_text(noted, identity)
        meet()
        own.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder.parent} cannot be written ({error.strerror}); choose another out.") from None
    try:
        with disk_errors(own):
            yield own
    except DiskError:
        raise  # what was done is good
    except InputError:
        shutil.rmtree(own, ignore_errors=True)  # others may still write into theirs
        if is_first():
            shutil.rmtree(folder / "model", ignore_errors=True)
            noted.unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()  # by whoever is last
        raise
    meet()
    if is_first():
        shutil.rmtree(folder)


def _head(recipe: MergeRecipe, inputs: Inputs) -> dict[str, np.ndarray]:
    heads = {name: {key: t.read() for key, t in each.head.items()} for name, each in inputs.specialists.items()}
    for name, head in heads.items():
        for key, values in head.items():
            if not np.isfinite(values.astype(np.float32)).all():
                raise InputError(f"{name}: {key} holds values that are NaN or infinite.")
    if recipe.head in heads:
        return heads[recipe.head]
    ours = [{"kernel": head["head.weight"], "bias": head["head.bias"]} for head in heads.values()]
    how = merging.norm_matched_heads if recipe.head == "norm_matched" else merging.average_heads
    made = how(ours)
    return {"head.weight": np.asarray(made["kernel"]), "head.bias": np.asarray(made["bias"])}


@contextmanager
def _tracked(reporter: Reporter, what: str, cut: Plan, passes: int = 1) -> Iterator[Callable[[int], None]]:
    total = passes * sum(len(chunk.pieces) for chunk in cut.chunks)
    with reporter.track(what, total, unit="tensors") as advance:

        def done(count: int) -> None:
            advance(count)
            check()  # nobody works on for hours beside one that failed

        yield done
