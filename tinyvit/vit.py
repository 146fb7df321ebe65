"""The Vision Transformer: the tutorial's five components, in its order.

    image → patches → Patch Embedding → (class token) + Positional Encoding → L encoder layers → Classification Head

Source: the tutorial; Dosovitskiy et al., *An Image is Worth 16×16 Words*, ICLR 2021 (residuals, LayerNorm, sizes).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tinyvit.engine import Tensor, checkpoint, ops, random
from tinyvit.engine.backend import namespace_on
from tinyvit.layers import (
    ACTIVATIONS,
    RESAMPLINGS,
    ClassificationHead,
    EncoderLayer,
    LayerNorm,
    Module,
    Parameter,
    PatchEmbedding,
    PositionalEncoding,
    PreLogits,
)
from tinyvit.layers.module import normal


@dataclass(frozen=True)
class ViTConfig:
    """The shape of a ViT; every field is a number or a word, so that it can stand in a TOML file.

    Args:
        image_size: H = W in pixels, or (H, W).
        patch_size: P in pixels; divides H and W.
        channels: C of the images.
        num_classes: K; 0 for no head, so that the model gives what a head would read.
        dim: D, the width of a token.
        depth: L, the number of encoder layers.
        num_heads: h; divides D.
        mlp_ratio: hidden width of the FFN, in units of D.
        activation: of the FFN: "relu" (the tutorial's), "gelu" (the paper's), "gelu_tanh", "gelu_quick", or "swiglu",
            silu(a) · b of two halves a and b (Shazeer 2020), for which W₁ is twice as high.
        pool: what the head reads: "cls", the class token; "mean", the mean of the patch tokens; or "cls_mean", both
            side by side, (B, 2D) (Oquab et al. 2024).
        pool_norm: whether the last norm comes after pooling, and not before.
        pre_logits: width of a hidden layer before the head, tanh(W · x + b), as the paper pre-trains; 0 for none.
        class_token: whether there is a class token.
        class_position: whether the class token has a position too.
        distillation_token: whether there is a second class token, with a head of its own: the logits are the mean of
            both heads' (DeiT, Touvron et al. 2021).
        register_tokens: further tokens without a position or a task (Darcet et al. 2024).
        position: "learned" or "sincos".
        resampling: how learned positions are fitted to an image of another size: a name of
            `tinyvit.layers.RESAMPLINGS`.
        qkv_bias: whether Q, K and V have biases.
        dropout: of embeddings and of both branches of an encoder layer.
        attention_dropout: of the attention weights.
        drop_path: of the last layer's branches; earlier layers less, in even steps from 0.
        layer_scale: initial factor on the branches; 0 for none.
        eps: of LayerNorm.
        checkpoint: keep only each encoder layer's input for the backward sweep, and compute the layer again there: the
            same gradients to the last bit, a third more time, and far less memory.

    Raises:
        ValueError: a field that makes no ViT, with what would.

    >>> ViTConfig(image_size=32, patch_size=4).num_patches
    64
    """

    image_size: int | tuple[int, int] = 224
    patch_size: int = 16
    channels: int = 3
    num_classes: int = 1000
    dim: int = 192
    depth: int = 12
    num_heads: int = 3
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    pool: str = "cls"
    pool_norm: bool = False
    pre_logits: int = 0
    class_token: bool = True
    class_position: bool = True
    distillation_token: bool = False
    register_tokens: int = 0
    position: str = "learned"
    resampling: str = "bicubic"
    qkv_bias: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    layer_scale: float = 0.0
    eps: float = 1e-6
    checkpoint: bool = False

    def __post_init__(self) -> None:
        for name in (*_AT_LEAST_0, *_AT_LEAST_1):
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be a whole number")
        if isinstance(self.image_size, (list, tuple)):  # a list, when it comes from TOML
            object.__setattr__(self, "image_size", tuple(self.image_size))
        sides = self.image_size if isinstance(self.image_size, tuple) else (self.image_size, self.image_size)
        if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
            raise ValueError(f"image_size is {self.image_size}; it must be a whole number, or height and width")
        for name, value in {**{n: getattr(self, n) for n in _AT_LEAST_1}, "image_size": min(sides)}.items():
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        for name in _AT_LEAST_0:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it cannot be negative")
        if not self.mlp_hidden >= 1:
            raise ValueError(f"mlp_ratio is {self.mlp_ratio}; times dim {self.dim} it must give a width of at least 1")
        if not self.eps > 0:
            raise ValueError(f"eps is {self.eps}; it must be above 0")
        if self.height % self.patch_size or self.width % self.patch_size:
            raise ValueError(
                f"image_size {self.height}×{self.width} is not a multiple of patch_size {self.patch_size}: "
                "the image must be cut into whole patches"
            )
        if self.dim % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide dim {self.dim}")
        if self.position == "sincos" and self.dim % 4:
            raise ValueError(f"position 'sincos' needs a dim that is a multiple of 4, not {self.dim}")
        for name, allowed in _WORDS.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)!r} is unknown: use one of {', '.join(allowed)}")
        if self.pool != "mean" and not self.class_token:
            raise ValueError(f"pool {self.pool!r} needs class_token = true; without a class token use pool 'mean'")
        if self.distillation_token and not self.class_token:
            raise ValueError("distillation_token needs class_token = true: it stands beside the class token")
        if self.pool_norm and self.pool == "cls_mean":
            raise ValueError("pool_norm goes with pool 'cls' or 'mean': of 'cls_mean' each half is normed before")
        for name in ("dropout", "attention_dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is not a probability in [0, 1)")

    @property
    def height(self) -> int:
        """H in pixels."""
        return self.image_size if isinstance(self.image_size, int) else self.image_size[0]

    @property
    def width(self) -> int:
        """W in pixels."""
        return self.image_size if isinstance(self.image_size, int) else self.image_size[1]

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        return self.height // self.patch_size, self.width // self.patch_size

    @property
    def num_patches(self) -> int:
        """N = H·W / P²."""
        return self.grid[0] * self.grid[1]

    @property
    def num_prefix_tokens(self) -> int:
        """Class, distillation and register tokens, which stand before the patches in this order."""
        return self.num_class_tokens + self.register_tokens

    @property
    def num_class_tokens(self) -> int:
        """Class and distillation token."""
        return int(self.class_token) + int(self.distillation_token)

    @property
    def pooled_dim(self) -> int:
        """Width of what pooling leaves of an image: D, or 2D."""
        return 2 * self.dim if self.pool == "cls_mean" else self.dim

    @property
    def mlp_hidden(self) -> int:
        """Hidden width of the FFN."""
        return int(self.dim * self.mlp_ratio) if self.mlp_ratio > 0 else 0

    @classmethod
    def named(cls, name: str, **changes: Any) -> ViTConfig:
        """Return the config of a known size, for instance "vit_tiny_patch16_224", with some fields changed.

        Sizes: tiny, small, base, large, huge (Ti, S, B, L, H of the literature); any patch and image size.

        Raises:
            ValueError: the name is not of this form.
        """
        match = re.fullmatch(rf"vit_({'|'.join(_SIZES)})_patch(\d+)_(\d+)", name)
        if not match:
            raise ValueError(
                f"unknown model {name!r}: names are vit_SIZE_patchP_R, with SIZE one of {', '.join(_SIZES)}, "
                "for instance vit_base_patch16_224"
            )
        dim, depth, num_heads = _SIZES[match[1]]
        sizes = {"patch_size": int(match[2]), "image_size": int(match[3])}
        return cls(**{**sizes, "dim": dim, "depth": depth, "num_heads": num_heads, **changes})


_AT_LEAST_1 = ("patch_size", "channels", "dim", "num_heads")
_AT_LEAST_0 = ("num_classes", "depth", "register_tokens", "pre_logits")
_WORDS = {
    "activation": tuple(ACTIVATIONS),
    "pool": ("cls", "mean", "cls_mean"),
    "position": ("learned", "sincos"),
    "resampling": tuple(RESAMPLINGS),
}
_SIZES = {  # (D, L, h): Dosovitskiy et al. 2021, table 1; tiny and small: Touvron et al. 2021
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}


class ViT(Module):
    """A Vision Transformer: images (B, C, H, W) → logits (B, K).

    Args:
        config: its shape.
        rng: where the initial weights come from; this thread's generator (`tv.seed`) if None.

    >>> import tinyvit as tv
    >>> config = tv.ViTConfig(image_size=8, patch_size=4, channels=1, num_classes=10, dim=32, depth=2, num_heads=2)
    >>> model = tv.ViT(config)
    >>> model(np.zeros((5, 1, 8, 8))).shape, model.num_parameters
    ((5, 10), 26538)
    """

    def __init__(self, config: ViTConfig, rng: np.random.Generator | None = None):
        c = self.config = config
        rng = rng or random.generator()
        self.patch_embed = PatchEmbedding(c.patch_size, c.channels, c.dim, rng)
        self.cls_token = Parameter(np.zeros((1, 1, c.dim), np.float32), decay=False) if c.class_token else None
        self.dist_token = Parameter(np.zeros((1, 1, c.dim), np.float32), decay=False) if c.distillation_token else None
        registers = (1, c.register_tokens, c.dim)
        self.reg_token = Parameter(normal(registers, 0.02, rng), decay=False) if c.register_tokens else None
        placed = c.num_class_tokens if c.class_position else 0
        self.pos_embed = PositionalEncoding(c.grid, c.dim, placed, c.position, rng, c.resampling)
        self.blocks = [
            EncoderLayer(
                c.dim,
                c.num_heads,
                c.mlp_hidden,
                activation=c.activation,
                qkv_bias=c.qkv_bias,
                dropout=c.dropout,
                attention_dropout=c.attention_dropout,
                drop_path=c.drop_path * i / max(c.depth - 1, 1),
                layer_scale=c.layer_scale or None,
                eps=c.eps,
                rng=rng,
            )
            for i in range(c.depth)
        ]
        self.norm = None if c.pool_norm else LayerNorm(c.dim, c.eps)
        self.fc_norm = LayerNorm(c.dim, c.eps) if c.pool_norm else None
        self.pre_logits = PreLogits(c.pooled_dim, c.pre_logits, rng=rng) if c.pre_logits else None
        self.head = ClassificationHead(c.pre_logits or c.pooled_dim, c.num_classes) if c.num_classes else None
        self.head_dist = ClassificationHead(c.dim, c.num_classes) if c.num_classes and c.distillation_token else None

    @classmethod
    def named(cls, name: str, rng: np.random.Generator | None = None, **changes: Any) -> ViT:
        """Return a model of a known size with fresh weights: see `ViTConfig.named`."""
        return cls(ViTConfig.named(name, **changes), rng)

    def forward(self, images: Any) -> Tensor:
        """(B, C, H, W) → (B, K) logits; without a head, what one would read. Arrays are taken to the model's device.

        Raises:
            ValueError: not four axes, another number of channels, or sides that P does not divide.
            TypeError: integer images; scale them to floating-point numbers first.
        """
        tokens = self._encoded(images, self.config.num_class_tokens if self.config.pool == "cls" else None)
        x = self.pooled(tokens)
        if self.pre_logits is not None:
            x = self.pre_logits(x)
        if self.head is not None:
            x = self.head(x)
        if self.head_dist is not None:
            x = (x + self.head_dist(tokens[:, 1] * 1)) * 0.5
        return x.astype(self.dtype)

    def features(self, images: Any) -> Tensor:
        """(B, C, H, W) → tokens (B, prefix + N, D) after the last norm; the class token, if any, is the first.

        With `pool_norm` the last norm is still to come.
        """
        return self._encoded(images)

    def _encoded(self, images: Any, first: int | None = None) -> Tensor:
        """`features`, of all tokens or of the first, those that a head reads: the last layer computes no others."""
        x, branch = self.embed(images), None  # branch: what is still to be added to x, by the norm that comes next
        for layer in self.blocks[:-1]:
            if self.config.checkpoint:
                x = checkpoint(layer, x, layer.parameters())
            else:
                x, branch = layer(x, branch, summed=False)
        for layer in self.blocks[-1:]:  # no checkpoint: its turn in the sweep comes at once
            x, branch = layer(x, branch, summed=False, first=first)
        return self._summed(x, branch, self.norm)

    def hidden(self, images: Any, layers: Sequence[int], norm: bool = True) -> list[Tensor]:
        """(B, C, H, W) → the tokens (B, prefix + N, D) after each of these encoder layers, in the order asked for.

        Args:
            images: as for the model itself.
            layers: numbers as in `model.blocks`: 0 is the first layer and −1 the last. Later ones are not computed.
            norm: apply the model's last norm to each, as DINOv2's `get_intermediate_layers` does; the last layer's
                tokens are `features` then. Otherwise, and with `pool_norm`, they are what the next layer would read.

        Raises:
            ValueError: the model has no such layer.
        """
        depth = len(self.blocks)
        if unknown := [i for i in layers if not -depth <= i < depth]:
            raise ValueError(
                f"there is no layer {unknown[0]}; this model has {depth}, from 0 (or −{depth}) to {depth - 1}"
            )
        wanted = [i % depth for i in layers]
        x, branch = self.embed(images), None
        found = {}
        for i, layer in enumerate(self.blocks[: max(wanted, default=-1) + 1]):
            x, branch = layer(x, branch, summed=False)
            if i in wanted:
                found[i] = self._summed(x, branch, self.norm if norm else None)
        return [found[i] for i in wanted]

    @staticmethod
    def _summed(x: Tensor, branch: Tensor | None, norm: LayerNorm | None) -> Tensor:
        """x + branch, normed where there is a norm."""
        if norm is None:
            return x if branch is None else x + branch
        normed: Tensor = norm(x) if branch is None else norm(x, branch)[1]
        return normed.astype(x.dtype)

    def embed(self, images: Any) -> Tensor:
        """(B, C, H, W) → tokens (B, prefix + N, D), with their positions, before the first layer."""
        images = self._as_images(images)
        c, (H, W) = self.config, images.shape[2:]
        x = self.patch_embed(images).astype(self.dtype)  # of 16 bits under `tv.precision`: sums are not
        if c.class_position:
            x = _before((self.cls_token, self.dist_token), x)
            x = self.pos_embed(x, (H // c.patch_size, W // c.patch_size))
            if self.reg_token is not None:  # between the class tokens and the patches, without a position
                n = c.num_class_tokens
                x = ops.concatenate([x[:, :n], _before((self.reg_token,), x[:, n:])], axis=1)
        else:
            x = self.pos_embed(x, (H // c.patch_size, W // c.patch_size))
            x = _before((self.cls_token, self.dist_token, self.reg_token), x)
        return ops.dropout(x, c.dropout) if self.training and c.dropout else x

    def pooled(self, tokens: Tensor) -> Tensor:
        """What the head reads: (B, prefix + N, D) → (B, D), or (B, 2D) of pool "cls_mean"."""
        parts = []
        if self.config.pool != "mean":
            parts.append(tokens[:, 0] * 1)  # an array of its own: a view would keep all tokens until the sweep
        if self.config.pool != "cls":
            parts.append(tokens[:, self.config.num_prefix_tokens :].mean(axis=1))
        x = parts[0] if len(parts) == 1 else ops.concatenate(parts, axis=1)
        return x if self.fc_norm is None else self.fc_norm(x).astype(x.dtype)

    @property
    def dtype(self) -> np.dtype:
        """Of the parameters, and of what the model returns."""
        return self.patch_embed.proj.weight.dtype

    def _as_images(self, images: Any) -> Tensor:
        weight = self.patch_embed.proj.weight
        if getattr(images, "dtype", np.dtype(float)).kind in "iub":
            raise TypeError(
                f"images are {images.dtype}: scale them to floating-point numbers before the model sees them"
            )
        if not isinstance(images, Tensor):
            images = Tensor(namespace_on(weight.device).asarray(images, dtype=weight.dtype))
        images = images.astype(weight.dtype)
        if images.ndim != 4 or images.shape[1] != self.config.channels:
            raise ValueError(
                f"images have the shape {images.shape}; this model takes (B, {self.config.channels}, H, W), "
                f"for instance (1, {self.config.channels}, {self.config.height}, {self.config.width})"
            )
        return images

    def with_head(self, num_classes: int) -> ViT:
        """Return a copy of this model with a fresh head for another number of classes."""
        model = ViT(replace(self.config, num_classes=num_classes))
        model.to(device=self.device, dtype=self.dtype)
        state = {**self.state_dict(), **{k: v for k, v in model.state_dict().items() if k.startswith("head")}}
        model.load_state_dict(state)
        return model


def _before(tokens: Sequence[Tensor | None], x: Tensor) -> Tensor:
    """Those of the tokens (1, n, D) that there are, in front of every sample: (B, N, D) → (B, n + N, D)."""
    there = [ops.broadcast_to(token, (x.shape[0], *token.shape[1:])) for token in tokens if token is not None]
    return ops.concatenate([*there, x], axis=1) if there else x
