"""Where a ViT looks: the attention of every head and layer, the rollout through all layers, the pixels' gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyvit.study.explain.recording import Look
from tinyvit.study.explain.values import number, picture, png, rows_as_bytes

TOP = 5  # so many classes are named


def rollout(maps: np.ndarray) -> np.ndarray:
    """How much of each input token reaches each token after all layers: (L, h, T, T) → (T, T), rows sum to 1.

    The mean over the heads, half of it and half of the token itself, which the residual hands on; rows normalised,
    and multiplied through the layers.

    Source: Abnar & Zuidema, *Quantifying Attention Flow in Transformers*, ACL 2020, section 3.

    >>> rollout(np.full((1, 1, 2, 2), 0.5))
    array([[0.75, 0.25],
           [0.25, 0.75]])
    """
    T = maps.shape[-1]
    reached = np.eye(T)
    for layer in maps.mean(axis=1, dtype=np.float64):
        mixed = 0.5 * layer + 0.5 * np.eye(T)
        reached = mixed / mixed.sum(axis=-1, keepdims=True) @ reached
    return reached


def described_look(
    look: Look,
    gradient: np.ndarray | None,
    pixels: np.ndarray | None,
    labels: Sequence[int] | None,
    classes: Sequence[str],
) -> dict[str, Any] | None:
    """The attention part of a page; None where the maps make no picture.

    Args:
        look: one call of a ViT.
        gradient: ∂L/∂image of all its images (B, C, H, W), where a gradient flows to them.
        pixels: the images before they were normalised, uint8 (B, C, H, W).
        labels: the right classes.
        classes: their names.
    """
    maps: Any = np.stack(look.maps, axis=1) if look.maps else np.empty(0)  # (n, L, h, T, T)
    n, _, height, width = look.images.shape
    grid = [height // look.patch, width // look.patch]
    tokens = grid[0] * grid[1] + look.config.num_prefix_tokens
    if maps.ndim != 5 or maps.shape[-1] != tokens:
        return None
    images = []
    for i in range(n):
        data, scales = rows_as_bytes(maps[i])
        rolled, rolled_scales = rows_as_bytes(rollout(maps[i]))
        shown: dict[str, Any] = {
            "png": picture(look.images[i] if pixels is None else pixels[i]),
            "size": [height, width],
            "maps": data,
            "scales": scales,
            "rollout": rolled,
            "rollout_scales": rolled_scales,
            **_answer(look, i, classes),
        }
        if labels is not None:
            shown["label"] = _class(classes, int(labels[i]))
        if gradient is not None:
            largest = np.abs(np.asarray(gradient[i], np.float64)).max(axis=0)  # over the channels
            peak = float(largest.max())
            shown["pixel_gradient"] = png(np.rint(255 * np.nan_to_num(largest / (peak or 1))).astype(np.uint8))
            shown["pixel_gradient_max"] = number(peak)
        images.append(shown)
    return {
        "layers": maps.shape[1],
        "heads": maps.shape[2],
        "tokens": tokens,
        "prefix": look.config.num_prefix_tokens,
        "grid": grid,
        "images": images,
    }


def _answer(look: Look, i: int, classes: Sequence[str]) -> dict[str, Any]:
    """What the model said of image i."""
    assert look.logits is not None
    z = np.asarray(look.logits[i], np.float64)
    e = np.exp(z - z.max())
    p = e / e.sum()
    best = np.argsort(-p, kind="stable")[:TOP]
    return {
        "prediction": _class(classes, int(best[0])),
        "probabilities": [[_class(classes, int(k)), number(p[k])] for k in best],
    }


def _class(classes: Sequence[str], k: int) -> str:
    return classes[k] if k < len(classes) else str(k)
