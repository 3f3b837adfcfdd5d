"""Studies of compression: roles of images, runs that share a compiled step, and whole studies."""

import csv
import io
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import yaml
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from r2m_jax import InputError, compression
from r2m_jax.checkpoints.names import disassemble
from r2m_jax.cli.study import run as study
from r2m_jax.compression import storage
from r2m_jax.data.records import Record
from r2m_jax.evaluation.tables import Table
from r2m_jax.merging import weight_averaging
from r2m_jax.models.convolutional import Plan, apply_convolutional, init_convolutional
from r2m_jax.parallel import data_mesh
from r2m_jax.recipes import load_recipe
from r2m_jax.recipes.compression_studying import CompressionStudyRecipe
from r2m_jax.studies import compressed
from r2m_jax.studies.compression.bench import integer_logits
from r2m_jax.studies.compression.images import choose_images
from r2m_jax.studies.compression.lessons import Pictures, Teaching, Tuner
from r2m_jax.studies.stock import Model
from r2m_jax.training.distillation import soft_loss
from r2m_jax.trees import flatten

PLAN = Plan((4, "pool", 8, "pool"), hidden=(6, 5), image_size=8, dropout=0.25)


# Images


def _records(counts):
    return [
        Record(f"{split}{method}{number}", int(method != "real"), "", "" if method == "real" else method, split=split)
        for split in ("train", "test")
        for method, count in counts.items()
        for number in range(count)
    ]


def test_roles_do_not_overlap_and_classes_are_balanced():
    records = _records({"real": 40, "a": 9, "b": 12, "c": 7, "d": 5})
    chosen = choose_images(records, None, unseen=("b",), source_methods=("c",), limit=None)
    methods = {part: {r.method for r in getattr(chosen, part) if r.label} for part in ("train", "test", "source")}
    assert methods == {"train": {"a", "d"}, "test": {"a", "b", "d"}, "source": {"c"}}
    for part, split in (("train", "train"), ("source", "train"), ("test", "test")):
        assert {r.split for r in getattr(chosen, part)} == {split}
    for part in (chosen.train, chosen.source):
        assert sum(r.label for r in part) * 2 == len(part)
    few = choose_images(records, records, unseen=None, source_methods=(), limit=6)
    assert few.unseen == ("b", "d")
    assert [sum(r.label == label for r in few.train) for label in (0, 1)] == [6, 6]
    assert [sum(r.label == label for r in few.source) for label in (0, 1)] == [6, 6]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unseen": ("z",)}, "data.unseen names 'z', but the forgeries are a, b"),
        ({"unseen": ("a", "b")}, "some must be learnt and some not"),
        ({"source_methods": ("b",), "unseen": None}, "some must be learnt and some not"),
        ({"limit": 2}, "has 2 real images and 2 by a"),
    ],
)
def test_images_that_do_not_do(changes, message):
    records = _records({"real": 8, "a": 8, "b": 8})
    with pytest.raises(InputError, match=message):
        choose_images(records, None, **{"unseen": ("b",), "source_methods": (), "limit": None, **changes})


# Networks


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(3)
    labels = np.arange(24) % 2
    pixels = rng.integers(0, 200, (24, 8, 8, 3), dtype=np.uint8) + (50 * labels).astype(np.uint8)[:, None, None, None]
    return Pictures.of(pixels, labels)


@pytest.fixture(scope="module")
def start():
    return init_convolutional(PLAN, jax.random.key(0))


@pytest.fixture(scope="module")
def tuner():
    return Tuner(PLAN, "all", 8, data_mesh())


def _run(tuner, start, pictures, teaching=None, **changes):
    return flatten(tuner.run(start, pictures, teaching, **{"passes": 2, "rate": 3e-3, "seed": 1, **changes}))


def test_one_compiled_step_serves_all_starts_rates_and_teachers(tuner, start, pictures):
    """Pruned entries stay zero; others move; a teacher of no weight changes nothing, bit for bit."""
    plain = _run(tuner, start, pictures)
    compiled = tuner._step._cache_size()
    masks = compression.magnitude_masks(start, 0.75, select=lambda path, leaf: path.endswith("/kernel"))
    pruned = _run(tuner, compression.apply_masks(start, masks), pictures, rate=1e-3, passes=3)
    for path, mask in flatten(masks).items():
        assert not pruned[path][~mask].any(), path
        assert (pruned[path][mask] != flatten(start)[path][mask]).any(), path
    rng = np.random.default_rng(0)
    answers = rng.normal(size=(2, 24, 2)).astype(np.float32)
    ignored = _run(tuner, start, pictures, Teaching(answers, 0.0, 1.0, 3.0))
    heard = _run(tuner, start, pictures, Teaching(answers, 0.5, 0.5, 3.0))
    for path, leaf in plain.items():
        np.testing.assert_array_equal(leaf, ignored[path], err_msg=path)
    assert any((leaf != heard[path]).any() for path, leaf in plain.items())
    assert tuner._step._cache_size() == compiled
    other = _run(tuner, start, pictures, seed=2)
    assert any((leaf != other[path]).any() for path, leaf in plain.items())


