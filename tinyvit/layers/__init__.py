"""The layers of a Vision Transformer, with the tutorial's names and timm's parameter names."""

from tinyvit.layers.basic import Dropout, DropPath, LayerNorm, LayerScale, Linear
from tinyvit.layers.embedding import PatchEmbedding, PositionalEncoding, patches
from tinyvit.layers.encoder import ACTIVATIONS, ClassificationHead, EncoderLayer, FeedForward, MultiHeadSelfAttention
from tinyvit.layers.module import Module, Parameter

__all__ = [
    "ACTIVATIONS",
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
    "patches",
]
