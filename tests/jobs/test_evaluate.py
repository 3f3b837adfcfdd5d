import importlib.util
import json
from html.parser import HTMLParser
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from PIL import Image

from r2m_jax import InputError, load_detector, save_detector
from r2m_jax.checkpoints import provenance
from r2m_jax.checkpoints.calibration import read_calibration
from r2m_jax.data.index import read_index, write_index
from r2m_jax.data.records import Record, select
from r2m_jax.evaluation.protocols import NAMES
from r2m_jax.evaluation.scores import read_scores
from r2m_jax.jobs.evaluate import evaluate
from r2m_jax.progress import Reporter
from r2m_jax.recipes import load_recipe, shipped
from r2m_jax.recipes.evaluating import EvalRecipe

JOBS = Path(__file__).parents[2] / "eval"
QUIET = Reporter(quiet=True)
RESULTS = {"metrics.json", "r2m.json", "report.html", "scores.csv", "table.md", "table.tex"}


@pytest.fixture(scope="module")
def models(base, tmp_path_factory):
    """The base, and a model away from it."""
    origin, folder = load_detector(base), tmp_path_factory.mktemp("models")
    keys = iter(jax.random.split(jax.random.key(0), 100))
    moved = jax.tree.map(lambda leaf: leaf + 0.05 * jax.random.normal(next(keys), leaf.shape), origin.params)
    save_detector(origin, folder / "one")
    save_detector(origin.replace_params(moved), folder / "two")
    return {name: str(folder / name) for name in ("one", "two")}


@pytest.fixture
def recipe(models, index, tmp_path):
    def make(*replacements, source=None, **settings):
        whole = {"models": models, "data": {"index": str(index)}, "out": str(tmp_path / "out")} | settings
        return load_recipe(EvalRecipe, "eval", source, ["intervals.resamples=100", *replacements], whole)

    return make


def test_an_evaluation_and_the_same_again_from_its_scores(recipe, models, index, tmp_path):
    made = evaluate(recipe("calibrate.fpr=0.2"), reporter=QUIET)
    assert {path.name for path in made.directory.iterdir()} == RESULTS
    found = json.loads((made.directory / "metrics.json").read_text())
    assert set(found["models"]) == set(models)
    assert (made.directory / "table.md").read_text().startswith(made.table.markdown())
    facts = json.loads((made.directory / "r2m.json").read_text())
    assert facts["inputs"][0]["sha256"] == provenance.sha256(index)
    assert len(facts["inputs"]) == 3

    again = evaluate(
        EvalRecipe(
            from_scores=made.directory / "scores.csv", out=tmp_path / "again", intervals={"resamples": 100},
            scores="parquet",
        ),
        reporter=QUIET,
    )  # fmt: skip
    refound = json.loads((again.directory / "metrics.json").read_text())
    assert refound["models"] == found["models"]
    assert refound["columns"] == found["columns"]
    assert (again.directory / "table.tex").read_bytes() == (made.directory / "table.tex").read_bytes()
    assert read_scores(again.directory / "scores.parquet").models == list(models)

    # The thresholds rest on val, computed here from the model as loaded from its directory.
    held = select(read_index(index), split="val")
    for name, path in models.items():
        detector, stored = load_detector(path), read_calibration(path)
        images = [Image.open(record.path) for record in held]
        both = np.asarray(detector(detector.preprocess(images)), np.float64)
        for image in images:
            image.close()
        probabilities = 1 / (1 + np.exp(both[:, 0] - both[:, 1]))
        real = probabilities[[record.label == 0 for record in held]]
        assert (stored.split, stored.images, stored.real) == ("val", len(held), len(real))
        assert (real > stored.threshold + 1e-4).mean() <= 0.2 < (real > stored.threshold - 1e-4).mean()
        assert found["calibration"][name]["threshold"] == stored.threshold
        assert any(note.startswith(f"{name}: the threshold") for note in made.notes)


def test_images_outside_the_columns_are_not_scored_and_broken_ones_count_nowhere(recipe, index, tmp_path):
    records = select(read_index(index), split="test")
    (tmp_path / "broken.png").write_bytes(b"no image")
    extra = [
        Record(str(tmp_path / "broken.png"), 1, "FS", "bright", "ff"),
        Record(records[0].path, 1, "FE", "other", "ff", "edited"),
    ]
    write_index([*records, *extra], tmp_path / "index.csv")
    given = recipe(data={"index": str(tmp_path / "index.csv")}, protocol="df40-p1")
    made = evaluate(given, reporter=QUIET)
    assert any(note.startswith("1 of 38 images are in no column") for note in made.notes)
    assert any(note.startswith("1 images could not be read") for note in made.notes)
    assert any("column EFS is left out" in note for note in made.notes)
    assert read_scores(made.directory / "scores.csv").records[0].path == records[0].path
    assert len(read_scores(made.directory / "scores.csv").records) == 36
    with pytest.raises(InputError, match=r"broken\.png cannot be read"):
        evaluate(given.model_copy(update={"strict": True, "out": tmp_path / "strict"}), reporter=QUIET)
    assert not (tmp_path / "strict").exists()


