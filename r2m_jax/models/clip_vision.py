"""The vision tower as a Flax NNX module whose layers are stacked on a leading axis and scanned.

Architecture: Radford et al. 2021, https://arxiv.org/abs/2103.00020, §2.4 and its released weights: a ViT with
a layer norm before the first block, pre-norm blocks, and the class token of the last layer, layer-normed, as
the pooled output. Numerics follow transformers' ``CLIPVisionModel``: layer norms with the config's epsilon
(1e-5) and exact two-pass variance, quick-GELU or exact GELU, a patch convolution without bias. Towers of the
other family (``ViTModel``) differ in what :class:`~r2m_jax.models.architecture.Family` says, and are built by
the same module.

Stacking is what later lets a merge treat N specialists x L layers as one batch of matrices, and it makes the
compiled program's size independent of depth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from r2m_jax.errors import InputError
from r2m_jax.models.architecture import attention_heads, check_config, family_of
from r2m_jax.models.positions import interpolate_positions

Remat = Literal["none", "full", "dots"]
Attention = Literal["auto", "xla", "cudnn"]


class TowerOutput(NamedTuple):
    """What the tower returns.

    Attributes:
        pooled: ``[batch, d]``, the layer-normed class token of the last layer (``pooler_output``).
        hidden: ``[chosen, batch, tokens, d]``, the hidden states asked for, in the order asked; index 0 is
            the input of the first block, index i the output of block i (transformers' ``hidden_states``).
    """

    pooled: Float[Array, "batch d"]
    hidden: Float[Array, "chosen batch tokens d"]


@dataclass(frozen=True)
class TowerOptions:
    """How a tower computes; none of these changes its parameters.

    Attributes:
        dtype: of activations and matrix products. Layer norms, softmax and the pooled output's norm
            accumulate in float32 either way. ``float32`` means float32 also on accelerators whose default
            matrix product is coarser.
        remat: what the backward pass recomputes: ``"none"`` keeps every activation, ``"dots"`` keeps the
            results of weight matmuls only, ``"full"`` keeps one activation per block.
        attention: ``"cudnn"`` is flash attention (NVIDIA, 16-bit), ``"xla"`` runs everywhere, ``"auto"`` takes
            cuDNN where it applies.
        unrolled: put the layers one after the other into the program instead of a loop over them. XLA's program stays
            small with the loop; runtimes that interpret a graph gain nothing from it: ONNX Runtime slices every weight
            out of its stack at every step and cannot optimise across them (measured on ViT-B/16: 1.8 times slower to
            run, 7 times slower to load).
    """

    dtype: DTypeLike = jnp.float32
    remat: Remat = "none"
    attention: Attention = "auto"
    unrolled: bool = False

    def attention_implementation(self, head_dim: int) -> Literal["xla", "cudnn"]:
        """The implementation ``jax.nn.dot_product_attention`` is asked for."""
        if self.attention != "auto":
            return self.attention
        sixteen_bit = jnp.dtype(self.dtype) in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
        # cuDNN's fused attention takes 16-bit inputs with head sizes that are multiples of 8 up to 128.
        fits = sixteen_bit and head_dim % 8 == 0 and head_dim <= 128
        return "cudnn" if fits and jax.default_backend() == "gpu" else "xla"

    @property
    def matmul_precision(self) -> str | None:
        """What ``jax.default_matmul_precision`` is set to while a tower runs."""
        return "highest" if jnp.dtype(self.dtype) == jnp.float32 else None


def over_layers(step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, stacked: Any, unrolled: bool) -> Any:
    """``jax.lax.scan``, or the same without a loop in the program (:attr:`TowerOptions.unrolled`)."""
    if not unrolled:
        return jax.lax.scan(step, carry, stacked)
    outputs = []
    for number in range(len(jax.tree.leaves(stacked)[0])):
        carry, output = step(carry, jax.tree.map(lambda leaf, at=number: leaf[at], stacked))
        outputs.append(output)
    return carry, jax.tree.map(lambda *layers: jnp.stack(layers), *outputs)


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return x * sigmoid(1.702 x), the GELU approximation of OpenAI's CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


def _activation(name: str) -> Callable[[Array], Array]:
    # jax.nn.gelu defaults to the tanh approximation, which is not what "gelu" means in a config.
    return quick_gelu if name == "quick_gelu" else lambda x: jax.nn.gelu(x, approximate=False)


def _layer_norm(config: Any, options: TowerOptions, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # The fast variance E[x²] - E[x]² cancels badly on CLIP's large-norm tokens; parity needs the two-pass one.
    return nnx.LayerNorm(
        config.hidden_size,
        epsilon=config.layer_norm_eps,
        dtype=options.dtype,
        use_fast_variance=False,
        rngs=rngs,
    )


def _linear(inputs: int, outputs: int, std: float, options: TowerOptions, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, dtype=options.dtype, kernel_init=nnx.initializers.normal(std), rngs=rngs)


class Embeddings(nnx.Module):
    """Class token, patch projection and learned positions."""

    def __init__(self, config: Any, options: TowerOptions, *, rngs: nnx.Rngs):
        d, tokens = config.hidden_size, (config.image_size // config.patch_size) ** 2 + 1
        self.patch_size = config.patch_size
        self.dtype = options.dtype
        self.class_token = nnx.Param(nnx.initializers.normal(d**-0.5)(rngs.params(), (d,)))
        self.position = nnx.Param(nnx.initializers.normal(config.initializer_range)(rngs.params(), (tokens, d)))
        self.patch = nnx.Conv(
            config.num_channels,
            d,
            kernel_size=(config.patch_size, config.patch_size),
            strides=(config.patch_size, config.patch_size),
            padding="VALID",
            use_bias=family_of(config.model_type).patch_bias,
            dtype=options.dtype,
            kernel_init=nnx.initializers.normal(config.initializer_range),
            rngs=rngs,
        )

    def __call__(self, images: Float[Array, "batch h w c"]) -> Float[Array, "batch tokens d"]:
        """Tokens of normalised images, the class token first."""
        height, width = images.shape[1:3]
        if height % self.patch_size or width % self.patch_size:
            raise InputError(
                f"images of {height}x{width} pixels do not divide into patches of {self.patch_size}; "
                f"resize them to a multiple of {self.patch_size}."
            )
        patches = self.patch(images.astype(self.dtype))
        batch, rows, columns, d = patches.shape
        class_token = jnp.broadcast_to(self.class_token[...].astype(self.dtype), (batch, 1, d))
        tokens = jnp.concatenate([class_token, patches.reshape(batch, rows * columns, d)], axis=1)
        position = interpolate_positions(self.position[...], (rows, columns))
        return tokens + position.astype(self.dtype)[None]


class SelfAttention(nnx.Module):
    """Multi-head self-attention with biases on all four projections."""

    def __init__(self, config: Any, options: TowerOptions, *, rngs: nnx.Rngs):
        d = config.hidden_size
        self.heads, self.head_dim = attention_heads(config), d // config.num_attention_heads
        width = self.heads * self.head_dim
        self.implementation = options.attention_implementation(self.head_dim)
        # Initial scales of the OpenAI code: narrower where a residual branch writes into the stream.
        into_stream = (d**-0.5) * (2 * config.num_hidden_layers) ** -0.5
        self.q = _linear(d, width, into_stream, options, rngs)
        self.k = _linear(d, width, into_stream, options, rngs)
        self.v = _linear(d, width, into_stream, options, rngs)
        self.out = _linear(width, d, d**-0.5, options, rngs)

    def __call__(
        self, x: Float[Array, "batch tokens d"], seen: Bool[Array, "tokens tokens"] | None = None
    ) -> Float[Array, "batch tokens d"]:
        """Mix tokens; ``seen[i, j]`` says whether token i looks at token j, all at all when None."""
        batch, tokens, _ = x.shape
        q, k, v = (p(x).reshape(batch, tokens, self.heads, self.head_dim) for p in (self.q, self.k, self.v))
        mask = None if seen is None else seen[None, None]
        mixed = jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=self.implementation)
        return self.out(mixed.reshape(batch, tokens, self.heads * self.head_dim))


class MLP(nnx.Module):
    """Two-layer perceptron of a block."""

    def __init__(self, config: Any, options: TowerOptions, *, rngs: nnx.Rngs):
        d = config.hidden_size
        self.activation = _activation(config.hidden_act)
        self.fc1 = _linear(d, config.intermediate_size, (2 * d) ** -0.5, options, rngs)
        self.fc2 = _linear(
            config.intermediate_size, d, (d**-0.5) * (2 * config.num_hidden_layers) ** -0.5, options, rngs
        )

    def __call__(self, x: Float[Array, "batch tokens d"]) -> Float[Array, "batch tokens d"]:
        """Transform every token by itself."""
        return self.fc2(self.activation(self.fc1(x)))


class Block(nnx.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: Any, options: TowerOptions, *, rngs: nnx.Rngs):
        self.norm1 = _layer_norm(config, options, rngs)
        self.attn = SelfAttention(config, options, rngs=rngs)
        self.norm2 = _layer_norm(config, options, rngs)
        self.mlp = MLP(config, options, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch tokens d"], seen: Bool[Array, "tokens tokens"] | None = None
    ) -> Float[Array, "batch tokens d"]:
        """Attention (of the tokens that are ``seen``) and MLP, each on its normalised input and added to it."""
        x = x + self.attn(self.norm1(x), seen)
        return x + self.mlp(self.norm2(x))


class ClipVisionTower(nnx.Module):
    """An image encoder up to the pooled output.

    Parameter tree of a CLIP tower (``L`` layers, width ``d``, patch ``p``)::

        embeddings/class_token [d]      embeddings/position [tokens, d]
        embeddings/patch/kernel [p, p, 3, d]
        pre_norm/{scale,bias} [d]       post_norm/{scale,bias} [d]
        layers/norm1|norm2/{scale,bias} [L, d]
        layers/attn/q|k|v/{kernel [L, d, w], bias [L, w]}
        layers/attn/out/{kernel [L, w, d], bias [L, d]}
        layers/mlp/fc1|fc2/{kernel [L, in, out], bias [L, out]}

    The width of attention, w, is d unless heads were removed (:func:`~r2m_jax.models.architecture.attention_heads`).
    A ``ViTConfig``'s tower has ``embeddings/patch/bias [d]`` and no ``pre_norm``.

    Args:
        config: a ``CLIPVisionConfig`` or ``ViTConfig`` (any sizes; ``hidden_act`` quick_gelu or gelu).
        options: how to compute.
        rngs: source of the initial parameters.

    Raises:
        InputError: the config describes no tower that can be built.
    """

    def __init__(self, config: Any, options: TowerOptions | None = None, *, rngs: nnx.Rngs):
        check_config(config)
        options = options or TowerOptions()
        self.options = options
        self.depth = config.num_hidden_layers
        self.embeddings = Embeddings(config, options, rngs=rngs)
        if family_of(config.model_type).pre_norm:
            self.pre_norm = _layer_norm(config, options, rngs)

        @nnx.split_rngs(splits=self.depth)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stack(rngs: nnx.Rngs) -> Block:
            return Block(config, options, rngs=rngs)

        self.layers = stack(rngs)
        self.post_norm = _layer_norm(config, options, rngs)

    def embed(self, images: Float[Array, "batch h w c"]) -> Float[Array, "batch tokens d"]:
        """What the first block reads."""
        tokens = self.embeddings(images)
        return self.pre_norm(tokens) if hasattr(self, "pre_norm") else tokens

    def __call__(self, images: Float[Array, "batch h w c"], hidden_states: tuple[int, ...] = ()) -> TowerOutput:
        """Encode normalised images.

        Args:
            images: ``[batch, height, width, 3]``; other sizes than the config's interpolate the positions.
            hidden_states: which hidden states to return, as indices 0…L or -1…-(L+1).

        Raises:
            InputError: a size that is no multiple of the patch, or a hidden state that does not exist.
        """
        slots = self._slots(hidden_states)
        with jax.default_matmul_precision(self.options.matmul_precision):
            x = self.embed(images)
            kept = jnp.zeros((len(hidden_states), *x.shape), x.dtype)
            kept = _keep(kept, slots[0], x)
            graph, stacked = nnx.split(self.layers)

            def block(carry: tuple[Array, Array], scanned: tuple[Any, Array]) -> tuple[Any, None]:
                x, kept = carry
                layer, slot = scanned
                x = nnx.merge(graph, layer)(x)
                return (x, _keep(kept, slot, x)), None

            step = _remat(block, self.options.remat)
            (x, kept), _ = over_layers(step, (x, kept), (stacked, slots[1:]), self.options.unrolled)
            return TowerOutput(self.post_norm(x[:, 0]), kept)

    def _slots(self, hidden_states: tuple[int, ...]) -> Array:
        """For every hidden state the place it is kept at; one past the end drops it."""
        slots = [len(hidden_states)] * (self.depth + 1)
        for place, index in enumerate(hidden_states):
            if not -self.depth - 1 <= index <= self.depth:
                raise InputError(f"hidden state {index} was asked for, but the tower has 0…{self.depth}.")
            slots[index] = place
        if len({index % (self.depth + 1) for index in hidden_states}) != len(hidden_states):
            raise InputError(f"hidden states {list(hidden_states)} name one state twice.")
        return jnp.asarray(slots, jnp.int32)


def _keep(kept: Array, slot: Array, x: Array) -> Array:
    # Writing into chosen slots of one buffer spares the stack of all L states that a scan output would be.
    return kept.at[slot].set(x, mode="drop") if kept.shape[0] else kept


def _remat(block: Callable[..., Any], policy: Remat) -> Callable[..., Any]:
    if policy == "none":
        return block
    saveable = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if policy == "dots" else None
    # Inside a scan the recomputation cannot be merged with the forward pass, so CSE need not be prevented.
    return jax.checkpoint(block, policy=saveable, prevent_cse=False)
