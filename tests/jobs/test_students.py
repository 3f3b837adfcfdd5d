"""Convolutional students: trained, distilled, adapted, transferred, pruned ones fine-tuned."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image

from r2m_jax import InputError, load_detector, save_detector
from r2m_jax.checkpoints import image_processor, load_convolutional, save_convolutional
from r2m_jax.jobs.train import train
from r2m_jax.models.convolutional import Block, ConvolutionalDetector, Plan, init_convolutional
from r2m_jax.progress import Reporter
from r2m_jax.recipes import TrainRecipe, load_recipe
from r2m_jax.training.log import read_log
from r2m_jax.trees import flatten

PLAN = "model.student={body: [4, pool, {channels: 8, groups: 4, pointwise: 8}, pool], hidden: [16], dropout: 0.2}"


@pytest.fixture(scope="module")
def recipe(base, index, tmp_path_factory):
    folder = tmp_path_factory.mktemp("students")

    def make(source, name, *replacements):
        # Eight rows divide over the eight devices of the tests.
        needed = [
            f"name={name}", f"data.index={index}", f"out={folder}/{{name}}", "batch_size=8", "window=4",
            "data.methods=[bright]", "optimizer.learning_rate=3e-3", "passes=4", "data.workers=0",
        ]  # fmt: skip
        return load_recipe(TrainRecipe, "train", source, [*needed, *replacements])

    return make


def run(recipe, **options):
    return train(recipe, reporter=Reporter(quiet=True), **options)


@pytest.fixture(scope="module")
def student(recipe):
    """A student trained from nothing."""
    return run(recipe("student", "student", PLAN, "data.image_size=32"))


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """The directory of the same network as it starts."""
    plan = Plan((4, "pool", Block(8, 4, 8), "pool"), hidden=(16,), image_size=32)
    made = ConvolutionalDetector.create(plan, init_convolutional(plan, jax.random.key(0)), image_processor(32))
    folder = tmp_path_factory.mktemp("network") / "network"
    save_convolutional(made, folder)
    return folder


def moved(before, after):
    one, two = flatten(before), flatten(after)
    return {path for path in one if (np.asarray(one[path]) != np.asarray(two[path])).any()}


@pytest.mark.integration
def test_a_student_learns_and_its_statistics_with_it(student):
    assert student.validation["frame_auc"] > 0.95
    made = load_convolutional(student.directory)
    assert made.config.image_size == 32
    assert made.provenance["kind"] == "student"
    # Running means of the first layer are near those of its outputs on such images: statistics were learnt.
    statistics = flatten(made.params["statistics"])
    assert all((np.asarray(leaf) != (0.0 if "mean" in path else 1.0)).all() for path, leaf in statistics.items())
    with pytest.raises(InputError, match="is that of a convolutional network, not of a CLIP vision tower"):
        load_detector(student.directory)


@pytest.mark.integration
def test_an_adapter_alone_is_trained(student, recipe):
    made = run(recipe("adapter", "adapter", f"model.base={student.directory}", "model.adapter.residual=true"))
    before, after = load_convolutional(student.directory), load_convolutional(made.directory)
    assert after.config.adapter is not None
    kept = {part: {k: v for k, v in tree.items() if k != "adapter"} for part, tree in after.params.items()}
    assert moved(before.params, kept) == set()
    start = before.with_adapter("last", True, jax.random.key(0)).params
    learnt = {path for path in moved(start, after.params) if "adapter" in path}
    assert {"backbone/adapter/pointwise/kernel", "statistics/adapter/mean"} <= learnt
    assert made.validation["frame_auc"] > 0.95


@pytest.mark.integration
def test_transfer_tunes_the_last_block_and_a_new_head(student, recipe):
    made = run(recipe("transfer", "transfer", f"model.base={student.directory}", "passes=1"))
    changed = moved(load_convolutional(student.directory).params, load_convolutional(made.directory).params)
    parts = {path.split("/")[1] if path[0] != "h" else "head" for path in changed}
    assert parts == {"layer2", "fc1", "head"}
    assert "statistics/layer2/mean" in changed


@pytest.mark.integration
@pytest.mark.parametrize(
    "more",
    [
        ["data.augment=none"],  # answers are computed once, at the teacher's size
        ["data.augment=flip", "data.augment_on=device", "distillation.features=0.1", "sam={rho: 0.05}"],
    ],
    ids=["once", "every step"],
)
def test_a_clip_teacher_of_another_size_teaches_a_student(more, base, recipe, tmp_path):
    # A teacher that knows brightness: its head reads what tells bright images apart.
    teacher = run(
        recipe("specialist", "teacher", f"model.base={base}", "data.augment=none", "optimizer.learning_rate=1e-3"),
        overwrite=True,
    )
    size = ["data.image_size=24"]
    # Labels are not looked at: everything is learnt from the teacher.
    taught = ["distillation.hard=0", "distillation.soft=1", f"distillation.teacher={teacher.directory}", "passes=6"]
    made = run(recipe("distil", f"taught{len(more)}", PLAN, *size, *taught, *more))
    assert teacher.validation["frame_auc"] > 0.95
    assert made.validation["frame_auc"] > 0.95
    facts = json.loads((made.directory / "r2m.json").read_text())
    assert any(str(teacher.directory) in item["path"] for item in facts["inputs"])
    assert not any("distillation" in path for path in flatten(load_convolutional(made.directory).params))


@pytest.mark.integration
def test_a_tower_learns_from_a_network(student, base, recipe):
    made = run(
        recipe(
            "distil", "tower", "model.student=null", f"model.base={base}", "model.lora={rank: 4}",
            f"distillation.teacher={student.directory}", "distillation.hard=0", "distillation.soft=1",
            "distillation.features=1", "distillation.likeness=cosine", "data.augment=flip",
        )
    )  # fmt: skip
    assert made.validation["frame_auc"] > 0.9
    assert set(flatten(load_detector(made.directory).params)) == set(flatten(load_detector(base).params))


@pytest.mark.integration
def test_pruned_weights_stay_zero(student, base, recipe, tmp_path, rng):
    def thinned(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf * (rng.random(leaf.shape) < 0.4) if path[-1].key == "kernel" else leaf, params
        )

    network, tower = load_convolutional(student.directory), load_detector(base)
    save_convolutional(network.replace_params(thinned(network.params)), tmp_path / "network")
    save_detector(tower.replace_params(thinned(tower.params)), tmp_path / "tower")
    for source, load, more in (
        ("network", load_convolutional, ["model.student=null"]),
        ("tower", load_detector, ["model.student=null", "data.augment=flip"]),
    ):
        given = [f"model.base={tmp_path}/{source}", "model.keep_zeros=true", "model.head=keep", "passes=1", *more]
        made = run(recipe("student", f"fine-{source}", *given))
        before, after = load(tmp_path / source).params, load(made.directory).params
        changed = moved(before, after)
        for path, leaf in flatten(before).items():
            tuned = np.asarray(flatten(after)[path])
            if path.endswith("kernel"):
                assert (tuned[np.asarray(leaf) == 0] == 0).all(), path
                assert path in changed
    with pytest.raises(InputError, match="has no weight that is zero; prune it first"):
        run(
            recipe("student", "dense", f"model.base={student.directory}", "model.student=null", "model.keep_zeros=true")
        )


@pytest.mark.integration
def test_a_run_that_was_stopped_goes_on_bit_for_bit(student, recipe, monkeypatch):
    """Statistics and dropout are part of the state."""
    import r2m_jax.jobs.train as job
    from r2m_jax.training import Interrupted

    whole = read_log(student.directory / "log.jsonl")
    again = recipe("student", "again", PLAN, "data.image_size=32")
    real = job.fit

    def stopped(step, state, batches, **options):
        count = iter(range(10**6))
        return real(step, state, batches, **{**options, "stop": lambda: next(count) == 9})

    monkeypatch.setattr(job, "fit", stopped)
    with pytest.raises(Interrupted):
        run(again)
    monkeypatch.setattr(job, "fit", real)
    made = run(again)
    parts = [read_log(made.directory / "log.jsonl"), whole]
    losses = [[row["loss"] for row in rows if row["kind"] == "step"] for rows in parts]
    assert losses[0] == losses[1]
    assert moved(*(load_convolutional(m.directory).params for m in (student, made))) == set()


def test_networks_are_scored_as_any_other_model_and_refused_by_merges(untrained, index):
    from r2m_jax.data.images import load_images
    from r2m_jax.data.index import read_index
    from r2m_jax.jobs.merge_inputs import open_inputs
    from r2m_jax.jobs.scoring import score_models

    records = [r for r in read_index(index) if r.split == "test"]
    scored = score_models({"a": untrained}, records, reporter=Reporter(quiet=True), features=True)
    made = load_convolutional(untrained)
    images = [Image.fromarray(pixels) for pixels in load_images([r.path for r in records], 32)]
    logits = np.asarray(made(made.preprocess(images)))
    np.testing.assert_allclose(scored.table.logits["a"], logits[:, 1] - logits[:, 0], atol=1e-4)
    assert scored.features["a"].shape == (len(records), 16)
    with pytest.raises(InputError, match="no merge takes it"):
        open_inputs(untrained, {"a": untrained})


def test_recipes_that_make_no_sense_end_with_a_sentence(untrained, base, recipe, tmp_path):
    own = f"model.base={untrained}"
    for source, more, message in (
        ("student", ["model.student=vgg-5m"], r"no convolutional network is called 'vgg-5m'; choose one of vgg-4.5m"),
        (
            "student",
            [PLAN, "data.image_size=8", "model.student.body=[4, pool, pool, pool, pool]"],
            "images of 8 px leave",
        ),
        ("student", [PLAN, "model.remat=full"], "model.remat is for CLIP towers"),
        ("student", [PLAN, "sam={parts: 2}"], "sam.parts=2 cuts the batch"),
        ("student", [PLAN, "model.last_blocks=1"], "model.student starts from nothing"),
        ("adapter", [own, "model.head=new"], "an adapter leaves the head as it is"),
        ("adapter", [own, "model.adapter.place=9"], "an adapter goes after block 1 to 2"),
        ("adapter", [f"model.base={base}"], "model.adapter is for convolutional networks"),
        ("adapter", [own, "model.last_blocks=1"], "each say what is trained"),
        ("transfer", [own, "model.last_blocks=3"], "model.last_blocks=3, but the network has 2 blocks"),
        ("transfer", [own, "data.image_size=64"], "were made for images of 32 px"),
        ("distil", [PLAN, f"distillation.teacher={tmp_path}/nothing"], "is no directory"),
        ("distil", [PLAN, f"distillation.teacher={base}", "distillation.soft=0", "distillation.hard=0"], "is 0"),
    ):
        with pytest.raises(InputError, match=message):
            run(recipe(source, "wrong", *more))


def test_networks_come_back_from_their_directories_and_from_torch(untrained, tmp_path):
    torch = pytest.importorskip("torch", reason="torch writes the checkpoint (extra `dev`)")
    from safetensors.torch import load_file

    from r2m_jax.checkpoints.convert import convert
    from r2m_jax.models.convolutional import plan_named

    made = load_convolutional(untrained)
    save_convolutional(made, tmp_path / "copy")
    assert moved(made.params, load_convolutional(tmp_path / "copy").params) == set()
    assert load_file(tmp_path / "copy" / "model.safetensors")["layer2.conv.weight"].shape == (8, 1, 3, 3)

    # The authors' way of writing: sequences of convolution, norm, ReLU and pooling, then of dropout, linear and ReLU.
    plan = replace(plan_named("vgg-0.9m"), image_size=32)
    nn = torch.nn
    module = nn.Module()
    inputs = 3
    for number, block in enumerate(plan.blocks, start=1):
        parts = nn.Conv2d(inputs, block.out, 3, padding=1), nn.BatchNorm2d(block.out), nn.ReLU()
        setattr(module, f"layer{number}", nn.Sequential(*parts))
        inputs = block.out
    module.fc = nn.Sequential(nn.Dropout(0.5), nn.Linear(plan.flat, 128), nn.ReLU())
    module.fc1 = nn.Sequential(nn.Linear(128, 2))
    torch.save(module.state_dict(), tmp_path / "authors.pth")
    report = convert(str(tmp_path / "authors.pth"), tmp_path / "theirs")
    assert report.kind == "torch file, convolutional network vgg-0.9m"
    theirs = load_convolutional(tmp_path / "theirs")
    assert theirs.config == plan
    np.testing.assert_array_equal(theirs.params["backbone"]["fc1"]["kernel"], module.fc[1].weight.detach().numpy().T)
    np.testing.assert_array_equal(
        theirs.params["backbone"]["layer7"]["conv"]["kernel"],
        module.layer7[0].weight.detach().numpy().transpose(2, 3, 1, 0),
    )
