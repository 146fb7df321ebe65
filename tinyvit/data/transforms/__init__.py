"""Augmentation: random changes of images that leave their class alone, or change it by a known share.

Everything here is array code over a whole batch, on the device of its images; what is random is drawn on the host, from
a generator that the caller gives. A config names an augmentation by a word, and its settings as in a call:
``["crop(padding=2)", "flip", "mixup(0.2)"]``.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinyvit.data.datasets import DataError, unknown_name
from tinyvit.data.transforms.colour import ColorJitter
from tinyvit.data.transforms.geometry import RandomAffine, RandomCrop, RandomFlip, RandomResizedCrop, warp
from tinyvit.data.transforms.mixing import CutMix, Mixing, Mixup, RandomErasing
from tinyvit.data.transforms.randaugment import RandAugment

# From float32 images (B, C, H, W) in [0, 1] and a generator to new images of the same shape and dtype.
Augmentation = Callable[[Any, np.random.Generator], Any]

AUGMENTATIONS: dict[str, Augmentation | Mixing] = {
    "affine": RandomAffine(degrees=10.0, translate=0.5, scale=0.1, shear=5.0),
    "crop": RandomCrop(),
    "resized_crop": RandomResizedCrop(),
    "flip": RandomFlip(),
    "jitter": ColorJitter(),
    "randaugment": RandAugment(),
    "erasing": RandomErasing(),
    "mixup": Mixup(),
    "cutmix": CutMix(),
}
"""What a config's word stands for; `augmentation` gives it other settings."""


def augmentation(call: str) -> Augmentation | Mixing:
    """Return the augmentation that a config names, for instance "flip" or "crop(padding=2)".

    Raises:
        DataError: no such name or setting, or a value that it does not take.

    >>> augmentation("affine").degrees
    10.0
    >>> augmentation("flip(2)")
    Traceback (most recent call last):
    tinyvit.data.datasets.DataError: flip needs p from 0 to 1, not 2.0
    >>> augmentation("erasing(0.1, largest=0.2)")
    RandomErasing(p=0.1, smallest=0.02, largest=0.2, ratio=3.3)
    """
    name, values, named = _parsed(call)
    if name not in AUGMENTATIONS:
        raise unknown_name("augmentation", name, AUGMENTATIONS)
    step: Any = AUGMENTATIONS[name]
    settings = {field.name: getattr(step, field.name) for field in dataclasses.fields(step)}
    if len(values) > len(settings):
        raise DataError(f"{call!r} has {len(values)} settings, and {name} takes {len(settings)}: {', '.join(settings)}")
    for key, value in [*zip(settings, values, strict=False), *named.items()]:
        if key not in settings:
            raise unknown_name(f"setting of {name}", key, settings)
        settings[key] = _of_type(f"{name}'s {key}", value, settings[key])
    try:
        return dataclasses.replace(step, **settings)
    except DataError as error:  # in the config's words
        raise DataError(str(error).replace(type(step).__name__, name, 1)) from None


def augmentations(calls: Sequence[str]) -> tuple[Augmentation | Mixing, ...]:
    """Return the augmentations that a config names, in the order in which they are done.

    Raises:
        DataError: see `augmentation`.

    >>> [type(step).__name__ for step in augmentations(["flip", "mixup(0.2)"])]
    ['RandomFlip', 'Mixup']
    """
    return tuple(map(augmentation, calls))


def _parsed(call: str) -> tuple[str, list[Any], dict[str, Any]]:
    """A name, its values in order, and those by name."""
    bare = ""
    try:
        tree = ast.parse(call.strip(), mode="eval").body
        if isinstance(tree, ast.Name):
            return tree.id, [], {}
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and all(k.arg for k in tree.keywords):
            values = [*tree.args, *(k.value for k in tree.keywords)]
            bare = next((value.id for value in values if isinstance(value, ast.Name)), "")
            named = {str(k.arg): ast.literal_eval(k.value) for k in tree.keywords}
            return tree.func.id, [ast.literal_eval(value) for value in tree.args], named
    except (SyntaxError, ValueError):
        pass
    hint = f": text stands in quotes, like '{bare}'" if bare else ""
    raise DataError(
        f"an augmentation is a name, or a name with settings like 'crop(padding=2)', and not {call!r}{hint}"
    )


def _of_type(what: str, value: Any, like: Any) -> Any:
    if isinstance(like, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(like):
        raise DataError(f"{what} must be of type {type(like).__name__}, like {like!r}, not {value!r}")
    return value


__all__ = [
    "AUGMENTATIONS",
    "Augmentation",
    "ColorJitter",
    "CutMix",
    "Mixing",
    "Mixup",
    "RandAugment",
    "RandomAffine",
    "RandomCrop",
    "RandomErasing",
    "RandomFlip",
    "RandomResizedCrop",
    "augmentation",
    "augmentations",
    "warp",
]
