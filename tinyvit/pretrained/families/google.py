"""Google's ``.npz`` files: vit_jax (ViT, AugReg) and big_vision.

Source: https://github.com/google-research/vision_transformer (vit_jax/models_vit.py, checkpoint.py) and
https://github.com/google-research/big_vision (big_vision/models/vit.py). Both use flax's defaults: the tanh form of
GELU, and LayerNorm's eps 1e-6. For images of another size, positions are resampled by `scipy.ndimage.zoom` of order 1:
bilinear, with the corners in their places.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tinyvit.pretrained.families.contents import Anatomy, Contents, Description, Family, Table, rows_together
from tinyvit.pretrained.preprocessing import BIG_VISION_I1K, GOOGLE_JAX

_LAYERS = """
blocks.{{i}}.norm1.*      Transformer/encoderblock_{{i}}/{norm1}/*
blocks.{{i}}.attn.qkv.*   Transformer/encoderblock_{{i}}/{attention}/{{query,key,value}}/*
blocks.{{i}}.attn.proj.*  Transformer/encoderblock_{{i}}/{attention}/out/*
blocks.{{i}}.norm2.*      Transformer/encoderblock_{{i}}/{norm2}/*
blocks.{{i}}.mlp.fc1.*    Transformer/encoderblock_{{i}}/{mlp}/Dense_0/*
blocks.{{i}}.mlp.fc2.*    Transformer/encoderblock_{{i}}/{mlp}/Dense_1/*
"""
_REST = """
cls_token                 cls
patch_embed.proj.*        embedding/*
norm.*                    Transformer/encoder_norm/*
pre_logits.*              pre_logits/*
head.*                    head/*
pos_embed                 {positions}
"""


def _table(positions: str, **layer: str) -> Table:
    return Table(_REST.strip().format(positions=positions) + _LAYERS.rstrip().format(**layer), ("kernel", "scale"))


VIT_JAX_NAMES = _table(
    "Transformer/posembed_input/pos_embedding",
    norm1="LayerNorm_0",
    attention="MultiHeadDotProductAttention_1",
    norm2="LayerNorm_2",
    mlp="MlpBlock_3",
)
BIG_VISION_NAMES = _table(
    "pos_embedding",
    norm1="LayerNorm_0",
    attention="MultiHeadDotProductAttention_0",
    norm2="LayerNorm_1",
    mlp="MlpBlock_0",
)
VARIANT = {"activation": "gelu_tanh", "eps": 1e-6, "resampling": "bilinear_corners"}


def _convert(ours: str, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """A kernel (in, …, out) becomes a weight (out, in); the patches' (P, P, C, D) becomes (D, C, P, P)."""
    if ours in ("cls_token", "pos_embed"):
        return arrays[0]
    if ours == "patch_embed.proj.weight":
        return arrays[0].transpose(3, 2, 0, 1)
    return rows_together(ours, [_dense(ours, array) for array in arrays])


def _dense(ours: str, array: np.ndarray) -> np.ndarray:
    if ours.endswith(".bias") or array.ndim == 1:
        return array.reshape(-1)  # of all heads
    if ".attn.proj." in ours:
        return array.reshape(-1, array.shape[-1]).T  # (h, d_k, D) → (D, D)
    return array.reshape(len(array), -1).T  # (D, h, d_k) → (D, D)


def _heads(contents: Contents, attention: str) -> int:
    return int(contents.arrays[f"Transformer/encoderblock_0/{attention}/query/bias"]().shape[0])


def _vit_jax(contents: Contents, anatomy: Anatomy) -> Description:
    config = {**VARIANT, "num_heads": _heads(contents, "MultiHeadDotProductAttention_1"), "pool": "cls"}
    if not anatomy.config["class_token"]:
        config["pool"] = "mean"
    return Description(config, GOOGLE_JAX)


def _big_vision(contents: Contents, anatomy: Anatomy) -> Description:
    """The mean is taken after the last norm; positions are those of the patches alone."""
    config = {
        **VARIANT,
        "num_heads": _heads(contents, "MultiHeadDotProductAttention_0"),
        "pool": "cls" if anatomy.config["class_token"] else "mean",
        "class_position": False,
    }
    return Description(config, BIG_VISION_I1K, positions=_sincos)


def _sincos(grid: tuple[int, int], dim: int) -> np.ndarray:
    """(1, N, D): MoCo v3's sines and cosines of column and row, as big_vision has them: the last frequency is 1e-4."""
    y, x = (axis.reshape(-1, 1) for axis in np.mgrid[: grid[0], : grid[1]])
    omega = 10000.0 ** -(np.arange(dim // 4) / (dim // 4 - 1))
    return np.concatenate([np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)], axis=1)[None]


VIT_JAX = Family(
    "vit_jax",
    "Google's ViT (vit_jax)",
    VIT_JAX_NAMES,
    lambda contents: contents.has(r"Transformer/encoderblock_0/MultiHeadDotProductAttention_1/"),
    _vit_jax,
    _convert,
)
BIG_VISION = Family(
    "big_vision",
    "Google's ViT (big_vision)",
    BIG_VISION_NAMES,
    lambda contents: contents.has(r"Transformer/encoderblock_0/MultiHeadDotProductAttention_0/"),
    _big_vision,
    _convert,
    {r"t$|b$": "scale and bias of the loss of an image-text model", r"txt/": "the text tower"},
)
