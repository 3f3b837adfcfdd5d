import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from r2m_jax import InputError
from r2m_jax.checkpoints import image_processor
from r2m_jax.data.device import normalise, random_flip
from r2m_jax.data.images import load_images
from r2m_jax.data.pipeline import training_batches
from r2m_jax.data.index import read_index, write_index
from r2m_jax.data.records import Record, counts, select

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00\r\n", exclude_categories=["Cs"])).map(str.strip)


@given(
    rows=st.lists(
        st.tuples(st.sampled_from([0, 1]), TEXT, TEXT, TEXT, st.sampled_from(["train", "val", "test"])), min_size=1
    )
)
def test_index_round_trip(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("index")
    records = [
        Record(str(folder / f"{i}.png"), label, family=a, method=b, domain=c, video=f"v{i}", split=split)
        for i, (label, a, b, c, split) in enumerate(rows)
    ]
    write_index(records, folder / "index.csv")
    assert read_index(folder / "index.csv") == records


def test_paths_are_relative_to_the_index(tmp_path):
    inside, outside = tmp_path / "set" / "images" / "a.png", tmp_path / "b.png"
    write_index([Record(str(inside), 0), Record(str(outside), 1)], tmp_path / "set" / "index.csv")
    text = (tmp_path / "set" / "index.csv").read_text()
    assert "\nimages/a.png,real" in text
    assert str(outside) in text
    (tmp_path / "set").rename(tmp_path / "moved")
    assert read_index(tmp_path / "moved" / "index.csv")[0].path == str(tmp_path / "moved" / "images" / "a.png")


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


def numbered(count):
    """Images that carry their own number, with alternating labels."""
    images = np.zeros((count, 4, 4, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    return images, [index % 2 for index in range(count)]


def order(batches):
    return [int(image[0, 0, 0]) for batch in batches for image in batch["image"]]


def test_every_pass_sees_every_image_once_in_a_new_order():
    batches, steps = training_batches(*numbered(40), batch_size=8, passes=3, seed=7)
    seen = order(batches)
    assert steps == 15
    passes = [seen[start : start + 40] for start in (0, 40, 80)]
    assert all(sorted(one) == list(range(40)) for one in passes)
    assert passes[0] != passes[1] != passes[2]


def test_order_depends_on_the_seed_alone_and_labels_stay_with_images():
    def run(seed):
        return list(training_batches(*numbered(30), batch_size=7, passes=2, seed=seed)[0])

    assert order(run(1)) == order(run(1)) != order(run(2))
    assert all((batch["image"][:, 0, 0, 0] % 2 == batch["label"]).all() for batch in run(1))
    assert len(run(1)) == 60 // 7


def test_iterator_resumes_where_it_was():
    first, _ = training_batches(*numbered(30), batch_size=6, passes=2, seed=3)
    for _ in range(4):
        next(first)
    state = first.get_state()
    rest = order(first)
    second, _ = training_batches(*numbered(30), batch_size=6, passes=2, seed=3)
    second.set_state(state)
    assert order(second) == rest


@pytest.mark.parametrize(
    ("images", "labels", "named"),
    [(4, [0, 1, 0], "4 images came with 3"), (3, [0, 0, 0], "no fake"), (3, [1, 1, 1], "no real"), (2, [0, 1], "fill")],
)
def test_bad_training_sets(images, labels, named):
    with pytest.raises(InputError, match=named):
        training_batches(np.zeros((images, 4, 4, 3), np.uint8), labels, batch_size=8, passes=1, seed=0)


def test_flip_mirrors_about_half_of_the_images(rng):
    import jax

    images = rng.integers(0, 256, (200, 4, 6, 3), dtype=np.uint8)
    out = np.asarray(random_flip(jax.random.key(0), images))
    mirrored = (out == images[:, :, ::-1]).all(axis=(1, 2, 3))
    same = (out == images).all(axis=(1, 2, 3))
    assert (mirrored | same).all()
    assert 70 < mirrored.sum() < 130
