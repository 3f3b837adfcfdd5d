"""Scores first: every evaluation makes a score table; metrics, tables and pages are functions of it."""

from r2m_jax.evaluation.inference import score
from r2m_jax.evaluation.metrics import auc, family_auc
from r2m_jax.evaluation.scores import ScoreTable

__all__ = ["ScoreTable", "auc", "family_auc", "score"]
