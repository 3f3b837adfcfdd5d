"""A DeepfakeBench or DF40 detector ``.yaml`` as settings of a training recipe.

Keys as in their ``training/config/detector/*.yaml``; what each does was read from their trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from r2m_jax.data.augment import read_data_aug
from r2m_jax.errors import InputError

_WITHOUT_EFFECT = {
    "log_dir": "logs are beside the model",
    "save_ckpt": "the model is always kept",
    "save_feat": "features are not kept",
    "save_epoch": "use states.every",
    "rec_iter": "use window",
    "logdir": "logs are beside the model",
    "cuda": "the device is jax's",
    "cudnn": "the device is jax's",
    "ngpu": "all devices are used",
    "loss_func": "cross-entropy is used",
    "losstype": "cross-entropy is used",
    "backbone_config": "the tower is that of model.base",
    "backbone_name": "the tower is that of model.base",
    "pretrained": "the tower is that of model.base",
    "save_avg": "averages over test sets belong to the evaluation",
    "with_mask": "a CLIP detector reads no masks",
    "with_landmark": "a CLIP detector reads no landmarks",
    "with_xray": "a CLIP detector reads no blending boundaries",
    "dataset_type": "images are read one by one",
    "dataset_json_folder": "make an index with r2m data index and give it as data.index",
    "dataset_root_rgb": "make an index with r2m data index and give it as data.index",
    "rgb_dir": "make an index with r2m data index and give it as data.index",
    "lmdb_dir": "make an index with r2m data index and give it as data.index",
    "lmdb": "make an index with r2m data index and give it as data.index",
    "test_dataset": "testing belongs to the evaluation",
    "label_dict": "labels were decided when the index was made",
    "start_epoch": "a stopped run goes on by itself",
    "video_mode": "images are read one by one",
    "clip_size": "images are read one by one",
}


def read_deepfakebench(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Settings for :func:`r2m_jax.recipes.load_recipe`, and one sentence for every key without effect.

    Unknown keys are told, not refused: forks add their own.

    Args:
        path: the yaml.

    Raises:
        InputError: it cannot be read, is of a detector other than CLIP, or asks for an optimiser or schedule that is
            not there.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({getattr(error, 'strerror', error)}).") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} is no valid YAML ({str(error).splitlines()[0]}).") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is no mapping of keys to values.")
    model = str(content.get("model_name", "clip"))
    if "clip" not in model.lower():
        raise InputError(f"{path} is of the detector {model!r}; only CLIP detectors are trained here.")
    settings: dict[str, Any] = {"name": model, "data": {}, "optimizer": {}, "validation": {}}
    notes = [f"{key} has no effect: {why}." for key, why in _WITHOUT_EFFECT.items() if key in content]
    used = {"model_name", "data_aug", "use_data_augmentation", "optimizer", "lr_scheduler", "mean", "std"}
    used |= {"lr_step", "lr_gamma", "lr_T_max", "lr_eta_min"}
    for key, place in (
        ("train_batchSize", "batch_size"), ("test_batchSize", "validation.batch_size"), ("workers", "data.workers"),
        ("resolution", "data.image_size"), ("nEpochs", "passes"), ("manualSeed", "seed"),
        ("compression", "data.compressions"), ("train_dataset", "data.sets"),
    ):  # fmt: skip
        used.add(key)
        if content.get(key) is not None:
            section, _, name = place.rpartition(".")
            (settings[section] if section else settings)[name] = content[key]
    used |= {"frame_num", "metric_scoring"}
    if isinstance(content.get("frame_num"), Mapping) and "train" in content["frame_num"]:
        settings["data"] |= {"frames": content["frame_num"]["train"], "frame_selection": "df40"}
    if content.get("metric_scoring", "auc") != "auc":
        notes.append(f"metric_scoring {content['metric_scoring']!r} has no effect: models are selected by AUC or not.")
    if "nEpochs" in content:
        notes.append("their loop makes one pass more than nEpochs says; set passes to follow it.")
    settings["data"] |= _augmentation(content, notes)
    if "mean" in content or "std" in content:
        if not {"mean", "std"} <= content.keys():
            raise InputError(f"{path} gives mean or std but not both.")
        settings["data"]["normalisation"] = {"mean": content["mean"], "std": content["std"]}
    settings["optimizer"] = _optimizer(content, path)
    unknown = [key for key in content if key not in used and key not in _WITHOUT_EFFECT]
    return settings, notes + [f"the key {key} is not known and has no effect." for key in unknown]


def _augmentation(content: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    if content.get("use_data_augmentation", True) is False:
        return {"augment": "none"}
    if not isinstance(content.get("data_aug"), Mapping):
        return {}
    policy, told = read_data_aug(content["data_aug"])
    notes += told
    return {"augment": asdict(policy)}


def _optimizer(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    asked = content.get("optimizer")
    if not isinstance(asked, Mapping):
        return {}
    kind = str(asked.get("type", "adam")).lower()
    names = {
        "adam": {"lr": "learning_rate", "beta1": "b1", "beta2": "b2", "eps": "eps", "weight_decay": "weight_decay"},
        "sgd": {"lr": "learning_rate", "momentum": "momentum", "weight_decay": "weight_decay"},
    }
    if kind not in names:
        raise InputError(f"{path}: the optimizer type {kind!r} is not there; use adam or sgd.")
    own = asked.get(kind) or {}
    if own.get("amsgrad"):
        raise InputError(f"{path}: amsgrad is not there; set it to false.")
    settings = {"name": kind} | {names[kind][key]: value for key, value in own.items() if key in names[kind]}
    schedule = content.get("lr_scheduler")
    if schedule in (None, "None", "null"):
        return settings | {"schedule": "constant"}
    if schedule == "cosine":
        return settings | {"schedule": "cosine"}
    raise InputError(
        f"{path}: lr_scheduler {schedule!r} is not there; use null or cosine, or optimizer.schedule=linear."
    )
