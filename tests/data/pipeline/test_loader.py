import json
import subprocess
import sys
from collections import Counter
from functools import partial

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from r2m_jax import InputError
from r2m_jax.data.augment import host, preset
from r2m_jax.data.pipeline import Decoding, RecordSource, batches, evaluation_batches
from r2m_jax.data.pipeline.sampling import plan
from r2m_jax.data.records import Record

PLAIN = Decoding(size=12, workers=0)


class Numbered:
    """A source whose images carry their own number."""

    def __init__(self, count):
        self.records = [Record(f"{number}.png", number % 2) for number in range(count)]

    def image(self, index, shortest=None):
        return Image.new("RGB", (2, 2), (index % 256, index // 256, 0))


def noise(image, rng):
    return rng.integers(0, 256, image.shape, dtype=np.uint8) ^ image


def same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def run(source, decoding, **options):
    with batches(source, **({"batch_size": 5, "seed": 3, "epochs": 2} | options), decoding=decoding) as iterator:
        return list(iterator)


@pytest.mark.parametrize("sampling", ["natural", "balanced", "per_method"])
def test_the_stream_is_the_same_for_any_number_of_threads(faces, sampling):
    reference = run(RecordSource(faces), Decoding(12, workers=0, transform=noise), sampling=sampling)
    assert len(reference) == 2 * 37 // 5
    for workers in (1, 2, 4):
        same(run(RecordSource(faces), Decoding(12, workers=workers, transform=noise), sampling=sampling), reference)


@pytest.mark.parametrize("name", ["df40", "r2m_text"])
def test_augmented_batches_are_the_same_for_any_number_of_threads(faces, name):
    decodings = [Decoding(24, workers=n, transform=partial(host.augment, policy=preset(name))) for n in (0, 3)]
    one, other = (run(RecordSource(faces), decoding) for decoding in decodings)
    same(one, other)
    plain = run(RecordSource(faces), Decoding(24, workers=0))
    assert any((a["image"] != b["image"]).any() for a, b in zip(one, plain, strict=True))


PROCESSES = """
import sys, warnings
warnings.simplefilter("error")
import numpy as np
from r2m_jax.data.index import read_index
from r2m_jax.data.pipeline import Decoding, RecordSource, batches

def noise(image, rng):
    return rng.integers(0, 256, image.shape, dtype=np.uint8) ^ image

def stream(workers):
    decoding = Decoding(12, workers=workers, processes=True, transform=noise)
    return batches(RecordSource(read_index(sys.argv[1])), batch_size=5, seed=3, epochs=2, decoding=decoding)

if __name__ == "__main__":
    reference = list(stream(0))
    for workers in map(int, sys.argv[2].split(",")):
        with stream(workers) as iterator:
            found = [next(iterator) for _ in range(4)]
            state = iterator.get_state()
        with stream(workers) as iterator:
            iterator.set_state(state)
            found += list(iterator)
        assert len(found) == len(reference) == 14
        for a, b in zip(found, reference):
            for name in a:
                np.testing.assert_array_equal(a[name], b[name])
    print("same")
"""


@pytest.mark.parametrize("workers", ["2", pytest.param("1,4", marks=pytest.mark.integration)])
def test_the_stream_is_the_same_from_processes(faces, tmp_path, workers):
    """In a program of its own, as worker processes start afresh from its file; resumed on the way."""
    from r2m_jax.data.index import write_index

    write_index(faces, tmp_path / "index.csv")
    (tmp_path / "program.py").write_text(PROCESSES)
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "index.csv"), workers]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.stdout == "same\n", result.stderr


def test_rows_join_back_to_records(faces):
    for batch in run(RecordSource(faces), PLAIN, sampling="balanced"):
        assert batch["image"].dtype == np.uint8
        assert batch["image"].shape == (5, 12, 12, 3)
        assert batch["label"].dtype == batch["index"].dtype == np.int32
        assert batch["valid"].all()
        assert [faces[number].label for number in batch["index"]] == batch["label"].tolist()


def test_every_epoch_has_every_image_once_in_a_new_order():
    seen = np.concatenate([batch["index"] for batch in run(Numbered(40), Decoding(2), batch_size=8, epochs=3)])
    epochs = seen.reshape(3, 40)
    assert (np.sort(epochs) == np.arange(40)).all()
    assert (epochs[0] != epochs[1]).any()
    assert (epochs[1] != epochs[2]).any()


