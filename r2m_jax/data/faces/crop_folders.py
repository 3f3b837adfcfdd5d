"""Which images are face crops already, and of which framing: told by the folder they lie in, or by the face itself."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float

from r2m_jax.data.faces.journal import NAME

# A crop's face, looked for once more, lies where the template says but for the landmarks' jitter: of 198 crops of FFHQ
# faces 99 % were turned and scaled by at most 0.105 and shifted by at most 0.015 of the side.
_TURN, _SHIFT = 0.12, 0.03


@dataclass(frozen=True)
class Framing:
    """How faces were cropped.

    Attributes:
        size: sides of the crops in pixels.
        margin: how many times ArcFace's field of view, see :func:`r2m_jax.data.faces.align.template`.
    """

    size: int = 256
    margin: float = 1.3


@lru_cache(maxsize=2**16)
def framing_of(folder: str) -> Framing | None:
    """The framing of the crops a folder holds, where it is, or lies in, one that ``r2m data crop`` made; else None."""
    place = Path(folder)
    try:
        with (place / NAME).open(encoding="utf-8") as journal:
            settings = json.loads(journal.readline())
            return Framing(int(settings["size"]), float(settings["margin"]))
    except (OSError, ValueError, KeyError, TypeError):  # no journal, or something else under its name
        return None if place.parent == place else framing_of(str(place.parent))


def common_framing(paths: Iterable[str]) -> Framing | None:
    """The framing of all images where they are crops of one framing, else None."""
    found = {framing_of(str(Path(folder).absolute())) for folder in {path.rpartition("/")[0] for path in paths}}
    return found.pop() if len(found) == 1 else None


def is_framed(matrix: Float[np.ndarray, "2 3"], width: int, height: int, framing: Framing) -> bool:
    """Whether an image is a crop already: square, and cropping it would move next to nothing.

    Args:
        matrix: of :func:`r2m_jax.data.faces.align.crop_matrix`, from pixels of the image to pixels of the crop.
        width, height: of the image.
        framing: of the crop.
    """
    if width != height:
        return False
    own = matrix * (width / framing.size)  # to pixels of a crop of the image's own size
    turn = abs(complex(own[0, 0], own[1, 0]) - 1)
    centre = np.full(2, (width - 1) / 2)
    shift = float(np.linalg.norm(own[:, :2] @ centre + own[:, 2] - centre)) / width
    return turn <= _TURN and shift <= _SHIFT
