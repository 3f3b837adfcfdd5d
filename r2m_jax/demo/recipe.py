"""Settings of the demo: the two YAML files beside this module, checked."""

from __future__ import annotations

from importlib import resources
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from r2m_jax.errors import InputError


class DemoRecipe(BaseModel):
    """Everything that decides a run of the demo, beside the photographs.

    Attributes:
        seed: of patches, forgeries, the heads' start, sample order and mirroring.
        train_patches, test_patches: real patches to cut; every one is forged once per family.
        methods: forging methods of each family, taken in turns.
        held_out_share: share of a user's photographs no model sees (the embedded ones have a fixed list).
        passes: over a model's training images.
        batch_size: images per step.
        learning_rate: peak of a warm-up and cosine schedule.
        weight_decay: L2 in the gradient (coupled), DF40's 5e-4.
        task_arithmetic_alpha: scale of the summed task vectors; the R²M paper sweeps 0.5 and 1.
        rank, alpha: of R²M; the paper's choice is 0.7 and 0.5 (§C.4).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(ge=0)
    train_patches: int = Field(ge=32)
    test_patches: int = Field(ge=16)
    methods: dict[str, tuple[str, ...]] = Field(min_length=2)
    held_out_share: float = Field(gt=0, lt=1)
    passes: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    task_arithmetic_alpha: float
    rank: float = Field(ge=0, le=1)
    alpha: float


def load_recipe(name: str, **overrides: Any) -> DemoRecipe:
    """The recipe ``full`` or ``quick``, with settings replaced by those overrides that are not None.

    Raises:
        InputError: a setting is out of range; it is named.
    """
    text = (resources.files(__package__) / f"{name}.yaml").read_text(encoding="utf-8")
    settings = yaml.safe_load(text) | {key: value for key, value in overrides.items() if value is not None}
    try:
        return DemoRecipe(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise InputError(f"{field}={first['input']!r} does not fit the demo: {first['msg'].lower()}.") from None
