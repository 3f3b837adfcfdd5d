"""How far specialists agree with their weight average, on real and on forged images (R²M §1, Fig. 2).

The paper's claim is that averaging keeps what specialists share, the Real structure, and cancels what each learnt of
its own forgeries: the cosine similarity of pre-logit features of a specialist and of the average is high on real
images, lower on forgeries of the specialist's own family, and between on those of other families.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from r2m_jax.data.records import Record
from r2m_jax.errors import InputError

REAL, OWN, OTHER = KINDS = ("Real", "Own-Fake", "Other-Fake")
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of the quantiles that are given."""


@dataclass(frozen=True)
class Similarity:
    """Similarities of one specialist to the average on one kind of images.

    Attributes:
        values: cosine per image, float64 [k].
    """

    values: Float[np.ndarray, " k"]

    @property
    def count(self) -> int:
        """Images."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Mean over images; NaN without any."""
        return float(self.values.mean()) if self.count else float("nan")

    @property
    def deviation(self) -> float:
        """Standard deviation over images (n - 1); NaN for fewer than two."""
        return float(self.values.std(ddof=1)) if self.count > 1 else float("nan")

    @property
    def quantiles(self) -> dict[float, float]:
        """At ``LEVELS``; NaN without images."""
        found = np.quantile(self.values, LEVELS) if self.count else np.full(len(LEVELS), np.nan)
        return dict(zip(LEVELS, found.tolist(), strict=True))


@dataclass(frozen=True)
class Probe:
    """Similarities of every specialist on every kind of images.

    Attributes:
        found: specialist to kind (Real, Own-Fake, Other-Fake) to its similarities.
    """

    found: Mapping[str, Mapping[str, Similarity]]

    def samples(self) -> dict[str, dict[str, Float[np.ndarray, " k"]]]:
        """The numbers of :func:`r2m_jax.evaluation.plots.violins`."""
        return {name: {kind: s.values for kind, s in kinds.items()} for name, kinds in self.found.items()}

    def own_drop(self) -> dict[str, float]:
        """Per specialist, by how much Own-Fake lies below the lower of Real and Other-Fake, by their means.

        Positive where the paper's pattern holds; NaN where a kind has no images.
        """
        return {
            name: float(np.minimum(kinds[REAL].mean, kinds[OTHER].mean) - kinds[OWN].mean)
            for name, kinds in self.found.items()
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row per specialist and kind: images, mean, standard deviation, quantiles."""
        return [
            {"specialist": name, "images_of": kind, "images": s.count, "mean": s.mean, "sd": s.deviation}
            | {f"q{round(100 * level):02d}": value for level, value in s.quantiles.items()}
            for name, kinds in self.found.items()
            for kind, s in kinds.items()
        ]


def cosines(
    features: Float[np.ndarray, "*models n d"], average: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, "*models n"]:
    """Cosine similarity, image by image, in float64.

    Raises:
        InputError: shapes differ, or a feature vector is zero, NaN or infinite.
    """
    a, b = np.asarray(features, np.float64), np.asarray(average, np.float64)
    if a.shape[-2:] != b.shape:
        raise InputError(
            f"features have the shape {a.shape} and those of the average {b.shape}; score the same images."
        )
    lengths = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
    bad = sum(int((~((length > 0) & np.isfinite(length))).sum()) for length in lengths)
    if bad:
        raise InputError(f"{bad} feature vectors are zero, NaN or infinite; a cosine with them would mean nothing.")
    return np.clip(np.einsum("...nd,nd->...n", a, b) / (lengths[0] * lengths[1]), -1.0, 1.0)


def own_images(records: Sequence[Record], trained_on: Collection[str]) -> Bool[np.ndarray, " n"]:
    """Forgeries of the families or methods a specialist was trained on."""
    return np.asarray([r.label == 1 and (r.family in trained_on or r.method in trained_on) for r in records], np.bool_)


def probe(
    features: Float[np.ndarray, "models n d"],
    average: Float[np.ndarray, "n d"],
    records: Sequence[Record],
    trained_on: Mapping[str, str | Collection[str]],
) -> Probe:
    """Similarity of every specialist's features to those of the weight average.

    Args:
        features: pooled output (what the head reads) of every specialist for every image.
        average: the same of the weight average.
        records: the images.
        trained_on: specialist, in the order of ``features``, to the family it was trained on, or to several families
            or methods.

    Returns:
        Similarities on Real images, on Own-Fake (forgeries of what the specialist was trained on) and on Other-Fake.

    Raises:
        InputError: shapes do not fit, a vector is zero, NaN or infinite, or a specialist has no images of its own.
    """
    if features.ndim != 3 or len(features) != len(trained_on) or features.shape[1] != len(records):
        raise InputError(
            f"features have the shape {features.shape} for {len(trained_on)} specialists and {len(records)} images; "
            "give [specialists, images, width]."
        )
    real = np.asarray([r.label == 0 for r in records], np.bool_)
    found = {}
    for row, (name, names) in enumerate(trained_on.items()):
        own = own_images(records, {names} if isinstance(names, str) else set(names))
        if not own.any():
            what = names if isinstance(names, str) else ", ".join(names)
            raise InputError(
                f"no forged image is of what {name!r} was trained on ({what}); check families and methods."
            )
        values = cosines(features[row], average)
        masks = (real, own, ~real & ~own)
        found[name] = {kind: Similarity(values[mask]) for kind, mask in zip(KINDS, masks, strict=True)}
    return Probe(found)
