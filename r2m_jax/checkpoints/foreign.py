"""Foreign layouts of a detector brought to one: tower, head, projection, under Hugging Face names.

Known layouts, told apart by the names they cannot do without:

- Hugging Face towers under any prefix: ``vision_model.`` (hub), none (transformers ≥ 5.6), ``backbone.``
  (DeepfakeBench and DF40 ``.pth``, with ``head.weight [2, d]``);
- Hugging Face ViTs under any prefix: ``vit.`` or none, ``encoder.layer.N.attention.attention.query`` … (files) or
  ``layers.N.attention.q_proj`` … (modules of transformers ≥ 5);
- OpenAI CLIP and OpenCLIP: ``visual.conv1.weight`` …, attention fused as ``in_proj_weight [3d, d]``;
- UniversalFakeDetect's ``fc`` file: nothing but ``weight [1, k]`` and ``bias [1]``, on CLIP's projected embedding
  (https://github.com/WisconsinAIVision/UniversalFakeDetect, ``pretrained_weights/fc_weights.pth``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from r2m_jax.checkpoints.names import tower_name, without_prefix
from r2m_jax.checkpoints.tensors import LazyTensor
from r2m_jax.errors import InputError

_HF_LANDMARK = "embeddings.class_embedding"
_VIT_LANDMARK = "embeddings.cls_token"
_OPENAI_LANDMARK = "conv1.weight"
_FC_NAMES = {"weight", "bias"}

# Parts of whole CLIP models and of training checkpoints that no detector needs.
_LEFT_OUT = (
    (re.compile(r"(.*\.)?embeddings\.position_ids"), "buffer of old transformers releases"),
    (re.compile(r"(.*\.)?logit_(scale|bias)"), "scale of image-text similarities"),
    (re.compile(r"text_model\..*|text_projection(\.weight)?"), "text tower"),
    (re.compile(r"(transformer|token_embedding|ln_final)\..*|positional_embedding|attn_mask"), "text tower"),
    (re.compile(r"input_resolution|context_length|vocab_size"), "size recorded as a tensor"),
)


@dataclass
class Parts:
    """A checkpoint's tensors by what they are.

    Attributes:
        layout: ``huggingface``, ``deepfakebench``, ``vit``, ``openai`` or ``universal_fake_detect``.
        tower: under Hugging Face names without prefix; empty for a file that holds only a head.
        head: ``head.weight`` and ``head.bias``, or empty.
        projection: ``[k, d]``, pooled output to joint embedding, if present.
        sources: our name to the name in the file, for the report.
        left_out: name in the file to the reason it is not needed.
        unmatched: names that are no part of anything known.
    """

    layout: str
    tower: dict[str, LazyTensor] = field(default_factory=dict)
    head: dict[str, LazyTensor] = field(default_factory=dict)
    projection: LazyTensor | None = None
    sources: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)


def recognise(tensors: Mapping[str, LazyTensor], what: str) -> Parts:
    """Sort a checkpoint's tensors into the parts of a detector.

    Args:
        tensors: by the name in the file.
        what: names the source in messages.

    Raises:
        InputError: no known layout fits.
    """
    if tensors.keys() == _FC_NAMES:
        parts = Parts("universal_fake_detect")
        for name in tensors:
            parts.head[f"head.{name}"] = tensors[name]
            parts.sources[f"head.{name}"] = name
        return parts
    if any(name.endswith(_HF_LANDMARK) for name in tensors):
        return _huggingface(tensors)
    if any(name.endswith(_VIT_LANDMARK) for name in tensors):
        return _vit(tensors)
    if any(name.endswith(_OPENAI_LANDMARK) for name in tensors):
        return _openai(tensors)
    raise InputError(
        f"{what} holds no CLIP vision tower and no ViT ({len(tensors)} tensors, e.g. {min(tensors, default='none')}); "
        "known are Hugging Face CLIP and ViT, OpenAI/OpenCLIP, DeepfakeBench/DF40 and UniversalFakeDetect checkpoints."
    )


def _huggingface(tensors: Mapping[str, LazyTensor]) -> Parts:
    prefix, stripped = without_prefix(tensors, _HF_LANDMARK)
    parts = Parts("deepfakebench" if prefix.startswith(("backbone.", "base_model.")) else "huggingface")
    for name, tensor in tensors.items():
        inner = stripped(name)
        if name.endswith("visual_projection.weight"):
            parts.projection = tensor
            parts.sources["visual_projection.weight"] = name
        elif not _head_or_left_out(parts, name, tensor):
            # With an empty prefix everything is "inside" the tower, so what is not a tower name shows up later.
            if inner is not None and inner.split(".")[0] in _HF_TOWER:
                _put(parts, inner, tensor, name)
            else:
                parts.unmatched.append(name)
    return parts


_HF_TOWER = {"embeddings", "pre_layrnorm", "encoder", "post_layernorm"}


def _vit(tensors: Mapping[str, LazyTensor]) -> Parts:
    _, stripped = without_prefix(tensors, _VIT_LANDMARK)
    parts = Parts("vit")
    for name, tensor in tensors.items():
        inner = stripped(name)
        ours = None if inner is None else tower_name(inner)
        if re.fullmatch(r"(.*\.)?(pooler\..*|embeddings\.mask_token)", name):
            parts.left_out[name] = "of the task it was pretrained on"
        elif name.startswith("classifier.") and tensor.shape[0] not in (1, 2):
            parts.left_out[name] = f"classifier of {tensor.shape[0]} classes"
        elif not _head_or_left_out(parts, name, tensor):
            if ours is not None and ours.split(".")[0] in _VIT_TOWER:
                _put(parts, ours, tensor, name)
            else:
                parts.unmatched.append(name)
    return parts


_VIT_TOWER = {"embeddings", "layers", "layernorm"}


def _head_or_left_out(parts: Parts, name: str, tensor: LazyTensor) -> bool:
    match = re.fullmatch(r"(?:head|classifier)\.(weight|bias)", name)
    if match:
        parts.head[f"head.{match[1]}"] = tensor
        parts.sources[f"head.{match[1]}"] = name
        return True
    for pattern, reason in _LEFT_OUT:
        if pattern.fullmatch(name):
            parts.left_out[name] = reason
            return True
    return False


def _put(parts: Parts, name: str, tensor: LazyTensor, source: str) -> None:
    parts.tower[name] = tensor
    parts.sources[name] = source


_OPENAI_ONCE = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}
_OPENAI_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")


def _openai(tensors: Mapping[str, LazyTensor]) -> Parts:
    _, stripped = without_prefix(tensors, _OPENAI_LANDMARK)
    parts = Parts("openai")
    for name, tensor in tensors.items():
        inner = stripped(name)
        if inner in _OPENAI_ONCE:
            _put(parts, _OPENAI_ONCE[inner], tensor, name)
        elif inner == "proj":
            parts.projection = LazyTensor(tensor.shape[::-1], tensor.dtype, partial(_transposed, tensor))
            parts.sources["visual_projection.weight"] = name
        elif inner is not None and (block := _BLOCK.fullmatch(inner)):
            _openai_block(parts, int(block[1]), block[2], tensor, name)
        elif not _head_or_left_out(parts, name, tensor):
            parts.unmatched.append(name)
    return parts


def _transposed(tensor: LazyTensor, rows: slice | None) -> np.ndarray:
    return tensor.read().T[rows or slice(None)]


def _openai_block(parts: Parts, layer: int, inner: str, tensor: LazyTensor, name: str) -> None:
    stem, _, kind = inner.rpartition(".")
    if inner in ("attn.in_proj_weight", "attn.in_proj_bias") and tensor.shape[0] % 3 == 0:
        d = tensor.shape[0] // 3
        for index, letter in enumerate("qkv"):
            target = f"encoder.layers.{layer}.self_attn.{letter}_proj.{inner.removeprefix('attn.in_proj_')}"
            _put(parts, target, tensor.rows(index * d, (index + 1) * d), name)
    elif stem in _OPENAI_LAYER:
        _put(parts, f"encoder.layers.{layer}.{_OPENAI_LAYER[stem]}.{kind}", tensor, name)
    else:
        parts.unmatched.append(name)
