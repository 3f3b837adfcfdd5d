"""A tiny trained-like model directory, and a specialist of it."""

from pathlib import Path

import jax
import numpy as np
import pytest

from r2m_jax.checkpoints import image_processor, save_detector
from r2m_jax.checkpoints.provenance import input_hashes, record
from r2m_jax.checkpoints.tensors import safetensors_files
from r2m_jax.models import Detector, init_backbone, init_head
from r2m_jax.trees import flatten, unflatten


@pytest.fixture(scope="session")
def params(tiny_config):
    """Biases and norms away from their start, so that swapped leaves show."""
    rng = np.random.default_rng(0)
    made = {"backbone": init_backbone(tiny_config, jax.random.key(1)), "head": init_head(64, jax.random.key(2))}
    return unflatten(
        {
            path: np.asarray(leaf) + 0.05 * rng.normal(size=leaf.shape).astype(np.float32)
            for path, leaf in flatten(made).items()
        }
    )


@pytest.fixture(scope="session")
def model(tiny_config, params, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("compression") / "model"
    save_detector(Detector.create(tiny_config, params, image_processor(32)), folder, provenance=record("base"))
    return folder


@pytest.fixture(scope="session")
def specialist(tiny_config, params, model) -> Path:
    """Every tensor moved a little, the class token not at all."""
    rng = np.random.default_rng(1)
    moved = {
        path: leaf + (0 if "class_token" in path else 1e-3) * rng.normal(size=leaf.shape).astype(np.float32)
        for path, leaf in flatten(params).items()
    }
    folder = model.with_name("specialist")
    made = record("specialist", inputs=input_hashes(safetensors_files(model)))
    save_detector(Detector.create(tiny_config, unflatten(moved), image_processor(32)), folder, provenance=made)
    return folder
