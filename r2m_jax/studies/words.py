"""Sentences that several studies say of their numbers."""

from __future__ import annotations

from collections.abc import Sequence

from r2m_jax.studies.context import Context
from r2m_jax.studies.measuring import Measured


def ranking(context: Context, measured: Measured, suffix: str = "", columns: Sequence[str] | None = None) -> list[str]:
    """Which merger is best on average, and where each reading of R²M stands against the best of the others.

    Args:
        context: names the mergers.
        measured: holds them.
    """
    own, others = context.readings()
    means = {name: measured.mean(name) for name in (*own, *others)}
    best = max(means, key=lambda name: means[name])
    said = [f"Of the mergers, {best} has the highest mean AUC, {means[best]:.3f}."]
    if others:
        rival = max(others, key=lambda name: means[name])
        said += [measured.compared(name, rival) for name in own]
    return said


def against(context: Context, measured: Measured, rivals: Sequence[str]) -> list[str]:
    """The best merger against other models, such as the jointly trained one; those not measured are passed over."""
    best = max(context.recipe.mergers, key=lambda name: measured.mean(name))
    return [measured.compared(best, rival) for rival in rivals if rival in measured.models]
