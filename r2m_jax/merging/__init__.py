"""Training-free merging of specialists, as pure functions of parameter trees.

Every method is called ``method(theta0, thetas, *, select=…, **hyperparameters)``; ``theta0`` is the common
pretrained origin and ``thetas`` the fine-tuned specialists, all trees of one structure. Methods know nothing of
detectors: heads, which have no pretrained origin, are merged by :func:`average_heads`.
"""

from r2m_jax.merging.averaging import weight_averaging
from r2m_jax.merging.cart import cart
from r2m_jax.merging.diagnostics import MergeDiagnostics, explain
from r2m_jax.merging.engine import MergeResult
from r2m_jax.merging.heads import average_heads, merge_detectors, norm_matched_heads
from r2m_jax.merging.r2m import r2m
from r2m_jax.merging.ranks import ByPattern, Energy, Gradient
from r2m_jax.merging.selection import attention_and_mlp
from r2m_jax.merging.task_arithmetic import task_arithmetic
from r2m_jax.merging.ties import ties

__all__ = [
    "ByPattern",
    "Energy",
    "Gradient",
    "MergeDiagnostics",
    "MergeResult",
    "attention_and_mlp",
    "average_heads",
    "cart",
    "explain",
    "merge_detectors",
    "norm_matched_heads",
    "r2m",
    "task_arithmetic",
    "ties",
    "weight_averaging",
]
