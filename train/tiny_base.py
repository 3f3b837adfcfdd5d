"""Distil the tiny base that ships with the package from a real CLIP tower, on real images only.

    python train/tiny_base.py TEACHER DATA... --out r2m_jax/models/tiny_base

TEACHER is a model directory of CLIP ViT-B/16 with its projection; each DATA is a folder with an ``index.csv``
of which only real images of the ``train`` split are learnt from, and those of ``test`` measure the result.
The student sees a crop at its own 64 pixels, the teacher the same crop at 224; it learns the teacher's image
embedding (raw, and centred: CLIP's embeddings share a large common part that hides the rest) and the grid of
its patch tokens. What CLIP says of an image is mostly its content; forgeries show in texture, of which a student of
content alone keeps too little to be fine-tuned in minutes. So it also learns the energy of each patch's cosine
transform by frequency, on inputs that are blurred or noisy at random. Needs about an hour on two cores;
``--init DIR`` goes on from an earlier result.
"""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.fft
import typer
from PIL import Image

from r2m_jax.checkpoints import image_processor, load_detector, provenance
from r2m_jax.checkpoints.directory import PROJECTION, open_weights, write_directory
from r2m_jax.checkpoints.names import disassemble
from r2m_jax.checkpoints.tensors import LazyTensor, safetensors_files
from r2m_jax.data.index import read_index
from r2m_jax.data.records import select
from r2m_jax.models import apply_tower, init_backbone, init_head
from r2m_jax.trees import count_parameters

STUDENT = {
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 3,  # heads of 64, as in every published CLIP
    "image_size": 64,
    "patch_size": 8,
    "projection_dim": 512,
}
TOKEN_LAYER = -2  # the teacher's last layer rewrites patch tokens it never reads; the one before is spatial
SEED = 0


def random_crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A crop of 8-100 % of the area with an aspect ratio of 3/4-4/3, flipped half of the time."""
    for _ in range(10):
        area = image.width * image.height * rng.uniform(0.08, 1.0)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        width, height = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if width <= image.width and height <= image.height:
            left, top = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
            image = image.crop((left, top, left + width, top + height))
            break
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def square(image: Image.Image, size: int) -> np.ndarray:
    """The image stretched to a square, uint8 [size, size, 3]."""
    return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


def load_views(paths: list[str], views: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Every image as it is, then as ``views - 1`` random crops: uint8 at 224 and at 64 pixels."""
    large, small = [], []
    for index, path in enumerate(paths):
        with Image.open(path) as file:
            image = file.convert("RGB")
        for view in range(views):
            rng = np.random.default_rng((seed, index, view))
            crop = image if view == 0 else random_crop(image, rng)
            large.append(square(crop, 224))
            small.append(square(crop, STUDENT["image_size"]))
    return np.stack(large), np.stack(small)


def normalise(images: Any, processor: Any) -> jax.Array:
    """Uint8 to the model's input."""
    mean, std = jnp.asarray(processor.image_mean), jnp.asarray(processor.image_std)
    return (jnp.asarray(images, jnp.float32) / 255 - mean) / std


def teacher_targets(teacher_dir: Path, images: np.ndarray, grid: int) -> tuple[np.ndarray, np.ndarray]:
    """Image embeddings [n, 512] and patch tokens resampled to the student's grid [n, grid², d], float16."""
    teacher = load_detector(teacher_dir)
    projection = jnp.asarray(open_weights(teacher_dir)[PROJECTION].read().T)
    tower = apply_tower(teacher.config)

    @jax.jit
    def targets(backbone: Any, batch: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = tower(backbone, normalise(batch, teacher.processor), (TOKEN_LAYER,))
        embedding, tokens = out.pooled @ projection, out.hidden[0][:, 1:]
        side = round(tokens.shape[1] ** 0.5)
        tokens = tokens.reshape(len(batch), side, side, -1)
        tokens = jax.image.resize(tokens, (len(batch), grid, grid, tokens.shape[-1]), "linear")
        return embedding, tokens.reshape(len(batch), grid * grid, -1).astype(jnp.float16)

    start, parts = time.time(), []
    for first in range(0, len(images), 16):
        parts.append(jax.device_get(targets(teacher.params["backbone"], images[first : first + 16])))
        if first % 480 == 0:
            print(f"teacher {first}/{len(images)}  {time.time() - start:.0f} s", flush=True)
    embedding, tokens = (np.concatenate(part) for part in zip(*parts, strict=True))
    return embedding, tokens


def cosine(a: Any, b: Any) -> jax.Array:
    """Cosine along the last axis."""
    a = a / (jnp.linalg.norm(a, axis=-1, keepdims=True) + 1e-6)
    b = b / (jnp.linalg.norm(b, axis=-1, keepdims=True) + 1e-6)
    return (a * b).sum(-1)


BANDS = 14  # of an 8x8 cosine transform: u + v = 1 … 14; 0 is the mean


def texture(images: jax.Array, patch: int) -> jax.Array:
    """Log energy of each patch's luminance by frequency band: [n, patches, BANDS] of images in 0…1."""
    rows, columns = images.shape[1] // patch, images.shape[2] // patch
    grey = (images @ jnp.asarray([0.299, 0.587, 0.114])).reshape(-1, rows, patch, columns, patch)
    basis = jnp.asarray(scipy.fft.dct(np.eye(patch), axis=0, norm="ortho"), jnp.float32)
    transform = jnp.einsum("ua,nraqb,vb->nrquv", basis, grey, basis).reshape(len(images), rows * columns, -1)
    band = np.add.outer(np.arange(patch), np.arange(patch)).ravel()
    groups = jnp.asarray(np.stack([(band == b) / (band == b).sum() for b in range(1, BANDS + 1)], axis=1), jnp.float32)
    return jnp.log(1e-6 + jnp.square(transform) @ groups)


def disturb(key: jax.Array, images: jax.Array) -> jax.Array:
    """Images in 0…1, each blurred by a random amount and given noise of a random size (up to 3 %)."""
    blur_key, size_key, noise_key = jax.random.split(key, 3)
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    across = (padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]) / 4
    blurred = (across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]) / 4
    share = jnp.maximum(jax.random.uniform(blur_key, (len(images), 1, 1, 1), minval=-1.0), 0.0)
    size = 0.03 * jnp.maximum(jax.random.uniform(size_key, (len(images), 1, 1, 1), minval=-1.0), 0.0)
    return images + share * (blurred - images) + size * jax.random.normal(noise_key, images.shape)


