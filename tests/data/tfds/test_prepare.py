import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from r2m_jax import InputError
from r2m_jax.data.index import write_index
from r2m_jax.data.pipeline import Decoding, RecordSource, batches, evaluation_batches
from r2m_jax.data.records import SPLITS, Record
from r2m_jax.data.tfds import TfdsSource, prepare


@pytest.fixture(scope="module")
def prepared(records, tmp_path_factory):
    return prepare(records, tmp_path_factory.mktemp("data"), "faces")


@pytest.mark.parametrize("split", SPLITS)
def test_records_and_pixels_are_those_of_the_index(records, prepared, split):
    expected = [record for record in records if record.split == split]
    source = TfdsSource(prepared, split)
    assert source.records == expected
    for number in range(len(expected)):
        ours, theirs = source.image(number), RecordSource(expected).image(number)
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_batches_are_those_of_the_index(records, prepared):
    sources = TfdsSource(prepared, "test"), RecordSource([record for record in records if record.split == "test"])
    options = {"batch_size": 3, "seed": 1, "epochs": 2, "sampling": "balanced", "decoding": Decoding(16)}
    for one, other in zip(*(list(batches(source, **options)) for source in sources), strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_files_are_stored_byte_for_byte(records, prepared):
    """Read by tensorflow-datasets alone, by name."""
    data = tfds.data_source(
        "faces", data_dir=prepared.parents[1], split="train", decoders={"image": tfds.decode.SkipDecoding()}
    )
    assert len(data) == sum(record.split == "train" for record in records)
    for example in data:
        record = records[int(example["index"])]
        assert example["image"] == Path(record.path).read_bytes()
        assert example["path"].decode() == record.path


def test_slices_and_pickles(prepared):
    half = TfdsSource(prepared.parent, "test[:50%]")
    whole = TfdsSource(prepared, "test")
    assert half.records == whole.records[: len(half.records)]
    assert 0 < len(half.records) < len(whole.records)
    again = pickle.loads(pickle.dumps(whole))
    assert again.records == whole.records
    np.testing.assert_array_equal(np.asarray(again.image(1)), np.asarray(whole.image(1)))


WITHOUT_TENSORFLOW = """
import sys

from r2m_jax.data.pipeline import Decoding, batches
from r2m_jax.data.tfds import TfdsSource, prepare

folder = prepare(sys.argv[1], sys.argv[2])
for batch in batches(TfdsSource(folder, "test"), batch_size=4, seed=0, decoding=Decoding(16)):
    print(batch["image"].shape)
assert "tensorflow" not in sys.modules
"""


def test_nothing_of_it_needs_tensorflow(records, tmp_path):
    write_index(records, tmp_path / "index.parquet")
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, str(tmp_path / "index.parquet"), str(tmp_path / "data")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.stdout == "(4, 16, 16, 3)\n", result.stderr


def test_failures_leave_nothing_behind(records, prepared, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    for path, reason in ((tmp_path / "text.png", "its format"), (tmp_path / "absent.png", "No such file")):
        with pytest.raises(InputError, match=rf"{path.name} cannot be read as an image \({reason}"):
            prepare([records[0], Record(str(path), 1)], tmp_path / "data", "bad")
    with pytest.raises(InputError, match="'Bad-Name'"):
        prepare(records, tmp_path / "data", "Bad-Name")
    with pytest.raises(InputError, match="no image to prepare"):
        prepare([], tmp_path / "data")
    assert not list((tmp_path / "data").glob("*"))
    with pytest.raises(InputError, match="already exists"):
        prepare(records[:1], prepared.parents[1], "faces")


def test_overwriting_replaces_the_data_set(records, tmp_path):
    prepare(records, tmp_path, "faces")
    told = []
    folder = prepare(records[:1], tmp_path, "faces", overwrite=True, on_progress=told.append)
    assert TfdsSource(folder, "train").records == records[:1]
    assert told == [1]
    with pytest.raises(InputError, match="no split 'test'; it has train"):
        TfdsSource(folder, "test")
    with pytest.raises(InputError, match="holds no prepared data set"):
        TfdsSource(tmp_path, "train")


def test_damage_behind_the_header_names_the_file(tmp_path):
    path = tmp_path / "cut.jpg"
    Image.effect_noise((64, 64), 90).save(path)
    path.write_bytes(path.read_bytes()[:900])
    source = TfdsSource(prepare([Record(str(path), 0)], tmp_path), "test")
    with pytest.raises(InputError, match=r"cut\.jpg in .*generic"):
        next(evaluation_batches(source, batch_size=1))
