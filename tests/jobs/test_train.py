import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r2m_jax import InputError, load_detector
from r2m_jax.data.images import load_images
from r2m_jax.data.index import read_index, write_index
from r2m_jax.evaluation.metrics import auc
from r2m_jax.jobs.train import train
from r2m_jax.jobs.training_data import training_data
from r2m_jax.progress import Reporter
from r2m_jax.recipes import TrainRecipe, load_recipe
from r2m_jax.training.log import read_log
from r2m_jax.trees import flatten


@pytest.fixture
def recipe(base, index, tmp_path):
    def make(source="specialist", *replacements):
        # Eight rows divide over the eight devices of the tests.
        needed = [
            "name=x", f"data.index={index}", f"model.base={base}", f"out={tmp_path}/{{name}}", "data.augment=flip",
            "batch_size=8", "optimizer.learning_rate=1e-3", "optimizer.weight_decay=0", "passes=4", "window=4",
        ]  # fmt: skip
        return load_recipe(TrainRecipe, "train", source, [*needed, *replacements])

    return make


def run(recipe, **options):
    return train(recipe, reporter=Reporter(quiet=True), **options)


def scored(directory, index, method, split="test"):
    detector = load_detector(directory)
    records = [r for r in read_index(index) if r.split == split and r.method in ("", method)]
    logits = np.asarray(detector(detector.preprocess(_open(records))))
    return auc([r.label for r in records], logits[:, 1] - logits[:, 0])


def _open(records):
    return [Image.fromarray(pixels) for pixels in load_images([r.path for r in records], 32)]


def test_a_specialist_knows_its_own_forgeries(recipe, index):
    made = run(recipe("specialist", "data.methods=[bright]"))
    assert scored(made.directory, index, "bright") > 0.95
    assert scored(made.directory, index, "dark") < 0.7
    assert made.validation["frame_auc"] > 0.95
    assert sorted(p.name for p in made.directory.iterdir()) == [
        "config.json", "log.jsonl", "model.safetensors", "preprocessor_config.json", "r2m.json", "recipe.yaml",
        "tensorboard",
    ]  # fmt: skip
    assert not made.directory.with_name("x.run").exists()
    facts = json.loads((made.directory / "r2m.json").read_text())
    assert (facts["kind"], facts["name"], facts["seed"], facts["steps"]) == ("specialist", "x", 1024, 24)
    assert facts["images"] == {"train": {"real": 24, "bright": 24}, "val": {"real": 12, "bright": 12}}
    assert len(facts["inputs"]) == 2
    rows = read_log(made.directory / "log.jsonl")
    assert [r["step"] for r in rows if r["kind"] == "step"] == list(range(1, 25))
    assert [r["step"] for r in rows if r["kind"] == "validation"] == [6, 12, 18, 24]
    assert any(p.stat().st_size for p in (made.directory / "tensorboard").iterdir())


@pytest.mark.integration
def test_the_task_vector_of_a_new_method_merges_with_others(recipe, base, index, tmp_path):
    from r2m_jax.merging import average_heads, task_arithmetic

    a = run(recipe("specialist", "data.methods=[bright]", "name=a")).directory
    b = run(recipe("specialist", "data.methods=[dark]", "name=b")).directory
    one, two, origin = (load_detector(d) for d in (a, b, base))
    merged = task_arithmetic(
        origin.params["backbone"], [one.params["backbone"], two.params["backbone"]], alpha=1.0, reduce="sum"
    )
    both = origin.replace_params({"backbone": merged, "head": average_heads([one.params["head"], two.params["head"]])})
    assert np.isfinite(np.asarray(both.params["head"]["kernel"])).all()
    assert (tmp_path / "a" / "recipe.yaml").exists()


def test_the_same_recipe_gives_the_same_model(recipe):
    one = load_detector(run(recipe("specialist", "name=a")).directory).params
    two = load_detector(run(recipe("specialist", "name=b", "data.workers=0")).directory).params
    for (path, a), b in zip(flatten(one).items(), flatten(two).values(), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=path)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("source", "moved"),
    [
        ("linear_probe", {"head"}),
        ("sam_linear_probe", {"head"}),
        ("ln_tuning", {"head", "norm"}),
        ("lora", {"head", "attn"}),
        ("sam_specialist", {"head", "norm", "attn", "mlp", "embeddings"}),
        ("all_in_one", {"head", "norm", "attn", "mlp", "embeddings"}),
    ],
)
def test_recipes_move_what_they_say(recipe, base, monkeypatch, tmp_path, source, moved):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    more = ["data.augment=none"] if "probe" in source else []
    made = run(recipe(source, *more, "passes=2"))
    before, after = (flatten(load_detector(d).params) for d in (base, made.directory))
    parts = ("head", "norm", "attn", "mlp", "embeddings")
    changed = {p for path in before if (before[path] != after[path]).any() for p in parts if p in path.lower()}
    assert changed == moved, [path for path in before if (before[path] != after[path]).any()][:5]
    assert json.loads((made.directory / "r2m.json").read_text())["kind"] == load_kind(source)


def load_kind(source):
    return "linear_probe" if "probe" in source else "all_in_one" if "all" in source else "specialist"


