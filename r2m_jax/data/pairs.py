"""Images together with self-blended images of themselves, made while batches are decoded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from r2m_jax.data.augment import Policy, host
from r2m_jax.data.foreground import (
    ALIGNED_FACE,
    CENTRE,
    after_augmentation,
    after_resizing,
    inside_ellipse,
    inside_face,
    patch_shares,
    read_landmarks,
)
from r2m_jax.data.forge.self_blending import canonical_self_blend, self_blend_inside
from r2m_jax.data.images import resize_and_crop
from r2m_jax.data.records import Record
from r2m_jax.errors import InputError


@dataclass(frozen=True)
class Pairs:
    """A preparation for :class:`r2m_jax.data.pipeline.Decoding`: resize, augment, then self-blend what came out.

    Gives ``image`` uint8 ``[1 + blends, size, size, 3]``, the image before its self-blended ones, and ``foreground``
    float32 ``[patches]``, the share of every patch that is foreground after augmentation.

    Attributes:
        size: sides of the images in pixels, a multiple of ``patch``.
        patch: sides of a patch.
        foreground: ``face``, landmarks where a record names some and else the ellipse of an aligned crop;
            ``landmarks``, which a record must name; ``ellipse``; ``centre``, an ellipse for any photograph.
        blends: self-blended images beside each.
        drawn: draw how they are blended (:func:`~r2m_jax.data.forge.self_blending.self_blend_inside`) instead of
            blending all alike.
        policy: of the augmentation; None for none.
    """

    size: int
    patch: int
    foreground: Literal["face", "landmarks", "ellipse", "centre"]
    blends: int = 1
    drawn: bool = False
    policy: Policy | None = None

    @property
    def arrays(self) -> Mapping[str, tuple[tuple[int, ...], type]]:
        """Shape and dtype of what is made of one image."""
        return {
            "image": ((1 + self.blends, self.size, self.size, 3), np.uint8),
            "foreground": (((self.size // self.patch) ** 2,), np.float32),
        }

    def __call__(
        self,
        picture: Image.Image,
        record: Record,
        rng: np.random.Generator,
        landmarks: Float[np.ndarray, "k 2"] | None = None,
    ) -> dict[str, Any]:
        """Arrays of one image; random choices from ``rng`` alone.

        ``landmarks`` in pixels of the picture, where they are known, go before those that the record names.

        Raises:
            InputError: its landmarks are needed and missing, or cannot be read.
        """
        image = resize_and_crop(picture, self.size)
        points = self._points(picture, record, landmarks)
        if self.policy is not None:
            draws = host.draw(rng, self.policy)
            image = host.apply(image, draws, self.policy.jpeg_subsampling)
            points = None if points is None else after_augmentation(points, draws, self.size)
        if points is not None:
            inside = inside_face(points, image.shape[:2])
        else:
            inside = inside_ellipse(image.shape[:2], CENTRE if self.foreground == "centre" else ALIGNED_FACE)
        streams = [image, *(self._blended(image, inside, rng) for _ in range(self.blends))]
        return {"image": np.stack(streams), "foreground": patch_shares(inside, self.patch)}

    def _points(self, picture: Image.Image, record: Record, known: np.ndarray | None) -> np.ndarray | None:
        if self.foreground not in ("face", "landmarks"):
            return None
        if known is not None or record.landmarks:
            points = read_landmarks(record.landmarks) if known is None else known
            return after_resizing(points, picture.size, self.size)
        if self.foreground == "landmarks":
            raise InputError(
                f"{record.path} has no landmarks in the index; find them with `r2m data crop`, or use the region rule "
                "face or ellipse."
            )
        return None

    def _blended(
        self, image: UInt8[np.ndarray, "h w 3"], inside: Bool[np.ndarray, "h w"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "h w 3"]:
        return self_blend_inside(image, inside, rng)[1] if self.drawn else canonical_self_blend(image, inside)


def by_content(picture: Image.Image) -> np.random.Generator:
    """Random choices that are the same for the same pixels, wherever the picture is from."""
    digest = hashlib.blake2b(np.asarray(picture).tobytes(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest))
