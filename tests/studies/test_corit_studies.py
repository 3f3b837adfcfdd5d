"""Studies of CoRIT: tokens that are kept, heads by lesson and seed, and whole runs."""

import csv
import json
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from r2m_jax import InputError
from r2m_jax.cli.study import run
from r2m_jax.data.device import normalise
from r2m_jax.data.records import Record
from r2m_jax.evaluation.collapse import ProbeTraining
from r2m_jax.jobs.corit import pairs_for
from r2m_jax.models.corit import CoritSettings, corit_features
from r2m_jax.progress import Reporter
from r2m_jax.recipes import load_recipe
from r2m_jax.recipes.corit_studying import CoritStudyRecipe
from r2m_jax.studies.corit.comparing import SEEN, UNSEEN, compare, seen_and_unseen
from r2m_jax.studies.corit.frozen import PLAIN, Frozen
from r2m_jax.studies.corit.heads import margins, train_heads

FAMILIES = ("EFS", "FR", "FS")


@pytest.fixture
def context(detector, tmp_path, rng):
    """Random images of three families and the tiny random tower; nothing is computed yet."""
    records = []
    for split, count in (("train", 3), ("test", 4)):
        for family in ("", *FAMILIES):
            for number in range(count):
                path = tmp_path / f"{split}{family}{number}.png"
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
                records.append(Record(str(path), int(bool(family)), family, family.lower(), "d", path.stem, split))
    recipe = load_recipe(CoritStudyRecipe, "study", "corit-quick", [f"out={tmp_path / 'out'}", "workers=1"])
    train, test = ([r for r in records if r.split == split] for split in ("train", "test"))
    return Frozen(
        recipe, detector, train, test, size=32, folder=tmp_path / "run", earlier=tmp_path / "out",
        reporter=Reporter(quiet=True),
    )  # fmt: skip


