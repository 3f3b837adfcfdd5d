"""CoRIT's heads over merged towers, and whether specialists trained with SAM merge better.

Neither paper does this: R²M merges what CoRIT keeps frozen.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from r2m_jax.checkpoints import image_processor, load_detector
from r2m_jax.data.pipeline import Decoding, decode_all
from r2m_jax.evaluation.plots import bars
from r2m_jax.models import Detector, Params, apply_head, init_head
from r2m_jax.parallel import available_cores
from r2m_jax.studies.corit.against_probe import CORIT, PROBE, rivals
from r2m_jax.studies.corit.comparing import SEEN, Cell, Compared, compare, scored, seen_and_unseen
from r2m_jax.studies.corit.frozen import ALL, PLAIN, Frozen, Tower
from r2m_jax.studies.mergers import Merges
from r2m_jax.studies.result import Figure, Result, Unavailable
from r2m_jax.studies.roles import find_roles, named
from r2m_jax.studies.stock import Model, Stock
from r2m_jax.training import FineTuning, Sharpness

SMOOTH, SHARP = "plain training", "SAM"
"""How specialists were trained."""
PLAIN_TOWER = "Plain tower"


def bridge(context: Frozen) -> Result:
    """Heads over the plain tower and over every merge; specialists and merges with heads of their own."""
    teams, lessons = _teams(context), context.lessons()
    heads: dict[str, np.ndarray] = {}
    own: dict[str, np.ndarray] = {}
    towers: dict[str, list[str]] = {PLAIN_TOWER: [PLAIN_TOWER]}
    kinds = {name: settings for name, settings in rivals(context).items() if name in (PROBE, CORIT)}

    def read(name: str, tower: Tower) -> None:
        for kind, settings in kinds.items():
            heads[f"{kind} on {name}"] = scored(context, settings, lessons, tower=tower)

    read(PLAIN_TOWER, context.tower)
    detectors: dict[str, list[str]] = {}
    for how, team in teams.items():
        for family, model in team.items():
            name = f"Specialist {family} ({how})"
            own[name] = _with_its_head(context, name, model.load())
            detectors.setdefault(f"Specialists, {how}", []).append(name)
        merges = Merges(context.tower.backbone, team, context.reporter)
        for shown, merger in context.recipe.bridge.mergers.items():
            name = f"{shown} ({how})"
            params = merges.model(shown, merger).load()
            own[name] = _with_its_head(context, name, params)
            read(name, Tower.of(name, params["backbone"]))
            detectors.setdefault(f"Merged, {how}", []).append(name)
            towers.setdefault(how, []).append(name)
        del merges
        gc.collect()
    over = compare(context, heads, list(lessons), seen_and_unseen(context), "corit_bridge")
    seen = [Cell(ALL, family, family, SEEN) for family in context.names]
    merged = compare(context, own, [ALL], seen, "corit_bridge_merged")
    groups = {kind: [f"{kind} on {name}" for names in towers.values() for name in names] for kind in kinds}
    tables = {
        "corit_bridge": over.as_table("AUC of heads over towers", groups, _CAPTION),
        "corit_bridge_merged": merged.measured.table("AUC with heads of their own", detectors),
    }
    rows = [row for members in groups.values() for row in members]
    means = [over.measured.mean(row) for row in rows]
    svg = bars(
        [row.partition(" on ")[2] for row in rows], means, title="Heads over merged towers: mean AUC",
        groups=[kind for kind, members in groups.items() for _ in members], start=0.5, high=1.0,
    )  # fmt: skip
    return Result(
        _sentences(context, over, merged, teams), tables,
        {"corit_bridge": Figure(svg, "Mean over all columns; the table has intervals.")},
        {"corit_bridge": over.table, "corit_bridge_merged": merged.table},
        {"heads": over.as_json(), "merged": merged.as_json()},
    )  # fmt: skip


_CAPTION = (
    "Specialists, and so merged towers, learnt every family; a family is left out of the head's training alone. Heads "
    "learn from the images the specialists learnt from."
)


def _teams(context: Frozen) -> dict[str, dict[str, Model]]:
    """Specialists by how they were trained and by family: those given, or trained here.

    Raises:
        Unavailable: there are fewer than two families to train for.
    """
    recipe = context.recipe
    given = {SMOOTH: recipe.specialists, SHARP: recipe.sharp_specialists}
    if any(given.values()):
        return {
            how: {name: Model(f"{name} {how}", partial(_loaded, path)) for name, path in paths.items()}
            for how, paths in given.items()
            if paths
        }
    if len(context.names) < 2:
        raise Unavailable("it needs two forgery families or more to merge")
    records = named(context.train)
    roles = find_roles(records, named(context.test), families=context.names)
    base, processor = context.base, context.base.processor
    begin = Detector.create(
        base.config,
        {**base.params, "head": init_head(base.config.hidden_size, jax.random.key(recipe.seed))},
        image_processor(context.size, tuple(processor.image_mean), tuple(processor.image_std)),
        options=base.options,
    )
    trains = recipe.bridge.training
    settings = FineTuning(trains.passes, trains.batch_size, trains.learning_rate, trains.weight_decay, recipe.seed)
    pixels = _once(partial(_decoded, context))
    teams: dict[str, dict[str, Model]] = {}
    for how, sharpness in ((SMOOTH, None), (SHARP, Sharpness(recipe.bridge.rho))):
        stock = Stock(
            begin, settings, {"base": context.tower.key, "data": context.stamps(context.train), "size": context.size},
            folder=context.folder / "models", earlier=context.earlier / "models", records=records, pixels=pixels,
            inputs=[], reporter=context.reporter, sharpness=sharpness,
        )  # fmt: skip
        suffix = "" if sharpness is None else "-sam"
        teams[how] = {family: stock.get(f"{family}{suffix}", roles.lesson(family)) for family in roles.families}
        context.trained += stock.trained
        context.taken += stock.taken
    return teams


def _loaded(path: Path) -> Params:
    return load_detector(path).params


def _once(
    make: Callable[[], UInt8[np.ndarray, "n h w 3"]],
) -> Callable[[], UInt8[np.ndarray, "n h w 3"]]:
    made: list[np.ndarray] = []

    def get() -> np.ndarray:
        if not made:
            made.append(make())
        return made[0]

    return get


def _decoded(context: Frozen) -> UInt8[np.ndarray, "n h w 3"]:
    pixels = np.empty((len(context.train), context.size, context.size, 3), np.uint8)
    decode_all(context.train, Decoding(context.size, context.recipe.workers or available_cores()), pixels)
    return pixels


def _with_its_head(context: Frozen, name: str, params: Params) -> np.ndarray:
    """Logits [1, 1, m] of the test images by a whole detector, which has one head."""
    tower = Tower.of(name, params["backbone"])
    tokens = context.tokens(PLAIN, [context.depth], tower=tower, records=context.test)
    both = np.asarray(apply_head(params["head"], jnp.asarray(context.read(tokens, PLAIN, tower))))
    return np.asarray(both[:, 1] - both[:, 0])[None, None]


def _sentences(
    context: Frozen, over: Compared, merged: Compared, teams: Mapping[str, Mapping[str, Model]]
) -> list[str]:
    heads, own, said = over.measured, merged.measured, []
    mergers = list(context.recipe.bridge.mergers)
    for how in teams:
        for shown in mergers:
            said.append(heads.compared(f"{CORIT} on {shown} ({how})", f"{CORIT} on {PLAIN_TOWER}"))
        first, *others = mergers
        said += [heads.compared(f"{CORIT} on {shown} ({how})", f"{CORIT} on {first} ({how})") for shown in others]
        said += [heads.compared(f"{CORIT} on {shown} ({how})", f"{PROBE} on {shown} ({how})") for shown in mergers]
        said += [own.compared(f"{shown} ({how})", f"{first} ({how})", what="with averaged heads") for shown in others]
    if len(teams) == 2:
        for shown in mergers:
            said.append(own.compared(f"{shown} ({SHARP})", f"{shown} ({SMOOTH})", what="with averaged heads"))
            said.append(heads.compared(f"{CORIT} on {shown} ({SHARP})", f"{CORIT} on {shown} ({SMOOTH})"))
        alone = {
            how: float(np.mean([own.mean(f"Specialist {family} ({how})", [family]) for family in team]))
            for how, team in teams.items()
        }
        said.append(
            "On their own families specialists reach "
            + " and ".join(f"{value:.3f} ({how})" for how, value in alone.items())
            + " on average."
        )
    return said
