"""The layers of a Vision Transformer, with the tutorial's names and timm's parameter names."""

from tinyvit.layers.basic import Dropout, DropPath, LayerNorm, LayerScale, Linear
from tinyvit.layers.embedding import PatchEmbedding, PositionalEncoding, patches
from tinyvit.layers.encoder import (
    ACTIVATIONS,
    ClassificationHead,
    EncoderLayer,
    FeedForward,
    MultiHeadSelfAttention,
    PreLogits,
)
from tinyvit.layers.module import Module, Parameter
from tinyvit.layers.resampling import RESAMPLINGS, Resampling

__all__ = [
    "ACTIVATIONS",
    "RESAMPLINGS",
    "ClassificationHead",
    "DropPath",
    "Dropout",
    "EncoderLayer",
    "FeedForward",
    "LayerNorm",
    "LayerScale",
    "Linear",
    "Module",
    "MultiHeadSelfAttention",
    "Parameter",
    "PatchEmbedding",
    "PositionalEncoding",
    "PreLogits",
    "Resampling",
    "patches",
]