def test_what_is_read_of_kept_tokens_is_corits_z(context, monkeypatch):
    """Whatever only the head depends on is read from one file; the rest is what the detector itself computes."""
    settings = context.recipe.settings
    found = {
        "all": context.z(settings),
        "layer": context.z(replace(settings, fusion_layer=1)),
    }
    prepare = pairs_for(settings, 32, context.base.config.patch_size)
    made = [prepare(Image.open(r.path), r, np.random.default_rng(0)) for r in context.records]
    streams, foreground = (jnp.asarray(np.stack([each[name] for each in made])) for name in ("image", "foreground"))
    processor = context.base.processor
    images = normalise(streams, processor.image_mean, processor.image_std)
    for changes, name in (({}, "all"), ({"fusion_layer": 1}, "layer")):
        features = jax.jit(corit_features(context.base.config, replace(settings, **changes)))
        expected = features(context.base.params["backbone"], images, foreground)
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-4)
    pooled = context.base.features(np.asarray(images[:, 0]))
    np.testing.assert_allclose(context.z(PLAIN), pooled, rtol=1e-4, atol=1e-4)
    assert len(list((context.folder / "tokens").iterdir())) == 2

    def never(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(Frozen, "_computed", never)
    np.testing.assert_array_equal(context.z(settings), found["all"])
    np.testing.assert_array_equal(context.z(replace(PLAIN, gamma=0.7, seed=3)), context.z(PLAIN))
    later = Frozen(
        context.recipe, context.base, context.train, context.test, size=32, folder=context.folder.with_name("next"),
        earlier=context.folder, reporter=context.reporter,
    )  # fmt: skip
    np.testing.assert_array_equal(later.z(settings), found["all"])
    assert len(later.taken) == 1
    for changed in (
        replace(settings, gamma=0.5),
        replace(settings, cgp="random"),
        replace(settings, regions=("boundary",)),
    ):
        with pytest.raises(AssertionError, match="computed again"):
            context.z(changed)
    with pytest.raises(AssertionError, match="computed again"):
        context.z(settings, condition=("contrast", 3))


def _blobs(rng, count=60, width=4):
    labels = np.arange(count) % 2
    return (rng.normal(size=(count, width)) + 0.7 * labels[:, None]).astype(np.float32), labels


def test_heads_reach_the_maximum_likelihood_that_scikit_learn_finds(tiny_config, rng):
    features, labels = _blobs(rng)
    everything = np.ones(len(labels), bool)
    training = ProbeTraining(steps=3000, batch_size=len(labels), learning_rate=0.1)
    settings = replace(PLAIN, feature_norm="none")
    config = _narrow(tiny_config, 4)
    heads = train_heads(config, settings, features, labels, {"all": everything}, seeds=2, rho=0.0, training=training)
    best = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(features, labels)
    for seed in range(2):
        np.testing.assert_allclose(margins(heads, features)[0, seed], best.decision_function(features), atol=0.02)


def _narrow(config, width):
    from copy import deepcopy

    changed = deepcopy(config)
    changed.hidden_size = width
    return changed


def test_a_lesson_is_learnt_alike_beside_others(tiny_config, rng):
    """The heads of a lesson do not depend on what else is trained, nor on images outside the lesson."""
    settings = CoritSettings(regions=("foreground",), fusion="cross_attention", rule="centre")
    config = _narrow(tiny_config, 4)
    features, labels = _blobs(rng, width=16)
    lessons = {"first": np.arange(60) < 30, "last": np.arange(60) >= 30}
    training = ProbeTraining(steps=20, batch_size=8)
    more = {"seeds": 2, "rho": 0.05, "training": training}
    both = margins(train_heads(config, settings, features, labels, lessons, **more), features)
    assert both.shape == (2, 2, 60)
    blind = np.where(lessons["last"][:, None], 0, features).astype(np.float32)
    alone = margins(train_heads(config, settings, blind, labels, {"first": lessons["first"]}, **more), features)
    np.testing.assert_allclose(both[:1], alone, rtol=1e-4, atol=1e-5)
    assert np.abs(both[0] - both[1]).max() > 1e-3
    with pytest.raises(InputError, match="lesson real has images of one class"):
        train_heads(config, settings, features, labels, {"real": labels == 0}, **more)


def test_aucs_are_those_of_the_lesson_averaged_over_seeds(context, rng):
    lessons = list(context.lessons())
    test = context.test
    scores = {name: rng.normal(size=(len(lessons), 2, len(test))).astype(np.float32) for name in ("one", "two")}
    scores["same"] = scores["one"]
    found = compare(context, scores, lessons, seen_and_unseen(context), "x")
    measured = found.measured
    assert measured.columns == (*FAMILIES, *(f"{family} unseen" for family in FAMILIES))
    assert measured.groups == (*[SEEN] * 3, *[UNSEEN] * 3)
    labels = np.asarray([r.label for r in test])
    for column, group in zip(measured.columns, measured.groups, strict=True):
        family = column.split()[0]
        lesson = lessons.index("all families" if group == SEEN else f"without {family}")
        kept = np.asarray([not r.label or r.family == family for r in test])
        expected = np.mean([roc_auc_score(labels[kept], scores["one"][lesson, seed, kept]) for seed in range(2)])
        assert measured.mean("one", [column]) == pytest.approx(expected)
    assert measured.difference("one", "same")["p_value"] == 1
    assert (measured.samples[0] == measured.samples[2]).all()
    table = found.as_table("t", {"g": list(scores)})
    assert table.columns[-1] == "SD of seeds"
    assert table.values["one"][-1] == pytest.approx(found.by_seed[0].std(ddof=1))
    assert table.markdown().count("\n") > 4


def test_what_a_lesson_leaves_out_is_not_learnt(context):
    for name, families in context.lessons().items():
        mask = context.taught(families)
        inside = {r.family for r, kept in zip(context.train, mask, strict=True) if kept}
        assert inside == {"", *families}
        assert name == "all families" or name.removeprefix("without ") not in inside


@pytest.mark.parametrize(
    ("replacement", "message"),
    [
        ("corit.rrm=false", "switch parts of CoRIT off themselves"),
        ("corit.rule=user", "masks given in Python"),
        ("ablation.regions=[[nose]]", "lists of foreground"),
        ("specialists.FS=a", "two or more"),
        ("data.limit=4", "data.limit=4"),
    ],
)
def test_recipes_that_cannot_be(replacement, message):
    with pytest.raises(InputError, match=message):
        load_recipe(CoritStudyRecipe, "study", "corit", ["out=x", replacement])


def test_patches_of_photographs_have_no_face_and_an_index_may():
    embedded = load_recipe(CoritStudyRecipe, "study", "corit", ["out=x"])
    assert (embedded.settings.rule, embedded.corit.rule) == ("centre", "face")
    assert load_recipe(CoritStudyRecipe, "study", "corit", ["out=x", "data.index=i"]).settings.rule == "face"


def test_studies_of_both_papers_run_apart():
    more = {"quick": True, "index": None, "images": None, "flags": {"out": "x"}, "overwrite": False, "dry_run": False}
    with pytest.raises(InputError, match="apart from the others"):
        run(["corit-probe", "table1"], **more)
    with pytest.raises(InputError, match="no study 'corit-prob'"):
        run(["corit-prob"], **more)


# Whole runs

PAIR = ("EFS", "FS")
TINY = {
    "workers": 2, "seeds": 2,
    "data": {"forging": {
        "train_patches": 24, "test_patches": 16, "effort": 0.1, "size": 32,
        "methods": {"FS": ["feathered_swap"], "EFS": ["transposed_convolution"]},
    }},
    "heads": {"steps": 20},
    "ablation": {
        "alternatives": [], "regions": [], "random_regions": [], "gamma": [0.9], "fusion_layers": [2],
    },
    "robustness": {"kinds": ["contrast"], "levels": [5], "images": 16},
    "collapse": {
        "layers": [4], "probe": {"steps": 20, "points": 8}, "radii": {"points": 3, "bisections": 1}, "seeds": 1,
    },
    "bridge": {
        "mergers": {"Weight averaging": {"method": "weight_averaging"}},
        "training": {"passes": 1, "batch_size": 16, "learning_rate": 3e-4},
    },
    "intervals": {"resamples": 100},
}  # fmt: skip


def _study(folder, *arguments):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(TINY, allow_unicode=True), encoding="utf-8")
    command = [sys.executable, "-m", "r2m_jax", "study", *map(str, arguments), str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=folder)


