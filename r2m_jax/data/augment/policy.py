"""What may happen to a training image: probabilities and ranges, and how DeepfakeBench's configuration names them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from r2m_jax.errors import InputError

Subsampling = Literal["4:2:0", "4:4:4"]


@dataclass(frozen=True)
class Policy:
    """Probabilities and inclusive ranges, in the order in which the transforms are applied; hashable.

    Defaults are those of DeepfakeBench's training configuration, applied by albumentations 1.1.0. Of ``one_of`` and the
    pair ``brightness``, ``contrast`` only one may be in use.

    Attributes:
        flip: probability of mirroring left to right.
        rotate: probability of a rotation about (width/2, height/2), bilinear, border reflected without its edge pixel.
        degrees: of the rotation, uniform; positive is counter-clockwise.
        blur: probability of a Gaussian blur.
        blur_sizes: side of its kernel, an integer uniform in the range; an even one becomes the next odd one, so 3…7
            gives 3, 5, 7 with probabilities 1/5, 2/5, 2/5.
        one_of: probability of one of three, equally likely: brightness with contrast, FancyPCA, HSV shift.
        brightness: probability of changing the brightness by itself (R2M's wording).
        contrast: probability of changing the contrast by itself.
        brightness_limits: added to the image as a fraction of 255, uniform.
        contrast_limits: added to the factor 1, uniform.
        pca_std: standard deviation of FancyPCA's factor.
        hue_limits: shift of the hue in OpenCV's units (0…179), uniform.
        saturation_limits: shift of the saturation (0…255), uniform.
        value_limits: shift of the value (0…255), uniform.
        jpeg: probability of JPEG compression.
        jpeg_qualities: integer uniform in the range, both ends included.
        jpeg_subsampling: of the chroma; 4:2:0 is what OpenCV and Pillow do when nothing is said.

    Raises:
        InputError: a probability is outside 0…1, a range is reversed or out of bounds, or two colour modes are on.
    """

    flip: float = 0.5
    rotate: float = 0.5
    degrees: tuple[float, float] = (-10.0, 10.0)
    blur: float = 0.5
    blur_sizes: tuple[int, int] = (3, 7)
    one_of: float = 0.5
    brightness: float = 0.0
    contrast: float = 0.0
    brightness_limits: tuple[float, float] = (-0.1, 0.1)
    contrast_limits: tuple[float, float] = (-0.1, 0.1)
    pca_std: float = 0.1
    hue_limits: tuple[float, float] = (-20.0, 20.0)
    saturation_limits: tuple[float, float] = (-30.0, 30.0)
    value_limits: tuple[float, float] = (-20.0, 20.0)
    jpeg: float = 0.5
    jpeg_qualities: tuple[int, int] = (40, 100)
    jpeg_subsampling: Subsampling = "4:2:0"

    def __post_init__(self) -> None:
        for name in ("flip", "rotate", "blur", "one_of", "brightness", "contrast", "jpeg"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"The probability of {name} is {getattr(self, name)}; it must be between 0 and 1.")
        for name, (least, most) in _BOUNDS.items():
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise InputError(
                    f"The range {name} is {low} to {high}; it must run upwards and stay within {least} to {most}."
                )
        if not all(size % 2 for size in self.blur_sizes):
            raise InputError(f"The range blur_sizes is {self.blur_sizes[0]} to {self.blur_sizes[1]}; both must be odd.")
        if self.pca_std < 0:
            raise InputError(f"pca_std is {self.pca_std}; a standard deviation is not negative.")
        if self.jpeg_subsampling not in ("4:2:0", "4:4:4"):
            raise InputError(f"The JPEG subsampling {self.jpeg_subsampling!r} is not known; use '4:2:0' or '4:4:4'.")
        if self.one_of and (self.brightness or self.contrast):
            raise InputError("one_of and separate brightness/contrast probabilities exclude each other; set one to 0.")

    @property
    def blur_choices(self) -> tuple[int, ...]:
        """Odd kernel sizes, each as often as it is drawn."""
        low, high = self.blur_sizes
        return tuple(size + 1 - size % 2 for size in range(low, high + 1))


_BOUNDS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "degrees": (-180, 180),
        "blur_sizes": (3, 7),  # the device's kernel has seven taps
        "brightness_limits": (-1, 1),
        "contrast_limits": (-1, 1),
        "hue_limits": (-180, 180),
        "saturation_limits": (-255, 255),
        "value_limits": (-255, 255),
        "jpeg_qualities": (1, 100),
    }
)

PRESETS: Mapping[str, Policy] = MappingProxyType(
    {
        "df40": Policy(),
        # R2M, B.2 "Data augmentation". It gives no probability for JPEG and says that it follows DF40, where it is 1/2.
        "r2m_text": Policy(one_of=0.0, brightness=0.5, contrast=0.5),
        "flip": Policy(rotate=0.0, blur=0.0, one_of=0.0, jpeg=0.0),
        "none": Policy(flip=0.0, rotate=0.0, blur=0.0, one_of=0.0, jpeg=0.0),
    }
)
"""``df40``: the code of DeepfakeBench and DF40; ``r2m_text``: the wording of the R2M paper; ``flip``: mirrored at
random; ``none``: no change."""


def preset(name: str) -> Policy:
    """A policy by name.

    Raises:
        InputError: there is none of that name.
    """
    if name not in PRESETS:
        raise InputError(f"There is no augmentation {name!r}; the names are {', '.join(PRESETS)}.")
    return PRESETS[name]


_PROBABILITIES = {"flip_prob": "flip", "rotate_prob": "rotate", "blur_prob": "blur"}
_RANGES = {
    "rotate_limit": "degrees",
    "blur_limit": "blur_sizes",
    "brightness_limit": "brightness_limits",
    "contrast_limit": "contrast_limits",
}
_KEYS = (*_PROBABILITIES, *_RANGES, "brightness_prob", "quality_lower", "quality_upper")


def read_data_aug(config: Mapping[str, Any]) -> tuple[Policy, list[str]]:
    """The policy that a ``data_aug`` block of a DeepfakeBench yaml asks for.

    A range may be one number x: -x…x, or 3…x for ``blur_limit``, as in albumentations. What DeepfakeBench's code fixes
    whatever the block says (the colour changes and JPEG happen with probability 1/2) stays fixed.

    Args:
        config: keys ``flip_prob``, ``rotate_prob``, ``rotate_limit``, ``blur_prob``, ``blur_limit``,
            ``brightness_prob``, ``brightness_limit``, ``contrast_limit``, ``quality_lower``, ``quality_upper``.

    Returns:
        The policy, and one sentence for every key that is missing or has no effect.

    Raises:
        InputError: a key is unknown, or a value is not of its kind or out of bounds.
    """
    for key in config:
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, 1)
            hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(_KEYS)}."
            raise InputError(f"data_aug has no key {key!r}; {hint}")
    default = PRESETS["df40"]
    notes = []
    if config.get("brightness_prob", default.one_of) != default.one_of:
        notes.append(
            f"data_aug: brightness_prob {config['brightness_prob']} has no effect, as in DeepfakeBench's code: "
            f"one of brightness/contrast, FancyPCA and HSV happens with probability {default.one_of}."
        )
    given: dict[str, Any] = {}
    for key, field in _PROBABILITIES.items():
        if key in config:
            given[field] = _number(key, config[key])
    for key, field in _RANGES.items():
        if key in config:
            given[field] = _range(key, config[key], whole=key == "blur_limit")
    ends = [
        _number(key, config[key], whole=True) if key in config else end
        for key, end in zip(("quality_lower", "quality_upper"), default.jpeg_qualities, strict=True)
    ]
    given["jpeg_qualities"] = tuple(ends)
    missing = [key for key in _KEYS if key not in config and key != "brightness_prob"]
    if missing:
        notes.append(f"data_aug: {', '.join(missing)} not given; DeepfakeBench's usual values are taken.")
    try:
        return replace(default, **given), notes
    except InputError as error:
        raise InputError(f"data_aug: {error}") from None


def _number(key: str, value: Any, *, whole: bool = False) -> float | int:
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise InputError(f"data_aug: {key} is {value!r}; give {'a whole number' if whole else 'a number'}.")
    return value


def _range(key: str, value: Any, *, whole: bool) -> tuple[float | int, float | int]:
    if isinstance(value, list | tuple):
        if len(value) != 2:
            raise InputError(f"data_aug: {key} is {value!r}; give one number or two, the least and the most.")
        return _number(key, value[0], whole=whole), _number(key, value[1], whole=whole)
    most = _number(key, value, whole=whole)
    return (3 if key == "blur_limit" else -most), most
