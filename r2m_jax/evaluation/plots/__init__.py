"""Figures for reports and papers: one function per kind, each from plain arrays to the text of an SVG element."""

from r2m_jax.evaluation.plots.curves import lines, roc
from r2m_jax.evaluation.plots.distributions import violins
from r2m_jax.evaluation.plots.dumbbells import dumbbell
from r2m_jax.evaluation.plots.fronts import pareto
from r2m_jax.evaluation.plots.intervals import bars
from r2m_jax.evaluation.plots.maps import heat_map
from r2m_jax.evaluation.plots.radars import radar
from r2m_jax.evaluation.plots.sheets import contact_sheet
from r2m_jax.evaluation.plots.spectra import energy_lost
from r2m_jax.evaluation.plots.surfaces import contours

__all__ = [
    "heat_map", "dumbbell", "pareto", "radar", "lines", "bars", "roc", "violins", "contact_sheet", "energy_lost",
    "contours",
]  # fmt: skip
