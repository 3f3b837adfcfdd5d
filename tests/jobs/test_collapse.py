"""``r2m collapse`` against the functions it is made of."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml

from r2m_jax import InputError, load_detector
from r2m_jax.data.index import read_index, write_index
from r2m_jax.data.pipeline import Decoding, RecordSource, evaluation_batches
from r2m_jax.evaluation.collapse import agreement, critical_radius, decompose_linear, trajectory
from r2m_jax.jobs.collapse import collapse
from r2m_jax.jobs.collapse_features import choose, layer_features
from r2m_jax.progress import Reporter
from r2m_jax.recipes import load_recipe
from r2m_jax.recipes.collapsing import CollapseData, CollapseRecipe

QUIET = Reporter(quiet=True)
SMALL = {
    "probe": {"steps": 40, "points": 10, "batch_size": 8, "learning_rate": 0.05},
    "radii": {"points": 5, "bisections": 2, "most": 100.0},
    "seeds": 2, "landscape": 5, "resamples": 50, "batch_size": 16,
}  # fmt: skip


@pytest.fixture(scope="session")
def make(base, index):
    def recipe(out, data=None, **settings):
        whole = {"model": str(base), "data": {"index": str(index), **(data or {})}, "out": str(out), **SMALL}
        return load_recipe(CollapseRecipe, "collapse", None, (), whole | settings)

    return recipe


@pytest.fixture(scope="session")
def collapsed(make, tmp_path_factory):
    made = collapse(make(tmp_path_factory.mktemp("collapsed") / "out"), reporter=QUIET)
    return made, json.loads((made.directory / "collapse.json").read_text())


@pytest.mark.integration
def test_everything_is_written(collapsed):
    made, numbers = collapsed
    files = {str(path.relative_to(made.directory)) for path in made.directory.rglob("*") if path.is_file()}
    tables = {"cor_auc", "cor_loss", "cor_theory", "gsnr", "gsnr_phase1", "curvature", "agreement", "layers"}
    drawn = {
        "radius_auc", "radius_loss", "radius_theory", "auc_by_radius", "loss_by_radius", "other_families_by_radius",
        "gsnr_by_family", "gsnr_by_layer", "auc_by_step", "landscape_1_FR", "landscape_2_FS",
    }  # fmt: skip
    wanted = {"report.html", "collapse.json", "r2m.json", "figures/landscapes.npz"}
    wanted |= {f"tables/{name}.{kind}" for name in tables for kind in ("md", "tex")}
    assert files == wanted | {f"figures/{name}.svg" for name in drawn}
    page = (made.directory / "report.html").read_text()
    assert page.count("<svg") == len(drawn)
    assert page.count('class="sortable"') == len(tables)
    facts = json.loads((made.directory / "r2m.json").read_text())
    assert (facts["kind"], len(facts["inputs"])) == ("collapse", 2)
    assert CollapseRecipe.model_validate(facts["recipe"]) == made.found.recipe
    assert numbers["images"] == {"real": [24, 12], "FR": [24, 12], "FS": [24, 12]}
    assert numbers["says"] == made.sentences
    stored = np.load(made.directory / "figures" / "landscapes.npz")
    assert stored["losses"].shape == (2, 5, 5)
    assert stored["seeds"].tolist() == [0, 1]


@pytest.mark.integration
def test_numbers_are_those_of_the_functions(collapsed):
    made, numbers = collapsed
    features, recipe = made.found.features, made.found.recipe
    entry = next(each for each in numbers["probes"] if (each["layer"], each["family"]) == (2, "FS"))
    data = features.data(2, "FS")
    assert data.features.shape == (48, 64)
    found = critical_radius(data, recipe.radii.search(2), recipe.probe.training)
    np.testing.assert_allclose(entry["auc"], found.auc, atol=1e-6)
    for name, bracket in found.brackets.items():
        low = entry["critical_radius"][name]["low"]
        np.testing.assert_allclose(low, bracket.low, rtol=1e-5)
        assert entry["critical_radius"][name]["outcome"] == bracket.outcome
    path = trajectory(data, rho=0.05, points=10, training=recipe.probe.training)
    np.testing.assert_allclose(entry["trajectory"]["gsnr"], path.gsnr.plug_in, rtol=1e-4)
    assert entry["trajectory"]["theorem_gap"] < 1e-9
    last = decompose_linear(path.head, data.features, data.labels)
    assert np.isfinite(float(last.left))
    pair = next(a for a in numbers["agreements"] if a["radius"] == "COR of theory" and a["over"] == "layers")
    grids = made.found.grid("COR of theory"), made.found.grid(pair["signal"])
    assert pair["spearman"] == pytest.approx(agreement(*(g.T for g in grids), draw="members", resamples=50).value)


@pytest.mark.integration
def test_features_are_the_class_tokens(make, base, index, tmp_path):
    """One layer at another size, in each normalisation, from the detector's own method."""
    data = {"image_size": 16, "limit": 60, "families": ["FS"]}
    raw, normed, unit = (
        layer_features(make(tmp_path, data, layers=[3, 1], feature_norm=norm), QUIET)
        for norm in ("none", "ln_post", "unit_rms")
    )
    assert raw.layers == (3, 1)
    assert raw.counts() == {"real": (18, 12), "FS": (18, 12)}
    detector = load_detector(base)
    train, test, names = choose(CollapseData(index=index, **data))
    assert names == ("FS",)
    assert {record.split for record in train} == {"train"}
    assert {record.split for record in test} == {"test"}
    assert [r.family for r in (*train, *test)] == raw.families.tolist()
    with evaluation_batches(RecordSource(train[:4]), batch_size=4, decoding=Decoding(16)) as stream:
        pixels = next(iter(stream))["image"]
    mean, std = np.asarray(detector.processor.image_mean), np.asarray(detector.processor.image_std)
    images = ((pixels / 255 - mean) / std).astype(np.float32)
    hidden = np.asarray(detector.hidden_states(images, (3, 1)))[:, :, 0]
    np.testing.assert_allclose(raw.values[:, :4], hidden, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(normed.values[0, :4], detector.features(images), rtol=1e-3, atol=1e-3)
    trained = unit.values[:, ~unit.test]
    np.testing.assert_allclose(np.sqrt((trained**2).mean((1, 2))), 1, rtol=1e-5)
    np.testing.assert_allclose(unit.values * raw.scales[:, None, None], raw.values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"data": {"split": "test"}}, "two different ones"),
        ({"data": {"limit": 10}}, "limit=10 does not fit"),
        ({"landscape": 4}, "odd number"),
        ({"radii": {"least": 1.0, "most": 0.5}}, "rising order"),
        ({"probe": {"steps": 10, "points": 20}}, "do not fit into 10 steps"),
        ({"feature_norm": "l2"}, "feature_norm"),
    ],
)
def test_recipes_that_do_not_fit(make, tmp_path, settings, says):
    with pytest.raises(InputError, match=says):
        make(tmp_path, **settings)


