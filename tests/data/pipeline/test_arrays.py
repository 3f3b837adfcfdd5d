import numpy as np
import pytest

from r2m_jax import InputError
from r2m_jax.data.pipeline import FeatureBatches
from r2m_jax.data.records import Record

RECORDS = [Record(f"{n}.png", int(n % 4 == 0), "FS", "swap" if n % 4 == 0 else "") for n in range(40)]
FEATURES = np.arange(80, dtype=np.float32).reshape(40, 2)


def make(**changes):
    settings = {"batch_size": 8, "seed": 3, "epochs": 3, **changes}
    return FeatureBatches(RECORDS, FEATURES, **settings)


def test_every_row_comes_once_an_epoch_with_its_label():
    stream = list(make())
    assert len(stream) == len(make()) == 15
    order = np.concatenate([batch["index"] for batch in stream]).reshape(3, 40)
    for epoch in order:
        assert sorted(epoch) == list(range(40))
    assert not (order[0] == order[1]).all()
    for batch in stream:
        np.testing.assert_array_equal(batch["feature"], FEATURES[batch["index"]])
        np.testing.assert_array_equal(batch["label"], [RECORDS[i].label for i in batch["index"]])


def test_processes_share_batches_and_balanced_ones_are_balanced():
    whole = [batch["index"] for batch in make(sampling="balanced")]
    halves = [[batch["index"] for batch in make(sampling="balanced", shard=(i, 2))] for i in (0, 1)]
    for batch, first, second in zip(whole, *halves, strict=True):
        np.testing.assert_array_equal(batch, np.concatenate([first, second]))
        assert sum(RECORDS[i].label for i in batch) == 4


def test_resumes_where_it_stood():
    stream = make()
    for _ in range(4):
        next(stream)
    state = stream.get_state()
    rest = [batch["index"] for batch in stream]
    again = make()
    again.set_state(state)
    np.testing.assert_array_equal(rest, [batch["index"] for batch in again])
    with pytest.raises(InputError, match="is of other features"):
        make(seed=4).set_state(state)


def test_batches_that_cannot_be_made():
    with pytest.raises(InputError, match="40 images do not fill one batch of 200"):
        make(batch_size=200)
    with pytest.raises(InputError, match="cannot be divided among 3 processes"):
        make(shard=(0, 3))
