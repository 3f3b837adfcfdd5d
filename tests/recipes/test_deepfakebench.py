import pytest
import yaml

from r2m_jax import InputError
from r2m_jax.data.augment import PRESETS
from r2m_jax.jobs.training_model import policy
from r2m_jax.recipes import TrainRecipe, load_recipe
from r2m_jax.recipes.deepfakebench import read_deepfakebench

# The keys of DF40's training/config/detector/clip.yaml, with its values.
CLIP = {
    "log_dir": "logs", "model_name": "clip", "backbone_name": "vit", "train_dataset": ["FSAll_ff"],
    "test_dataset": ["FSAll_cdf"], "compression": "c23", "train_batchSize": 32, "test_batchSize": 64, "workers": 8,
    "frame_num": {"train": 8, "test": 8}, "resolution": 224, "with_mask": False, "with_landmark": False,
    "use_data_augmentation": True,
    "data_aug": {
        "flip_prob": 0.5, "rotate_prob": 0.5, "rotate_limit": [-10, 10], "blur_prob": 0.5, "blur_limit": [3, 7],
        "brightness_prob": 0.5, "brightness_limit": [-0.1, 0.1], "contrast_limit": [-0.1, 0.1], "quality_lower": 40,
        "quality_upper": 100,
    },
    "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
    "optimizer": {
        "type": "adam",
        "adam": {"lr": 1e-5, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 5e-4, "amsgrad": False},
        "sgd": {"lr": 2e-4, "momentum": 0.9, "weight_decay": 5e-4},
    },
    "lr_scheduler": None, "nEpochs": 3, "save_epoch": 1, "manualSeed": 1024, "metric_scoring": "auc",
    "ngpu": 1, "cuda": True, "my_own": 3,
}  # fmt: skip


def read(tmp_path, **changes):
    path = tmp_path / "clip.yaml"
    path.write_text(yaml.safe_dump({**CLIP, **changes}))
    settings, notes = read_deepfakebench(path)
    return load_recipe(TrainRecipe, "train", "specialist", ["data.index=i.csv"], settings), notes


def test_df40s_file_becomes_its_training(tmp_path):
    recipe, notes = read(tmp_path)
    assert (recipe.name, recipe.seed, recipe.passes, recipe.batch_size) == ("clip", 1024, 3, 32)
    assert recipe.data.sets == ("FSAll_ff",)
    assert (recipe.data.image_size, recipe.data.workers, recipe.data.compressions) == (224, 8, ("c23",))
    assert (recipe.data.frames, recipe.data.frame_selection) == (8, "df40")
    assert recipe.data.normalisation == {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    assert recipe.validation.batch_size == 64
    assert policy(recipe.data) == PRESETS["df40"]
    asked = recipe.optimizer
    assert (asked.name, asked.learning_rate, asked.weight_decay, asked.schedule) == ("adam", 1e-5, 5e-4, "constant")
    told = " ".join(notes)
    assert "the key my_own is not known" in told
    assert "one pass more than nEpochs" in told
    assert "backbone_name has no effect" in told


def test_other_optimisers_and_no_augmentation(tmp_path):
    recipe, _ = read(tmp_path, use_data_augmentation=False, optimizer={**CLIP["optimizer"], "type": "sgd"})
    assert recipe.data.augment == "none"
    assert (recipe.optimizer.name, recipe.optimizer.momentum, recipe.optimizer.learning_rate) == ("sgd", 0.9, 2e-4)
    assert read(tmp_path, lr_scheduler="cosine")[0].optimizer.schedule == "cosine"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_name": "xception"}, "of the detector 'xception'"),
        ({"lr_scheduler": "step"}, "lr_scheduler 'step' is not there"),
        ({"optimizer": {"type": "lion"}}, "the optimizer type 'lion' is not there"),
        ({"optimizer": {"type": "adam", "adam": {"amsgrad": True}}}, "amsgrad is not there"),
        ({"data_aug": {"flip_probability": 1}}, "did you mean flip_prob"),
    ],
)
def test_what_cannot_be_done_is_refused(tmp_path, changes, says):
    with pytest.raises(InputError, match=says):
        read(tmp_path, **changes)
