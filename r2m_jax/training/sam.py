"""Sharpness-aware minimisation: the gradient where the loss is worst nearby.

SAM: Foret et al., ICLR 2021, https://arxiv.org/abs/2010.01412, equation 2. ASAM: Kwon et al., ICML 2021,
https://arxiv.org/abs/2102.11600, equation 5. Written as a function from gradients to gradients, so that any optax
optimiser takes its place after it; `optax.contrib.sam` either owns the optimiser's step or leaves parameters perturbed
between calls, and its `normalize` gives NaN for a zero gradient (optax 0.2.8).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from r2m_jax.errors import InputError

Gradient: TypeAlias = Callable[[Any, Any, Key[Array, ""]], tuple[tuple[Array, Any], Any]]
"""``(params, batch, key) -> ((loss, aux), gradient)``, as of ``jax.value_and_grad(…, has_aux=True)``."""

_TINY = 1e-12  # keeps a zero gradient from becoming NaN; far below any that moves a parameter


@dataclass(frozen=True)
class Sharpness:
    """How far and how SAM looks around.

    Attributes:
        rho: radius; 0 gives the plain gradient. DeepfakeBench and SBI use 0.05.
        adaptive: ASAM, in which a parameter's neighbourhood grows with its size.
        eta: of ASAM, added to the size so that zero parameters move too (0.01 in the paper).
        parts: m-SAM (section 4.1 of SAM): the batch is cut into so many parts, each with a perturbation of its own. 1
            is one perturbation for the batch over all devices; the number of devices is what per-device
            implementations do.
    """

    rho: float = 0.05
    adaptive: bool = False
    eta: float = 0.01
    parts: int = 1

    def __post_init__(self) -> None:
        if not self.rho >= 0 or not self.eta >= 0 or self.parts < 1:
            raise InputError(f"SAM needs rho and eta of 0 or more and one part or more, not {self}.")


def sharpness_aware(gradient: Gradient, sharpness: Sharpness) -> Gradient:
    """The gradient at the perturbed parameters; loss and aux are those at the given ones.

    Both passes see the same batch and the same key, hence the same random choices. The norm is over all leaves, so
    what is not to be trained must not be among them.

    Args:
        gradient: to be taken twice; every leaf of its aux has the rows of the batch on its first axis.
        sharpness: settings.

    Returns:
        A function of the same form.

    Raises:
        InputError: when called with a batch that its parts do not divide.
    """

    def perturbed(params: Any, batch: Any, key: Key[Array, ""]) -> tuple[tuple[Array, Any], Any]:
        value, ascent = gradient(params, batch, key)
        _, descent = gradient(optax.tree.add(params, perturbation(params, ascent, sharpness)), batch, key)
        return value, descent

    def by_parts(params: Any, batch: Any, key: Key[Array, ""]) -> tuple[tuple[Array, Any], Any]:
        rows = {len(leaf) for leaf in jax.tree.leaves(batch)}
        if any(count % sharpness.parts for count in rows):
            raise InputError(
                f"a batch of {max(rows)} does not divide into {sharpness.parts} parts; change one of them."
            )
        parts = jax.tree.map(lambda leaf: leaf.reshape(sharpness.parts, -1, *leaf.shape[1:]), batch)
        keys = jax.random.split(key, sharpness.parts)
        (loss, aux), descent = jax.lax.map(lambda part: perturbed(params, *part), (parts, keys))
        loss, descent = jax.tree.map(lambda leaf: leaf.mean(axis=0), (loss, descent))
        return (loss, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), aux)), descent

    return perturbed if sharpness.parts == 1 else by_parts


def perturbation(params: Any, gradient: Any, sharpness: Sharpness) -> Any:
    """The step to where the linearised loss is largest within the radius.

    SAM: ``rho g / |g|``. ASAM: ``rho T² g / |T g|`` with ``T = |w| + eta``. Norms over the whole tree, in float32.
    """
    if not sharpness.adaptive:
        scale = sharpness.rho / (optax.tree.norm(gradient) + _TINY)
        return jax.tree.map(lambda g: (scale * g).astype(g.dtype), gradient)
    size = jax.tree.map(lambda w: jnp.abs(w) + sharpness.eta, params)
    scaled = jax.tree.map(jnp.multiply, size, gradient)
    scale = sharpness.rho / (optax.tree.norm(scaled) + _TINY)
    return jax.tree.map(lambda t, s: (scale * t * s).astype(s.dtype), size, scaled)