@pytest.mark.parametrize(
    ("replacements", "settings", "says"),
    [
        (["data.split=none"], {}, "no image of the split 'none'; there are train, val, test"),
        (["models.three=nowhere"], {}, "the model nowhere is no directory"),
        (["protocol=df40-p2"], {}, "df40-p2 has no column with real and fake images"),
        (["protocol=df40-p9"], {}, "protocol='df40-p9' does not fit: there is no such protocol; did you mean df40-p"),
        (["reference=three"], {}, "reference='three' is neither best nor one of one, two"),
        (
            ["calibrate.fpr=0.1", "calibrate.split=test"],
            {},
            "calibrate.split=test is the split the models are compared",
        ),
        (["calibrate.fpr=1.5"], {}, r"calibrate\.fpr=1\.5 does not fit"),
        (["from_scores=scores.csv"], {}, "from_scores takes the place of models, data and calibrate"),
        ([], {"models": {}}, "name models and data.index, or a score table by from_scores"),
    ],
)
def test_what_does_not_fit_leaves_nothing(recipe, tmp_path, replacements, settings, says):
    with pytest.raises(InputError, match=says):
        evaluate(recipe(*replacements, **settings), reporter=QUIET)
    assert list(tmp_path.iterdir()) == []


def test_results_are_not_replaced_unasked(recipe, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    with pytest.raises(InputError, match="out already exists"):
        evaluate(recipe(), reporter=QUIET)
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"


@pytest.mark.parametrize("name", NAMES)
def test_every_protocol_ships_as_a_recipe(recipe, name):
    assert name in shipped("eval")
    chosen = recipe(source=name)
    assert chosen.protocol == name
    assert yaml.safe_dump(chosen.model_dump(mode="json"))


def test_intervals_are_switched_by_a_word(recipe):
    assert load_recipe(EvalRecipe, "eval", None, [], {"from_scores": "s.csv", "out": "o"}).intervals.resamples == 1000
    assert recipe("intervals=false").intervals is None


@pytest.mark.integration
def test_the_jobs_to_copy_run(models, index, tmp_path):
    spec = importlib.util.spec_from_file_location("own_columns", JOBS / "own_columns.py")
    job = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)
    job.main(index, [Path(path) for path in models.values()], tmp_path / "out")
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.splitlines()[0] == "| Image AUC | FS | FR | both | mean |"
    assert read_scores(tmp_path / "out" / "scores.csv").models == list(models)
    recipe = load_recipe(EvalRecipe, "eval", JOBS / "specialists_on_faces.yaml", ["models.merged=m"])
    assert list(recipe.models) == ["FS", "FR", "EFS", "merged"]


class Text(HTMLParser):
    """What a page says, and whether it asks for anything from elsewhere."""

    def __init__(self):
        super().__init__()
        self.words, self.outside = "", []

    def handle_starttag(self, tag, attrs):
        self.outside += [v for k, v in attrs if k in ("src", "href") and v and v.startswith(("http", "//"))]

    def handle_data(self, data):
        self.words += data


@pytest.mark.integration
def test_the_command_prints_the_table_last_and_the_page_tells_all(r2m, recipe, models, index, tmp_path):
    flags = [part for name, path in models.items() for part in ("--model", f"{name}={path}")]
    out = tmp_path / "by-command"
    # As run here: the tests' own devices are no concern of a user's.
    result = r2m("eval", *flags, "--data", index, "--no-intervals", "--protocol", "one-vs-all", "--out", out)
    table = (out / "table.md").read_text()
    assert table.startswith(result.stdout)
    assert result.stdout.splitlines()[-1].startswith("| two |")
    assert "images/s" in result.stderr
    page = Text()
    page.feed((out / "report.html").read_text())
    assert page.outside == []
    for word in ("one-vs-all", "Image AUC", "Video AUC", "bright", "dark", "scores.csv"):
        assert word in page.words
    again = r2m("eval", "--from-scores", out / "scores.csv", "--protocol", "one-vs-all", "--out", out, check=False)
    assert again.returncode == 2
    assert again.stderr.startswith("error: ")
    wrong = r2m("eval", "families", *flags[:1], "nodirectory", "--data", index, "--out", tmp_path / "x", check=False)
    assert (wrong.returncode, wrong.stderr) == (2, "error: --model 'nodirectory' is no NAME=DIR.\n")
