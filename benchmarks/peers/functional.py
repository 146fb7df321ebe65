"""The Vision Transformer and AdamW as functions of a dictionary of weights, for libraries with NumPy's names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from _work import LR, WEIGHT_DECAY, decays

import tinyvit as tv

Arrays = dict[str, Any]  # by timm's names
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


class Library(NamedTuple):
    """NumPy's names, and what a library has beside them: softmax and logsumexp over the last axis, exact GELU."""

    np: Any
    softmax: Callable[[Any], Any]
    logsumexp: Callable[[Any], Any]
    gelu: Callable[[Any], Any]


def logits(F: Library, w: Arrays, images: Any, c: tv.ViTConfig) -> Any:
    """(B, C, H, W) → (B, K)."""
    B, P, (down, across), D = len(images), c.patch_size, c.grid, c.dim
    x = images.reshape(B, c.channels, down, P, across, P).transpose(0, 2, 4, 1, 3, 5).reshape(B, down * across, -1)
    x = x @ w["patch_embed.proj.weight"].reshape(D, -1).T + w["patch_embed.proj.bias"]
    cls = F.np.broadcast_to(w["cls_token"], (B, 1, D))
    x = F.np.concatenate([cls, x], axis=1) + w["pos_embed"]
    for i in range(c.depth):
        layer = f"blocks.{i}"
        x = x + _attention(F, w, f"{layer}.attn", _layer_norm(F, w, f"{layer}.norm1", x, c.eps), c.num_heads)
        hidden = F.gelu(_linear(w, f"{layer}.mlp.fc1", _layer_norm(F, w, f"{layer}.norm2", x, c.eps)))
        x = x + _linear(w, f"{layer}.mlp.fc2", hidden)
    return _linear(w, "head", _layer_norm(F, w, "norm", x, c.eps)[:, 0])


def _linear(w: Arrays, name: str, x: Any) -> Any:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _layer_norm(F: Library, w: Arrays, name: str, x: Any, eps: float) -> Any:
    centred = x - F.np.mean(x, axis=-1, keepdims=True)
    variance = F.np.mean(centred * centred, axis=-1, keepdims=True)
    return centred / F.np.sqrt(variance + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def _attention(F: Library, w: Arrays, name: str, x: Any, heads: int) -> Any:
    B, N, D = x.shape
    qkv = _linear(w, f"{name}.qkv", x).reshape(B, N, 3, heads, D // heads)
    q, k, v = F.np.transpose(qkv, (2, 0, 3, 1, 4))
    weights = F.softmax(q * (D // heads) ** -0.5 @ k.swapaxes(-1, -2))
    return _linear(w, f"{name}.proj", (weights @ v).swapaxes(1, 2).reshape(B, N, D))


def loss(F: Library, w: Arrays, images: Any, labels: Any, c: tv.ViTConfig) -> Any:
    """Mean cross-entropy in nats."""
    scores = logits(F, w, images, c)
    return F.np.mean(F.logsumexp(scores) - scores[F.np.arange(len(labels)), labels])


def adamw(np: Any, w: Arrays, gradients: Arrays, m: Arrays, v: Arrays, step: Any) -> tuple[Arrays, Arrays, Arrays]:
    """Return weights, first and second moments after a step; steps count from 1."""
    m = {name: BETA1 * m[name] + (1 - BETA1) * g for name, g in gradients.items()}
    v = {name: BETA2 * v[name] + (1 - BETA2) * g * g for name, g in gradients.items()}
    lr, correction = LR / (1 - BETA1**step), (1 - BETA2**step) ** 0.5
    kept = {name: 1 - LR * WEIGHT_DECAY if decays(name, p) else 1.0 for name, p in w.items()}
    w = {name: kept[name] * p - lr * m[name] / (np.sqrt(v[name]) / correction + EPS) for name, p in w.items()}
    return w, m, v