@settings(max_examples=50)
@given(count=st.integers(1, 60), rows=st.integers(1, 9), processes=st.integers(1, 5))
def test_evaluation_sees_every_image_once_over_any_processes(count, rows, processes):
    source, decoding = Numbered(count), Decoding(2, workers=0)
    shards = [
        list(evaluation_batches(source, batch_size=rows * processes, shard=(process, processes), decoding=decoding))
        for process in range(processes)
    ]
    assert {len(shard) for shard in shards} == {-(-count // (rows * processes))}
    together = [np.concatenate([shard[step]["index"] for shard in shards]) for step in range(len(shards[0]))]
    every = np.concatenate(together)
    np.testing.assert_array_equal(every, [*range(count), *[-1] * (len(every) - count)])
    for batch in (batch for shard in shards for batch in shard):
        assert batch["image"].shape == (rows, 2, 2, 3)
        np.testing.assert_array_equal(batch["valid"], batch["index"] >= 0)
        np.testing.assert_array_equal(batch["label"], np.where(batch["valid"], batch["index"] % 2, -1))
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], np.where(batch["valid"], batch["index"], 0))


@settings(max_examples=30)
@given(
    count=st.integers(1, 40), rows=st.integers(1, 4), processes=st.integers(1, 4), epochs=st.integers(1, 3),
    drop=st.booleans(),
)  # fmt: skip
def test_training_batches_are_the_same_over_any_processes(count, rows, processes, epochs, drop):
    size = rows * processes
    options = {"batch_size": size, "seed": 1, "epochs": epochs, "drop_remainder": drop}
    decoding = Decoding(2, workers=0)
    source = Numbered(count)
    if drop and count * epochs < size:
        with pytest.raises(InputError, match="do not fill"):
            batches(source, **options, decoding=decoding)
        return
    one = list(batches(source, **options, decoding=decoding))
    shards = [list(batches(source, **options, shard=(i, processes), decoding=decoding)) for i in range(processes)]
    same(
        [{name: np.concatenate([part[name] for part in parts]) for name in parts[0]} for parts in zip(*shards)],  # noqa: B905
        one,
    )
    seen = Counter(np.concatenate([batch["index"][batch["valid"]] for batch in one]).tolist())
    assert seen.total() == (count * epochs // size * size if drop else count * epochs)
    if not drop:
        assert set(seen.values()) == {epochs}


@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 4), (4, 0)])
@pytest.mark.parametrize("steps", [0, 3, 9, 14])
def test_it_resumes_anywhere_with_other_workers(faces, before, after, steps):
    whole = run(RecordSource(faces), Decoding(12, workers=0, transform=noise))
    options = {"batch_size": 5, "seed": 3, "epochs": 2}
    with batches(RecordSource(faces), **options, decoding=Decoding(12, before, transform=noise)) as first:
        same([next(first) for _ in range(steps)], whole[:steps])
        state = json.loads(json.dumps(first.get_state()))
    with batches(RecordSource(faces), **options, decoding=Decoding(12, after, transform=noise)) as second:
        if steps:
            next(second)  # goes back from wherever it is
        second.set_state(state)
        same(list(second), whole[steps:])


def test_it_resumes_with_another_number_of_processes():
    options = {"batch_size": 6, "seed": 3, "epochs": 2, "decoding": Decoding(2, workers=0)}
    whole = np.stack([batch["index"] for batch in batches(Numbered(20), **options)])
    first = batches(Numbered(20), **options, shard=(1, 2))
    seen = [next(first)["index"] for _ in range(2)]
    np.testing.assert_array_equal(seen, whole[:2, 3:])
    parts = []
    for process in range(3):
        resumed = batches(Numbered(20), **options, shard=(process, 3))
        resumed.set_state(first.get_state())
        parts.append([batch["index"] for batch in resumed])
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole[2:])


def test_graincheckpoint_stores_the_place(faces, tmp_path):
    """The handler Orbax is given for Grain's iterators takes this one."""
    handler = grain.checkpoint.CheckpointHandler()
    options = {"batch_size": 5, "seed": 3, "epochs": 2, "decoding": PLAIN}
    with batches(RecordSource(faces), **options) as first, batches(RecordSource(faces), **options) as second:
        next(first), next(first)
        handler.save(tmp_path, item=first)
        assert handler.restore(tmp_path, item=second) is second
        same(list(second), list(first))


@pytest.mark.parametrize("change", [{"seed": 4}, {"sampling": "balanced"}, {"batch_size": 6}, {"epochs": 3}])
def test_a_place_in_another_stream_is_refused(faces, change):
    options = {"batch_size": 5, "seed": 3, "epochs": 2, "decoding": PLAIN}
    state = batches(RecordSource(faces), **options).get_state()
    with pytest.raises(InputError, match=f"is of {'samples' if 'epochs' in change else '[a-z_]+'} "):
        batches(RecordSource(faces), **(options | change)).set_state(state)


