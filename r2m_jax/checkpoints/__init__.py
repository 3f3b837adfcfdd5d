"""Reading and writing models: model directories, foreign checkpoints, provenance."""

from importlib import resources
from pathlib import Path

from r2m_jax.checkpoints.convolutional import load_convolutional, save_convolutional
from r2m_jax.checkpoints.corit import load_corit, save_corit
from r2m_jax.checkpoints.directory import load_detector, read_config, save_detector
from r2m_jax.checkpoints.preprocessing import image_processor


def tiny_base() -> Path:
    """The model directory of the tiny base that ships with the package (see its README.md)."""
    return Path(str(resources.files("r2m_jax.models") / "tiny_base"))


__all__ = [
    "image_processor", "load_convolutional", "load_corit", "load_detector", "read_config", "save_convolutional",
    "save_corit", "save_detector", "tiny_base",
]  # fmt: skip
