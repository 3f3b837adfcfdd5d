"""Speed of the augmentation on host and device, and how far the device's images are from the host's.

    python benchmarks/augmentation.py --faces ../shared/data/faces_ffhq/images

Host figures are of one thread (OpenCV's own threads off); device figures are of whatever JAX finds, compilation apart.
Host and device take turns within each round, so that other load on the machine meets both; the best round counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import typer

from r2m_jax.data.augment import Draws, Policy, device, host, preset
from r2m_jax.data.images import image_files, load_images

ALWAYS: dict[str, tuple[str, ...]] = {
    "flip": ("flip",),
    "rotation": ("degrees",),
    "blur": ("blur_size",),
    "brightness/contrast": ("gain", "offset"),
    "FancyPCA": ("pca",),
    "HSV": ("hue", "saturation", "value"),
    "JPEG": ("jpeg_quality",),
}
"""Transforms, and the parameters that are drawn for them while all others are neutral."""


def main(
    faces: Annotated[
        Path | None, typer.Option(help="Folder of images for the parity table; noise is always in.")
    ] = None,
    size: int = 224,
    batch: int = 32,
    rounds: int = 5,
) -> None:
    """Print images per second, then the parity table."""
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    kinds = {"noise": rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)}
    if faces:
        files = image_files(faces)[:batch]
        kinds = {"faces": load_images([files[i % len(files)] for i in range(batch)], size), **kinds}
    images = next(iter(kinds.values()))
    print(f"{batch} images of {size}x{size}; device: {jax.devices()[0].device_kind}, {jax.device_count()} of them")
    print(f"{'':<22}{'host, images/s':>16}{'device, images/s':>18}{'compile, s':>12}")
    for name in ALWAYS:
        draws = _only(name, batch)
        arrays = jax.device_put(images), jax.device_put(draws)
        _row(name, partial(_applied, images, draws), partial(jax.jit(jax.vmap(_STAGES[name])), *arrays), batch, rounds)
    keys = device.image_keys(jax.random.key(0), jnp.arange(batch))
    for name in ("df40", "r2m_text"):
        program = partial(device.augment_batch, keys, jax.device_put(images), preset(name))
        _row(f"policy {name}", partial(_augmented, images, preset(name)), program, batch, rounds)
    print(f"\n{'device against host':<22}{'images':<8}{'max':>5}{'differing':>12}{'PSNR, dB':>10}")
    for kind, pictures in kinds.items():
        cases = {name: _only(name, batch) for name in ALWAYS}
        cases["policy df40"] = jax.tree.map(np.asarray, device.draw_batch(keys, preset("df40")))
        for name, draws in cases.items():
            expected = _applied(pictures, draws)
            error = np.abs(np.asarray(device.apply_batch(pictures, draws)).astype(int) - np.stack(expected))
            with np.errstate(divide="ignore"):
                psnr = 10 * np.log10(255**2 / np.mean(error**2))
            print(f"{name:<22}{kind:<8}{error.max():>5}{np.mean(error > 0):>12.1e}{psnr:>10.1f}")


def _only(name: str, batch: int) -> Draws:
    """Parameters of a batch with one transform on for every image and the others neutral."""
    on = Policy(flip=1, rotate=1, blur=1, one_of=0, brightness=1, contrast=1, jpeg=1)
    rng = np.random.default_rng(1)
    off = [host.draw(rng, preset("none")) for _ in range(batch)]
    rows = [
        host.draw(rng, on)._replace(
            pca=np.float32(0.1 * rng.standard_normal()),
            hue=np.float32(rng.uniform(-20, 20)),
            saturation=np.float32(rng.uniform(-30, 30)),
            value=np.float32(rng.uniform(-20, 20)),
        )
        for _ in range(batch)
    ]
    mixed = [a._replace(**{field: getattr(b, field) for field in ALWAYS[name]}) for a, b in zip(off, rows, strict=True)]
    return Draws(*(np.stack(column) for column in zip(*mixed, strict=True)))


_STAGES: dict[str, Callable[..., jax.Array]] = {
    "flip": lambda image, d: device.flip(image, d.flip),
    "rotation": lambda image, d: device.rotate(image, d.degrees),
    "blur": lambda image, d: device.gaussian_blur(image, d.blur_size),
    "brightness/contrast": lambda image, d: device.brightness_contrast(image, d.gain, d.offset),
    "FancyPCA": lambda image, d: device.fancy_pca(image, d.pca),
    "HSV": lambda image, d: device.hue_saturation_value(image, d.hue, d.saturation, d.value),
    "JPEG": lambda image, d: device.jpeg(image, d.jpeg_quality),
}


def _applied(images: np.ndarray, draws: Draws) -> list[np.ndarray]:
    return [host.apply(image, Draws(*(column[i] for column in draws))) for i, image in enumerate(images)]


def _augmented(images: np.ndarray, policy: Policy) -> list[np.ndarray]:
    return [host.augment(image, np.random.default_rng(i), policy) for i, image in enumerate(images)]


def _row(name: str, on_host: Callable[[], object], on_device: Callable[[], jax.Array], batch: int, rounds: int) -> None:
    start = time.perf_counter()
    jax.block_until_ready(on_device())
    first = time.perf_counter() - start
    best = [float("inf")] * 2
    for _ in range(rounds):
        for i, work in enumerate((on_host, lambda: jax.block_until_ready(on_device()))):
            start = time.perf_counter()
            work()
            best[i] = min(best[i], time.perf_counter() - start)
    print(f"{name:<22}{batch / best[0]:>16.0f}{batch / best[1]:>18.0f}{first - best[1]:>12.1f}", flush=True)


if __name__ == "__main__":
    typer.run(main)
