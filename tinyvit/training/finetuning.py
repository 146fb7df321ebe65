"""Fine-tuning: the weights that a run starts from, how fast each layer learns, and which do not learn at all.

A parameter's depth is told by its name: the embeddings first, then the encoder layers, then what comes after them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyvit.vit import ViT, ViTConfig

EMBEDDINGS = ("patch_embed", "cls_token", "reg_token", "dist_token", "pos_embed", "norm_pre")
ALL_BUT_THE_HEAD = -1


@dataclass(frozen=True)
class Initial:
    """What a run starts from that starts from weights: `training.init` names their file.

    Args:
        model: fields of `ViTConfig`, for what a config leaves open. Image size, channels and classes are the data's;
            but pictures in files are read at this image size and in these channels.
        data: fields of `DataConfig` (mean, std, crop_ratio, interpolation), for what a config leaves open; mean and
            std where they are of as many channels as the data.
        weights: gives the whole `state_dict()`, head included, of the model that comes of it. Called once, and not
            when a run goes on from a checkpoint.
    """

    model: Mapping[str, Any]
    data: Mapping[str, Any]
    weights: Callable[[ViTConfig], Mapping[str, np.ndarray]]


def layer_scales(names: Iterable[str], depth: int, decay: float) -> dict[str, float]:
    """Return the factor on the step size of each parameter of a ViT: the nearer to the pixels, the smaller.

    decay ** (depth − i) for encoder layer i, counted from 0; decay ** (depth + 1) for the embeddings; 1 for the head
    and what else comes after the layers.

    Source: Bao et al., "BEiT: BERT pre-training of image transformers", 2022, in the form of its code. (timm counts the
    norm before the pooling to the last layer.)

    >>> layer_scales(["pos_embed", "blocks.0.ls1.gamma", "blocks.1.ls1.gamma", "norm.weight", "head.bias"], 2, 0.5)
    {'pos_embed': 0.125, 'blocks.0.ls1.gamma': 0.25, 'blocks.1.ls1.gamma': 0.5, 'norm.weight': 1.0, 'head.bias': 1.0}
    """
    return {name: decay ** (depth + 1 - _layer_of(name, depth)) for name in names}


def freeze(model: ViT, layers: int) -> None:
    """Let the embeddings and the first encoder layers of a model be as they are: they get no gradient.

    Args:
        layers: how many, from 1 to the depth; 0 freezes nothing, the embeddings neither, and -1 all but the head.

    Build the optimizer after it, over the parameters with `requires_grad`.
    """
    for name, p in model.named_parameters():
        if layers == ALL_BUT_THE_HEAD:
            p.requires_grad = name.startswith("head")
        elif layers and _layer_of(name, model.config.depth) <= layers:
            p.requires_grad = False


def _layer_of(name: str, depth: int) -> int:
    """0 in the embeddings, i + 1 in encoder layer i, depth + 1 after the layers."""
    first, _, rest = name.partition(".")
    if first in EMBEDDINGS:
        return 0
    return int(rest.partition(".")[0]) + 1 if first == "blocks" else depth + 1
