"""Scores first: every evaluation makes a score table; metrics, tables and pages are functions of it."""

from r2m_jax.evaluation.inference import score
from r2m_jax.evaluation.metrics import auc, family_auc, summary
from r2m_jax.evaluation.resampling import bootstrap_auc, interval, paired
from r2m_jax.evaluation.scores import ScoreTable, read_scores

__all__ = [
    "ScoreTable", "auc", "bootstrap_auc", "family_auc", "interval", "paired", "read_scores", "score", "summary",
]  # fmt: skip
