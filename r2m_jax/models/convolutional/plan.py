"""Convolutional networks described as data: a plan is all that building one takes.

The plans that ship are those of the authors' repository of "A Brief Review for Compression and Transfer Learning
Techniques in DeepFake Detection" (https://arxiv.org/abs/2504.21066): a VGG of 4.59 million parameters and four
students.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import TypeAdapter, ValidationError

from r2m_jax.errors import InputError

Place = Literal["first", "middle", "last"]
COLOURS = 3
ADAPTER = "adapter"
"""Name of the adapter's parameters."""


@dataclass(frozen=True)
class Block:
    """A 3x3 convolution, perhaps a 1x1 after it, then batch normalisation and ReLU.

    Nothing is between the two convolutions. Both have a bias.

    Attributes:
        channels: of the 3x3 convolution's output.
        groups: of the 3x3 convolution; as many as channels come in makes it depthwise.
        pointwise: channels of the 1x1 convolution's output; None for none.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    channels: int
    groups: int = 1
    pointwise: int | None = None

    @property
    def out(self) -> int:
        """Channels that leave the block."""
        return self.pointwise or self.channels


@dataclass(frozen=True)
class Adapter:
    """A depthwise 3x3 and a 1x1 convolution, batch normalisation and ReLU, put into a trained network.

    Attributes:
        after: number of the block it follows, and of the pooling that follows that, counted from 1.
        residual: add the result to what came in. The order is then 3x3, batch normalisation, ReLU, 1x1: with the 1x1
            convolution zero at first the network is what it was, and it leaves that gradually, whereas a batch
            normalisation *after* the 1x1 blows the first step's tiny weights up to unit variance.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    after: int
    residual: bool = False


class Layer(NamedTuple):
    """One step through the body.

    Attributes:
        name: of its parameters; empty for a pooling.
        block: None for a pooling.
        inputs: channels that come in.
        residual: see :class:`Adapter`.
    """

    name: str
    block: Block | None
    inputs: int
    residual: bool = False


