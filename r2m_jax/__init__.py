"""Deepfake detectors that are merged, not retrained.

    >>> import r2m_jax
    >>> det = r2m_jax.load_detector("runs/r2m")          # doctest: +SKIP
    >>> det(det.preprocess(pil_images))                  # doctest: +SKIP

Names below are imported on first use, so that ``import r2m_jax`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from r2m_jax.errors import InputError
from r2m_jax.version import __version__

if TYPE_CHECKING:
    from r2m_jax.checkpoints import load_detector, save_detector, tiny_base
    from r2m_jax.models import Detector

_HOMES = {
    "Detector": "r2m_jax.models",
    "load_detector": "r2m_jax.checkpoints",
    "save_detector": "r2m_jax.checkpoints",
    "tiny_base": "r2m_jax.checkpoints",
}

__all__ = ["Detector", "InputError", "__version__", "load_detector", "save_detector", "tiny_base"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
