"""Fixtures shared by all tests: eight host devices, tiny random models, the shared data where present."""

import gc
import os
import subprocess
import sys
from pathlib import Path

# Programs compiled by one test serve the others, their subprocesses and the next run.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax

# Before the first use of a device: the sharding tests need several.
jax.config.update("jax_num_cpu_devices", 8)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

# A first example may compile or import; how long it takes says nothing about the code.
settings.register_profile("r2m", deadline=None)
settings.load_profile("r2m")

TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 24,
}


@pytest.fixture(autouse=True, scope="module")
def _room_for_programs():
    """Forget compiled programs before there are too many.

    Each takes some eight memory maps, of which Linux gives a process 65,530; LLVM ends the process at the last one.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def tiny_config():
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(**TINY)


@pytest.fixture(scope="session")
def tiny_torch(tiny_config):
    """A random CLIP vision model on torch, projection included."""
    torch = pytest.importorskip("torch", reason="torch is the reference implementation (extra `dev`)")
    from transformers import CLIPVisionModelWithProjection

    torch.manual_seed(0)
    model = CLIPVisionModelWithProjection(tiny_config).eval()
    with torch.no_grad():  # transformers starts biases at 0 and norms at 1, which would hide swapped leaves
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="session")
def tiny_hf_dir(tiny_torch, tmp_path_factory) -> Path:
    """The same model as a Hugging Face directory, with a processor."""
    from r2m_jax.checkpoints import image_processor

    folder = tmp_path_factory.mktemp("hf") / "tiny"
    tiny_torch.save_pretrained(folder)
    image_processor(32).save_pretrained(folder)
    return folder


@pytest.fixture
def detector(tiny_config):
    """A random detector with a random head."""
    from r2m_jax.checkpoints import image_processor
    from r2m_jax.models import Detector, init_backbone, init_head

    params = {
        "backbone": init_backbone(tiny_config, jax.random.key(1)),
        "head": init_head(64, jax.random.key(2)),
    }
    return Detector.create(tiny_config, params, image_processor(32))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    root = Path(os.environ.get("R2M_SHARED", Path(__file__).parents[2] / "shared")) / "data"
    if not root.is_dir():
        pytest.skip(f"the shared data are not at {root} (set R2M_SHARED)")
    return root


@pytest.fixture(scope="session")
def clip_b16(shared_data, tmp_path_factory) -> Path:
    """Real CLIP ViT-B/16 weights as a Hugging Face directory."""
    folder = tmp_path_factory.mktemp("clip") / "clip_vit_b16"
    script = shared_data / "clip_vit_b16" / "unpack.py"
    subprocess.run([sys.executable, str(script), str(folder)], check=True, capture_output=True)
    return folder
