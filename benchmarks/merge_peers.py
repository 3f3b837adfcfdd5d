"""What benchmarks/merge.py runs in processes of its own: models to merge, R²M as others would write it, a reference.

    python benchmarks/merge_peers.py prepare FOLDER --tower tiny --specialists 3
    python benchmarks/merge_peers.py plain numpy FOLDER OUT --specialists 3 --rank 0.7
    python benchmarks/merge_peers.py reference FOLDER --specialists 3 --rank 0.7

Random models stand for trained ones. A weight of the base has a standard deviation of 0.02, an update one of 3e-4
times the specialist's length (CLIP B/16 after 700 steps of Adam: ‖τ‖ of 1.4 to 4.8, an rms of 1.5e-4 to 5e-4). The
update of a matrix is a part that all specialists share plus one of its own; each is of rank 64 with singular values
falling as 1/j, plus white noise of full rank. The noise puts the first singular value of an update at about 100 times
the one at 70 % of the rank; `prepare` measures it on two matrices and writes it with norms and cosines to models.json.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import numpy as np
import typer
from safetensors import safe_open

FILE = "model.safetensors"
PREFIX = "vision_model."
NAMES = "ABCDEFGH"
LENGTHS = (1.0, 1.7, 0.5, 1.3, 0.8, 1.1, 0.6, 1.5)
SHARED = (0.6, 0.5, 0.3, 0.45, 0.55, 0.35, 0.4, 0.5)
"""Share of a specialist's squared update that all have in common; the cosine of two is the root of the product."""
BASE_SCALE, UPDATE_SCALE = 0.02, 3e-4
STRONG_RANK, CONDITION = 64, 135.0
"""135 of either part apart makes about 100 of their sum."""
ALPHA = 0.5
BLOCK = 64 * 2**20

app = typer.Typer(pretty_exceptions_enable=False)
Shapes = dict[str, tuple[int, ...]]


def truncated(name: str) -> bool:
    """The weight matrices of attention and MLP, in Hugging Face names."""
    return re.search(r"\.(self_attn|mlp)\..*\.weight$", name) is not None


def layer_of(name: str) -> int:
    found = re.search(r"\.layers\.(\d+)\.", name)
    return int(found[1]) if found else -1


def folders(folder: Path, specialists: int) -> list[Path]:
    """The base and the specialists."""
    return [folder / "base", *(folder / name for name in NAMES[:specialists])]


# Models


