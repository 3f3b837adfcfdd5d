"""Images/s of `r2m eval`'s scoring loop beside the same loop in torch and transformers, and what more models cost.

    python benchmarks/eval_throughput.py --tower-dir clip_b16 --faces photographs/ --count 64

A loop reads JPEG files, decodes, resizes, crops, normalises and runs the tower and a head in float32. Ours is
`r2m_jax.jobs.scoring.score_models`; theirs is a DataLoader with as many workers and Pillow, under inference_mode. Loops
take turns, the median counts; compiling and starting up are apart (a first turn that is not timed fills JAX's cache of
compiled programs and the file system's). Without a tower directory the weights are random, of CLIP B/16's shapes;
without faces the files are noise photographs of 512 px, made here.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer
from PIL import Image

from r2m_jax import load_detector
from r2m_jax.checkpoints import image_processor
from r2m_jax.data.images import decode_image, image_files, resize_and_crop
from r2m_jax.data.pipeline import Decoding, RecordSource, evaluation_batches
from r2m_jax.data.records import Record
from r2m_jax.jobs.scoring import score_models
from r2m_jax.models import Detector, init_backbone, init_head, vision_config
from r2m_jax.progress import Reporter

QUIET = Reporter(quiet=True)


def main(
    tower_dir: Annotated[Path | None, typer.Option(help="Model directory; random CLIP B/16 without.")] = None,
    faces: Annotated[Path | None, typer.Option(help="Folder of photographs; noise without.")] = None,
    count: Annotated[int, typer.Option(help="Files a turn; the folder's are repeated if it has fewer.")] = 64,
    size: Annotated[int, typer.Option(help="Sides of the input in pixels.")] = 224,
    batch: Annotated[int, typer.Option(help="Images at a time.")] = 16,
    workers: Annotated[int, typer.Option(help="Decoding threads (ours) and processes (torch's).")] = 2,
    models: Annotated[int, typer.Option(help="Of the pass over many models.")] = 12,
    turns: Annotated[int, typer.Option(help="Timed, of each loop.")] = 3,
    torch: Annotated[bool, typer.Option(help="Beside torch.")] = True,
) -> None:
    """Print one line per loop, then the cost of many models."""
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        paths = _files(faces, count, Path(folder))
        records = [Record(str(path), 1) for path in paths]
        detector = _detector(tower_dir, size)
        settings: dict[str, Any] = {"batch_size": batch, "workers": workers, "reporter": QUIET, "memory": 2**30}
        many = {str(number): detector for number in range(models)}
        loops: dict[str, Callable[[], Any]] = {
            "decoding alone": lambda: _decode(records, size, batch, workers),
            "r2m_jax, 1 model": lambda: score_models({"0": detector}, records, **settings).table.logits["0"],
            f"r2m_jax, {models} models in one pass": lambda: score_models(many, records, **settings),
        }
        if torch:
            loops["torch, 1 model"] = _torch_loop(detector, paths, size, batch, workers)
        print(f"{count} files, {size} px, batches of {batch}, {workers} workers; {jax.devices()[0].device_kind}")
        first = {name: loop() for name, loop in loops.items()}
        if torch:
            gap = float(np.abs(first["r2m_jax, 1 model"] - first["torch, 1 model"]).max())
            print(f"largest difference of the logits from torch's: {gap:.1e}")
        times: dict[str, list[float]] = {name: [] for name in loops}
        for _ in range(turns):
            for name, loop in loops.items():
                start = time.perf_counter()
                loop()
                times[name].append(time.perf_counter() - start)
    middle = {name: statistics.median(taken) for name, taken in times.items()}
    for name, taken in times.items():
        print(f"{name:<36}{count / middle[name]:>9.2f} images/s ({count / max(taken):.2f} … {count / min(taken):.2f})")
    one, all_ = middle["r2m_jax, 1 model"], middle[f"r2m_jax, {models} models in one pass"]
    print(
        f"{models} models in one pass: {all_ / one:.2f} times the time of one, {all_ / one / models:.3f} of {models} "
        f"passes; decoding alone takes {middle['decoding alone'] / one:.1%} of the time of one model."
    )


def _files(faces: Path | None, count: int, folder: Path) -> list[Path]:
    if faces is not None:
        found = image_files(faces)
        return [found[number % len(found)] for number in range(count)]
    rng = np.random.default_rng(0)
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for path in paths:
        small = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
        small.resize((512, 512), Image.Resampling.BICUBIC).save(path, quality=90)
    return paths


def _detector(tower_dir: Path | None, size: int) -> Detector:
    """The tower with a random head: whether an image is fake is no matter here."""
    if tower_dir is None:
        config = vision_config("ViT-B/16")
        backbone = init_backbone(config, jax.random.key(0))
    else:
        import warnings

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*has no head", category=UserWarning)
            loaded = load_detector(tower_dir)
        config, backbone = loaded.config, loaded.params["backbone"]
    params = {"backbone": backbone, "head": init_head(config.hidden_size, jax.random.key(1))}
    return Detector.create(config, params, image_processor(size))


def _decode(records: list[Record], size: int, batch: int, workers: int) -> None:
    with evaluation_batches(RecordSource(records), batch_size=batch, decoding=Decoding(size, workers)) as stream:
        for _ in stream:
            pass


class _Files:
    """Normalised images of files, the way a torch user reads them."""

    def __init__(self, paths: Sequence[Path], size: int, mean: Sequence[float], std: Sequence[float]):
        self._paths, self._size = paths, size
        self._mean, self._std = np.asarray(mean, np.float32), np.asarray(std, np.float32)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> Any:
        import torch

        pixels = resize_and_crop(decode_image(self._paths[number]), self._size)
        return torch.from_numpy((pixels / np.float32(255) - self._mean) / self._std).permute(2, 0, 1)


def _torch_loop(detector: Detector, paths: list[Path], size: int, batch: int, workers: int) -> Callable[[], Any]:
    """The same in torch, with the same weights: a DataLoader over Pillow, float32, inference mode."""
    import torch
    from transformers import CLIPVisionModel

    from r2m_jax import save_detector

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        save_detector(detector, Path(folder) / "model")
        tower = CLIPVisionModel.from_pretrained(Path(folder) / "model").eval().to(device)
    kernel, bias = (torch.tensor(np.asarray(detector.params["head"][k])).to(device) for k in ("kernel", "bias"))
    mean, std = detector.processor.image_mean, detector.processor.image_std
    other = size != detector.config.image_size

    files = _Files(paths, size, mean, std)
    # Started once, not forked: a fork of a process in which JAX runs may hang.
    loader: Any = torch.utils.data.DataLoader(
        files, batch, num_workers=workers, multiprocessing_context="spawn" if workers else None,
        persistent_workers=workers > 0,
    )  # fmt: skip

    def once() -> np.ndarray:
        parts = []
        with torch.inference_mode():
            for images in loader:
                pooled = tower(images.to(device), interpolate_pos_encoding=other).pooler_output
                both = pooled @ kernel + bias
                parts.append((both[:, 1] - both[:, 0]).cpu().numpy())
        return np.concatenate(parts)

    return once


if __name__ == "__main__":
    typer.run(main)
