"""The work that the benchmarks do: four Vision Transformers, with the weights and images that all peers get."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import _common
import numpy as np

import tinyvit as tv

SMALL = {"image_size": 28, "patch_size": 4, "channels": 1, "num_classes": 10, "dim": 128, "depth": 6, "num_heads": 4}
CIFAR = {"image_size": 32, "patch_size": 4, "num_classes": 10, "dim": 192, "depth": 12, "num_heads": 3}
WORK: dict[str, tuple[dict[str, Any], int]] = {  # name: (config, batch)
    "28x28x1 p4 D128 L6": (SMALL, 128),
    "32x32x3 p4 D192 L12": (CIFAR, 64),
    "224x224x3 p16 Ti": ({"dim": 192, "depth": 12, "num_heads": 3}, 16),
    "224x224x3 p16 S": ({"dim": 384, "depth": 12, "num_heads": 6}, 8),
}
LR, WEIGHT_DECAY = 1e-3, 0.05  # of AdamW, everywhere


def add_rows(parser: argparse.ArgumentParser) -> None:
    """Give a command the option --rows, which becomes names of `WORK`."""

    def names(text: str) -> tuple[str, ...]:
        numbers = _common.choice(numbered)(text)
        return tuple(numbered[number] for number in numbers)

    numbered = {str(i): name for i, name in enumerate(WORK, start=1)}
    help = f"some of {','.join(numbered)}; all if not given"
    parser.add_argument("--rows", type=names, default=tuple(WORK), help=help)


@dataclass(frozen=True)
class Work:
    """A model, and a batch to train it on or to classify.

    Attributes:
        config: of the model: pre-norm, exact GELU, class token, learned positions.
        images, labels: float32 (B, C, H, W) and int64 (B), drawn from a fixed seed.
    """

    config: tv.ViTConfig
    images: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, fields: dict[str, Any], batch: int) -> Work:
        """Draw a batch for a config."""
        return cls.of_config(tv.ViTConfig(**fields), batch)

    @classmethod
    def of_config(cls, config: tv.ViTConfig, batch: int) -> Work:
        """Draw a batch for a model."""
        rng = np.random.default_rng(0)
        images = rng.standard_normal((batch, config.channels, config.height, config.width), np.float32)
        return cls(config, images, rng.integers(0, config.num_classes, batch))

    def state(self) -> dict[str, np.ndarray]:
        """Return the weights under timm's names, new arrays of the same numbers on each call.

        The head is not zero as in a fresh model, so that the first loss depends on every weight.
        """
        state = tv.ViT(self.config, np.random.default_rng(0)).state_dict()
        head = np.random.default_rng(1).standard_normal(state["head.weight"].shape, np.float32)
        return {**state, "head.weight": head * np.float32(self.config.dim**-0.5)}


def decays(name: str, array: Any) -> bool:
    """Whether AdamW decays a weight: matrices, but neither tokens nor positions."""
    return array.ndim > 1 and name not in ("cls_token", "pos_embed")