def distil(
    config: Any,
    small: np.ndarray,
    targets: tuple[np.ndarray, np.ndarray],
    epochs: int,
    batch: int,
    lr: float,
    init: Path | None,
) -> dict[str, Any]:
    """Train the student; returns ``{"backbone", "project", …}`` with the maps to its targets."""
    embedding, tokens = targets
    centre, token_centre = jnp.asarray(embedding.mean(0)), jnp.asarray(tokens.mean((0, 1), dtype=np.float32))
    tower, processor = apply_tower(config), image_processor(config.image_size)
    mean, std = jnp.asarray(processor.image_mean), jnp.asarray(processor.image_std)
    key, width = jax.random.key(SEED), config.hidden_size
    sizes = {"project": embedding.shape[1], "tokens": tokens.shape[2], "texture": BANDS, "mean_texture": BANDS}
    params = {
        name: jax.random.normal(jax.random.fold_in(key, index), (width, size)) * width**-0.5
        for index, (name, size) in enumerate(sizes.items())
    }
    params["backbone"] = load_detector(init).params["backbone"] if init else init_backbone(config, key)
    if init:
        params["project"] = jnp.asarray(open_weights(init)[PROJECTION].read().T, jnp.float32)
    energies = jax.jit(texture, static_argnums=1)(small[:: len(small) // 512] / np.float32(255), config.patch_size)
    level, spread = energies.mean((0, 1)), energies.std((0, 1))
    steps = epochs * (len(small) // batch)
    schedule = optax.warmup_cosine_decay_schedule(0.0, lr, steps // 20, steps, lr / 100)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.05))

    def loss_fn(params: Any, key: Any, x: Any, goal: jax.Array, token_goal: jax.Array) -> tuple[jax.Array, Any]:
        x = disturb(key, x.astype(jnp.float32) / 255)
        out = tower(params["backbone"], (x - mean) / std, (-1,))
        seen = out.hidden[0][:, 1:]
        wanted = (texture(x, config.patch_size) - level) / spread
        fine = jnp.square(seen @ params["texture"] - wanted).mean()
        coarse = jnp.square(out.pooled @ params["mean_texture"] - wanted.mean(1)).mean()
        embedded = out.pooled @ params["project"]
        raw = cosine(embedded, goal).mean()
        centred = cosine(embedded - centre, goal - centre).mean()
        dense = cosine(seen @ params["tokens"], token_goal.astype(jnp.float32) - token_centre).mean()
        return 3 - raw - centred - dense + fine + coarse, (raw, centred, dense, fine, coarse)

    @jax.jit(donate_argnums=(0, 1))
    def step(params: Any, state: Any, number: Any, x: Any, goal: Any, token_goal: Any) -> tuple[Any, Any, Any]:
        disturbing = jax.random.fold_in(key, 1000 + number)
        (_, parts), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, disturbing, x, goal, token_goal)
        updates, state = optimiser.update(grads, state, params)
        return optax.apply_updates(params, updates), state, parts

    state, start, done = optimiser.init(params), time.time(), 0
    for epoch in range(epochs):
        order = np.random.default_rng((SEED, epoch)).permutation(len(small))
        for first in range(0, len(order) - batch + 1, batch):
            chosen = order[first : first + batch]
            params, state, parts = step(params, state, done, small[chosen], embedding[chosen], tokens[chosen])
            done += 1
        raw, centred, dense, fine, coarse = (float(part) for part in parts)
        print(
            f"epoch {epoch + 1}/{epochs} step {done}  cosine {raw:.4f}  centred {centred:.4f}  tokens {dense:.4f}  "
            f"texture {fine:.3f} {coarse:.3f}  {done * batch / (time.time() - start):.0f} images/s",
            flush=True,
        )
    return jax.device_get(params)


def held_out_cosine(
    config: Any, params: Any, small: np.ndarray, embedding: np.ndarray, centre: np.ndarray
) -> dict[str, float]:
    """Mean teacher-student cosine of whole images, raw and centred on the training mean."""
    tower, processor = jax.jit(apply_tower(config)), image_processor(config.image_size)
    student = np.asarray(tower(params["backbone"], normalise(small, processor)).pooled) @ params["project"]
    return {
        "cosine": float(cosine(student, embedding).mean()),
        "centred_cosine": float(cosine(student - centre, embedding - centre).mean()),
    }


CARD = """# The tiny base

A CLIP-shaped image encoder of {millions:.1f} M parameters ({layers} layers, width {width}, {size} px, patches of
{patch}) distilled from OpenAI's CLIP ViT-B/16. It exists so that specialists can be fine-tuned and merged on a
laptop: task vectors need a common pretrained origin. It is no detector and no substitute for CLIP.

| | |
|---|---|
| Teacher | CLIP ViT-B/16 vision tower, OpenAI, MIT licence (int8-stored weights, sha256 {teacher}) |
| Data | {images} real images, no forgeries: the `train` splits of {sets}; {views} crops each |
| Steps | {steps} of {batch} images ({epochs} passes){earlier}, AdamW, peak rate {lr} |
| Objective | cosine to the teacher's image embedding (raw, centred) and to patch tokens of its last but one layer; |
| | squared error of each patch's energy by frequency |
| Teacher-student cosine | {cosine:.3f} raw, {centred_cosine:.3f} centred, on {held_out} held-out real images |
| Stored | float16; `vision_model.*` is the encoder, `visual_projection.weight` maps it to CLIP's 512 dimensions |

Made by `train/tiny_base.py`, whose settings are in `r2m.json`. The photographs behind it are research data (faces
from FFHQ and CIPLab, natural scenes); people in them are a narrow sample, so judge nothing of the world by it.
"""


def main(
    teacher: Path,
    data: list[Path],
    out: Annotated[Path, typer.Option()],
    views: int = 6,
    epochs: int = 20,
    batch: int = 64,
    lr: float = 1e-3,
    init: Path | None = None,
    cache: Path | None = None,
) -> None:
    """Distil and write the model directory with its card."""
    from transformers import CLIPVisionConfig

    config = CLIPVisionConfig(**STUDENT)
    grid = config.image_size // config.patch_size
    records = [record for folder in data for record in read_index(folder / "index.csv") if record.label == 0]
    train = [record.path for record in select(records, split="train")]
    test = [record.path for record in select(records, split="test")]
    if cache and cache.exists():
        stored = np.load(cache)
        small, embedding, tokens, test_small, test_embedding = (stored[f"arr_{i}"] for i in range(5))
    else:
        large, small = load_views(train, views, SEED)
        embedding, tokens = teacher_targets(teacher, large, grid)
        test_large, test_small = load_views(test, 1, SEED)
        test_embedding, _ = teacher_targets(teacher, test_large, grid)
        if cache:
            np.savez(cache, small, embedding, tokens, test_small, test_embedding)
    params = distil(config, small, (embedding, tokens), epochs, batch, lr, init)
    reached = held_out_cosine(config, params, test_small, test_embedding, embedding.mean(0))
    print(json.dumps(reached))

    half = jax.tree.map(lambda leaf: leaf.astype(np.float16), params)
    head = jax.device_get(init_head(config.hidden_size))  # zeros, as `r2m convert` writes for a model without one
    tensors = disassemble({"backbone": half["backbone"], "head": head})
    tensors[PROJECTION] = LazyTensor.of(half["project"].T)
    inputs = provenance.input_hashes([*safetensors_files(teacher), *(folder / "index.csv" for folder in data)])
    for item in inputs:  # where the files lay on the machine that ran this is nobody's concern
        item["path"] = "/".join(Path(item["path"]).parts[-2:])
    recipe: dict[str, Any] = {
        "student": STUDENT, "views": views, "epochs": epochs, "batch": batch, "learning_rate": lr,
        "train_images": len(train), "held_out_images": len(test),
        "init": provenance.read_json(init / provenance.FILE)["recipe"] if init else None,
    }  # fmt: skip
    write_directory(
        out,
        config=config,
        tensors=tensors,
        processor=image_processor(config.image_size),
        provenance=provenance.record("base", inputs=inputs, recipe=recipe, seed=SEED, reached=reached),
        overwrite=True,
    )
    card = CARD.format(
        millions=count_parameters(half["backbone"]) / 1e6, layers=config.num_hidden_layers,
        width=config.hidden_size, size=config.image_size, patch=config.patch_size, teacher=inputs[0]["sha256"][:12],
        images=len(train), sets=", ".join(folder.name for folder in data), views=views,
        steps=epochs * (len(small) // batch), batch=batch, epochs=epochs, lr=lr,
        earlier=f" after {recipe['init']['epochs']} passes without the last objective" if init else "",
        held_out=len(test), **reached,
    )  # fmt: skip
    (out / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
