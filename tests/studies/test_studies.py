import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import roc_auc_score

from r2m_jax import InputError, load_detector, tiny_base
from r2m_jax.data.records import Record
from r2m_jax.evaluation import read_scores
from r2m_jax.evaluation.protocols import Column, Selector
from r2m_jax.evaluation.robustness import rav
from r2m_jax.evaluation.scores import ScoreTable
from r2m_jax.recipes import load_recipe
from r2m_jax.recipes.evaluating import Intervals
from r2m_jax.recipes.studying import StudyRecipe
from r2m_jax.studies import STUDIES
from r2m_jax.studies.measuring import measure
from r2m_jax.studies.perturbed import perturbed, variation
from r2m_jax.studies.roles import NEW, Lesson, as_protocol, find_roles, named
from r2m_jax.studies.stock import file_name
from r2m_jax.training.fine_tuning import clocked_cosine
from r2m_jax.training.optimizers import warmup_cosine

FAMILIES = ("FS", "FR", "EFS")
METHODS = {"FS": ("box_swap", "feathered_swap"), "FR": ("dense_motion", "expression_warp"),
           "EFS": ("patch_diffusion", "transposed_convolution")}  # fmt: skip
NEWCOMER = "self_blended"
RECIPE = {
    "seed": 3,
    "data": {
        "forging": {
            "train_patches": 24, "test_patches": 18, "size": 32, "effort": 0.1, "per_image": 1,
            "methods": {"FS": [*METHODS["FS"], NEWCOMER], "FR": list(METHODS["FR"]), "EFS": list(METHODS["EFS"])},
            "unseen": [NEWCOMER], "cameras": ["still", "webcam"],
        }
    },
    "training": {"passes": 1, "batch_size": 16, "learning_rate": 3e-4},
    "mergers": {
        "Weight averaging": {"method": "weight_averaging"},
        "R²M as printed": {"method": "r2m", "parameters": {"rank": 0.7, "alpha": 0.5}},
        "CART, whole": {"method": "cart", "parameters": {"rank": 1.0, "scale": 2.0}},
    },
    "integration": {"near": NEWCOMER, "far": "nowhere_to_be_found"},
    "grid": {"alpha": [0.0, 0.5], "rank": [0.3, 0.7]},
    "robustness": {"kinds": ["contrast", "block_wise"], "levels": [2, 5], "images": 24},
    "compression": {
        "mergers": {"R²M as printed": {"method": "r2m", "parameters": {"rank": 0.7, "alpha": 0.5}}},
        "rates": [0.8], "team_rates": [0.8], "bits": [8], "task_vector_bits": [4],
    },
    "intervals": {"resamples": 100},
    "workers": 2,
}  # fmt: skip


def _records(split="test", domains=("still",), methods=None, videos=6):
    rows = []
    for domain in domains:
        for video in range(videos):
            rows.append(Record(f"{domain}/{video}.png", 0, domain=domain, video=str(video), split=split))
        for family, names in (methods or METHODS).items():
            for name in names:
                rows += [
                    Record(f"{domain}/{name}{v}.png", 1, family, name, domain, str(v), split) for v in range(videos)
                ]
    return rows


# Which images are what


def test_roles_of_a_forged_index():
    train = _records("train", ("still", "webcam"))
    test = _records("test", ("still", "webcam", "night"), {**METHODS, "FS": (*METHODS["FS"], NEWCOMER)})
    roles = find_roles(train, test)
    assert roles.domain == "still"
    assert roles.families == METHODS
    assert roles.unseen == (NEWCOMER,)
    assert (roles.others, roles.trainable) == (("webcam", "night"), ("webcam",))
    columns = [*roles.seen(), *roles.new(test), *roles.seen("night", "night")]
    masks = as_protocol("", "", columns, test).masks(test)
    assert list(masks) == [*FAMILIES, NEWCOMER, *(f"{family} night" for family in FAMILIES)]
    for column, mask in masks.items():
        inside = [record for record, kept in zip(test, mask, strict=True) if kept]
        domain = "night" if column.endswith("night") else "still"
        assert {record.domain for record in inside} == {domain}, column
        learnt = {NEWCOMER} if column == NEWCOMER else set(METHODS[column.partition(" ")[0]])
        assert {record.method for record in inside} == {"", *learnt}, column
    assert [column.group for column in roles.new(test)] == [NEW]


