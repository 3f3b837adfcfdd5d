"""What jobs need to run CoRIT detectors on files: pairs out of the pipeline, z out of pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, Literal

from jaxtyping import Array

from r2m_jax.data.augment import Policy
from r2m_jax.data.device import normalise
from r2m_jax.data.pairs import Pairs
from r2m_jax.data.records import Record
from r2m_jax.errors import InputError
from r2m_jax.models import Params, TowerOptions
from r2m_jax.models.corit import CoritSettings, corit_features

given = itemgetter("image", "foreground")
"""What :func:`encoder` is given of a batch."""


def pairs_for(settings: CoritSettings, size: int, patch: int, policy: Policy | None = None) -> Pairs:
    """The preparation of images that settings ask for.

    Args:
        settings: their rule says what is self-blended, their mode how.
        size: sides of the input in pixels.
        patch: of the tower.
        policy: augmentation before the self-blending; None for none.

    Raises:
        InputError: the regions are the user's own, which no file holds.
    """
    foreground: Literal["face", "landmarks", "ellipse", "centre"]
    match settings.rule:
        case "user":
            raise InputError(
                "the region rule user takes masks that are given in Python (r2m_jax.models.corit.apply_corit); choose "
                "another rule to train or score files."
            )
        case "face" | "landmarks" | "ellipse" | "centre":
            foreground = settings.rule
        case "saliency":
            foreground = "centre"  # what is blended is chosen before the tower has seen anything
        case "random":
            foreground = "face"
    return Pairs(size, patch, foreground, settings.streams - 1, settings.cgp == "random", policy)


def without_landmarks(settings: CoritSettings, records: Sequence[Record]) -> str:
    """A sentence on images whose face the ellipse stands for; empty where that is none."""
    missing = sum(not record.landmarks for record in records)
    if settings.rule not in ("face", "random") or not missing:
        return ""
    return f"{missing} of {len(records)} images have no landmarks; the ellipse of an aligned crop stands for their face"


def encoder(
    config: Any, settings: CoritSettings, options: TowerOptions, mean: Sequence[float], std: Sequence[float]
) -> Callable[[Params, Any], Array]:
    """z as ``encode(backbone, (uint8 streams, foreground))``, what :data:`given` takes of a batch."""
    features = corit_features(config, settings, options)

    def encode(backbone: Params, inputs: Any) -> Array:
        streams, foreground = inputs
        return features(backbone, normalise(streams, mean, std), foreground)

    return encode
