"""From a file to the names of its family: what the arrays are wrapped in is taken off."""

from __future__ import annotations

import re
from functools import partial

import numpy as np

from tinyvit.pretrained.containers import Weights, WeightsError
from tinyvit.pretrained.containers.weights import quoted
from tinyvit.pretrained.families.contents import Contents, Read

DICTS = ("model", "state_dict", "teacher", "model_state_dict")  # of training checkpoints; the first that is there
PREFIXES = (  # of DataParallel, torch.compile, DINO's wrapper, and Hugging Face's models with a head
    *("module.", "_orig_mod.", "backbone."),
    *("vit.", "deit.", "dinov2.", "dinov2_with_registers."),
)
NPZ_PREFIXES = ("opt/target/", "params/img/", "params/", "img/")  # of vit_jax and big_vision
MAX_DEPTH = 1000  # layers in one array
BESIDE = "it stands beside the weights in the checkpoint"


def unwrap(weights: Weights) -> Contents:
    """Return the arrays under the names that their family gave them."""
    names = {name: name for name in weights}
    passed_over: dict[str, str] = {}
    if weights.container == "npz":
        names, passed_over = _inside(names, next((p for p in NPZ_PREFIXES if _any(names, p)), ""))
    else:
        while wrapper := next((key for key in DICTS if _any(names, f"{key}/")), None):
            names, beside = _inside(names, f"{wrapper}/")
            passed_over |= beside
        while prefix := next((p for p in PREFIXES if _any(names, p)), ""):
            names = _renamed(weights, names, {name: name.removeprefix(prefix) for name in names})
    arrays: dict[str, Read] = {name: partial(weights.__getitem__, origin) for name, origin in names.items()}
    return Contents(weights, *_layers_apart(weights, arrays, names), passed_over)


def _renamed(weights: Weights, names: dict[str, str], new: dict[str, str]) -> dict[str, str]:
    if len(set(new.values())) < len(new):
        twice = next(name for name in new.values() if list(new.values()).count(name) > 1)
        raise WeightsError(f"{weights.path} holds {quoted(twice)} twice, with a prefix and without")
    return {new[name]: origin for name, origin in names.items()}


def _any(names: dict[str, str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)


def _inside(names: dict[str, str], prefix: str) -> tuple[dict[str, str], dict[str, str]]:
    """Those with a prefix, without it; and why the others are passed over."""
    inside = {name.removeprefix(prefix): origin for name, origin in names.items() if name.startswith(prefix)}
    return inside, {origin: BESIDE for name, origin in names.items() if not name.startswith(prefix)}


def _layers_apart(
    weights: Weights, arrays: dict[str, Read], origin: dict[str, str]
) -> tuple[dict[str, Read], dict[str, str]]:
    """Give each encoder layer its own name: big_vision may keep all in one array, DINOv2 numbers chunks of layers."""
    apart: dict[str, Read] = {}
    names: dict[str, str] = {}
    for name, read in arrays.items():
        before, scan, after = name.partition("Transformer/encoderblock/")
        if scan and not before:
            for i in range(min(weights.shape(origin[name])[:1] or (0,), (MAX_DEPTH,))[0]):
                apart[f"Transformer/encoderblock_{i}/{after}"] = partial(_row, read, i)
                names[f"Transformer/encoderblock_{i}/{after}"] = origin[name]
        else:
            chunkless = re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)
            if chunkless in apart:
                raise WeightsError(f"{weights.path} holds {quoted(chunkless)} twice, in two chunks of layers")
            apart[chunkless], names[chunkless] = read, origin[name]
    return apart, names


def _row(read: Read, i: int) -> np.ndarray:
    return read()[i]