def test_a_lesson_holds_no_method_or_domain_it_does_not_name():
    records = _records("train", ("still", "webcam"))
    lesson = find_roles(records, _records()).lesson("FS", also=("dense_motion",))
    assert lesson == Lesson((*METHODS["FS"], "dense_motion"), ("still",))
    chosen = [record for record, kept in zip(records, lesson.of(records), strict=True) if kept]
    assert {r.method for r in chosen} == {"", *lesson.methods}
    assert {r.domain for r in chosen} == {"still"}


def test_methods_without_names_are_called_as_their_family():
    bare = [replace(record, method="") for record in _records()]
    assert find_roles(named(bare), named(bare)).families == {family: (family,) for family in FAMILIES}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"domain": "moon"}, "data.domain='moon'"),
        ({"unseen": ["faceswap"]}, "'faceswap', of which there is no test image"),
        ({"families": ["FS", "XY"]}, "the specialist 'XY' is no family"),
        ({"unseen": [*METHODS["FS"], *METHODS["FR"]]}, "have 1 in the domain"),
    ],
)
def test_roles_that_cannot_be(settings, message):
    with pytest.raises(InputError, match=message):
        find_roles(_records("train"), _records(), **settings)


# Numbers


@given(st.integers(0, 2**32 - 1))
def test_measured_is_what_scikit_learn_says(seed):
    rng = np.random.default_rng(seed)
    records = _records(videos=4)
    scores = {name: rng.integers(-3, 4, len(records)).astype(np.float32) for name in ("a", "b")}  # with ties
    table = ScoreTable(records, scores)
    roles = find_roles(records, records)
    formed = as_protocol("p", "", roles.seen(), records)
    found = measure(table, formed, Intervals(resamples=100), "scores/x.csv")
    by_family = []
    for family in FAMILIES:
        kept = [r.label == 0 or r.family == family for r in records]
        value = roc_auc_score(table.labels[kept], scores["a"][kept])
        assert found.mean("a", [family]) == pytest.approx(value)
        by_family.append(value)
    assert found.mean("a") == pytest.approx(np.mean(by_family))
    one, other = found.difference("a", "b"), found.difference("b", "a")
    assert one["value"] == pytest.approx(-other["value"])
    assert one["low"] == pytest.approx(-other["high"])
    assert one["p_value"] == other["p_value"]
    assert found.difference("a", "a")["p_value"] == 1


def test_resamples_are_shared_by_columns_and_models():
    """Two columns of the same images, and two models of the same scores, are equal in every resample."""
    rng = np.random.default_rng(0)
    records = _records()
    scores = rng.normal(size=len(records)).astype(np.float32)
    columns = [Column(name, Selector(families=("FS",))) for name in ("one", "two")]
    table = ScoreTable(records, {"a": scores, "b": scores})
    found = measure(table, as_protocol("p", "", columns, records), Intervals(resamples=100), "x")
    assert (found.samples == found.samples[:1, :1]).all()
    assert found.samples.std() > 0
    assert "within the noise" in found.compared("a", "b")


def test_a_clear_difference_is_called_one():
    records = _records(videos=20)
    labels = np.asarray([r.label for r in records], np.float32)
    table = ScoreTable(records, {"good": labels, "bad": -labels})
    formed = as_protocol("p", "", find_roles(records, records).seen(), records)
    found = measure(table, formed, Intervals(resamples=100), "x")
    assert found.compared("good", "bad").startswith("good lies 1.000 above bad")
    assert found.compared("bad", "good").startswith("bad lies 1.000 below good")


def test_a_column_that_draws_keep_missing_is_refused():
    """A lone forged clip among a hundred in each of eight columns: a draw hardly ever holds all eight."""
    records = _records(methods={"FS": ("many",)}, videos=100)
    lone = [Record(f"lone{n}", 1, "FS", f"lone{n}", "still", f"lone{n}") for n in range(8)]
    every = [*records, *lone]
    formed = as_protocol("p", "", [Column(r.method, Selector(methods=(r.method,))) for r in lone], every)
    table = ScoreTable(every, {"m": np.zeros(len(every), np.float32)})
    with pytest.raises(InputError, match="too few clips to be resampled"):
        measure(table, formed, Intervals(resamples=100), "x")


