"""The recipe of ``r2m merge``."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator, model_validator

from r2m_jax.checkpoints.directory import read_config
from r2m_jax.errors import InputError
from r2m_jax.merging.averaging import WeightAveraging
from r2m_jax.merging.cart import Cart
from r2m_jax.merging.engine import Method
from r2m_jax.merging.r2m import R2M
from r2m_jax.merging.ranks import ByPattern, Gradient, parse_rank
from r2m_jax.merging.task_arithmetic import TaskArithmetic

MethodName = Literal["weight_averaging", "task_arithmetic", "ties", "cart", "r2m"]

_PARAMETERS: dict[str, tuple[str, ...]] = {
    "weight_averaging": (),
    "task_arithmetic": ("alpha", "reduce", "variant"),
    "ties": ("density", "scale", "variant"),
    "cart": ("rank", "scale", "reduce", "fused_qkv"),
    "r2m": ("rank", "alpha", "k", "centering", "origin", "eta", "scope", "norm_matching", "variant", "fused_qkv"),
}
"""What each method takes."""


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, numbers may stand for text."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


class ModelEntry(Section):
    """A specialist.

    Attributes:
        path: model directory.
        weight: of the specialist, in every method but TIES.
    """

    path: Path
    weight: float = Field(1.0, ge=0, allow_inf_nan=False)


Anchors = Annotated[list[FiniteFloat], Field(min_length=1)]
"""Numbers from the first layer to the last, with straight lines between them."""


class Filtered(Section):
    """A value for the tensors whose name matches.

    Attributes:
        filter: regular expression looked for in the name as stored (``encoder.layers.3.mlp.fc1.weight``); everything
            when omitted.
        value: a number, for ``rank`` also ``energy:0.9``, or a list of numbers that it takes from the first layer to
            the last.
    """

    filter: str | None = None
    value: int | float | str | Anchors

    @field_validator("filter")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"filter {value!r} is no regular expression ({error})") from None
        return value


Choice = Annotated[list[Filtered], Field(min_length=1)]


class MergeParameters(Section):
    """Settings of the methods; None leaves a method its own default. Meanings: :mod:`r2m_jax.merging`.

    ``rank``, ``alpha`` and ``scale`` (not that of TIES) may be a list of ``{filter, value}``, the first that fits
    deciding, the last without a filter; or a list of numbers that the setting takes from the first layer to the last,
    with straight lines between them. Ranks of such a list are ratios.
    """

    rank: int | float | str | Anchors | Choice | None = None
    alpha: float | Anchors | Choice | None = None
    k: int | None = Field(None, ge=1)
    centering: Literal["centered", "uncentered"] | None = None
    origin: Literal["theta0", "theta_avg"] | None = None
    eta: Literal["eff", "eq6"] | None = None
    scope: Literal["global", "leaf", "block"] | None = None
    norm_matching: Literal["global", "leaf"] | None = None
    density: float | None = None
    scale: float | Anchors | Choice | None = None
    reduce: Literal["sum", "mean"] | None = None
    variant: Literal["original", "paper"] | None = None
    fused_qkv: bool | None = None


class MergeRecipe(Section):
    """Everything that decides a merge.

    Attributes:
        base: model directory of the common pretrained origin.
        models: specialists by name: a path, or ``{path, weight}``.
        method: how they are merged.
        parameters: of the method.
        head: ``average``, ``norm_matched``, or the name of the specialist whose head is taken.
        dtype: of the stored parameters; None for the base's.
        kernel: how matrices are factorised; ``auto`` unless you compare them.
        screen: look for broken or poisoned specialists first: ``off``, ``warn`` of them, or ``refuse`` them.
        memory: budget for parameters being worked on, in MiB.
        out: model directory to make.
    """

    base: Path
    models: dict[str, ModelEntry] = Field(min_length=1)
    method: MethodName = "r2m"
    parameters: MergeParameters = MergeParameters()
    head: str = "average"
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    kernel: Literal["auto", "gram", "svd", "randomized", "matmul"] = "auto"
    screen: Literal["off", "warn", "refuse"] = "off"
    memory: int = Field(320, ge=1)
    out: Path

    @field_validator("models", mode="before")
    @classmethod
    def bare_paths(cls, value: Any) -> Any:
        """A path alone is a model of weight 1."""
        if not isinstance(value, dict):
            return value
        return {name: {"path": entry} if isinstance(entry, str | Path) else entry for name, entry in value.items()}

    @model_validator(mode="after")
    def _fits_together(self) -> MergeRecipe:
        given = [name for name, value in self.parameters if value is not None]
        taken = _PARAMETERS[self.method]
        foreign = [name for name in given if name not in taken]
        if foreign:
            raise ValueError(f"{self.method} takes no {foreign[0]}; it takes {', '.join(taken) or 'no parameters'}")
        if self.head not in ("average", "norm_matched", *self.models):
            raise ValueError(f"head={self.head!r} is neither average, norm_matched nor one of {', '.join(self.models)}")
        if self.method == "ties":
            if any(entry.weight != 1 for entry in self.models.values()):
                raise ValueError("ties takes no weights; leave them out")
            if isinstance(self.parameters.scale, list):
                raise ValueError("ties takes one scale for all tensors, no list")
        else:
            self.linear_method()
        return self

    def settings(self) -> dict[str, Any]:
        """Keyword arguments of the method's function (:mod:`r2m_jax.merging`), weights included.

        Raises:
            InputError: a setting changes with depth, and the base's config, which has the number of layers, cannot be
                read.
        """
        chosen = {name: value for name, value in self.parameters if value is not None}
        for name in ("rank", "alpha", "scale"):
            if name in chosen:
                chosen[name] = self._setting(chosen[name], parse_rank if name == "rank" else float)
        weights = tuple(entry.weight for entry in self.models.values())
        if any(weight != 1 for weight in weights):
            chosen["weights"] = weights
        return chosen

    def linear_method(self) -> Method:
        """The method as the engine takes it; not for TIES, which is not linear.

        Raises:
            ValueError: a setting is out of range.
        """
        kinds: dict[str, Callable[..., Method]] = {
            "weight_averaging": WeightAveraging, "task_arithmetic": TaskArithmetic, "cart": Cart, "r2m": R2M,
        }  # fmt: skip
        try:
            chosen = self.settings()
            chosen.pop("fused_qkv", None)
            chosen["given"] = chosen.pop("weights", None)
            if self.method == "task_arithmetic" and chosen.get("variant"):
                chosen["reduce"] = {"original": "sum", "paper": "mean"}[chosen.pop("variant")]
            method = kinds[self.method](**chosen)
            method.weights(len(self.models))
        except InputError as error:
            raise ValueError(str(error).rstrip(".")) from None
        return method

    def _setting(self, value: Any, convert: Callable[[Any], Any]) -> Any:
        if not isinstance(value, list):
            return convert(value)
        if not isinstance(value[0], Filtered):
            return Gradient(tuple(value), read_config(self.base).num_hidden_layers)
        *patterns, last = value
        if last.filter is not None:
            raise ValueError("the last of a list of {filter, value} needs no filter: it is for all other tensors")
        return ByPattern(
            self._setting(last.value, convert),
            tuple((entry.filter or "", self._setting(entry.value, convert)) for entry in patterns),
        )
