"""What a merge says about itself, in numbers and in words.

Taken literally, formulas of the R²M paper degenerate for balanced specialists (the rows of the centred task
matrix sum to zero, so its leading direction is a *difference* of specialists). The numbers here show when.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float

SMALL_CORE = 0.1
SMALL_RESIDUAL = 1e-2


class MergeDiagnostics(NamedTuple):
    """Numbers every R²M result carries (N specialists); a pytree, so it passes through ``jax.jit``.

    Attributes:
        task_norms: ‖τᵢ‖.
        cosines: pairwise cosines of the task vectors.
        singular_values: of the task matrix (centred or not, as the merge used it), descending.
        core_coefficients: cᵢ with τ_core = Σ cᵢ τᵢ; negative ones mean the core moves away from a specialist.
        core_ratio: ‖τ_core‖ / ‖τ̄‖.
        residual_ratio: ‖τ_res‖ over the mean norm of the truncated residuals.
        eta: the scale applied to τ_res.
        update_ratio: ‖θ* - θ₀‖ / ‖τ̄‖.
        residual_is_noise: τ_res was rounding noise and has been dropped.
        no_difference: the specialists are equal; the core is τ̄ and there is no residual.
    """

    task_norms: Float[Array, n]
    cosines: Float[Array, "n n"]
    singular_values: Float[Array, n]
    core_coefficients: Float[Array, n]
    core_ratio: Float[Array, ""]
    residual_ratio: Float[Array, ""]
    eta: Float[Array, ""]
    update_ratio: Float[Array, ""]
    residual_is_noise: Bool[Array, ""]
    no_difference: Bool[Array, ""]


def as_json(diagnostics: MergeDiagnostics) -> dict[str, object]:
    """The same numbers as JSON values."""
    return {name: np.asarray(value).tolist() for name, value in diagnostics._asdict().items()}


def explain(diagnostics: MergeDiagnostics, names: Sequence[str]) -> list[str]:
    """Sentences for people: what the core is made of, and which degeneracies occurred and what to use instead.

    Args:
        diagnostics: of a finished merge (concrete arrays).
        names: one per specialist.
    """
    d = diagnostics
    if bool(d.no_difference):
        return [
            "The specialists do not differ (or there is only one): the core is their mean task vector and there is "
            "no residual, so the result is weight averaging."
        ]
    parts = [f"{value:+.2f} {name}" for name, value in zip(names, np.asarray(d.core_coefficients), strict=True)]
    sentences = [f"The core is {', '.join(parts)} (coefficients on the specialists' task vectors)."]
    away = [name for name, c in zip(names, np.asarray(d.core_coefficients), strict=True) if c < -0.05]
    if away:
        sentences.append(
            f"It moves away from {' and '.join(away)}: a centred core is a difference of specialists. "
            'centering="uncentered" keeps what they share.'
        )
    if float(d.core_ratio) < SMALL_CORE:
        sentences.append(
            f"The core is only {float(d.core_ratio):.3f} of the mean task vector, and the residual is scaled to it: "
            "the merged model stays close to its origin, the pretrained weights or the average. "
            'centering="uncentered" gives a core of full size.'
        )
    if bool(d.residual_is_noise):
        sentences.append(
            "The merged residual vanished (with two specialists it always does: their centred residuals are "
            "opposite), so it was dropped instead of being scaled up; use three or more specialists, or "
            "weight averaging."
        )
    elif float(d.residual_ratio) < SMALL_RESIDUAL:
        sentences.append(
            f"The merged residual is only {float(d.residual_ratio):.1e} of the specialists' residuals: they cancel. "
            "A smaller rank leaves more of it."
        )
    return sentences
