import csv
import json

import jax
import numpy as np
import pytest
import yaml

from r2m_jax import InputError, load_detector, save_detector
from r2m_jax.checkpoints import provenance
from r2m_jax.checkpoints.tensors import safetensors_files
from r2m_jax.jobs.merge import merge
from r2m_jax.jobs.sweep import sweep
from r2m_jax.progress import Reporter
from r2m_jax.recipes import load_recipe
from r2m_jax.recipes.merging import MergeRecipe
from r2m_jax.recipes.sweeping import SweepRecipe


@pytest.fixture
def recipe(base, index, tmp_path):
    origin = load_detector(base)
    made = provenance.record("specialist", inputs=provenance.input_hashes(safetensors_files(base)))
    for number, name in enumerate(("fs", "fr", "efs")):
        keys = iter(jax.random.split(jax.random.key(number), 100))
        moved = jax.tree.map(
            lambda leaf, keys=keys, n=number: leaf + 0.02 * (n + 1) * jax.random.normal(next(keys), leaf.shape),
            origin.params,
        )
        save_detector(origin.replace_params(moved), tmp_path / name, provenance=made)

    def make(*replacements, grid=None):
        whole = {
            "base": str(base),
            "models": {name: str(tmp_path / name) for name in ("fs", "fr", "efs")},
            "data": {"index": str(index)},
            "out": str(tmp_path / "out"),
            "grid": grid
            or [
                {"method": "weight_averaging"},
                {"method": "ties", "parameters": {"density": 0.3}},
                {"method": "cart", "parameters": {"rank": [0.1, 0.5]}},
                {"method": "r2m", "parameters": {"alpha": [0.4, 0.6], "rank": [0.3, 0.7], "centering": "uncentered"}},
            ],
        }
        return load_recipe(SweepRecipe, "sweep", None, list(replacements), whole)

    return make


@pytest.mark.integration
def test_a_sweep_scores_every_candidate_and_writes_the_best(recipe, tmp_path):
    made = sweep(recipe(), reporter=Reporter(quiet=True))
    with (made.directory / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["weight_averaging", "ties", "cart", "cart", *["r2m"] * 4]
    assert float(max(rows, key=lambda row: float(row["mean"]))["mean"]) == pytest.approx(made.value, abs=1e-6)
    assert (made.directory / "r2m-centering-uncentered.svg").read_text().startswith("<svg")
    facts = json.loads((made.directory / "r2m.json").read_text())
    assert facts["best"] == made.best
    assert facts["diagnostics"][rows[-1]["candidate"]]["task_norms"]
    with (made.directory / "scores.csv").open() as file:
        scores = [row for row in csv.DictReader(file) if row["model"] == made.best]
    # The recipe it writes makes the model whose scores it shows.
    best = load_recipe(MergeRecipe, "merge", made.directory / "best.yaml")
    detector = load_detector(merge(best, reporter=Reporter(quiet=True)).directory)
    from PIL import Image

    folder = recipe().data.index.parent
    images = [Image.open(folder / row["path"]) for row in scores]
    logits = detector(detector.preprocess(images))
    for image in images:
        image.close()
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], [float(row["logit"]) for row in scores], atol=2e-3)


@pytest.mark.parametrize(
    ("replacements", "grid", "says"),
    [
        (["data.split=none"], None, "0 images of split 'none', which are not of both classes"),
        ([], [{"method": "cart", "parameters": {"rank": [0.3, 1.5]}}], "cart rank=1.5: .*no ratio"),
        ([], [{"method": "cart", "parameters": {"ranks": 1}}], "cart ranks=1: parameters.ranks"),
        ([], [{"method": "ties", "parameters": {"alpha": 1}}], "ties takes no alpha"),
    ],
)
def test_what_does_not_fit(recipe, replacements, grid, says):
    with pytest.raises(InputError, match=says):
        sweep(recipe(*replacements, grid=grid), reporter=Reporter(quiet=True))


def test_the_papers_grids_ship(base, index, tmp_path):
    settings = {"base": str(base), "models": {n: str(base) for n in "abc"}, "out": str(tmp_path)}
    recipe = load_recipe(SweepRecipe, "sweep", "paper", [f"data.index={index}"], settings)
    assert len(recipe.candidates()) == 1 + 4 + 8 + 8 + 24 + 12
    assert yaml.safe_dump(recipe.model_dump(mode="json"))