@pytest.fixture
def damaged(tmp_path):
    """12 images, of which 2 and 7 (both of method m) are damaged."""
    records = []
    for number in range(12):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (12, 12), (number, 0, 0)).save(path)
        records.append(
            Record(str(path), number % 2 if number != 2 else 1, method="m" if number in (2, 5, 7, 9) else "")
        )
    for number in (2, 7):
        (tmp_path / f"{number}.png").write_bytes((tmp_path / f"{number}.png").read_bytes()[:45])
    return records


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_name_the_first_damaged_file_of_the_stream(damaged, workers):
    source = RecordSource(damaged)
    with evaluation_batches(source, batch_size=2, decoding=Decoding(12, workers)) as iterator:
        assert next(iterator)["index"].tolist() == [0, 1]
        with pytest.raises(InputError, match=r"/2\.png cannot be read"):
            next(iterator)
    order = plan(damaged, "natural", 0)
    first = next(number for number in map(lambda i: order.record(0, i), range(12)) if number in (2, 7))  # noqa: C417
    with (
        batches(source, batch_size=4, seed=0, decoding=Decoding(12, workers)) as iterator,
        pytest.raises(InputError, match=rf"/{first}\.png"),
    ):
        list(iterator)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_leaves_out_what_is_damaged(damaged, workers):
    decoding = Decoding(12, workers, on_corrupt="skip")
    with evaluation_batches(RecordSource(damaged), batch_size=5, decoding=decoding) as iterator:
        rows = list(iterator)
        assert [name.rpartition("/")[2] for name in iterator.unreadable] == ["2.png", "7.png"]
        assert all("cannot be read" in reason for reason in iterator.unreadable.values())
    index, valid, label = (np.concatenate([batch[name] for batch in rows]) for name in ("index", "valid", "label"))
    assert index.tolist() == [*range(12), -1, -1, -1]
    assert index[~valid].tolist() == [2, 7, -1, -1, -1]
    assert (label[~valid] == -1).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_training_replaces_what_is_damaged_within_its_method(damaged, workers):
    decoding = Decoding(12, workers, on_corrupt="skip")
    options = {"batch_size": 6, "seed": 2, "epochs": 6, "sampling": "per_method", "decoding": decoding}
    with batches(RecordSource(damaged), **options) as iterator:
        rows = list(iterator)
        assert sorted(name.rpartition("/")[2] for name in iterator.unreadable) == ["2.png", "7.png"]
        assert iterator.get_state()["unreadable"] == iterator.unreadable
    order = plan(damaged, "per_method", 2)
    for step, batch in enumerate(rows):
        assert batch["valid"].all()
        for row in range(6):
            planned, used = damaged[order.record(*divmod(6 * step + row, 12))], batch["index"][row]
            assert used not in (2, 7)
            assert (damaged[used].label, damaged[used].method) == (planned.label, planned.method)
            assert batch["label"][row] == planned.label
            assert batch["image"][row, 0, 0, 0] == used
    same(rows, list(batches(RecordSource(damaged), **options)))


def test_a_set_that_is_damaged_throughout_is_given_up(damaged):
    options = {"batch_size": 1, "seed": 0, "decoding": Decoding(12, 0, on_corrupt="skip")}
    with pytest.raises(InputError, match=r"16 images drawn in a row cannot be read; the last: .*/[27]\.png"):
        next(batches(RecordSource([damaged[2], damaged[7]]), **options))


def test_transforms_see_the_seed_the_epoch_and_the_place():
    draws = {}

    def record(image, rng):
        draws.setdefault(len(draws), rng.integers(2**62))
        return image

    list(batches(Numbered(6), batch_size=6, seed=5, epochs=2, decoding=Decoding(2, 0, transform=record)))
    expected = [np.random.default_rng((5, epoch, place)).integers(2**62) for epoch in range(2) for place in range(6)]
    assert list(draws.values()) == expected


def test_transforms_that_change_size_or_type_are_refused():
    for transform in (lambda image, _: image[:1], lambda image, _: image / 255):
        with pytest.raises(TypeError, match="the transform gave"):
            next(batches(Numbered(4), batch_size=2, seed=0, decoding=Decoding(2, 0, transform=transform)))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"batch_size": 5, "shard": (0, 2)}, "batch of 5 cannot be divided among 2"),
        ({"shard": (2, 2)}, "process 2 of 2"),
        ({"batch_size": 0, "drop_remainder": False}, "batch of 0"),
        ({"batch_size": 100}, "10 images do not fill"),
        ({"decoding": Decoding(2, on_corrupt="ignore")}, "'ignore'"),
        ({"sampling": "odd"}, "'odd'"),
    ],
)
def test_what_cannot_be_batched(options, named):
    with pytest.raises(InputError, match=named):
        batches(Numbered(10), **({"batch_size": 4, "seed": 0} | options))
    with pytest.raises(InputError, match="no image"):
        evaluation_batches(Numbered(0), batch_size=4)


def test_epochs_of_the_iterator_have_a_length(faces):
    iterator = batches(RecordSource(faces), batch_size=5, seed=0, epochs=3, decoding=PLAIN)
    assert len(iterator) == 37 * 3 // 5 == len(list(iterator))
    assert len(evaluation_batches(RecordSource(faces), batch_size=5)) == 8
