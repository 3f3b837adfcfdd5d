"""``r2m compare`` against the functions it is made of, called another way."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from r2m_jax import InputError, load_detector, merging, save_detector
from r2m_jax.checkpoints import provenance
from r2m_jax.checkpoints.tensors import safetensors_files
from r2m_jax.jobs.compare import compare
from r2m_jax.jobs.compare.theory import read_images
from r2m_jax.merging import theory
from r2m_jax.merging.interference import compare as compare_task_vectors
from r2m_jax.progress import Reporter
from r2m_jax.recipes import load_recipe
from r2m_jax.recipes.comparing import CompareRecipe, ComparingData

NAMES = ("fs", "fr", "efs")


@pytest.fixture(scope="session")
def specialists(base, tmp_path_factory):
    """Three specialists of the random base with something in common; ``fs`` and ``fr`` are called after families."""
    folder = tmp_path_factory.mktemp("specialists")
    origin = load_detector(base)
    made = provenance.record("specialist", inputs=provenance.input_hashes(safetensors_files(base)))
    for number, name in enumerate(NAMES):
        own, shared = (iter(jax.random.split(jax.random.key(seed), 100)) for seed in (number, 9))
        moved = jax.tree.map(
            lambda leaf, own=own, shared=shared: (
                leaf
                + 0.004 * jax.random.normal(next(own), leaf.shape)
                + 0.003 * jax.random.normal(next(shared), leaf.shape)
            ),
            origin.params,
        )
        save_detector(origin.replace_params(moved), folder / name, provenance=made)
    return {name: folder / name for name in NAMES}


@pytest.fixture(scope="session")
def make(base, specialists):
    def recipe(out, **settings):
        whole = {"base": str(base), "models": {n: str(p) for n, p in specialists.items()}, "out": str(out)}
        return load_recipe(CompareRecipe, "compare", None, (), whole | settings)

    return recipe


@pytest.fixture(scope="session")
def compared(make, index, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared") / "out"
    data = {"index": str(index), "limit": 24}
    made = compare(make(out, data=data, batch_size=9), reporter=Reporter(quiet=True))
    return made, json.loads((out / "compare.json").read_text())


@pytest.fixture(scope="session")
def towers(base, specialists):
    return tuple(jax.device_get(load_detector(path).params["backbone"]) for path in (base, *specialists.values()))


@pytest.mark.integration
def test_everything_is_written(compared):
    made, numbers = compared
    assert {file.name for file in made.directory.iterdir()} == {"report.html", "compare.json", "r2m.json", "tables"}
    page = (made.directory / "report.html").read_text()
    assert page.count("<svg") == 5
    assert page.count('class="sortable"') == len(list((made.directory / "tables").glob("*.md"))) == 11
    assert len(list((made.directory / "tables").glob("*.tex"))) == 11
    facts = json.loads((made.directory / "r2m.json").read_text())
    assert (facts["kind"], len(facts["inputs"])) == ("comparison", 5)
    assert any("efs has no task" in sentence for sentence in made.sentences)
    for reading in ("centered", "uncentered"):
        assert any(sentence.startswith(f"R²M, {reading}: The core is ") for sentence in made.sentences)
    assert made.tables[0].markdown() == (made.directory / "tables" / "specialists.md").read_text()
    assert numbers["screen"] == []


@pytest.mark.integration
def test_numbers_are_those_of_the_library(compared, towers):
    _, numbers = compared
    theta0, *thetas = towers
    alone = compare_task_vectors(theta0, thetas, NAMES).as_json()
    np.testing.assert_allclose(numbers["task_vectors"]["whole"]["cosines"], alone["whole"]["cosines"], rtol=1e-9)
    readings = {each["name"]: each["diagnostics"] for each in numbers["readings"]}
    assert len(readings) == 18
    for name, settings in (
        (
            "uncentered, scope leaf, norms per leaf",
            {"centering": "uncentered", "scope": "leaf", "norm_matching": "leaf"},
        ),
        ("centered, from θ_avg, η of eq. 6", {"origin": "theta_avg", "eta": "eq6"}),
    ):
        wanted = merging.r2m(theta0, thetas, **settings).diagnostics
        for key in ("core_ratio", "residual_ratio", "update_ratio", "core_coefficients"):
            np.testing.assert_allclose(readings[name][key], getattr(wanted, key), rtol=1e-3, atol=1e-5, err_msg=name)
    centred = numbers["theory"]["recovery"]["centred"]
    wanted = theory.recovery(theory.task_gram(theta0, thetas))
    np.testing.assert_allclose(centred["singular_values"], wanted.singular_values, rtol=1e-6, atol=1e-9)
    tail = theory.truncation_tail(theta0, thetas, 0.7)
    np.testing.assert_allclose(numbers["theory"]["tail"]["tails"], tail.tails, rtol=1e-4)


@pytest.mark.integration
def test_the_theory_is_that_of_the_merged_models(compared, towers, base, specialists, index):
    """Updates built as trees and pushed through J one by one, features from detectors."""
    _, numbers = compared
    found = numbers["theory"]["on_images"]
    assert found["counts"] == {"fs": [8, 8], "fr": [8, 8]}
    images = read_images(ComparingData(index=index, limit=24), 32, {n: {} for n in NAMES}, Reporter(quiet=True))
    origin, theta0, thetas = load_detector(base), towers[0], towers[1:]
    taus = [jax.tree.map(np.subtract, theta, theta0) for theta in thetas]
    norms = [np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tau))) for tau in taus]
    np.testing.assert_allclose([found["remainders"][name]["step"] for name in NAMES], norms, rtol=1e-5)
    mean, std = np.asarray(origin.processor.image_mean), np.asarray(origin.processor.image_std)
    pixels = ((images.pixels / 255 - mean) / std).astype(np.float32)

    def features(params, batch):
        return origin._tower(params, batch).pooled

    merged = merging.r2m(theta0, list(thetas), centering="uncentered")
    c = np.asarray(merged.diagnostics.core_coefficients)
    core = jax.tree.map(lambda *leaves: sum(a * leaf for a, leaf in zip(c, leaves, strict=True)), *taus)
    residual = jax.tree.map(lambda a, b, d: np.asarray(a) - b - d, merged.params, theta0, core)
    responses = [
        [
            theory.separation_response(features, theta0, update, [pixels[mask]], [images.labels[mask]])
            for mask in images.tasks.values()
        ]
        for update in (core, residual)
    ]
    u = theory.common_axis(np.stack(responses[0]))
    off = found["off_axis"]["R²M, uncentered"]
    for task, one, rest in zip(images.tasks, *responses, strict=True):
        assert off["tasks"][task] == pytest.approx(theory.off_axis(rest, one, u), rel=0.02)

    average = origin.replace_params(
        {**origin.params, "backbone": merging.weight_averaging(theta0, list(thetas))}
    ).features(pixels)
    heads = [load_detector(specialists[task]).params["head"] for task in images.tasks]
    masks = images.tasks.values()
    wanted = theory.proposition_1([np.asarray(average)[m] for m in masks], [images.labels[m] for m in masks], heads)
    proposition = found["propositions"]["weight averaging"]
    np.testing.assert_allclose(proposition["aucs"], wanted.aucs, atol=0.02)
    np.testing.assert_allclose(proposition["separation_angles"], wanted.separation_angles, atol=0.1)


def test_tasks_and_counts_of_images(index):
    def read(made, limit=12, split="val"):
        return read_images(ComparingData(index=index, split=split, limit=limit), 16, made, Reporter(quiet=True))

    recorded = {"recipe": {"data": {"families": ["FR"]}}}
    joint = {"recipe": {"data": {"families": []}}}
    images = read({"fs": {}, "other": recorded, "all": joint, "x": {}})
    assert images.pixels.shape == (12, 16, 16, 3)
    assert {name: int(mask.sum()) for name, mask in images.tasks.items()} == {"fs": 8, "other": 8, "all": 12}
    assert not (images.tasks["fs"] & images.tasks["other"] & (images.labels == 1)).any()
    assert images.notes == (
        "x has no task: neither its r2m.json nor its name says which of the families FR, FS it is for.",
    )
    assert len(read({}, limit=None).labels) == 36
    with pytest.raises(InputError, match="0 real and 0 fake images of split 'none'"):
        read({}, split="none")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"models": {}}, "models"),
        ({"models": {"a": {"path": "a", "weight": 2}}}, "a comparison takes no weights"),
        ({"rank": 1.5}, "rank=1.5 is no ratio"),
        ({"density": 0}, "density=0 does not fit"),
        ({"data": {"index": "x", "limit": 1}}, "limit=1 does not fit"),
        ({"rnk": 1}, "has no key 'rnk'; did you mean rank"),
    ],
)
def test_recipes_that_do_not_fit(make, tmp_path, settings, says):
    with pytest.raises(InputError, match=says):
        make(tmp_path, **settings)


def test_mistakes_leave_nothing_behind(make, base, tmp_path):
    headless = tmp_path / "headless"
    headless.mkdir()
    for file in base.iterdir():
        (headless / file.name).write_bytes(file.read_bytes())
    tensors = load_file(base / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if not n.startswith("head")}, headless / "model.safetensors")
    with pytest.raises(InputError, match="no head"):
        compare(make(tmp_path / "out", models={"a": str(headless)}), reporter=Reporter(quiet=True))
    with pytest.raises(InputError, match="does not exist"):
        compare(make(tmp_path / "out", models={"a": str(tmp_path / "missing")}), reporter=Reporter(quiet=True))
    assert {path.name for path in tmp_path.iterdir()} == {"headless"}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").touch()
    with pytest.raises(InputError, match="already exists"):
        compare(make(tmp_path / "out"), reporter=Reporter(quiet=True))


@pytest.mark.integration
def test_the_command_says_what_is_missing(r2m, base, tmp_path):
    found = r2m("compare", "--base", base, "--specialist", f"a={base}", "--split", "test", "--out", tmp_path / "out",
                check=False)  # fmt: skip
    assert found.returncode == 2
    assert found.stderr == "error: --split chooses images; name an index with --data.\n"
