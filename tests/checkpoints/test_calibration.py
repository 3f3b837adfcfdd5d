import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from r2m_jax import InputError
from r2m_jax.checkpoints.calibration import FILE, Calibration, read_calibration, write_calibration
from r2m_jax.version import __version__

SHARE = st.floats(0, 1)
GOOD = {
    "threshold": 0.7, "fpr": 0.01, "split": "val", "images": 20, "real": 10, "sha256": "0" * 64, "auc": 0.9,
}  # fmt: skip


@given(SHARE, SHARE, st.text(), st.integers(1, 10**9), st.integers(0, 10**9), SHARE | st.none())
def test_what_is_written_is_read_to_the_last_bit(tmp_path_factory, threshold, fpr, split, real, fake, auc):
    folder = tmp_path_factory.mktemp("model")
    made = Calibration(
        threshold=threshold, fpr=fpr, split=split, images=real + fake, real=real, sha256="a1" * 32, auc=auc
    )
    write_calibration(folder, made)
    assert read_calibration(folder) == made
    assert made.version == __version__
    assert [path.name for path in folder.iterdir()] == [FILE]


def test_a_later_calibration_replaces_an_earlier_one(tmp_path):
    assert read_calibration(tmp_path) is None
    for threshold in (0.2, 0.9):
        write_calibration(tmp_path, Calibration(**GOOD | {"threshold": threshold}))
    assert read_calibration(tmp_path).threshold == 0.9


def test_a_calibration_needs_its_model(tmp_path):
    with pytest.raises(InputError, match="nowhere is no model directory"):
        write_calibration(tmp_path / "nowhere", Calibration(**GOOD))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"threshold": 1.5}, "threshold: .*less than or equal to 1"),
        ({"threshold": float("nan")}, "threshold: .*finite"),
        ({"real": 21}, "21 of 20 images cannot be real"),
        ({"sha256": "abc"}, "sha256"),
        ({"split": None}, "split"),
    ],
)
def test_what_is_no_calibration_is_named(tmp_path, change, says):
    with pytest.raises(ValidationError):
        Calibration(**GOOD | change)
    (tmp_path / FILE).write_text(json.dumps(GOOD | change))
    with pytest.raises(InputError, match=says) as raised:
        read_calibration(tmp_path)
    assert str(tmp_path / FILE) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_damaged_files_are_named(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(InputError, match=FILE):
        read_calibration(tmp_path)
