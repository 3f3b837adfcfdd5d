"""The switches of a CoRIT detector: what is scored depends on every one of them, so they are stored with the head."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, get_args, get_type_hints

from r2m_jax.errors import InputError

Pooling = Literal["avg", "max"]
Rule = Literal["face", "landmarks", "ellipse", "centre", "saliency", "random", "user"]
Threshold = Literal["mean", "absolute", "max", "deviation", "cosine"]
Proxy = Literal["raw", "unit"]
Fusion = Literal["concat", "cross_attention"]
Mode = Literal["off", "canonical", "random"]
Attention = Literal["full", "read_only"]
Start = Literal["regions", "zeros", "class_token"]
FeatureNorm = Literal["ln_post", "none", "unit_rms"]

AREAS = ("foreground", "boundary", "background")
"""Regions that a foreground divides an image into."""


@dataclass(frozen=True)
class CoritSettings:
    """What CoRIT computes (arXiv 2603.24057, section IV); the defaults are the paper's, or where it is silent ours.

    Attributes:
        rsi: Regional Signal Injection: one token per region beside the others in every block (equations 22 and 23);
            off, there are none, and ``rrm`` has nothing to act on.
        rrm: Region Refinement Mask (equation 20); off, a region's mask is the whole region.
        hri: Hierarchical Representation Integration (equation 24); off, the head reads the last layer alone.
        pooling: of the patches under a mask, ``avg`` (equation 21) or ``max``.
        regions: which areas, any of :data:`AREAS`; under the rules ``random`` and ``user`` names of your own. Their
            number is K.
        rule: where the foreground is from. ``face``: hull of the landmarks, the ellipse of an aligned crop where an
            image has none; ``landmarks``: an image without is an error; ``ellipse`` and ``centre``: fixed ellipses, of
            an aligned face crop and of any photograph; ``saliency``: tokens of the middle layer that differ most from
            their mean; ``random``: a fixed partition into K equal parts; ``user``: masks given in Python.
        gamma: coherence coefficient of the threshold.
        threshold: what a token's projection s on its region's direction must exceed, means over the region:
            ``mean`` γ·mean(s); ``absolute`` γ; ``max`` γ·max(s); ``deviation`` mean(s) + γ·std(s); ``cosine``: s over
            the token's own length must exceed γ. The paper's form is lost.
        proxy: the Contrastive Gradient Proxy as the difference of tokens, or ``unit``, each of length one.
        fusion_layer: L', counted from 1; None for three quarters of the depth (18 of 24).
        fusion: of both layers' tokens: ``concat``, or ``cross_attention`` (equation 25), which has parameters.
        cgp: what the image is compared with: ``canonical``, one fixed self-blending; ``random``, drawn ones; ``off``,
            nothing, which halves the cost and leaves masks whole.
        draws: self-blended images whose mean the image is compared with (``random`` only).
        attention: ``read_only`` hides region tokens from the others, which then are those of the plain tower.
        start: T⁰: means of the embedded patches by region, zeros, or copies of the class token.
        feature_norm: of every token the head reads: the tower's frozen last layer norm, none, or a root mean square
            of one.
        seed: of the partition under ``random``.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    rsi: bool = True
    rrm: bool = True
    hri: bool = True
    pooling: Pooling = "avg"
    regions: tuple[str, ...] = AREAS
    rule: Rule = "face"
    gamma: float = 0.1
    threshold: Threshold = "mean"
    proxy: Proxy = "raw"
    fusion_layer: int | None = None
    fusion: Fusion = "concat"
    cgp: Mode = "canonical"
    draws: int = 1
    attention: Attention = "full"
    start: Start = "regions"
    feature_norm: FeatureNorm = "ln_post"
    seed: int = 0

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in fields(self):
            value, choices = getattr(self, field.name), get_args(hints[field.name])
            if all(isinstance(choice, str) for choice in choices) and choices and value not in choices:
                raise InputError(f"CoRIT's {field.name} is {value!r}; choose one of {', '.join(choices)}.")
        if len(set(self.regions)) != len(self.regions):
            raise InputError(f"CoRIT's regions {list(self.regions)} name one twice.")
        unknown = [name for name in self.regions if name not in AREAS]
        if unknown and self.rule not in ("random", "user"):
            raise InputError(f"CoRIT knows no region {unknown[0]!r}; there are {', '.join(AREAS)}.")
        if math.isnan(self.gamma) or math.isinf(self.gamma):
            raise InputError(f"CoRIT's gamma is {self.gamma}; it must be a finite number.")
        if self.draws < 1 or (self.draws > 1 and self.cgp != "random"):
            raise InputError(f"CoRIT's draws={self.draws} needs cgp=random and one draw or more.")
        if self.fusion == "cross_attention" and not self.hri:
            raise InputError("CoRIT's fusion=cross_attention joins two layers; it needs hri.")

    @property
    def region_tokens(self) -> int:
        """K, or 0 without region tokens."""
        return len(self.regions) if self.rsi else 0

    @property
    def refined(self) -> bool:
        """Whether masks are narrower than their regions, for which self-blended images are needed."""
        return self.rrm and self.region_tokens > 0 and self.cgp != "off"

    @property
    def streams(self) -> int:
        """Images that go through the tower together: the image and its self-blended ones."""
        return 1 + self.draws if self.refined else 1

    @property
    def layers_read(self) -> int:
        """Layers whose tokens the head reads."""
        return 2 if self.hri else 1

    def resolved(self, config: Any) -> CoritSettings:
        """The same with L' as a number.

        Args:
            config: the tower's.

        Raises:
            InputError: there is no such layer below the last.
        """
        depth = config.num_hidden_layers
        layer = max(1, 3 * depth // 4) if self.fusion_layer is None else self.fusion_layer
        if self.hri and not 1 <= layer < depth:
            raise InputError(
                f"CoRIT's fusion_layer={layer} is no layer before the last of {depth}; choose 1 to {depth - 1}."
            )
        return replace(self, fusion_layer=layer)

    def width(self, config: Any) -> int:
        """Numbers the head reads of an image, before any cross-attention: layers read x (1 + K) x d."""
        return self.layers_read * (1 + self.region_tokens) * config.hidden_size
