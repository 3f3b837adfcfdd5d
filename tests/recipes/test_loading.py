from pathlib import Path

import pytest
import yaml

from r2m_jax import InputError
from r2m_jax.recipes import TrainRecipe, load_recipe, shipped

NEEDED = ["name=x", "data.index=index.csv"]


def load(source, *replacements, **settings):
    return load_recipe(TrainRecipe, "train", source, [*NEEDED, *replacements], settings)


@pytest.mark.parametrize("name", shipped("train"))
def test_every_shipped_recipe_is_complete_but_for_name_and_data(name):
    recipe = load(name, *(["distillation.teacher=models/teacher"] if name == "distil" else []))
    assert recipe.directory == Path("runs/x")
    assert TrainRecipe.model_validate(recipe.model_dump(mode="json")) == recipe


def test_the_papers_setting():
    recipe = load("clip_l14_df40")
    assert (recipe.seed, recipe.passes, recipe.batch_size) == (1024, 3, 16)
    assert (recipe.data.image_size, recipe.data.normalisation, recipe.data.frames) == (224, "half", 8)
    assert recipe.optimizer.model_dump(include={"name", "learning_rate", "b1", "b2", "eps", "weight_decay"}) == {
        "name": "adam", "learning_rate": 1e-5, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 5e-4,
    }  # fmt: skip
    assert recipe.data.augment == "df40"
    assert recipe.model.trainable == (".*",)


def test_replacements_are_yaml_and_the_last_counts(tmp_path):
    recipe = load(
        "specialist", "data.methods=[a, b]", "optimizer.learning_rate=3e-4", "sam.rho=0.1", "passes=2", "passes=5"
    )
    assert recipe.data.methods == ("a", "b")
    assert recipe.optimizer.learning_rate == 3e-4  # YAML 1.1 would call it text
    assert recipe.optimizer.weight_decay == 5e-4  # the rest of the section stays
    assert recipe.sam.rho == 0.1
    assert recipe.passes == 5
    assert load("specialist", "data.methods=uniface").data.methods == ("uniface",)


def test_files_extend_shipped_recipes_and_each_other(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: lora\npasses: 7\noptimizer: {learning_rate: 2e-5}\n")
    (tmp_path / "his.yaml").write_text("extends: mine.yaml\nmodel: {lora: {rank: 2}}\n")
    recipe = load(tmp_path / "his.yaml")
    assert (recipe.passes, recipe.model.lora.rank, recipe.model.lora.alpha) == (7, 2, 16.0)
    assert (recipe.optimizer.learning_rate, recipe.optimizer.schedule) == (2e-5, "cosine")
    (tmp_path / "mine.yaml").write_text("extends: his.yaml\n")
    with pytest.raises(InputError, match="extend each other"):
        load(tmp_path / "his.yaml")


@pytest.mark.parametrize(
    ("replacements", "says"),
    [
        (["optimizer.lr=1"], r"the section optimizer of the recipe has no key 'lr'; "),
        (["pases=1"], r"the recipe has no key 'pases'; did you mean passes"),
        (["model.lora.rnk=1"], r"the section model.lora of the recipe has no key 'rnk'; did you mean rank"),
        (["optimizer.learning_rate=-1"], r"optimizer.learning_rate=-1 does not fit: input should be greater than 0"),
        (["data.normalisation=foo"], r"data.normalisation='foo' does not fit"),
        (["passes"], r"'passes' is no key=value"),
        (["passes=[1"], r"is no valid YAML"),
        (["model.cache_features=true"], r"cached features train a head alone"),
        (["validation.every=0", "validation.select=val"], r"leaves nothing to select by"),
    ],
)
def test_what_does_not_fit_is_named(replacements, says):
    with pytest.raises(InputError, match=says):
        load("specialist", *replacements)


def test_missing_recipes_and_keys_are_named(tmp_path):
    with pytest.raises(InputError, match=r"there is no recipe 'specalist'; .*did you mean specialist"):
        load("specalist")
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="the recipe needs name; add name="):
        load_recipe(TrainRecipe, "train", "specialist", ["data.index=i"])
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(InputError, match="is no mapping"):
        load(tmp_path / "list.yaml")


def test_jobs_of_the_repository_are_valid():
    for path in (Path(__file__).parents[2] / "train").glob("*.yaml"):
        assert yaml.safe_load(path.read_text())
        load(path)
