"""Optimisation collapse: signal and noise of gradients, curvature, the critical radius of SAM in theory and practice.

CoRIT (Liu et al. 2026, https://arxiv.org/abs/2603.24057), §III and the supplement. What every number means is in
``docs/collapse.md``.
"""

from r2m_jax.evaluation.collapse.curvature import (
    Eigenvalue,
    TraceEstimate,
    exact_trace,
    hessian_product,
    hutchinson,
    lanczos,
    linear_top,
    linear_trace,
    power_iteration,
    stable_rank,
)
from r2m_jax.evaluation.collapse.empirical import Bracket, EmpiricalRadius, RadiusSearch, critical_radius
from r2m_jax.evaluation.collapse.gradients import (
    Gsnr,
    Moments,
    Phases,
    gsnr,
    linear_moments,
    moments,
    per_sample_gradients,
    phases,
)
from r2m_jax.evaluation.collapse.probes import ProbeData, ProbeTraining, sam_train
from r2m_jax.evaluation.collapse.ranks import RankAgreement, agreement, spearman
from r2m_jax.evaluation.collapse.surface import Landscape, landscape
from r2m_jax.evaluation.collapse.theorem import (
    Critical,
    Decomposition,
    critical,
    decompose,
    decompose_linear,
    radius,
)
from r2m_jax.evaluation.collapse.training import Trajectory, trajectory

__all__ = [
    "Bracket", "Critical", "Decomposition", "Eigenvalue", "EmpiricalRadius", "Gsnr", "Landscape", "Moments", "Phases",
    "ProbeData", "ProbeTraining", "RadiusSearch", "RankAgreement", "TraceEstimate", "Trajectory", "agreement",
    "critical", "critical_radius", "decompose", "decompose_linear", "exact_trace", "gsnr", "hessian_product",
    "hutchinson", "landscape", "lanczos", "linear_moments", "linear_top", "linear_trace", "moments",
    "per_sample_gradients", "phases", "power_iteration", "radius", "sam_train", "spearman", "stable_rank", "trajectory",
]  # fmt: skip
