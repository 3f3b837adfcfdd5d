"""Forged data sets: what is planned, what is written, and that nothing but the image tells a forgery."""

import csv
import json
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r2m_jax.data.audit import audit, scan
from r2m_jax.data.embedded import cut_patches, embedded_photographs
from r2m_jax.data.forge import FAMILIES, METHODS
from r2m_jax.data.forge.dataset import forge_dataset
from r2m_jax.data.forge.plan import SHARES, ForgeRecipe, plan, real_records
from r2m_jax.data.index import read_index, write_index
from r2m_jax.data.records import Record, counts
from r2m_jax.errors import InputError

SMALL = ForgeRecipe(
    methods=("feathered_swap", "triangle_swap", "dense_motion", "vq_reconstruction"),
    size=48,
    cameras=("still", "c40"),
    effort=0.02,
    landmarks=False,
)


@contextmanager
def silent(what: str, total: int):
    yield lambda count=1, note="": None


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    images, _ = cut_patches(embedded_photographs(), 64, 20, 0)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:02d}.png")
    Image.fromarray(images[3]).save(folder / "again.bmp")
    return folder


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("forged") / "set"
    return out, forge_dataset(folder, out, SMALL, workers=2, track=silent)


def bytes_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "images").iterdir())}


def test_a_folder_is_split_at_random_by_the_shares(folder):
    records = real_records(folder, seed=0)
    assert len(records) == 21
    split = Counter(record.split for record in records)
    assert [split[name] / 21 for name in ("train", "val", "test")] == pytest.approx(SHARES, abs=0.04)
    assert real_records(folder, seed=0) == records
    assert real_records(folder, seed=1) != records
    assert {record.label for record in records} == {0}


def test_an_index_keeps_its_splits_and_gives_its_real_images(tmp_path):
    rows = [Record(f"/a/{i}.png", i % 2, "FS" if i % 2 else "", split=s, video=v) for i, (s, v) in enumerate(
        [("train", "x"), ("train", "x"), ("val", "y"), ("test", ""), ("test", "")]
    )]  # fmt: skip
    write_index(rows, tmp_path / "index.parquet")
    records = real_records(tmp_path, seed=0)
    assert [(r.path, r.split, r.video) for r in records] == [
        ("/a/0.png", "train", "x"), ("/a/2.png", "val", "y"), ("/a/4.png", "test", "4"),
    ]  # fmt: skip
    write_index([row for row in rows if row.label], tmp_path / "fakes.csv")
    with pytest.raises(InputError, match=r"fakes.csv lists no real image"):
        real_records(tmp_path / "fakes.csv", seed=0)


@pytest.mark.parametrize("per_image", [1, 2, 0])
def test_methods_of_a_family_take_turns(per_image):
    records = [Record(f"{i}.png", 0, split="train" if i < 24 else "test") for i in range(40)]
    recipe = ForgeRecipe(per_image=per_image)
    jobs = plan(records, recipe)
    assert len({job.name for job in jobs}) == len(jobs)
    assert Counter(job.real for job in jobs if not job.method) == Counter(range(40))
    for methods in FAMILIES.values():
        used = Counter(job.method for job in jobs if job.method in methods)
        wanted = per_image or len(methods)
        assert used.total() == 40 * wanted
        assert max(used.values()) - min(used.values()) <= 2  # one for each split's remainder
        per_real = Counter(job.real for job in jobs if job.method in methods)
        assert set(per_real.values()) == {wanted}
        assert len({(job.real, job.method) for job in jobs if job.method in methods}) == 40 * wanted


def test_every_real_image_is_forged_once_per_family_and_camera(made):
    out, forged = made
    records = read_index(out / "index.csv")
    assert [Path(r.path).resolve() for r in records] == [Path(r.path).resolve() for r in forged.records]
    number = counts(records)
    for split in ("train", "val", "test"):
        assert number[split, "real"] == number[split, "FS"] == number[split, "FR"] == number[split, "EFS"] > 0
    assert {record.domain for record in records} == {"still", "c40"}
    assert {record.compression for record in records} == {"", "c40"}
    assert {record.method for record in records if record.label} == set(SMALL.methods)
    assert all((record.family, record.method) == ("", "") for record in records if not record.label)