def test_cached_features_are_those_of_the_tower_and_are_read_again(recipe, index, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = run(recipe("linear_probe", "passes=30", "data.methods=[bright]", "data.augment=none"))
    (stored,) = [p for p in (tmp_path / "cache").rglob("*.npy") if len(np.load(p)) == 48]
    records = [r for r in read_index(index) if r.split == "train" and r.method != "dark"]
    detector = load_detector(made.directory)
    np.testing.assert_allclose(
        np.load(stored), detector.features(detector.preprocess(_open(records))), rtol=1e-4, atol=1e-5
    )
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.npy")}
    run(recipe("linear_probe", "passes=1", "data.methods=[bright]", "data.augment=none", "name=y"))
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.npy")} == stamps
    assert made.validation["frame_auc"] > 0.8


def test_the_best_of_validation_is_kept_and_patience_ends_the_run(recipe):
    made = run(
        recipe("specialist", "validation.select=val", "validation.every=2", "validation.patience=2", "passes=20")
    )
    rows = read_log(made.directory / "log.jsonl")
    measured = {r["step"]: r["frame_auc"] for r in rows if r["kind"] == "validation"}
    best = max(measured, key=lambda step: (measured[step], -step))
    assert made.validation["step"] == best
    assert made.validation["frame_auc"] == measured[best]
    assert made.steps == max(measured) == best + 4


@pytest.mark.integration
def test_the_average_is_what_is_kept(recipe):
    plain = load_detector(run(recipe("specialist", "name=plain")).directory).params
    mean = load_detector(run(recipe("specialist", "name=mean", "average=0.9")).directory).params
    assert not np.array_equal(plain["head"]["kernel"], mean["head"]["kernel"])


def test_device_augmentation_trains(recipe):
    made = run(recipe("specialist", "data.augment=df40", "data.augment_on=device", "passes=1"))
    assert made.steps == 9


def test_bfloat16_computes_but_masters_stay_float32(recipe):
    made = run(recipe("specialist", "model.dtype=bfloat16", "model.remat=full", "data.methods=[bright]"))
    detector = load_detector(made.directory, dtype=None)
    assert {str(leaf.dtype) for leaf in flatten(detector.params).values()} == {"float32"}
    assert made.validation["frame_auc"] > 0.9


def test_another_normalisation_is_warned_of_used_and_stored(recipe):
    with pytest.warns(UserWarning, match=r"normalises with mean 0.5/0.5/0.5 .* the base was trained with 0.481"):
        made = run(recipe("specialist", "data.normalisation=half", "steps=2"))
    assert list(load_detector(made.directory).processor.image_mean) == [0.5, 0.5, 0.5]
    assert made.steps == 2


def test_data_selection(index, recipe, tmp_path):
    asked = recipe("specialist", "data.families=[FS]", "data.frames=1").data
    data = training_data(asked)
    assert data.summary() == {"train": {"real": 12, "bright": 12}, "val": {"real": 6, "bright": 6}}
    with pytest.raises(InputError, match=r"data.methods: .* has no 'brigt'; did you mean bright"):
        training_data(recipe("specialist", "data.methods=[brigt]").data)
    records = read_index(index)
    write_index([r for r in records if r.label], tmp_path / "fakes.csv")
    with pytest.raises(InputError, match="has no real image to train on in the split train"):
        training_data(recipe("specialist", f"data.index={tmp_path}/fakes.csv").data)
    from dataclasses import replace

    write_index([*records, *(replace(r, split="val") for r in records if r.split == "test")], tmp_path / "leak.csv")
    with pytest.warns(UserWarning, match="36 images of val are in test too"):
        training_data(recipe("specialist", f"data.index={tmp_path}/leak.csv").data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        training_data(recipe("specialist").data)


def test_bad_runs_end_with_a_sentence(recipe, tmp_path, index):
    with pytest.raises(InputError, match="batch_size=12 does not divide over 8 devices"):
        run(recipe("specialist", "batch_size=12"))
    with pytest.raises(InputError, match=r"image_size=36 is no multiple of the base's patches of 8"):
        run(recipe("specialist", "data.image_size=36"))
    with pytest.raises(InputError, match="does not exist; give a model directory"):
        run(recipe("specialist", "model.base=/nowhere"))
    with pytest.raises(InputError, match="There is no augmentation 'df41'"):
        run(recipe("specialist", "data.augment=df41"))
    with pytest.raises(InputError, match=r"the loss is (nan|inf) at step \d+ \(records .*\); try a lower"):
        run(recipe("specialist", "optimizer.name=sgd", "optimizer.learning_rate=1e30"))
    assert not (tmp_path / "x").exists()
    run(recipe("specialist", "steps=1", "name=done"))
    with pytest.raises(InputError, match="already exists; choose another out=… or pass --overwrite"):
        run(recipe("specialist", "steps=1", "name=done"))
    assert run(recipe("specialist", "steps=2", "name=done"), overwrite=True).steps == 2


def test_a_stopped_run_is_not_taken_up_with_another_recipe(recipe, tmp_path):
    broken = recipe("specialist", "optimizer.name=sgd", "optimizer.learning_rate=1e30", "states.every=1")
    with pytest.raises(InputError, match="the loss"):
        run(broken)
    assert (tmp_path / "x.run").is_dir()
    with pytest.raises(InputError, match=r"is of a run with optimizer.name=sgd, not adam; .*--overwrite"):
        run(recipe("specialist"))
    assert run(recipe("specialist"), overwrite=True).steps == 36
    assert not (tmp_path / "x.run").exists()


def test_read_only_output(recipe):
    with pytest.raises(InputError, match=r"cannot be written"):
        run(recipe("specialist", "out=/proc/r2m/x"))
    assert not Path("/proc/r2m").exists()