def test_a_teacher_alone_is_imitated(tuner, start, pictures):
    teacher = np.stack([np.stack([-3.0 * (pictures.labels - 0.5), 3.0 * (pictures.labels - 0.5)], axis=1)] * 2)
    images = (pictures.pixels[0].astype(np.float32) / 255 - 0.5) / 0.5
    logits = jax.jit(apply_convolutional(PLAN))

    def distance(params):
        return float(soft_loss(logits(params, images), teacher[0].astype(np.float32), 2.0))

    found = tuner.run(
        start, pictures, Teaching(teacher.astype(np.float32), 1.0, 0.0, 2.0), passes=40, rate=1e-2, seed=0
    )
    assert distance(found) < 0.5 * distance(start)


@pytest.mark.parametrize(("trained", "moves"), [("last", ("layer2", "fc1", "fc2", "head")), ("adapter", ("adapter",))])
def test_what_is_frozen_stays_bit_for_bit(start, pictures, trained, moves):
    plan, before = PLAN, start
    if trained == "adapter":
        plan = PLAN.with_adapter("first")
        before = init_convolutional(plan, jax.random.key(0))
    after = _run(Tuner(plan, trained, 8, data_mesh()), before, pictures)
    for path, leaf in flatten(before).items():
        part = path.split("/")[0] if path.startswith("head") else path.split("/")[1]
        assert (np.asarray(leaf) != after[path]).any() == (part in moves), path


def test_linear_layers_as_integers_are_near_the_float_ones(start, rng):
    images = rng.normal(size=(16, 8, 8, 3)).astype(np.float32)
    quantised = compression.quantise_tree(
        start, 8, "tensor", lambda path, leaf: path.endswith("kernel") and leaf.ndim == 2
    )
    whole = np.asarray(jax.jit(apply_convolutional(PLAN))(start, images))
    found = np.asarray(jax.jit(integer_logits(PLAN))(quantised, images))
    assert 0 < np.abs(found - whole).max() < 0.05 * (whole.max() - whole.min())


# Merging and compressing


@pytest.fixture
def team(detector, rng):
    def moved(seed):
        own = np.random.default_rng(seed)
        return jax.tree.map(lambda leaf: np.asarray(leaf) + 0.01 * own.normal(size=leaf.shape).astype(np.float32),
                            detector.params)  # fmt: skip

    params = {name: moved(seed) for seed, name in enumerate(("FS", "FR"))}
    return {name: Model(name, lambda each=each: each) for name, each in params.items()}


def test_one_mask_and_averaging_commute(detector, team):
    base, mask = detector.params["backbone"], compressed._Shared(team, 0.6)
    each = [model.load()["backbone"] for model in team.values()]
    first = flatten(weight_averaging(base, [mask(backbone) for backbone in each]))
    then = flatten(mask(weight_averaging(base, each)))
    for path, leaf in first.items():
        np.testing.assert_allclose(leaf, then[path], atol=1e-7, err_msg=path)
    kept = compression.sparsity(mask(base))
    assert kept == pytest.approx(0.6, abs=1e-3)
    assert compression.sparsity(dict(weight_averaging(base, [compressed._pruned(b, 0.6) for b in each]))) < kept


def test_task_vectors_are_off_by_half_a_step_at_most(detector, team):
    base, backbone = detector.params["backbone"], team["FS"].load()["backbone"]
    found, start, whole = (flatten(tree) for tree in (
        compressed._rounded_difference(backbone, base, 4), base, backbone
    ))  # fmt: skip
    for path, leaf in whole.items():
        moved = np.abs(leaf - np.asarray(start[path])).max()
        off = np.abs(np.asarray(found[path]) - leaf).max()
        changed = compression.weights(path, leaf)
        assert (0 < off <= moved / 15 + 1e-6) if changed else off == 0, path


@pytest.mark.parametrize("bits", [8, 4])
def test_bytes_are_those_that_are_stored(detector, bits):
    backbone = {"backbone": detector.params["backbone"], "head": detector.params["head"]}
    tensors = {name: tensor for name, tensor in disassemble(backbone).items() if not name.startswith("head")}
    stored = storage.integers(storage.Stored(tensors, {}), bits, granularity="channel", select=compression.weights)
    total = sum(int(np.prod(tensor.shape)) * tensor.dtype.itemsize for tensor in stored.tensors.values())
    assert compressed.stored_bytes(detector.params["backbone"], bits=bits) == pytest.approx(total, rel=0.01)


# Tables and recipes