def test_no_column_is_refused():
    records = _records()
    formed = as_protocol("p", "nothing", [Column("a", Selector(methods=("nobody",)))], records)
    with pytest.raises(InputError, match="no column has real and fake images"):
        measure(ScoreTable(records, {"m": np.zeros(len(records))}), formed, Intervals(), "x")


@given(st.lists(st.floats(0.05, 1.0), min_size=2, max_size=5))
def test_variation_is_eq_26(aucs):
    expected = [rav(value, aucs[0]) for value in aucs[1:]]
    assert variation(np.asarray(aucs)[None])[0] == pytest.approx(expected)


# Images


@pytest.fixture
def photograph(tmp_path, rng):
    path = tmp_path / "a.png"
    Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    return [Record(str(path), 0)]


def test_enlarging_for_a_perturbation_changes_nothing_by_itself(photograph, monkeypatch):
    clean = perturbed(photograph, None, 0, size=32, seed=0)
    shapes = []

    def nothing(image, kind, level, **_):
        shapes.append(image.shape)
        return image

    monkeypatch.setattr("r2m_jax.studies.perturbed.perturb", nothing)
    np.testing.assert_array_equal(perturbed(photograph, "contrast", 5, size=32, seed=0), clean)
    assert shapes == [(240, 360, 3)]  # six times, the most that stays within 256


def test_levels_of_a_perturbation_grow(photograph):
    clean = perturbed(photograph, None, 0, size=32, seed=0).astype(int)
    away = [abs(perturbed(photograph, "gaussian_blur", n, size=32, seed=0) - clean).mean() for n in (1, 3, 5)]
    assert 0 < away[0] < away[1] < away[2]


# Training


@given(st.integers(1, 400), st.floats(0, 1))
def test_the_rate_kept_in_the_state_is_optax_s(steps, share):
    rates = warmup_cosine(0.5, steps)
    transform = clocked_cosine(0.5, steps)
    done = int(share * (steps - 1))
    state = transform.init({})._replace(done=jnp.asarray(done))
    updates, after = transform.update({"w": jnp.ones(())}, state)
    assert float(-updates["w"]) == pytest.approx(float(rates(done)), abs=1e-6)
    assert int(after.done) == done + 1
    assert isinstance(transform, optax.GradientTransformation)


# Recipes


@pytest.mark.parametrize("name", ["full", "quick"])
def test_shipped_recipes_are_complete(name):
    recipe = load_recipe(StudyRecipe, "study", name, ["out=x"])
    assert recipe.may_train
    assert {recipe.integration.near, recipe.integration.far} <= set(recipe.data.forging.unseen)
    assert len(recipe.data.forging.cameras) == 2
    methods = {m.method for m in recipe.mergers.values()}
    assert methods == {"weight_averaging", "task_arithmetic", "ties", "cart", "r2m"}


@pytest.mark.parametrize(
    ("replacement", "message"),
    [
        ("data.forging.cameras=[box]", "no camera 'box'"),
        ("data.forging.unseen=[simswap]", "'simswap'"),
        ("data.forging.methods.FS=[dense_motion]", "methods of that family"),
        ("specialists.FS=a", "one specialist cannot be merged"),
        ("all_in_one=a", "all_in_one goes with"),
        ("mergers.mine={method: cart, parameters: {alpha: 1}}", "cart takes no alpha"),
        ("grid.rank=[1.5]", "grid.readings"),
        ("sed=1", "no key 'sed'"),
    ],
)
def test_recipes_that_cannot_be(replacement, message):
    with pytest.raises(InputError, match=message):
        load_recipe(StudyRecipe, "study", "quick", ["out=x", replacement])


def test_specialists_need_their_base_and_images():
    given_models = ["out=x", "specialists.FS=a", "specialists.FR=b"]
    with pytest.raises(InputError, match="need their base"):
        load_recipe(StudyRecipe, "study", "quick", given_models)
    recipe = load_recipe(StudyRecipe, "study", "quick", [*given_models, "base=c", "data.index=d"])
    assert not recipe.may_train


def test_file_names_are_plain():
    assert file_name("R²M, α = 0.5 / ../x") == "R2M-alpha-0.5-..-x"
    assert file_name("…") == "model"


# Whole runs


def _study(folder, *arguments, recipe=None):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe or RECIPE, allow_unicode=True), encoding="utf-8")
    command = [sys.executable, "-m", "r2m_jax", "study", *map(str, arguments), str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=folder)