@dataclass(frozen=True)
class Plan:
    """A convolutional network with two logits.

    Attributes:
        body: blocks (a number c is ``Block(c)``) and ``"pool"``, a 2x2 maximum of stride 2.
        hidden: widths of the linear layers before the last one, each after a dropout and followed by ReLU.
        image_size: sides of the input in pixels; the first linear layer depends on it.
        dropout: share of the inputs of hidden layers that is dropped in training.
        adapter: put into the body; None for none.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    body: tuple[int | Literal["pool"] | Block, ...]
    hidden: tuple[int, ...]
    image_size: int = 224
    dropout: float = 0.5
    adapter: Adapter | None = None

    def __post_init__(self) -> None:
        if not self.blocks:
            raise InputError("a plan needs a convolution; name channels in body, e.g. [32, pool, 64].")
        inputs = COLOURS
        for block in self.blocks:
            if min(block.out, block.channels, block.groups) < 1:
                raise InputError(f"a plan's channels and groups are 1 or more, not {block}.")
            if inputs % block.groups or block.channels % block.groups:
                raise InputError(
                    "a plan's groups must divide the channels on both sides: "
                    f"{block.groups} do not divide {inputs} and {block.channels}."
                )
            inputs = block.out
        if any(width < 1 for width in self.hidden):
            raise InputError(f"a plan's hidden widths are 1 or more, not {list(self.hidden)}.")
        if not 0 <= self.dropout < 1:
            raise InputError(f"a plan's dropout is from 0 to below 1, not {self.dropout}.")
        if self.side < 1:
            pools = self.body.count("pool")
            raise InputError(
                f"images of {self.image_size} px leave nothing after {pools} poolings; give at least {2**pools} px."
            )
        if self.adapter and not 1 <= self.adapter.after <= len(self.blocks):
            raise InputError(f"an adapter goes after block 1 to {len(self.blocks)}, not {self.adapter.after}.")

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Of the body, in order, without the adapter."""
        return tuple(Block(item) if isinstance(item, int) else item for item in self.body if item != "pool")

    @property
    def side(self) -> int:
        """Sides of what the body gives, in places."""
        return self.image_size // 2 ** self.body.count("pool")

    @property
    def flat(self) -> int:
        """Numbers the body gives of an image."""
        return self.side**2 * self.blocks[-1].out

    @property
    def width(self) -> int:
        """Numbers the last linear layer reads of an image."""
        return self.hidden[-1] if self.hidden else self.flat

    def layers(self) -> list[Layer]:
        """The body with its adapter, in the order of the computation."""
        blocks, found = iter(self.blocks), list[Layer]()
        number, inputs = 0, COLOURS
        for place, item in enumerate(self.body):
            if item == "pool":
                found.append(Layer("", None, inputs))
            else:
                block, number = next(blocks), number + 1
                found.append(Layer(f"layer{number}", block, inputs))
                inputs = block.out
            followed = place + 1 < len(self.body) and self.body[place + 1] == "pool" and item != "pool"
            here = self.adapter is not None and number == self.adapter.after and not followed
            if self.adapter and here and all(layer.name != ADAPTER for layer in found):
                found.append(Layer(ADAPTER, Block(inputs, inputs, inputs), inputs, self.adapter.residual))
        return found

    def with_adapter(self, place: Place | int, residual: bool = False) -> Plan:
        """The plan with an adapter.

        Args:
            place: ``first``, ``middle`` or ``last``, or the number of the block it follows.
            residual: see :class:`Adapter`.

        Raises:
            InputError: it has one already, or no such block.
        """
        if self.adapter is not None:
            raise InputError(f"the network has an adapter already, after block {self.adapter.after}; it takes one.")
        count = len(self.blocks)
        numbers = {"first": 1, "middle": (count + 1) // 2, "last": count}
        return replace(self, adapter=Adapter(numbers[place] if isinstance(place, str) else place, residual))

    def to_dict(self) -> dict[str, Any]:
        """What :func:`parse_plan` reads back, JSON values."""
        return asdict(self)


def parse_plan(settings: Mapping[str, Any], where: str) -> Plan:
    """A plan from the JSON object that ``where`` holds.

    Raises:
        InputError: a key is unknown or missing, or a value does not fit.
    """
    try:
        return TypeAdapter(Plan).validate_python(dict(settings))
    except ValidationError as error:
        unknown = "unexpected_keyword_argument"  # first: it is often the misspelt key that is reported missing
        first = min(error.errors(), key=lambda found: found["type"] != unknown)
        key = ".".join(str(part) for part in first["loc"][:2])
        reason = first["msg"].removeprefix("Value error, ").rstrip(".")
        if first["type"] == unknown and len(first["loc"]) == 1:
            reason = f"a plan has no such key; it has {', '.join(field.name for field in fields(Plan))}"
        elif key.startswith("body."):
            given = settings["body"][first["loc"][1]]
            reason = f"{given!r} is neither channels, as a whole number, nor pool, nor {{channels, groups, pointwise}}"
        raise InputError(f"{where}: {key}{': ' if key else ''}{reason}.") from None


# Widths and heads as in the authors' repository, checked by the parameter counts of its models.
PLANS: dict[str, Plan] = {
    "vgg-4.5m": Plan(
        (64, 64, "pool", 128, 128, "pool", 256, 256, "pool", 512, "pool", 128, "pool"), hidden=(256, 256)
    ),
    "vgg-1.8m": Plan(
        (32, "pool", 64, "pool", 128, "pool", 256, "pool", 128, "pool", 128, 128), hidden=(128, 128)
    ),
    "vgg-1.34m": Plan((32, "pool", 64, "pool", 128, "pool", 128, "pool", 128, "pool", 128), hidden=(128,)),
    "vgg-0.9m": Plan((32, "pool", 64, "pool", 128, "pool", 128, "pool", 128, "pool", 64, 64), hidden=(128,)),
    "vgg-0.44m": Plan(
        (
            Block(32, 1, 32), "pool", Block(64, 32, 64), "pool", Block(64, 64, 64), "pool", Block(128, 64, 128), "pool",
            Block(128, 128, 64), "pool",
        ),
        hidden=(128,),
    ),
}  # fmt: skip


def plan_named(name: str) -> Plan:
    """A plan that ships.

    Raises:
        InputError: there is none of that name.
    """
    if name not in PLANS:
        raise InputError(f"no convolutional network is called {name!r}; choose one of {', '.join(PLANS)}.")
    return PLANS[name]


def plan_name(plan: Plan) -> str | None:
    """The name under which a network ships, whatever its image size and adapter; None for others."""
    same = replace(plan, image_size=224, adapter=None)
    return next((name for name, known in PLANS.items() if known == same), None)
