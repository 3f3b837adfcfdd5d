"""Training CoRIT by recipe, on pairs and on cached features."""

import json

import jax
import numpy as np
import pytest

from r2m_jax import InputError
from r2m_jax.checkpoints import load_corit, load_detector
from r2m_jax.data.index import read_index
from r2m_jax.data.pipeline import Decoding, RecordSource, evaluation_batches
from r2m_jax.evaluation.metrics import auc
from r2m_jax.jobs.corit import encoder, given, pairs_for
from r2m_jax.jobs.scoring import score_models
from r2m_jax.jobs.train import train
from r2m_jax.models.corit import CoritSettings, apply_corit_head
from r2m_jax.progress import Reporter
from r2m_jax.recipes import TrainRecipe, load_recipe
from r2m_jax.trees import flatten


@pytest.fixture
def recipe(base, index, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make(*replacements):
        needed = [
            "name=x", f"data.index={index}", f"model.base={base}", f"out={tmp_path}/{{name}}", "data.augment=flip",
            "batch_size=8", "passes=3", "window=4", "data.methods=[bright]", "optimizer.learning_rate=0.05",
        ]  # fmt: skip
        return load_recipe(TrainRecipe, "train", "corit", [*needed, *replacements])

    return make


def run(recipe):
    return train(recipe, reporter=Reporter(quiet=True))


def logits_of(directory, records):
    found = load_corit(directory)
    prepare = pairs_for(found.settings, 32, found.config.patch_size)
    encode = encoder(found.config, found.settings, found.options, found.processor.image_mean, found.processor.image_std)
    with evaluation_batches(
        RecordSource(records), batch_size=len(records), decoding=Decoding(32, 0, prepare=prepare)
    ) as stream:
        features = jax.jit(encode)(found.params["backbone"], given(next(stream)))
    both = apply_corit_head(found.params["head"], features)
    return np.asarray(both[:, 1] - both[:, 0])


@pytest.mark.integration
def test_a_trained_head_tells_fake_from_real_and_the_tower_stays(recipe, base, index):
    made = run(recipe("passes=6"))
    records = [r for r in read_index(index) if r.split == "test" and r.method in ("", "bright")]
    assert auc([r.label for r in records], logits_of(made.directory, records)) > 0.9
    before, after = (flatten(loaded.params["backbone"]) for loaded in (load_detector(base), load_corit(made.directory)))
    for path in before:
        np.testing.assert_array_equal(before[path], after[path], err_msg=path)
    facts = json.loads((made.directory / "r2m.json").read_text())
    assert facts["kind"] == "corit"
    assert facts["recipe"]["model"]["corit"]["gamma"] == 0.1
    stored = json.loads((made.directory / "corit.json").read_text())
    assert (stored["cgp"], stored["rule"], stored["fusion_layer"]) == ("canonical", "face", 2)
    # Validation is of the model that was written.
    val = [r for r in read_index(index) if r.split == "val" and r.method in ("", "bright")]
    found = logits_of(made.directory, val)
    assert auc([r.label for r in val], found) == pytest.approx(made.validation["frame_auc"])
    # r2m eval scores it with plain models beside it, in a pass of its own.
    models = {"corit": made.directory, "plain": base}
    scored = score_models(models, val, reporter=Reporter(quiet=True), batch_size=8, features=True)
    np.testing.assert_allclose(scored.table.logits["corit"], found, atol=1e-4)
    assert scored.passes == 2
    assert {name: part.shape[1] for name, part in scored.features.items()} == {"corit": 512, "plain": 64}


@pytest.mark.integration
def test_cached_features_train_the_head_that_images_train(recipe, tmp_path):
    settings = ["data.augment=none", "passes=2"]
    images = load_corit(run(recipe("name=images", *settings)).directory)
    cached = load_corit(run(recipe("name=cached", "model.cache_features=true", *settings)).directory)
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(images.params["head"][name], cached.params["head"][name], atol=1e-4)
    files = list((tmp_path / "cache").rglob("*.npy"))
    assert {np.load(file).shape[1] for file in files} == {images.settings.width(images.config)}
    # Other switches, other features.
    run(recipe("name=other", "model.cache_features=true", "model.corit.gamma=0.5", *settings))
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 2 * len(files)


def test_the_frozen_part_is_computed_once_for_both_gradients_of_sam(rng):
    import jax.numpy as jnp
    import optax

    from r2m_jax.training import Sharpness, init_state, train_step

    calls = []

    def frozen(params, inputs):
        calls.append(1)
        return inputs @ params["backbone"]

    def logits(params, features):
        return features @ params["head"]

    params = {"backbone": jnp.asarray(rng.normal(size=(5, 4))), "head": jnp.asarray(rng.normal(size=(4, 2)))}
    batch = {"image": jnp.asarray(rng.normal(size=(8, 5))), "label": jnp.asarray(rng.integers(0, 2, 8))}
    optimizer, shared = optax.sgd(0.1), {"trainable": lambda path: path == "head", "sharpness": Sharpness(0.1)}

    def inputs(key, batch):
        return batch["image"]

    state = init_state(params, optimizer, 0, shared["trainable"])
    split = train_step(logits, optimizer, inputs, frozen=frozen, **shared)(state, batch)
    assert len(calls) == 1
    whole = train_step(lambda p, x: logits(p, frozen(p, x)), optimizer, inputs, **shared)(state, batch)
    for one, other in zip(jax.tree.leaves(split[0].params), jax.tree.leaves(whole[0].params), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    assert float(split[1].loss) == pytest.approx(float(whole[1].loss))


@pytest.mark.parametrize(
    ("replacement", "named"),
    [
        ("model.trainable=[.*]", "frozen"),
        ("model.head=keep", "head=new"),
        ("data.augment_on=device", "augment_on=host"),
        ("model.corit=null", "go together"),
        ("kind=specialist", "go together"),
        ("model.corit.gama=1", r"no key 'gama'; .*gamma"),
        ("model.corit.pooling=sum", "pooling"),
        ("model.corit.regions=[sky]", "sky"),
        ("model.corit.draws=2", "draws=2"),
    ],
)
def test_recipes_that_make_no_sense(recipe, replacement, named):
    with pytest.raises(InputError, match=named):
        recipe(replacement)


def test_drawn_blends_cannot_be_cached(recipe):
    with pytest.raises(InputError, match="canonical"):
        recipe("model.corit.cgp=random", "model.cache_features=true", "data.augment=none")


def test_masks_of_ones_own_need_python():
    with pytest.raises(InputError, match="apply_corit"):
        pairs_for(CoritSettings(rule="user"), 32, 8)