@pytest.fixture(scope="session")
def studied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corit-study")
    result = _study(folder, "corit", "--out", folder / "out")
    assert result.returncode == 0, result.stderr
    return folder / "out"


@pytest.mark.integration
def test_everything_is_there(studied):
    metrics = json.loads((studied / "metrics.json").read_text())
    names = ["corit-probe", "corit-families", "corit-robustness", "corit-collapse", "corit-ablation", "corit-bridge"]
    assert list(metrics["studies"]) == names
    assert any("Other towers is left out" in note for note in metrics["notes"])
    assert not studied.with_name("out.run").exists()
    for table in (studied / "tables").glob("*.md"):
        text = table.read_text()
        if "Computed from [" in text:
            assert (studied / text.rsplit("Computed from [", 1)[1].split("]")[0]).is_file(), table
    page = (studied / "report.html").read_text()
    assert "Heads over merged towers" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert {path.name for path in (studied / "models").iterdir()} == {
        f"{family}{suffix}" for family in PAIR for suffix in ("", "-sam")
    }


def _logits(studied, name, model, domain):
    with (studied / "scores" / f"{name}.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["model"] == model and row["domain"] == domain]
    return {row["path"]: float(row["logit"]) for row in rows}, {row["path"]: row for row in rows}


@pytest.mark.integration
def test_studies_agree_on_the_same_heads(studied):
    """Heads of one setting, trained in different studies beside different others, score alike."""
    first, rows = _logits(studied, "corit_probe", "CoRIT, seed 1", "all families")
    for name, model, domain in (
        ("corit_ablation", "CoRIT, seed 1", "all families"),
        ("corit_bridge", "CoRIT on Plain tower, seed 1", "all families"),
        ("corit_robustness", "CoRIT, seed 1", "clean"),
    ):
        again, _ = _logits(studied, name, model, domain)
        assert set(again) <= set(first)
        assert len(again) >= 10
        for path, value in again.items():
            assert value == pytest.approx(first[path], abs=1e-4), (name, path)
    metrics = json.loads((studied / "metrics.json").read_text())["studies"]["corit-probe"]
    for family in PAIR:
        kept = [path for path, row in rows.items() if row["label"] == "0" or row["family"] == family]
        aucs = []
        for seed in range(2):
            logits, _ = _logits(studied, "corit_probe", f"CoRIT, seed {seed}", "all families")
            aucs.append(roc_auc_score([int(rows[p]["label"]) for p in kept], [logits[p] for p in kept]))
        assert metrics["auc"]["CoRIT"][family]["value"] == pytest.approx(np.mean(aucs))