@pytest.mark.parametrize(
    ("data", "settings", "says"),
    [
        ({"families": ["XX"]}, {}, "no family 'XX'; there are FR, FS"),
        ({"limit": 20}, {}, "20 images leave 6 of each kind"),
        ({"image_size": 20}, {}, "patches of 8"),
        ({}, {"layers": [4]}, "blocks 1 to 3"),
        ({}, {"layers": [1, 1]}, "each named once"),
        ({}, {"model": "missing"}, "is no directory"),
    ],
)
def test_mistakes_leave_nothing_behind(make, tmp_path, data, settings, says):
    with pytest.raises(InputError, match=says):
        collapse(make(tmp_path / "out", data, **settings), reporter=QUIET)
    assert not list(tmp_path.iterdir())


def test_families_without_names_are_refused(make, index, tmp_path):
    write_index([replace(r, family="") for r in read_index(index)], tmp_path / "index.csv")
    with pytest.raises(InputError, match="names no family"):
        choose(CollapseData(index=tmp_path / "index.csv"))


@pytest.mark.integration
def test_the_command_runs_a_recipe_with_flags(r2m, base, index, tmp_path):
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump(SMALL))
    out = tmp_path / "out"
    found = r2m("collapse", recipe, "--model", base, "--data", index, "--families", "FS", "--layers", "2,3",
                "--limit", 60, "--seeds", 1, "--out", out, "probe.rho=0.1")  # fmt: skip
    assert "| Critical radius by AUC | FS |" in found.stdout
    assert json.loads((out / "r2m.json").read_text())["recipe"]["probe"]["rho"] == 0.1
    wrong = r2m("collapse", "--model", base, "--data", index, "--layers", "x", "--out", tmp_path / "b", check=False)
    assert (wrong.returncode, wrong.stderr) == (2, "error: --layers 'x' is neither all nor numbers such as 5,10,12.\n")
