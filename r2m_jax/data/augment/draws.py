"""From random numbers to the parameters of one image: written once, for numpy and for jax.numpy.

Host and device draw different random numbers but turn them into parameters by the same function, so both have the same
distributions, and either can be given the other's parameters.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

from r2m_jax.data.augment.policy import Policy

UNIFORMS = 16
"""Numbers in [0, 1) that one image takes, whatever the policy; to them comes one standard normal number."""


class Draws(NamedTuple):
    """Parameters of one image, or with a leading axis those of a batch. A neutral value says "left out".

    Attributes:
        flip: bool, mirror left to right.
        degrees: float32, of the rotation; neutral 0.
        blur_size: int32, 3, 5 or 7; neutral 1.
        gain: float32, factor of the contrast; neutral 1.
        offset: float32, brightness as a fraction of 255; neutral 0.
        pca: float32, FancyPCA's factor; neutral 0.
        hue: float32, in OpenCV's units of 2 degrees; the HSV shift is left out when all three are 0.
        saturation: float32, in grey levels.
        value: float32, in grey levels.
        jpeg_quality: int32, 1…100; neutral 0.
    """

    flip: Any
    degrees: Any
    blur_size: Any
    gain: Any
    offset: Any
    pca: Any
    hue: Any
    saturation: Any
    value: Any
    jpeg_quality: Any


def parameters(uniform: Any, normal: Any, policy: Policy, xp: ModuleType) -> Draws:
    """The parameters of one image.

    Args:
        uniform: [16] float32 in [0, 1).
        normal: float32, standard normal.
        policy: probabilities and ranges.
        xp: ``numpy`` or ``jax.numpy``, whichever the numbers are of.
    """
    (
        flips, rotates, angle, blurs, size, colours, colour,
        brightens, brightness, contrasts, contrast, hue, saturation, value, compresses, quality,
    ) = (uniform[i] for i in range(UNIFORMS))  # fmt: skip

    def within(u: Any, limits: tuple[float, float]) -> Any:
        return limits[0] + (limits[1] - limits[0]) * u

    def index(u: Any, count: int) -> Any:
        # the largest float32 below 1 times the count may round up to the count
        return xp.minimum(xp.floor(u * count), count - 1).astype(xp.int32)

    # -1 stands for no colour change, 0 brightness and contrast, 1 FancyPCA, 2 HSV
    kind = xp.where(colours < policy.one_of, index(colour, 3), -1)
    brightens = (kind == 0) | (brightens < policy.brightness)
    contrasts = (kind == 0) | (contrasts < policy.contrast)
    least, most = policy.jpeg_qualities
    sizes = xp.asarray(policy.blur_choices, xp.int32)
    draws = Draws(
        flip=flips < policy.flip,
        degrees=xp.where(rotates < policy.rotate, within(angle, policy.degrees), 0.0),
        blur_size=xp.where(blurs < policy.blur, sizes[index(size, len(policy.blur_choices))], 1),
        gain=xp.where(contrasts, 1.0 + within(contrast, policy.contrast_limits), 1.0),
        offset=xp.where(brightens, within(brightness, policy.brightness_limits), 0.0),
        pca=xp.where(kind == 1, policy.pca_std * normal, 0.0),
        hue=xp.where(kind == 2, within(hue, policy.hue_limits), 0.0),
        saturation=xp.where(kind == 2, within(saturation, policy.saturation_limits), 0.0),
        value=xp.where(kind == 2, within(value, policy.value_limits), 0.0),
        jpeg_quality=xp.where(compresses < policy.jpeg, least + index(quality, most - least + 1), 0),
    )
    return Draws(*(leaf.astype(_DTYPES.get(name, xp.float32)) for name, leaf in draws._asdict().items()))


_DTYPES = {"flip": "bool", "blur_size": "int32", "jpeg_quality": "int32"}
