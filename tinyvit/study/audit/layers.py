"""The registry of the layers: each as a function of its input and of all its parameters."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import tinyvit as tv
from tinyvit import layers
from tinyvit.engine import random
from tinyvit.study.audit.samples import Prepared


@dataclass(frozen=True)
class LayerSample:
    """A layer, and an input to examine it with; its parameters are filled with random numbers.

    Attributes:
        op: the name of its class.
        case: its settings and the shape of its input, in words.
        build: makes it.
        shape: of the input.
        call: call(layer, x); what is random in it is the same each time.
    """

    op: str
    case: str
    build: Callable[[], layers.Module]
    shape: tuple[int, ...]
    call: Callable[[Any, tv.Tensor], Any]

    def __str__(self) -> str:
        return f"{self.op}: {self.case}"

    def prepare(self, device: str = "cpu", dtype: Any = np.float64) -> Prepared:
        """The layer as a function of Tensors, and fresh inputs: x, then the parameters."""
        rng = np.random.default_rng(zlib.crc32(str(self).encode()))
        with random.using(rng):
            layer = self.build()
        for p in layer.parameters():
            p.data[...] = 0.5 * rng.standard_normal(p.shape)
        layer.to(device=device, dtype=dtype)
        x = tv.tensor(rng.standard_normal(self.shape), dtype=dtype, device=device, requires_grad=True)

        def f(x: tv.Tensor, *parameters: tv.Tensor) -> list[tv.Tensor]:
            with random.using(np.random.default_rng(3)):
                return [self.call(layer, x)]

        f.__name__ = self.op
        return f, [x, *layer.parameters()]


LAYERS: list[LayerSample] = []


def _add(build: Callable[[], Any], *shape: int, case: str = "", call: Any = None) -> None:
    name = type(build()).__name__
    described = f"{str(shape).replace(' ', '')}{case and ' ' + case}"
    LAYERS.append(LayerSample(name, described, build, shape, call or (lambda layer, x: layer(x))))


_add(lambda: layers.Linear(3, 4), 2, 3)
_add(lambda: layers.Linear(3, 4, bias=False), 2, 2, 3, case="no bias")
_add(lambda: layers.LayerNorm(4), 2, 3, 4)
_add(lambda: layers.LayerScale(4, 0.1), 2, 3, 4)
_add(lambda: layers.Dropout(0.4), 3, 4, case="p=0.4")
_add(lambda: layers.DropPath(0.4), 5, 2, 2, case="p=0.4")
_add(lambda: layers.PatchEmbedding(2, 3, 4), 2, 3, 4, 6)
_add(lambda: layers.PositionalEncoding((2, 2), 4), 2, 5, 4, call=lambda layer, x: layer(x, (2, 2)))
_add(
    lambda: layers.PositionalEncoding((2, 2), 4),
    2,
    7,
    4,
    case="resampled to 3×2",
    call=lambda layer, x: layer(x, (3, 2)),
)
_add(
    lambda: layers.PositionalEncoding((2, 2), 4, kind="sincos"), 2, 5, 4, case="sincos",
    call=lambda layer, x: layer(x, (2, 2)),
)  # fmt: skip
_add(lambda: layers.MultiHeadSelfAttention(4, 2), 2, 3, 4, case="2 heads")
_add(lambda: layers.MultiHeadSelfAttention(4, 1, qkv_bias=False), 2, 3, 4, case="no qkv bias")
_add(lambda: layers.MultiHeadSelfAttention(4, 2, dropout=0.2, attention_dropout=0.3), 2, 3, 4, case="with dropout")
for _activation in layers.ACTIVATIONS:
    _add(functools.partial(layers.FeedForward, 3, 5, _activation), 2, 3, case=_activation)
_add(lambda: layers.EncoderLayer(4, 2, 6), 2, 3, 4)
_add(lambda: layers.EncoderLayer(4, 2, 6, layer_scale=0.5, drop_path=0.3, dropout=0.2), 3, 2, 4, case="all extras")
_add(lambda: layers.EncoderLayer(24, 3, 96), 2, 17, 24, case="larger")
_add(lambda: layers.PreLogits(4, 3), 2, 4)
_add(lambda: layers.ClassificationHead(4, 3), 2, 4)
_add(lambda: layers.ClassificationHead(4, 3), 2, 4, case="softmax", call=lambda layer, x: layer.probabilities(x))

_TINY: dict[str, Any] = {
    "image_size": 4, "patch_size": 2, "channels": 1, "num_classes": 3, "dim": 4, "depth": 1, "num_heads": 2,
}  # fmt: skip
_loss = lambda model, x: tv.ops.cross_entropy(model(x), np.arange(x.shape[0]) % 3)
_add(lambda: tv.ViT(tv.ViTConfig(**_TINY)), 2, 1, 4, 4)
_add(lambda: tv.ViT(tv.ViTConfig(**{**_TINY, "activation": "relu"})), 2, 1, 4, 4, case="relu, loss", call=_loss)
_add(
    lambda: tv.ViT(tv.ViTConfig(**{**_TINY, "dim": 24, "depth": 2, "register_tokens": 1})),
    3, 1, 4, 4, case="larger, loss", call=_loss,
)  # fmt: skip
_add(
    lambda: tv.ViT(tv.ViTConfig(**{**_TINY, "distillation_token": True, "class_position": False, "pre_logits": 3})),
    2, 1, 4, 4, case="distilled, pre-logits, loss", call=_loss,
)  # fmt: skip
_add(
    lambda: tv.ViT(tv.ViTConfig(**{**_TINY, "pool": "cls_mean", "activation": "swiglu", "register_tokens": 1})),
    2, 1, 4, 4, case="swiglu, class token and mean, loss", call=_loss,
)  # fmt: skip
_add(
    lambda: tv.ViT(tv.ViTConfig(**{**_TINY, "pool": "mean", "pool_norm": True, "num_classes": 0})),
    2, 1, 4, 4, case="norm after the mean, no head",
)  # fmt: skip
_add(
    lambda: tv.ViT(tv.ViTConfig(**{**_TINY, "depth": 2, "dropout": 0.2, "checkpoint": True})),
    2, 1, 4, 4, case="layers computed again, with dropout, loss", call=_loss,
)  # fmt: skip
