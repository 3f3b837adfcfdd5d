"""The quantities in the theory of R²M (arXiv 2509.24367 §3.2 and appendix A), each as a number to be measured.

R1 (:mod:`.linearity`) asks whether features move linearly with the weights, R2 (:mod:`.axis`) whether the leading
direction of the task matrix stands out, R3 (ibidem) whether the merged residual leaves the common axis alone, and
Proposition 1 (:mod:`.proposition`) concludes that one averaged head serves all specialists. The paper states existence
("some constant C", "for some ε'"); these functions measure what can be measured and say in their docstrings how an
ambiguous definition was read.

Jacobian-vector products run in JAX and float32; N×N algebra and everything on feature vectors in NumPy and float64.
Class 1 is fake. ``features(params, batch)`` is any differentiable function that returns ``[batch, d]``; ``batches``
are its inputs and ``labels`` the matching 0/1 arrays.
"""

from r2m_jax.merging.theory.axis import (
    Recovery,
    Tail,
    centred,
    gamma,
    kappa,
    kappa_weights,
    off_axis,
    off_axis_bound,
    recovery,
    task_gram,
    truncation_tail,
)
from r2m_jax.merging.theory.linearity import (
    Expansion,
    Features,
    Labels,
    Remainder,
    Vector,
    expansion,
    local_linearity,
    remainder_order,
    response_norm,
    separation_linearity,
    separation_response,
)
from r2m_jax.merging.theory.proposition import (
    Proposition,
    angles,
    common_axis,
    head_vector,
    proposition_1,
    separation,
)

__all__ = [
    "Expansion",
    "Features",
    "Labels",
    "Proposition",
    "Recovery",
    "Remainder",
    "Tail",
    "Vector",
    "angles",
    "centred",
    "common_axis",
    "expansion",
    "gamma",
    "head_vector",
    "kappa",
    "kappa_weights",
    "local_linearity",
    "off_axis",
    "off_axis_bound",
    "proposition_1",
    "recovery",
    "remainder_order",
    "response_norm",
    "separation",
    "separation_linearity",
    "separation_response",
    "task_gram",
    "truncation_tail",
]
