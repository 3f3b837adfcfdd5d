"""Merges dealt to several processes, played in one: every leaf once, and the numbers of one process."""

import math
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2m_jax.checkpoints.tensors import LazyTensor, SafetensorsWriter, open_safetensors, safetensors_files
from r2m_jax.merging.averaging import WeightAveraging
from r2m_jax.merging.chunks import plan
from r2m_jax.merging.r2m import R2M
from r2m_jax.merging.streaming import measure_stream
from r2m_jax.merging.ties_streaming import ties_stream

NAMES = ["A", "B", "C"]
SHAPES = {
    **{f"encoder.layers.{n}.self_attn.{x}_proj.weight": (12, 12) for n in range(3) for x in "qkv"},
    **{f"encoder.layers.{n}.mlp.fc1.weight": (20, 12) for n in range(3)},
    "embeddings.position_embedding.weight": (37, 12),
    "embeddings.class_embedding": (12,),
}


def models(shapes):
    rng = np.random.default_rng(0)
    base = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    moved = [{k: v + 0.1 * rng.normal(size=v.shape).astype(np.float32) for k, v in base.items()} for _ in NAMES]
    return [{name: LazyTensor.of(value) for name, value in each.items()} for each in (base, *moved)]


ORIGIN, *OTHERS = models(SHAPES)


@given(
    layers=st.integers(1, 6), width=st.integers(2, 9), processes=st.integers(1, 9), memory=st.integers(1, 20_000),
    fused=st.booleans(),
)  # fmt: skip
def test_every_value_is_of_one_process_and_no_leaf_of_two(layers, width, processes, memory, fused):
    shapes = {f"encoder.layers.{n}.self_attn.{x}_proj.weight": (width, width) for n in range(layers) for x in "qkv"}
    shapes |= {"embeddings.position_embedding.weight": (5 * width, width), "embeddings.class_embedding": (width,)}
    base, *others = models(shapes)
    cuts = [
        plan(R2M(), base, others, memory=memory, fused_qkv=fused, processes=processes, process=number)
        for number in range(processes)
    ]
    assert len({cut.shares for cut in cuts}) == 1
    assert sorted(path for share in cuts[0].shares for path in share) == sorted(shapes)
    for cut, share in zip(cuts, cuts[0].shares, strict=True):
        pieces = [piece for chunk in cut.chunks for piece in chunk.pieces]
        assert {path for piece in pieces for path in piece.unit.paths} == set(share)
        assert sum(piece.size for piece in pieces) == sum(math.prod(shapes[path]) for path in share)


def test_statistics_of_all_processes_are_those_of_one(tmp_path):
    def measured(processes, number, exchange):
        scratch = tmp_path / f"{processes}-{number}"
        scratch.mkdir(exist_ok=True)  # found again, what is measured is not measured again
        cut = plan(R2M(), ORIGIN, OTHERS, processes=processes, process=number)
        return measure_stream(R2M(), cut, ORIGIN, OTHERS, names=NAMES, scratch=scratch, exchange=exchange)

    told = []
    for number in range(2):
        measured(2, number, lambda mine: told.append(dict(mine)) or [mine])
    whole = measured(1, 0, lambda mine: [mine])
    together = measured(2, 0, lambda mine: [mine, *told[1:]])
    for name in whole._fields:
        np.testing.assert_array_equal(getattr(together, name), getattr(whole, name), err_msg=name)


@pytest.mark.parametrize("variant", ["original", "paper"])
def test_thresholds_and_values_of_ties_are_those_of_one_process(variant, tmp_path):
    def merged(processes):
        barrier, board, found, out = threading.Barrier(processes), {}, {}, {}

        def exchange(number, mine):
            board[number] = dict(mine)
            barrier.wait(60)
            everyones = [board[n] for n in range(processes)]
            barrier.wait(60)
            return everyones

        def write(path, values, row):
            out.setdefault(path, np.zeros(SHAPES[path], np.float32))[row : row + len(values)] = values

        def one(number):
            cut = plan(WeightAveraging(), ORIGIN, OTHERS, memory=30_000, processes=processes, process=number)
            found[number] = ties_stream(
                cut, ORIGIN, OTHERS, write, density=0.3, variant=variant, names=NAMES,
                exchange=lambda mine: exchange(number, mine),
            )  # fmt: skip

        threads = [threading.Thread(target=one, args=(number,)) for number in range(processes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        return found, out

    (alone, wanted), (each, values) = merged(1), merged(4)
    for thresholds in each.values():
        np.testing.assert_array_equal(thresholds, alone[0])
    assert values.keys() == SHAPES.keys()
    for path in wanted:
        np.testing.assert_array_equal(values[path], wanted[path], err_msg=path)


@settings(max_examples=25)
@given(owners=st.lists(st.integers(0, 3), min_size=1, max_size=8), limit=st.integers(20, 400))
def test_processes_write_files_of_their_own_that_make_one_model(owners, limit, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dealt")
    tensors = {f"t{n}": np.full((n + 1, 5), n, np.float32) for n in range(len(owners))}
    shares = [[f"t{n}" for n, owner in enumerate(owners) if owner == number] for number in range(4)]
    for number in range(4):
        before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        writer = SafetensorsWriter(folder, tensors, limit, shares=shares, own=number)
        for name in shares[number]:
            writer.write(name, tensors[name])
        writer.close()
        assert all((folder / name).stat().st_mtime_ns == time for name, time in before.items())
    read = open_safetensors(safetensors_files(folder)[0])
    assert read.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(read[name].read(), value)


def test_rows_are_read_without_the_rest_of_the_file(tmp_path):
    """Of a file that is larger than memory: all but the asked-for rows is a hole."""
    rows = 2**22
    writer = SafetensorsWriter(tmp_path, {"large": LazyTensor((rows, 16384), np.dtype(np.float32), lambda rows: rows)})
    wanted = np.arange(3 * 16384, dtype=np.float32).reshape(3, 16384)
    writer.write("large", wanted, rows - 7)
    tensor = open_safetensors(tmp_path / "model.safetensors")["large"]
    out = np.empty_like(wanted)
    tensor.read_into(out, slice(rows - 7, rows - 4))
    np.testing.assert_array_equal(out, wanted)
    np.testing.assert_array_equal(tensor.read(slice(rows - 8, rows - 7)), np.zeros((1, 16384)))
