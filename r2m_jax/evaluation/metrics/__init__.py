"""Metrics of scores, defined as scikit-learn and the peers' code define them (docs/evaluation.md)."""

from r2m_jax.evaluation.metrics.decisions import accuracy, class_accuracy, expected_calibration_error, f1
from r2m_jax.evaluation.metrics.ranking import (
    auc,
    average_precision,
    eer,
    eer_interpolated,
    oracle_accuracy,
    threshold_at_fpr,
    tpr_at_fpr,
)
from r2m_jax.evaluation.metrics.sets import METRICS, family_auc, mean_accuracy, mean_average_precision, summary
from r2m_jax.evaluation.metrics.videos import Clips, VideoKey, clips, video_auc

__all__ = [
    "METRICS", "Clips", "VideoKey", "accuracy", "auc", "average_precision", "class_accuracy", "clips", "eer",
    "eer_interpolated", "expected_calibration_error", "f1", "family_auc", "mean_accuracy", "mean_average_precision",
    "oracle_accuracy", "summary", "threshold_at_fpr", "tpr_at_fpr", "video_auc",
]  # fmt: skip
