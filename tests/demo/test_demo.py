import csv
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from PIL import Image

from r2m_jax import InputError, load_detector, tiny_base
from r2m_jax.data.embedded import HELD_OUT
from r2m_jax.data.images import decode_image, load_images
from r2m_jax.data.index import read_index
from r2m_jax.data.records import counts
from r2m_jax.demo import load_recipe, run_demo
from r2m_jax.demo.data import make_dataset, photographs
from r2m_jax.demo.run import PRETRAINED
from r2m_jax.evaluation import auc
from r2m_jax.progress import Reporter

SMALL = {"train_patches": 40, "test_patches": 30, "passes": 1, "batch_size": 20}
FAMILIES = ("FS", "FR", "EFS")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "data"
    recipe = load_recipe("quick", **SMALL)
    return folder, make_dataset(photographs(None, recipe), recipe, 64, folder)


def test_every_real_patch_is_forged_once_per_family(dataset):
    folder, records = dataset
    assert read_index(folder / "index.csv") == records
    assert counts(records) == {
        (split, family): count for split, count in (("train", 40), ("test", 30)) for family in ("real", *FAMILIES)
    }
    for family in FAMILIES:
        forged = [r for r in records if r.family == family and r.split == "train"]
        assert len({r.video for r in forged}) == 40
        methods = [r.method for r in forged]
        assert {methods.count(name) for name in set(methods)} <= {13, 14}


def test_no_photograph_is_in_both_splits(dataset):
    _, records = dataset
    domains = {split: {r.domain for r in records if r.split == split} for split in ("train", "test")}
    assert domains["test"] <= HELD_OUT
    assert not domains["train"] & HELD_OUT


def test_methods_are_not_tied_to_photographs(dataset):
    """Patches come photograph by photograph in turns; a method in turns of its own would meet only some of them."""
    _, records = dataset
    forged = [r for r in records if r.split == "test" and r.family]
    seen = {name: {r.domain for r in forged if r.method == name} for name in {r.method for r in forged}}
    assert all(len(domains) == 3 for domains in seen.values()), seen


def test_files_do_not_tell_the_label(dataset):
    _, records = dataset
    assert len({Path(r.path).stat().st_size for r in records}) == 1
    assert {decode_image(r.path).size for r in records} == {(64, 64)}
    images = load_images([r.path for r in records], 64).astype(float)
    labels = [r.label for r in records]
    assert abs(auc(labels, images.mean(axis=(1, 2, 3))) - 0.5) < 0.1


def test_data_are_the_same_for_the_same_seed(dataset, tmp_path):
    folder, _ = dataset
    recipe = load_recipe("quick", **SMALL)
    make_dataset(photographs(None, recipe), recipe, 64, tmp_path / "again")
    for path in sorted(folder.rglob("*.png"))[::17]:
        assert (tmp_path / "again" / path.relative_to(folder)).read_bytes() == path.read_bytes()


