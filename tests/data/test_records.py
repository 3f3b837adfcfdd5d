import csv
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from r2m_jax import InputError
from r2m_jax.checkpoints import image_processor
from r2m_jax.data.device import normalise, random_flip
from r2m_jax.data.images import load_images
from r2m_jax.data.index import read_index, write_index
from r2m_jax.data.records import Record, counts, select

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00\r\n", exclude_categories=["Cs"])).map(str.strip)


RECORDS = st.builds(
    Record, path=st.just(""), label=st.sampled_from([0, 1]), family=TEXT, method=TEXT, domain=TEXT, video=TEXT,
    split=st.sampled_from(["train", "val", "test"]), dataset=TEXT, compression=TEXT, frame=st.integers(-1, 2**31 - 1),
    landmarks=st.sampled_from(["", "l/a.npy"]), mask=st.sampled_from(["", "m/a.png"]),
)  # fmt: skip


def below(folder, records):
    """The records with their files in a folder."""
    return [
        replace(
            record,
            path=str(folder / f"{number}.png"),
            landmarks=record.landmarks and str(folder / record.landmarks),
            mask=record.mask and str(folder / record.mask),
        )
        for number, record in enumerate(records)
    ]


@given(drawn=st.lists(RECORDS, min_size=1))
def test_index_round_trip(tmp_path_factory, drawn):
    folder = tmp_path_factory.mktemp("index")
    records = below(folder, drawn)
    for name in ("index.csv", "index.parquet"):
        write_index(records, folder / name)
        assert read_index(folder / name) == records


@pytest.mark.parametrize("name", ["index.csv", "index.parquet"])
def test_paths_are_relative_to_the_index(tmp_path, name):
    inside, outside = tmp_path / "set" / "images" / "a.png", tmp_path / "b.png"
    records = [
        Record(str(inside), 0, landmarks=str(inside.with_suffix(".npy")), mask=str(outside)),
        Record(str(outside), 1),
    ]
    write_index(records, tmp_path / "set" / name)
    (tmp_path / "set").rename(tmp_path / "moved")
    moved = tmp_path / "moved" / "images" / "a.png"
    assert read_index(tmp_path / "moved" / name) == [
        replace(records[0], path=str(moved), landmarks=str(moved.with_suffix(".npy"))),
        records[1],
    ]


def test_an_index_is_plain_to_other_programs(tmp_path):
    """pandas-like readers see relative paths; CSV says real and fake, Parquet 0 and 1."""
    records = below(tmp_path, [Record("", 0), Record("", 1, frame=7)])
    write_index(records, tmp_path / "index.csv")
    write_index(records, tmp_path / "index.parquet")
    rows = list(csv.DictReader((tmp_path / "index.csv").read_text().splitlines()))
    assert [(row["path"], row["label"], row["frame"]) for row in rows] == [
        ("0.png", "real", "-1"),
        ("1.png", "fake", "7"),
    ]
    table = pq.read_table(tmp_path / "index.parquet")
    assert table.column_names == list(rows[0])
    assert table.select(["path", "label", "frame"]).to_pylist() == [
        {"path": "0.png", "label": 0, "frame": -1},
        {"path": "1.png", "label": 1, "frame": 7},
    ]


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"path": ["a.png", "b.png"], "label": [0, 2]}, "row 2.*'2'"),
        ({"path": ["a.png"], "label": ["real"], "split": ["dev"]}, "row 1.*'dev'"),
        ({"path": ["a.png", "b.png"], "label": [1, None]}, "row 2.*''"),
        ({"path": ["a.png"], "label": [1], "frame": ["first"]}, "row 1.*'first' is not a whole number"),
        ({"path": ["a.png"]}, "lacks the column label"),
        ({"path": [], "label": []}, "lists no image"),
    ],
)
def test_bad_parquet_indexes(tmp_path, columns, named):
    pq.write_table(pa.table(columns), tmp_path / "index.parquet")
    with pytest.raises(InputError, match=named):
        read_index(tmp_path / "index.parquet")


def test_files_that_are_no_parquet(tmp_path):
    (tmp_path / "index.parquet").write_text("path,label\n")
    for name in ("index.parquet", "absent.parquet"):
        with pytest.raises(InputError, match=f"{name} cannot be read as Parquet"):
            read_index(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("path,label\na.png,maybe\n", "line 2.*'maybe'"),
        ("path,label,split\na.png,real,train\nb.png,1,dev\n", "line 3.*'dev'"),
        ("path,family\na.png,FS\n", "lacks the column label"),
        ("path,label\n,1\n", "path is empty"),
        ("path,label\n", "lists no image"),
        ("", "lacks the column"),
    ],
)
def test_bad_indexes(tmp_path, text, named):
    (tmp_path / "index.csv").write_text(text)
    with pytest.raises(InputError, match=named):
        read_index(tmp_path / "index.csv")
    with pytest.raises(InputError, match="cannot be read"):
        read_index(tmp_path / "absent.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00path")
    with pytest.raises(InputError, match="UTF-8"):
        read_index(tmp_path / "binary.csv")


def test_selection_keeps_real_images_beside_a_family():
    records = [Record("r", 0, split="train"), Record("a", 1, family="FS", split="train"), Record("b", 1, family="FR")]
    assert [r.path for r in select(records, families=["FS"])] == ["r", "a"]
    assert [r.path for r in select(records, split="test", families=["FR"])] == ["b"]
    assert counts(records) == {("train", "real"): 1, ("train", "FS"): 1, ("test", "FR"): 1}


@pytest.mark.parametrize("shape", [(32, 32), (40, 70), (90, 33), (20, 25)])
def test_decoding_is_the_processors(tmp_path, rng, shape):
    """Decoding, resizing and on-device normalisation together give what transformers' processor gives."""
    Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    processor = image_processor(32)
    ours = normalise(load_images([tmp_path / "a.png"], 32), processor.image_mean, processor.image_std)[0]
    theirs = processor(Image.open(tmp_path / "a.png"), return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(ours, np.moveaxis(theirs, 0, -1), atol=2e-6)


def test_decoding_turns_images_upright_and_names_bad_ones(tmp_path, rng):
    pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load_images([tmp_path / "a.png"], 32)[0], pixels[::-1, ::-1])
    whole = (tmp_path / "a.png").read_bytes()
    for name, content in (("cut.png", whole[: len(whole) // 2]), ("text.png", b"no image"), ("empty.png", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            load_images([tmp_path / "a.png", tmp_path / name], 32)


def test_flip_mirrors_about_half_of_the_images(rng):
    import jax

    images = rng.integers(0, 256, (200, 4, 6, 3), dtype=np.uint8)
    out = np.asarray(random_flip(jax.random.key(0), images))
    mirrored = (out == images[:, :, ::-1]).all(axis=(1, 2, 3))
    same = (out == images).all(axis=(1, 2, 3))
    assert (mirrored | same).all()
    assert 70 < mirrored.sum() < 130
