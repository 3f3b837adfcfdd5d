"""Optimisers, assembled from optax."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import optax
from pydantic import BaseModel, ConfigDict, Field

from r2m_jax.errors import InputError


class OptimizerRecipe(BaseModel):
    """Settings of an optimiser; the defaults are DF40's and R²M's (§1.7 of DF40's ``clip.yaml``, R²M appendix B.2).

    Attributes:
        name: ``adam`` adds L2 to the gradient before the moments, as ``torch.optim.Adam(weight_decay=…)``; ``adamw``
            decays after them; ``sgd`` has momentum, and L2 in the gradient, as ``torch.optim.SGD``.
        learning_rate: peak of the schedule.
        weight_decay: on every trained parameter, biases and layer norms included, as there.
        b1, b2, eps: of Adam.
        momentum, nesterov: of SGD.
        schedule: after the warm-up: constant, or a cosine or a line to zero at the last step.
        warmup: share of the steps over which the rate rises from zero.
        clip_norm: largest global norm of the gradient; None leaves it.
        accumulate: batches whose gradients are averaged into one update.
        groups: regular expressions of leaf paths and the factor of the learning rate there; the first that matches
            counts, e.g. ``{"backbone/.*": 0.1}``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = Field(1e-5, gt=0)
    weight_decay: float = Field(5e-4, ge=0)
    b1: float = Field(0.9, ge=0, lt=1)
    b2: float = Field(0.999, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    momentum: float = Field(0.0, ge=0, lt=1)
    nesterov: bool = False
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup: float = Field(0.0, ge=0, lt=1)
    clip_norm: float | None = Field(None, gt=0)
    accumulate: int = Field(1, ge=1)
    groups: Mapping[str, float] = {}


def build_optimizer(recipe: OptimizerRecipe, steps: int) -> optax.GradientTransformation:
    """The optimiser of a recipe.

    The order is clipping, then the optimiser with its decay, then the learning rate with its schedule and groups. The
    schedule counts updates, not batches, when gradients are accumulated.

    Args:
        recipe: settings.
        steps: batches of the whole run.

    Returns:
        A transformation of a dict from leaf path to gradient, as :func:`r2m_jax.training.train_step` gives it.
    """
    updates = max(1, steps // recipe.accumulate)
    decay = optax.add_decayed_weights(recipe.weight_decay) if recipe.weight_decay else optax.identity()
    adam = optax.scale_by_adam(b1=recipe.b1, b2=recipe.b2, eps=recipe.eps)
    momentum = optax.trace(recipe.momentum, recipe.nesterov) if recipe.momentum else optax.identity()
    chain = optax.chain(
        optax.clip_by_global_norm(recipe.clip_norm) if recipe.clip_norm else optax.identity(),
        *{"adam": (decay, adam), "adamw": (adam, decay), "sgd": (decay, momentum)}[recipe.name],
        optax.scale_by_learning_rate(build_schedule(recipe, updates)),
        _scale_groups(recipe.groups) if recipe.groups else optax.identity(),
    )
    return optax.MultiSteps(chain, recipe.accumulate).gradient_transformation() if recipe.accumulate > 1 else chain


def build_schedule(recipe: OptimizerRecipe, updates: int) -> optax.Schedule:
    """The learning rate by number of update."""
    rate, warmup = recipe.learning_rate, round(updates * recipe.warmup)
    rest = max(1, updates - warmup)
    after = {
        "constant": optax.schedules.constant_schedule(rate),
        "cosine": optax.schedules.cosine_decay_schedule(rate, rest),
        "linear": optax.schedules.linear_schedule(rate, 0.0, rest),
    }[recipe.schedule]
    if not warmup:
        return after
    return optax.schedules.join_schedules([optax.schedules.linear_schedule(0.0, rate, warmup), after], [warmup])


def adam_coupled_l2(learning_rate: optax.ScalarOrSchedule, weight_decay: float = 5e-4) -> optax.GradientTransformation:
    """Adam with L2 added to the gradient before the moments: ``torch.optim.Adam(weight_decay=…)``.

    This is DF40's and R²M's optimiser (lr 1e-5, weight decay 5e-4 on every parameter; DF40
    ``training/config/detector/clip.yaml``, R²M appendix B.2), not AdamW, which decays after the moments.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_adam(),
        optax.scale_by_learning_rate(learning_rate),
    )


def warmup_cosine(peak: float, steps: int, warmup_share: float = 0.1) -> optax.Schedule:
    """Linear warm-up over ``warmup_share`` of the steps, then a cosine to zero."""
    warmup = max(1, round(steps * warmup_share))
    return optax.schedules.warmup_cosine_decay_schedule(0.0, peak, warmup, max(steps, warmup + 1), 0.0)


def _scale_groups(groups: Mapping[str, float]) -> optax.GradientTransformation:
    compiled = [(re.compile(pattern), factor) for pattern, factor in groups.items()]

    def factor_of(path: str) -> float:
        return next((factor for pattern, factor in compiled if pattern.fullmatch(path)), 1.0)

    def init(params: Mapping[str, Any]) -> optax.EmptyState:
        for pattern, _ in compiled:
            if not any(pattern.fullmatch(path) for path in params):
                raise InputError(f"the learning-rate group {pattern.pattern!r} matches no trained parameter.")
        return optax.EmptyState()

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        return {path: factor_of(path) * leaf for path, leaf in updates.items()}, state

    return optax.GradientTransformation(init, update)