def test_own_photographs_are_split_whole(tmp_path, rng):
    (tmp_path / "mine").mkdir()
    for index in range(4):
        pixels = rng.integers(0, 256, (160, 240, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "mine" / f"{index}.png")
    recipe = load_recipe("quick", **SMALL | {"batch_size": 4, "train_patches": 32, "test_patches": 16})
    source = photographs(tmp_path / "mine", recipe)
    names = {split: {p.name for p in getattr(source, split)} for split in ("train", "test")}
    assert len(names["train"] | names["test"]) == 4
    assert not names["train"] & names["test"]
    records = make_dataset(source, recipe, 64, tmp_path / "data")
    assert {r.domain for r in records if r.split == "test"} <= names["test"]


def test_too_few_photographs(tmp_path, rng):
    (tmp_path / "mine").mkdir()
    pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name in ("a", "b"):
        Image.fromarray(np.roll(pixels, len(name) * 7, axis=0)[:, :: 1 if name == "a" else -1]).save(
            tmp_path / "mine" / f"{name}.png"
        )
    recipe = load_recipe("quick", **SMALL)
    with pytest.raises(InputError, match="give only 1 patches"):
        make_dataset(photographs(tmp_path / "mine", recipe), recipe, 64, tmp_path / "data")


def test_recipes_are_checked():
    assert load_recipe("full").train_patches > load_recipe("quick").train_patches
    assert load_recipe("quick", seed=7).seed == 7
    with pytest.raises(InputError, match="passes=0"):
        load_recipe("full", passes=0)
    with pytest.raises(InputError, match="passses"):
        load_recipe("full", passses=3)


def test_a_failed_demo_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        run_demo(tmp_path / "out", load_recipe("quick"), images=tmp_path / "nowhere", reporter=Reporter())
    assert list(tmp_path.iterdir()) == []


def test_the_tiny_base_is_what_its_card_says():
    base = load_detector(tiny_base())
    assert (base.config.image_size, base.config.patch_size, base.config.hidden_size) == (64, 8, 192)
    assert (tiny_base() / "model.safetensors").stat().st_size < 12e6
    made = base.provenance
    card = (tiny_base() / "README.md").read_text()
    assert f"{made['reached']['cosine']:.3f} raw, {made['reached']['centred_cosine']:.3f} centred" in card
    assert made["kind"] == "base"


@pytest.mark.integration
def test_the_tiny_base_reaches_the_cosine_its_card_states(clip_b16, shared_data):
    """Teacher and student side by side on held-out real photographs, through the files as they are shipped."""
    import warnings

    from r2m_jax.checkpoints.directory import PROJECTION, open_weights
    from r2m_jax.data.records import select

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        teacher = load_detector(clip_b16)
    student = load_detector(tiny_base())
    sets = ("faces_ffhq", "faces_photoshop", "natural_generators")
    records = [r for name in sets for r in select(read_index(shared_data / name / "index.csv"), split="test")]
    paths = [r.path for r in records if r.label == 0][::10]
    embedded = []
    for detector, folder in ((teacher, clip_b16), (student, tiny_base())):
        projection = open_weights(folder)[PROJECTION].read().astype(np.float32).T
        pixels = detector.preprocess([decode_image(path) for path in paths])
        embedded.append(np.asarray(detector.features(pixels)) @ projection)
    a, b = (e / np.linalg.norm(e, axis=1, keepdims=True) for e in embedded)
    cosine = float((a * b).sum(axis=1).mean())
    stated = student.provenance["reached"]["cosine"]
    print(f"\ntiny base: cosine {cosine:.3f} on {len(paths)} held-out photographs, stated {stated:.3f}")
    assert cosine > stated - 0.03


@pytest.mark.integration
def test_quick_demo_end_to_end(tmp_path):
    """The command as the README gives it; every number in the table is recomputed from the scores it wrote."""
    out = tmp_path / "out"
    result = subprocess.run(
        [sys.executable, "-m", "r2m_jax", "demo", "--quick", "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    assert {path.name for path in out.iterdir()} == {
        "data", "models", "scores.csv", "metrics.json", "table.md", "table.tex", "report.html", "recipe.yaml",
        "r2m.json",
    }  # fmt: skip
    stated = json.loads((out / "metrics.json").read_text())["image_auc"]
    with (out / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} == stated.keys()
    for model, values in stated.items():
        for family in FAMILIES:
            chosen = [r for r in rows if r["model"] == model and r["family"] in ("", family)]
            again = auc([int(r["label"]) for r in chosen], [float(r["logit"]) for r in chosen])
            assert again == pytest.approx(values[family], abs=1e-6), (model, family)
    merged = [name for name in stated if name.startswith(("Weight", "Task", "R²M, from"))]
    assert len(merged) == 3
    for name in merged:
        assert stated[name]["mean"] > stated[PRETRAINED]["mean"], name

    # A saved model gives the scores of the table.
    directory = out / "models" / "weight-averaging"
    detector = load_detector(directory)
    some = [row for row in rows if row["model"] == "Weight averaging"][::97]
    pixels = detector.preprocess([decode_image(out / row["path"]) for row in some])
    logits = np.asarray(detector(pixels))
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], [float(r["logit"]) for r in some], atol=1e-3)
    assert yaml.safe_load((out / "recipe.yaml").read_text()) == load_recipe("quick").model_dump(mode="json")
    assert jax.default_backend() in str(json.loads((out / "r2m.json").read_text())["devices"]).lower()
