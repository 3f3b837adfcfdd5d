"""Make mergekit.npz: what mergekit 0.1.5 makes of small random CLIP vision towers.

    python tests/merging/golden/make_mergekit.py ENVIRONMENT/bin/mergekit-yaml

In an environment of its own: pip install torch==2.13.0 mergekit==0.1.5. The towers are drawn anew by the test
(:func:`towers`), so that only mergekit's results are stored.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

CONFIG = {
    "architectures": ["CLIPVisionModel"], "model_type": "clip_vision_model", "hidden_size": 8, "intermediate_size": 12,
    "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4, "torch_dtype": "float32",
}  # fmt: skip
SPECIALISTS = 3
DENSITY, ALPHA = 0.3, 0.7
METHODS = {
    "linear": {"weight": [1.0, 2.0, 0.5]},
    "task_arithmetic": {"weight": [ALPHA] * SPECIALISTS},
    "ties": {"weight": [1.0] * SPECIALISTS, "density": [DENSITY] * SPECIALISTS},
}


def towers() -> list[dict[str, np.ndarray]]:
    """A base and its specialists, tensors by Hugging Face name without prefix, float32."""
    d, f = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    layer = {f"self_attn.{name}_proj": (d, d) for name in "qkv"} | {"self_attn.out_proj": (d, d)}
    layer |= {"mlp.fc1": (f, d), "mlp.fc2": (d, f)}
    shapes = {
        "embeddings.class_embedding": (d,), "embeddings.patch_embedding.weight": (d, 3, 4, 4),
        "embeddings.position_embedding.weight": (5, d),
    }  # fmt: skip
    for norm in ("pre_layrnorm", "encoder.layers.0.layer_norm1", "encoder.layers.0.layer_norm2", "post_layernorm"):
        shapes |= {f"{norm}.weight": (d,), f"{norm}.bias": (d,)}
    for name, shape in layer.items():
        shapes |= {f"encoder.layers.0.{name}.weight": shape, f"encoder.layers.0.{name}.bias": shape[:1]}
    rng = np.random.default_rng(20)
    base = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    made = [base]
    for _ in range(SPECIALISTS):
        made.append({n: (x + 0.1 * rng.standard_normal(x.shape)).astype(np.float32) for n, x in base.items()})
    return made


def main(mergekit: Path) -> None:
    from safetensors.numpy import load_file, save_file

    found = {}
    with tempfile.TemporaryDirectory() as work:
        folders = [Path(work) / name for name in ("base", "A", "B", "C")]
        for folder, tensors in zip(folders, towers(), strict=True):
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps(CONFIG))
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        for method, parameters in METHODS.items():
            config = {
                "merge_method": method,
                "models": [
                    {"model": str(folder), "parameters": {key: values[i] for key, values in parameters.items()}}
                    for i, folder in enumerate(folders[1:])
                ],
                "parameters": {"normalize": method != "task_arithmetic"},
                "dtype": "float32",
            }
            if method != "linear":
                config["base_model"] = str(folders[0])
            recipe, out = Path(work) / f"{method}.yaml", Path(work) / f"out-{method}"
            recipe.write_text(json.dumps(config))
            command = [mergekit, recipe, out, "--no-copy-tokenizer", "--quiet"]
            subprocess.run(command, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
            merged = load_file(out / "model.safetensors")
            found |= {f"{method}/{name}": value for name, value in merged.items()}
    np.savez_compressed(Path(__file__).with_name("mergekit.npz"), allow_pickle=False, **found)
    print(f"{len(found)} tensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