def test_what_is_made_of_a_photograph_stays_in_its_split(made):
    splits: dict[str, set[str]] = {}
    for record in made[1].records:
        splits.setdefault(record.video, set()).add(record.split)
    assert len(splits) == 20
    assert all(len(names) == 1 for names in splits.values())


def test_repeated_photographs_are_left_out_and_named(made):
    assert [Path(path).name for path in made[1].repeated] == ["again.bmp"] or made[1].repeated[0].endswith("03.png")
    assert len(made[1].repeated) == 1


def test_files_differ_in_nothing_but_pixels(made):
    out, _ = made
    sizes = {path.stat().st_size for path in (out / "images").iterdir()}
    assert len(sizes) == 1
    with Image.open(next((out / "images").iterdir())) as image:
        assert (image.format, image.size, image.mode) == ("PNG", (48, 48), "RGB")
    assert all(len(path.stem) == 16 and int(path.stem, 16) >= 0 for path in (out / "images").iterdir())


def test_an_audit_of_the_set_finds_nothing(made):
    records = read_index(made[0] / "index.csv")
    assert audit(records, scan(records, workers=1)).findings == []


def test_the_set_repeats_whatever_the_number_of_workers(made, folder, tmp_path):
    out, _ = made
    forge_dataset(folder, tmp_path / "set", SMALL, workers=1, track=silent)
    assert bytes_of(tmp_path / "set") == bytes_of(out)
    assert (tmp_path / "set" / "index.csv").read_bytes() == (out / "index.csv").read_bytes()


def test_provenance_names_what_made_the_set(made):
    details = json.loads((made[0] / "forge.json").read_text())
    assert details["kind"] == "forged"
    assert details["recipe"]["cameras"] == ["still", "c40"]
    assert details["images"]["real"] == 40
    assert all("http" in details["methods"][name]["source"] for name in SMALL.methods)
    assert len(details["inputs"][0]["pixels_sha256"]) == 64


def test_the_sheet_has_a_row_per_method(made):
    with Image.open(made[0] / "sheet.png") as sheet:
        assert sheet.height == 4 * 50
        assert np.asarray(sheet)[:, 150:].std() > 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methods": ("poison_swap",)}, "did you mean 'poisson_swap'"),
        ({"methods": ("poisson_swap", "poisson_swap")}, "every method is named once"),
        ({"methods": ()}, "at least one: got none"),
        ({"cameras": ("webcan",)}, "did you mean 'webcam'"),
        ({"size": 8}, "images of 8 pixels cannot be forged"),
        ({"effort": 0.0}, "effort above 0"),
        ({"per_image": -1}, "per_image is 0 or more"),
    ],
)
def test_bad_recipes_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        ForgeRecipe(**settings)


def test_a_damaged_photograph_is_named_and_nothing_is_written(folder, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("00.png", "01.png"):
        (tmp_path / "in" / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "in" / "broken.png").write_bytes((folder / "02.png").read_bytes()[:900])
    with pytest.raises(InputError, match=r"broken\.png cannot be read as an image"):
        forge_dataset(tmp_path / "in", tmp_path / "out", SMALL, workers=1, track=silent)
    assert not list(tmp_path.glob("*out*"))


def test_a_swap_needs_two_images_in_every_split(folder, tmp_path):
    rows = [Record(str(folder / f"{i:02d}.png"), 0, split="train" if i else "test") for i in range(4)]
    write_index(rows, tmp_path / "index.csv")
    with pytest.raises(InputError, match="the test split has one real image, and a face swap needs two"):
        forge_dataset(tmp_path, tmp_path / "out", SMALL, workers=1, track=silent)


@pytest.mark.integration
def test_every_method_forges_real_faces(shared_data, tmp_path):
    """Six photographs of the shared set, all methods; faces are found, and every method gives an image."""
    with (shared_data / "faces_ffhq" / "index.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["label"] == "real"][:6]
    files = [
        Record(str(shared_data / "faces_ffhq" / row["path"]), 0, split="train", video=row["video"]) for row in rows
    ]
    write_index(files, tmp_path / "index.csv")
    recipe = ForgeRecipe(per_image=0, size=128, effort=0.02)
    forged = forge_dataset(tmp_path / "index.csv", tmp_path / "out", recipe, workers=2, track=silent)
    assert forged.faces >= 5
    assert Counter(record.method for record in forged.records) == {"": 6} | dict.fromkeys(METHODS, 6)
