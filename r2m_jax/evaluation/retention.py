"""Retention of specialists' skill in merged models (R²M §4, "Metrics")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def drop(
    aucs: Mapping[str, Mapping[str, float]], model: str, specialists: Sequence[str], families: Sequence[str]
) -> dict[str, float]:
    """DROP per family: the best specialist's AUC minus the model's; smaller is better.

    Args:
        aucs: of :func:`r2m_jax.evaluation.family_auc`.
        model: the model asked about.
        specialists: models the best is taken over, per family.
        families: columns; ``max`` over them is added as DROP_max.
    """
    drops = {family: max(aucs[s][family] for s in specialists) - aucs[model][family] for family in families}
    return drops | {"max": max(drops.values())}
