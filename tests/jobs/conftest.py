"""A random base and a small set of noise images, whose forgeries are brighter by method."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r2m_jax.data.index import write_index
from r2m_jax.data.records import Record


@pytest.fixture(scope="session")
def base(tiny_config, tmp_path_factory) -> Path:
    import jax

    from r2m_jax.checkpoints import image_processor, save_detector
    from r2m_jax.models import Detector, init_backbone, init_head

    params = {"backbone": init_backbone(tiny_config, jax.random.key(1)), "head": init_head(64, jax.random.key(2))}
    folder = tmp_path_factory.mktemp("base") / "model"
    save_detector(Detector.create(tiny_config, params, image_processor(32)), folder)
    return folder


@pytest.fixture(scope="session")
def index(tmp_path_factory) -> Path:
    """Per split 24 (train) or 12 images of each of real, ``bright`` and ``dark``."""
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    records = []
    for split, count in (("train", 24), ("val", 12), ("test", 12)):
        for method, shift in (("", 0), ("bright", 50), ("dark", -40)):
            for number in range(count):
                pixels = np.clip(rng.normal(120 + shift, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
                path = folder / f"{split}-{method or 'real'}-{number}.png"
                Image.fromarray(pixels).save(path)
                family = {"": "", "bright": "FS", "dark": "FR"}[method]
                clip = f"{method}{split}{number // 2}"  # two frames a clip
                records.append(Record(str(path), int(bool(method)), family, method, "ff", clip, split))
    write_index(records, folder / "index.csv")
    return folder / "index.csv"


@pytest.fixture
def r2m():
    """Runs the command as a user does, on so many forced host devices."""

    def run(*arguments, devices=1, check=True, wait=True):
        env = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-m", "r2m_jax", *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
        if not wait:
            return process
        out, err = process.communicate(timeout=300)
        result = subprocess.CompletedProcess(command, process.returncode, out, err)
        assert not check or process.returncode == 0, err
        return result

    return run