def test_a_tables_csv_holds_every_number():
    table = Table(
        "AUC", ["a, b", "c"], {"one": ["x", "y"], "two": ["z"]},
        {"x": [1 / 3, 2.0], "y": [float("nan"), 0.5], "z": [0.25, 0.125]},
        intervals={"x": [(0.1, 0.2), None], "y": [None, None], "z": [(0.3, 0.4), None]},
    )  # fmt: skip
    head, *rows = csv.reader(io.StringIO(table.csv()))
    assert head == ["Group", "Model", "a, b", "a, b low", "a, b high", "c"]
    assert [[row[0], row[1], *(float(cell) if cell else None for cell in row[2:])] for row in rows] == [
        ["one", "x", 1 / 3, 0.1, 0.2, 2.0], ["one", "y", None, None, None, 0.5], ["two", "z", 0.25, 0.3, 0.4, 0.125],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("replacements", "message"),
    [
        (["students=[{rate: 1.5, name: a, network: vgg-0.9m}]"], "rate"),
        (
            ["students=[{rate: 0.5, name: a, network: vgg-0.9m}, {rate: 0.5, name: b, network: vgg-0.9m}]"],
            "a rate of its own",
        ),
        (["data.source=a.csv"], "data.source goes with an index"),
        (["data.index=a.csv", "data.source=b.csv", "data.source_methods=[x]"], "in place of data.source"),
    ],
)
def test_recipes_that_cannot_be(replacements, message):
    with pytest.raises(InputError, match=message):
        load_recipe(CompressionStudyRecipe, "study", "compression", ["out=x", *replacements])


@pytest.mark.parametrize(
    ("names", "message"),
    [(["compression", "table1"], "apart from the others"), (["compression-x"], "there is no study")],
)
def test_studies_of_different_kinds_are_run_apart(tmp_path, names, message):
    flags = {"base": None, "seed": None, "out": tmp_path / "out"}
    with pytest.raises(InputError, match=message):
        study(names, quick=True, index=None, images=None, flags=flags, overwrite=False, dry_run=False)
    assert not any(tmp_path.iterdir())


# Whole runs

TINY = {
    "extends": "compression-quick", "workers": 2,
    "data": {"forging": {"train_patches": 24, "test_patches": 16, "effort": 0.1}},
    "students": [{"rate": 0.8, "name": "small", "network": {"body": [4, "pool", 8, "pool", 8, "pool"], "hidden": [8]}}],
    "adapters": {"places": ["first", "last"], "deep": "first"}, "alone": False,
    "intervals": {"resamples": 100},
}  # fmt: skip


def _study(folder, *arguments):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(TINY), encoding="utf-8")
    command = [sys.executable, "-m", "r2m_jax", "study", *map(str, arguments), str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=folder)


@pytest.mark.integration
def test_a_study_of_compression(tmp_path):
    """Everything is written, numbers are those of the score table, and a second run trains nothing."""
    first = _study(tmp_path, "compression", "--out", tmp_path / "out")
    assert first.returncode == 0, first.stderr
    out = tmp_path / "out"
    assert not out.with_name("out.run").exists()
    metrics = json.loads((out / "metrics.json").read_text())["studies"]
    assert list(metrics) == ["compression-techniques", "compression-adapters"]
    found = metrics["compression-techniques"]
    assert {f["verdict"] for f in found["findings"]} <= {"met", "not met", "within the noise"}
    with (out / "scores" / "compression.csv").open() as file:
        rows = list(csv.DictReader(file))
    networks = {row["model"].rpartition(",")[0] for row in rows}
    expected = ["BL", "CPF 80%", "CKD small", "CQ", "TL+FT", "TL+FT+Q", "TL+KD+A small", "TL+P+A 80%"]
    assert networks == set(expected)
    for name in networks:
        aucs, right, scores = [], [], []
        for seed in range(2):
            own = [row for row in rows if row["model"] == f"{name}, seed {seed}"]
            told = [row for row in own if row["method"] != "multiband_swap"]
            labels, fake = ([int(row["label"]) for row in told], [float(row["logit"]) > 0 for row in told])
            right.append(accuracy_score(labels, fake))
            scores.append(f1_score(labels, fake, zero_division=0))
            new = [row for row in own if row["label"] == "0" or row["method"] == "multiband_swap"]
            aucs.append(roc_auc_score([int(row["label"]) for row in new], [float(row["logit"]) for row in new]))
        assert found["auc"][name]["multiband_swap"]["value"] == pytest.approx(np.mean(aucs))
        assert found["decisions"][name][0] == pytest.approx(np.mean(right))
        assert found["decisions"][name][2] == pytest.approx(np.mean(scores))
    weights = found["weights"]
    assert weights["CPF 80%"]["bytes"] == pytest.approx(weights["BL"]["bytes"], rel=0.01)
    assert weights["CPF 80%"]["zipped"] < 0.6 * weights["BL"]["zipped"]
    assert weights["CPF 80%"]["nonzero"] < 0.3 * weights["BL"]["nonzero"]
    assert weights["CQ"]["bytes"] < weights["BL"]["bytes"]
    again = _study(tmp_path, "compression-adapters", "--overwrite", "--out", out)
    assert again.returncode == 0, again.stderr
    assert "0 models trained" in again.stderr
    after = json.loads((out / "metrics.json").read_text())["studies"]["compression-adapters"]
    assert after["auc"] == metrics["compression-adapters"]["auc"]
    assert (out / "models" / "baseline-seed1" / "model.safetensors").is_file()