@pytest.fixture(scope="session")
def studied(tmp_path_factory) -> Path:
    """Every study at the smallest setting."""
    folder = tmp_path_factory.mktemp("study")
    result = _study(folder, "all", "--out", folder / "out")
    assert result.returncode == 0, result.stderr
    return folder / "out"


@pytest.fixture(scope="session")
def metrics(studied):
    return json.loads((studied / "metrics.json").read_text())["studies"]


@pytest.mark.integration
def test_everything_is_there(studied, metrics):
    assert {path.name for path in studied.iterdir()} == {
        "data", "models", "scores", "tables", "figures", "metrics.json", "report.html", "r2m.json",
    }  # fmt: skip
    assert not studied.with_name("out.run").exists()
    assert list(metrics) == list(STUDIES)
    page = (studied / "report.html").read_text()
    for study in STUDIES.values():
        assert f"<h2>{study.title}</h2>" in page
    assert "http" not in page.replace("http://www.w3.org", "")  # nothing is fetched
    for table in (studied / "tables").glob("*.md"):
        assert table.with_suffix(".tex").exists()
        if "seconds" not in table.name and "size" not in table.name:
            cited = table.read_text().rsplit("Computed from [", 1)[1].split("]")[0]
            assert (studied / cited).is_file(), table
    made = json.loads((studied / "r2m.json").read_text())
    assert made["left_out"] == {}
    assert len(made["trained"]) == len(set(made["trained"])) == len(list((studied / "models").iterdir()))
    # The newcomer without images is left out alone.
    assert "nowhere_to_be_found (far) is left out" in page


@pytest.mark.integration
@pytest.mark.parametrize("study", ["table1", "table2", "heads", "grid", "domains"])
def test_numbers_follow_from_the_score_table_they_cite(studied, metrics, study):
    found = metrics[study]
    with (studied / found["source"]).open() as file:
        rows = list(csv.DictReader(file))
    for model, columns in found["auc"].items():
        own = [row for row in rows if row["model"] == model]
        singles = []
        for column, stated in columns.items():
            if "mean" in column:
                continue
            name, _, domain = column.partition(" ")
            inside = [row for row in own if row["domain"] == (domain or "still")]
            kept = [r for r in inside if r["label"] == "0" or _learnt(r, name)]
            again = roc_auc_score([int(r["label"]) for r in kept], [float(r["logit"]) for r in kept])
            assert stated["value"] == pytest.approx(again), (model, column)
            assert stated["low"] <= stated["high"]
            singles.append(again)
        if "mean" in columns:
            assert columns["mean"]["value"] == pytest.approx(np.mean(singles))


def _learnt(row, column):
    return row["method"] == column if column == NEWCOMER else row["method"] in METHODS[column]


@pytest.mark.integration
def test_drop_and_gain_follow_from_the_scores(metrics):
    table, drops = metrics["table1"]["auc"], metrics["retention"]["drop"]["values"]
    specialists = [f"Specialist {family}" for family in FAMILIES]
    for family in FAMILIES:
        best = max(table[name][family]["value"] for name in specialists)
        assert min(drops[name][family] for name in specialists) == 0
        for model, found in drops.items():
            assert found[family] == pytest.approx(best - table[model][family]["value"])
            assert found["DROP_max"] == pytest.approx(max(found[name] for name in FAMILIES))
    seen, unseen = metrics["retention"]["drop"]["values"], metrics["retention"]["gain"]["values"]
    for model, point in metrics["pareto"]["models"].items():
        assert point["mean DROP"] == pytest.approx(seen[model]["mean"])
        assert point["mean GAIN"] == pytest.approx(unseen[model]["mean"])


@pytest.mark.integration
def test_identities_of_merging_hold_in_the_scores(studied):
    """CART at full rank is weight averaging, and R²M's rank says nothing where α is zero."""
    for name, pairs in {
        "seen": [("CART, whole", "Weight averaging")],
        "domains": [("CART, whole", "Weight averaging")],
        "grid": [("as printed, α = 0, r = 0.3", "as printed, α = 0, r = 0.7")],
    }.items():
        table = read_scores(studied / "scores" / f"{name}.csv")
        for one, two in pairs:
            np.testing.assert_allclose(table.logits[one], table.logits[two], atol=2e-4)