def tower_config(tower: str, layers: int | None, width: int | None) -> Any:
    from transformers import CLIPVisionConfig

    from r2m_jax.models import vision_config

    tiny = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPVisionConfig(**tiny, patch_size=8, image_size=32) if tower == "tiny" else vision_config(tower)
    if layers:
        config.num_hidden_layers = layers
    if width:
        config.hidden_size, config.intermediate_size = width, 4 * width
        config.num_attention_heads = max(1, width // 64)
    return config


def tensor_shapes(config: Any) -> Shapes:
    d, inner, patch = config.hidden_size, config.intermediate_size, config.patch_size
    shapes: Shapes = {
        "embeddings.class_embedding": (d,),
        "embeddings.patch_embedding.weight": (d, 3, patch, patch),
        "embeddings.position_embedding.weight": ((config.image_size // patch) ** 2 + 1, d),
        "pre_layrnorm.weight": (d,),
        "pre_layrnorm.bias": (d,),
    }
    for layer in range(config.num_hidden_layers):
        block = {f"self_attn.{part}_proj": (d, d) for part in ("q", "k", "v", "out")}
        block |= {"mlp.fc1": (inner, d), "mlp.fc2": (d, inner)}
        for name, (rows, columns) in block.items():
            shapes[f"encoder.layers.{layer}.{name}.weight"] = (rows, columns)
            shapes[f"encoder.layers.{layer}.{name}.bias"] = (rows,)
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= {f"encoder.layers.{layer}.{norm}.{part}": (d,) for part in ("weight", "bias")}
    shapes |= {"post_layernorm.weight": (d,), "post_layernorm.bias": (d,)}
    return {PREFIX + name: shape for name, shape in shapes.items()}


@contextmanager
def tensor_file(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "F32") -> Iterator[BinaryIO]:
    """A safetensors file that takes its tensors one after another, in the order of ``shapes``."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + int(np.prod(shape)) * {"F32": 4, "F64": 8}[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        yield file
        if file.tell() != 8 + len(text) + end:
            raise ValueError(f"{path} got {file.tell() - 8 - len(text)} bytes of tensors, not {end}.")


def update_part(rng: np.random.Generator, shape: tuple[int, ...], is_matrix: bool) -> np.ndarray:
    """A random update of mean square 1."""
    white = rng.standard_normal(shape, np.float32)
    if not is_matrix:
        return white
    rows, columns = shape
    small, large = sorted(shape)
    rank = min(STRONG_RANK, small // 8)
    left = rng.standard_normal((rows, rank), np.float32) / np.float32(np.sqrt(rows))
    left /= np.arange(1, rank + 1, dtype=np.float32)
    strong = left @ (rng.standard_normal((rank, columns), np.float32) / np.float32(np.sqrt(columns)))
    at_seventy_percent = np.sqrt(large) - 0.52 * np.sqrt(small)  # of white noise, by the quarter-circle law
    strong += white * np.float32(1 / (CONDITION * at_seventy_percent))
    return strong / np.float32(np.sqrt(np.mean(np.square(strong), dtype=np.float64)))


@app.command()
def prepare(
    folder: Path,
    tower: str = "tiny",
    layers: int | None = None,
    width: int | None = None,
    specialists: int = 3,
    seed: int = 0,
    unprefixed: Annotated[
        bool, typer.Option(help="Copies with the names mergekit needs, in FOLDER/unprefixed.")
    ] = False,
) -> None:
    """Make a base and specialists, tensor by tensor; what is there already stays."""
    manifest = folder / "models.json"
    if not manifest.exists():
        config = tower_config(tower, layers, width)
        facts = write_models(folder, config, specialists, seed)
        manifest.write_text(json.dumps({"config": config.to_dict(), "seed": seed} | facts, indent=2) + "\n")
    if unprefixed and not (folder / "unprefixed" / "done").exists():
        for source in folders(folder, specialists):
            copy_unprefixed(source, folder / "unprefixed" / source.name)
        (folder / "unprefixed" / "done").touch()


def write_models(folder: Path, config: Any, specialists: int, seed: int) -> dict[str, Any]:
    from r2m_jax.checkpoints.preprocessing import image_processor, processor_settings

    shapes, heads = tensor_shapes(config), {"head.weight": (2, config.hidden_size), "head.bias": (2,)}
    shutil.rmtree(folder, ignore_errors=True)
    settings = config.to_dict() | {"architectures": ["CLIPVisionModel"], "model_type": "clip_vision_model"}
    processor = processor_settings(image_processor(config.image_size))
    paths = folders(folder, specialists)
    for path in paths:
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
        (path / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
    products, conditions = np.zeros((specialists, specialists)), {}
    with ExitStack() as open_files:
        # Heads last: the unprefixed copies end before them.
        files = [
            open_files.enter_context(tensor_file(path / FILE, shapes | (heads if path.name != "base" else {})))
            for path in paths
        ]
        for number, (name, shape) in enumerate(shapes.items()):
            common, *own = (np.random.default_rng([seed, number, part]) for part in range(specialists + 1))
            base = common.standard_normal(shape, np.float32) * np.float32(BASE_SCALE)
            if "norm" in name and name.endswith("weight"):
                base += np.float32(1)
            files[0].write(base.tobytes())
            shared = update_part(common, shape, truncated(name))
            updates = np.empty((specialists, int(np.prod(shape))))
            for index, rng in enumerate(own):
                scale, share = UPDATE_SCALE * LENGTHS[index], SHARED[index]
                update = np.float32(scale * np.sqrt(share)) * shared
                update += np.float32(scale * np.sqrt(1 - share)) * update_part(rng, shape, truncated(name))
                files[index + 1].write((base + update).tobytes())
                updates[index] = update.ravel()
            products += updates @ updates.T
            if layer_of(name) == 0 and name.endswith(("q_proj.weight", "fc1.weight")):
                sigma = np.linalg.svd(updates[0].reshape(shape), compute_uv=False)
                conditions[name] = float(sigma[0] / sigma[int(0.7 * len(sigma)) - 1])
        for index in range(specialists):
            rng = np.random.default_rng([seed, len(shapes), index])
            for shape in heads.values():
                files[index + 1].write((rng.standard_normal(shape, np.float32) * np.float32(BASE_SCALE)).tobytes())
    norms = np.sqrt(np.diag(products))
    return {
        "parameters": sum(int(np.prod(shape)) for shape in shapes.values()),
        "task_norms": norms.tolist(),
        "cosines": (products / np.outer(norms, norms)).round(4).tolist(),
        "first singular value over the one at 70 % of the rank": conditions,
    }


def copy_unprefixed(source: Path, target: Path) -> None:
    """The tower alone, under the names that transformers 5's ``CLIPVisionModel.state_dict()`` has."""
    with safe_open(source / FILE, "numpy") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.offset_keys()}
    kept = {name.removeprefix(PREFIX): shape for name, shape in shapes.items() if name.startswith(PREFIX)}
    with (source / FILE).open("rb") as read, tensor_file(target / FILE, kept) as write:
        read.seek(8 + int.from_bytes(read.read(8), "little"))
        left = 4 * sum(int(np.prod(shape)) for shape in kept.values())
        while left:
            left -= write.write(read.read(min(BLOCK, left)))
    shutil.copy(source / "config.json", target)


# Contestants


def core(products: np.ndarray) -> tuple[np.ndarray, float]:
    """Coefficients of the core on the task vectors (k = 1, centred) and its norm, from their Gram matrix."""
    count = len(products)
    centre = np.eye(count) - 1 / count
    values, vectors = np.linalg.eigh(centre @ products @ centre)
    leading = vectors[:, -1]
    with_mean = centre @ products @ np.full(count, 1 / count)
    coefficients = centre @ leading * (leading @ with_mean) / values[-1]
    return coefficients, float(np.sqrt(coefficients @ products @ coefficients))


@app.command()
def plain(
    kind: Annotated[Literal["torch-svd", "torch-gram", "numpy"], typer.Argument()],
    folder: Path,
    out: Path,
    specialists: int = 3,
    rank: float = 0.7,
    sample_layers: Annotated[int | None, typer.Option(help="Truncate these only, and extrapolate the time.")] = None,
    result: Path | None = None,
) -> None:
    """R²M with everything in memory, α = 0.5, k = 1, centred, η eff, from θ₀."""
    if kind == "numpy":
        from safetensors.numpy import load_file, save_file

        svd, wide = lambda matrix: np.linalg.svd(matrix, full_matrices=False), lambda array: array.astype(np.float64)
        truncate = by_svd(svd)
    else:
        import torch
        from safetensors.torch import load_file, save_file

        wide = lambda tensor: tensor.double()  # noqa: E731
        svd = lambda matrix: torch.linalg.svd(matrix, full_matrices=False)  # noqa: E731
        truncate = by_svd(svd) if kind == "torch-svd" else by_gram(torch.linalg.eigh)

    def dot(a: Any, b: Any) -> float:
        return float(wide(a).reshape(-1) @ wide(b).reshape(-1))

    base, *models = (load_file(path / FILE) for path in folders(folder, specialists))
    heads = {name: sum(model[name] for model in models) / specialists for name in ("head.weight", "head.bias")}
    taus = [{name: model[name] - base[name] for name in base} for model in models]
    del models
    mean = {name: sum(tau[name] for tau in taus) / specialists for name in base}
    layers = 1 + max(map(layer_of, base))
    sample, wall, busy = sample_layers or layers, time.perf_counter(), time.process_time()
    kept: list[dict[str, Any]] = []
    for tau in taus:
        kept.append({})
        for name, leaf in tau.items():
            delta = leaf - mean[name]
            cut = truncated(name) and layer_of(name) < sample
            kept[-1][name] = truncate(delta, max(1, int(rank * min(delta.shape)))) if cut else delta
    wall, busy = time.perf_counter() - wall, time.process_time() - busy
    coefficients, core_norm = core(np.array([[sum(dot(a[n], b[n]) for n in base) for b in taus] for a in taus]))
    norms = [np.sqrt(sum(dot(leaf, leaf) for leaf in leaves.values())) for leaves in kept]
    matched = [np.mean(norms) / (norm + 1e-12) / specialists for norm in norms]
    residual = {name: sum(float(b) * leaves[name] for b, leaves in zip(matched, kept, strict=True)) for name in base}
    eta = ALPHA * core_norm / float(np.sqrt(sum(dot(leaf, leaf) for leaf in residual.values())))
    merged = {}
    for name in base:
        start = sum(float(c) * tau[name] for c, tau in zip(coefficients, taus, strict=True))
        merged[name] = base[name] + (start + eta * residual[name])
    out.mkdir(parents=True, exist_ok=True)
    save_file(merged | heads, out / FILE, metadata={"format": "pt"})
    more = (layers - sample) / sample
    report(result, {"truncation_wall": wall, "extra_wall": more * wall, "extra_cpu": more * busy})


def by_svd(svd: Callable[[Any], tuple[Any, Any, Any]]) -> Callable[[Any, int], Any]:
    def truncate(matrix: Any, rank: int) -> Any:
        u, s, vt = svd(matrix)
        return (u[:, :rank] * s[:rank]) @ vt[:rank]

    return truncate


def by_gram(eigh: Callable[[Any], tuple[Any, Any]]) -> Callable[[Any, int], Any]:
    def truncate(matrix: Any, rank: int) -> Any:
        if matrix.shape[0] > matrix.shape[1]:
            return truncate(matrix.T, rank).T.contiguous()
        leading = eigh(matrix @ matrix.T)[1][:, -rank:]
        return leading @ (leading.T @ matrix)

    return truncate


def report(result: Path | None, content: Mapping[str, Any]) -> None:
    text = json.dumps(content)
    if result:
        result.write_text(text)
    else:
        print(text)


@app.command()
def io(folder: Path, out: Path, specialists: int = 3) -> None:
    """Read every input and write one file as large as the base, in blocks of 64 MiB, not synced (as a merge does)."""
    for path in folders(folder, specialists):
        with (path / FILE).open("rb") as file:
            while file.read(BLOCK):
                pass
    out.mkdir(parents=True, exist_ok=True)
    left, block = (folder / "base" / FILE).stat().st_size, bytes(BLOCK)
    with (out / FILE).open("wb") as file:
        while left:
            left -= file.write(block[: min(BLOCK, left)])


# Reference


def leaves(paths: Sequence[Path]) -> Iterator[tuple[str, np.ndarray]]:
    """Each leaf of the tower and its task vectors in float64, one leaf in memory."""
    with ExitStack() as opened:
        base, *models = (opened.enter_context(safe_open(path / FILE, "numpy")) for path in paths)
        for name in base.offset_keys():
            origin = base.get_tensor(name).astype(np.float64)
            yield name, np.stack([model.get_tensor(name) - origin for model in models])


def kept_parts(name: str, taus: np.ndarray, ranks: Sequence[float]) -> Iterator[np.ndarray]:
    """The truncated centred task vectors of one leaf, rank by rank."""
    deltas = taus - taus.mean(axis=0)
    if not truncated(name):
        yield from (deltas for _ in ranks)
        return
    factors = [np.linalg.svd(delta, full_matrices=False) for delta in deltas]
    for rank in ranks:
        k = max(1, int(rank * min(deltas.shape[1:])))
        yield np.stack([(u[:, :k] * s[:k]) @ vt[:k] for u, s, vt in factors])


def reference_file(folder: Path, specialists: int, rank: float) -> Path:
    return folder / f"reference-{specialists}-{rank}" / FILE


@app.command()
def reference(folder: Path, specialists: int = 3, rank: Annotated[list[float] | None, typer.Option()] = None) -> None:
    """The update θ* - θ₀ of R²M in float64 by full SVD, streamed: one pass for the norms, one for the result."""
    ranks = [r for r in rank or [0.7] if not reference_file(folder, specialists, r).exists()]
    if not ranks:
        return
    paths = folders(folder, specialists)
    products, kept = np.zeros((specialists, specialists)), np.zeros((len(ranks), specialists, specialists))
    shapes: Shapes = {}
    for name, taus in leaves(paths):
        shapes[name] = taus.shape[1:]
        flat = taus.reshape(specialists, -1)
        products += flat @ flat.T
        for index, parts in enumerate(kept_parts(name, taus, ranks)):
            flat = parts.reshape(specialists, -1)
            kept[index] += flat @ flat.T
    coefficients, core_norm = core(products)
    weights = []
    for gram in kept:
        norms = np.sqrt(np.diag(gram))
        matched = norms.mean() / (norms + 1e-12) / specialists
        weights.append(matched * ALPHA * core_norm / np.sqrt(matched @ gram @ matched))
    targets = [reference_file(folder, specialists, r) for r in ranks]
    with ExitStack() as opened:
        files = [opened.enter_context(tensor_file(path.with_suffix(".part"), shapes, "F64")) for path in targets]
        for name, taus in leaves(paths):
            for file, weight, parts in zip(files, weights, kept_parts(name, taus, ranks), strict=True):
                update = np.tensordot(coefficients, taus, 1) + np.tensordot(weight, parts, 1)
                file.write(update.tobytes())
    for path in targets:
        path.with_suffix(".part").rename(path)


@app.command()
def gap(
    folder: Path,
    out: Path,
    specialists: int = 3,
    rank: Annotated[float | None, typer.Option(help="Of R²M.")] = None,
    coefficient: Annotated[float | None, typer.Option(help="Of the sum of the task vectors: a linear method.")] = None,
    result: Path | None = None,
) -> None:
    """Relative error of a result's update θ* - θ₀, over all leaves and in the worst one, beside what rounding costs."""
    from r2m_jax.checkpoints.directory import open_weights

    merged = {name.removeprefix(PREFIX): tensor for name, tensor in open_weights(out).items()}
    errors, rounding, sizes = [], [], {}
    with ExitStack() as opened:
        exact = None
        if rank is not None:
            exact = opened.enter_context(safe_open(reference_file(folder, specialists, rank), "numpy"))
        base = opened.enter_context(safe_open(folder / "base" / FILE, "numpy"))
        for name, taus in leaves(folders(folder, specialists)):
            update = exact.get_tensor(name) if exact else (coefficient or 0.0) * taus.sum(axis=0)
            origin = base.get_tensor(name).astype(np.float64)
            wanted = origin + update
            sizes[name] = float(np.square(update).sum())
            errors.append(float(np.square(merged[name.removeprefix(PREFIX)].read() - wanted).sum()))
            rounding.append(float(np.square(wanted.astype(np.float32) - wanted).sum()))
    relative = {name: (e / s) ** 0.5 for (name, s), e in zip(sizes.items(), errors, strict=True) if s}
    worst = max(relative, key=lambda name: relative[name])
    total = sum(sizes.values())
    report(
        result,
        {
            "gap": (sum(errors) / total) ** 0.5,
            "worst": relative[worst],
            "worst_leaf": worst,
            "rounding": (sum(rounding) / total) ** 0.5,
        },
    )


if __name__ == "__main__":
    app()
