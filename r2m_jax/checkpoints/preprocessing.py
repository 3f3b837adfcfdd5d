"""``preprocessor_config.json``: how an image becomes a tower's input; it travels with the model.

The processing itself is transformers' ``CLIPImageProcessorPil`` (Pillow, no torch): resize the shorter side,
crop the centre, rescale, normalise.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r2m_jax.checkpoints.provenance import read_json
from r2m_jax.errors import InputError

if TYPE_CHECKING:
    from transformers import CLIPImageProcessorPil

FILE = "preprocessor_config.json"

# OpenAI's normalisation, https://github.com/openai/CLIP (clip.py, _transform).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# DeepfakeBench and DF40 train with mean = std = 0.5 (their detector yaml, keys `mean` and `std`).
HALF = (0.5, 0.5, 0.5)
# 0…1 as it is.
BLACK, UNIT = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def image_processor(
    size: int, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD
) -> CLIPImageProcessorPil:
    """A processor for square inputs of ``size`` pixels with the given per-channel normalisation of 0…1 RGB."""
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=list(mean),
        image_std=list(std),
    )


def read_processor(directory: Path) -> CLIPImageProcessorPil:
    """The processor stored in a model directory.

    Raises:
        InputError: the file is missing or describes no CLIP processing.
    """
    return parse_processor(read_settings(directory), str(Path(directory) / FILE))


def read_settings(directory: Path) -> dict[str, Any]:
    """What the file of a model directory says, without transformers' class around it.

    Raises:
        InputError: the file is missing or does not say how images are normalised and cropped.
    """
    path = Path(directory) / FILE
    if not path.exists():
        raise InputError(
            f"{directory} has no {FILE}, so its normalisation is unknown; `r2m convert` writes a directory with one."
        )
    settings = read_json(path)
    if not isinstance(settings, dict) or not {"image_mean", "image_std"} <= settings.keys():
        raise InputError(f"{path} does not say image_mean and image_std.")
    return settings


def parse_processor(settings: Any, where: str) -> CLIPImageProcessorPil:
    """A processor from the JSON that ``where`` holds.

    Raises:
        InputError: it describes no CLIP processing.
    """
    if not isinstance(settings, dict) or not {"image_mean", "image_std"} <= settings.keys():
        raise InputError(f"{where} does not say image_mean and image_std.")
    from transformers import CLIPImageProcessorPil

    try:
        return CLIPImageProcessorPil.from_dict(settings)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where} describes no CLIP image processor ({error}).") from None


def processor_settings(processor: CLIPImageProcessorPil) -> dict[str, Any]:
    """What :func:`read_processor` reads back, under the class name every transformers release knows."""
    settings = json.loads(processor.to_json_string())
    return settings | {"image_processor_type": "CLIPImageProcessor"}