@pytest.mark.integration
def test_score_tables_of_different_studies_agree(studied):
    """A model that several studies score has one score per image."""
    tables = {p.stem: read_scores(p) for p in (studied / "scores").glob("*.csv") if p.stem != "probe"}
    first = tables["seen"]
    seen = {r.path: v for r, v in zip(first.records, first.logits["R²M as printed"], strict=True)}
    for study, model in {
        "heads": "R²M as printed, averaged head", "grid": "as printed, α = 0.5, r = 0.7",
        "scaling_seen": "R²M as printed, N = 3", "integration_near": "R²M as printed of 3",
        "merge_compress": "R²M as printed: float merge",
    }.items():  # fmt: skip
        table = tables[study]
        both = [(seen[r.path], v) for r, v in zip(table.records, table.logits[model], strict=True) if r.path in seen]
        assert len(both) > 20
        np.testing.assert_allclose(*zip(*both, strict=True), atol=2e-4)
    clean = tables["robustness"]
    both = [(seen[r.path], v) for r, v in zip(clean.records, clean.logits["R²M as printed"], strict=True)
            if r.domain == "clean"]  # fmt: skip
    assert len(both) == 24
    np.testing.assert_allclose(*zip(*both, strict=True), atol=2e-4)


@pytest.mark.integration
def test_no_model_learnt_what_is_unseen(studied):
    for directory in (studied / "models").iterdir():
        learnt = load_detector(directory).provenance["recipe"]
        assert (NEWCOMER in learnt["methods"]) == (NEWCOMER in directory.name)
        assert learnt["domains"] == (["webcam"] if "webcam" in directory.name else ["still"])


@pytest.mark.integration
def test_a_second_run_takes_models_up_and_a_changed_recipe_does_not(studied, metrics, tmp_path):
    folder, studied = tmp_path, Path(shutil.copytree(studied, tmp_path / "out"))
    refused = _study(folder, "table1", "--out", studied)
    assert refused.returncode == 2
    assert "--overwrite" in refused.stderr
    before = {path: path.stat().st_mtime_ns for path in (studied / "models").rglob("model.safetensors")}
    again = _study(folder, "table1", "--out", studied, "--overwrite")
    assert again.returncode == 0, again.stderr
    made = json.loads((studied / "r2m.json").read_text())
    assert (made["trained"], len(made["taken"])) == ([], 4)
    assert {path: path.stat().st_mtime_ns for path in (studied / "models").rglob("model.safetensors")} == before
    found = json.loads((studied / "metrics.json").read_text())["studies"]["table1"]
    assert found == metrics["table1"]

    changed = {**RECIPE, "training": {**RECIPE["training"], "learning_rate": 1e-4}}
    other = _study(folder, "probe", "--out", studied, "--overwrite", recipe=changed)
    assert other.returncode == 0, other.stderr
    made = json.loads((studied / "r2m.json").read_text())
    assert (len(made["trained"]), made["taken"]) == (3, [])


@pytest.mark.integration
def test_given_specialists_are_compared_as_trained_ones_and_nothing_is_trained(studied, metrics, tmp_path):
    models = [f"specialists.{family}={studied / 'models' / family}" for family in FAMILIES]
    result = _study(
        tmp_path, "table1", "scaling", "integration", "--out", tmp_path / "given", "--base", tiny_base(),
        "--index", studied / "data" / "index.csv", f"data.unseen=[{NEWCOMER}]", *models,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    made = json.loads((tmp_path / "given" / "r2m.json").read_text())
    assert made["trained"] == []
    assert set(made["left_out"]) == {"scaling", "integration"}
    for sentence in made["left_out"].values():
        assert "was not given and may not be trained" in sentence
        assert sentence in result.stdout
    found = json.loads((tmp_path / "given" / "metrics.json").read_text())
    assert any("All-in-one is left out" in note for note in found["notes"])
    trained = metrics["table1"]["auc"]
    for model, columns in found["studies"]["table1"]["auc"].items():
        for column, stated in columns.items():
            assert stated["value"] == pytest.approx(trained[model][column]["value"], abs=5e-3), (model, column)


@pytest.mark.integration
def test_unknown_studies_are_refused_by_name(tmp_path):
    result = _study(tmp_path, "tabel1", "--out", tmp_path / "out")
    assert result.returncode == 2
    assert "'tabel1'" in result.stderr
    assert "table1" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]
