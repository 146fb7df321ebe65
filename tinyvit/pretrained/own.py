"""tinyvit's own runs and checkpoints, opened like the weights of others."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tinyvit.data.datasets import Reading
from tinyvit.data.images import fit_picture, read_image, read_picture
from tinyvit.pretrained.containers import PREFERRED, SETTINGS, SUFFIXES, Weights, WeightsError, open_weights
from tinyvit.pretrained.containers.weights import Entry
from tinyvit.pretrained.families.contents import Description, Family, Table
from tinyvit.pretrained.families.timm import OURS
from tinyvit.pretrained.hub import is_on_hub
from tinyvit.pretrained.preprocessing import Preprocessing, Size
from tinyvit.training import CheckpointError, Config, load_trained


class OwnPreprocessing(Preprocessing):
    """What `tinyvit train` shows a model in evaluation: the middle of a picture, cut out and resized in one step."""

    @property
    def _reading(self) -> Reading:
        return Reading(
            image_size=self.size,
            channels=self.channels,
            crop_ratio=self.crop_pct or 1.0,
            interpolation=self.interpolation,
        )

    def levels(self, image: Any) -> np.ndarray:
        """See `Preprocessing.levels`."""
        r = self._reading
        if isinstance(image, str | Path):
            return read_image(image, r.channels, r.size, r.crop_ratio, r.interpolation).astype(np.float32)
        return fit_picture(read_picture(image, r.channels), r).astype(np.float32)

    def for_size(self, size: int | Size) -> OwnPreprocessing:
        """See `Preprocessing.for_size`."""
        smaller = replace(self, size=size, resize_to=None)  # type: ignore[arg-type]  # one number is both sides
        h, w = (round(side / (self.crop_pct or 1)) for side in smaller.size)
        return replace(smaller, resize_to=(h, w))

    def __str__(self) -> str:
        (height, width), share = self.size, f"{self.crop_pct:.0%} of " if self.crop_pct != 1 else ""
        mean, std = (" ".join(f"{value:.3g}" for value in values) for values in (self.mean, self.std))
        steps = f"the middle {share}the largest part of their proportions, resized ({self.interpolation})"
        return f"{height}×{width}: {steps}{', grey' if self.channels == 1 else ''}, mean {mean}, std {std}"


def is_own(path: str | Path) -> bool:
    """Whether a path is a run's folder, its model file or a checkpoint."""
    path = Path(path)
    if path.is_dir():
        return (path / "config.toml").is_file() or is_own(path / "model.safetensors")
    return path.suffix == ".safetensors" and path.is_file() and "tinyvit" in open_weights(path).metadata


def is_foreign(path: str | Path) -> bool:
    """Whether a path leads to weights that others made, as far as names and beginnings tell."""
    if is_on_hub(path):
        return True
    path = Path(path)
    if path.is_dir():
        there = any((path / name).exists() for name in (*SETTINGS, *PREFERRED))
        return there and not is_own(path)
    try:
        return path.is_file() and path.suffix in SUFFIXES and not is_own(path)
    except WeightsError:
        return False  # damaged: whoever opens it will say so


def open_own(path: str | Path) -> tuple[Weights, Family]:
    """Return the arrays of a trained model, and a family of which it is the only member.

    Raises:
        WeightsError: the file cannot be used.
    """
    try:
        trained = load_trained(path)
    except CheckpointError as error:
        raise WeightsError(str(error)) from error
    state = trained.model.state_dict()
    entries = {name: Entry(array.shape, str(array.dtype), partial(np.copy, array)) for name, array in state.items()}
    described = Description(asdict(trained.config.model), _preprocessing(trained.config), trained.classes)
    kind = Family("tinyvit", "tinyvit's own", Table(OURS), lambda contents: True, lambda contents, anatomy: described)
    return Weights(trained.path, "safetensors", entries), kind


def _preprocessing(config: Config) -> Preprocessing:
    model, data = config.model, config.data
    return OwnPreprocessing(
        size=(model.height, model.width),
        resize="shortest",
        resize_to=(round(model.height / data.crop_ratio), round(model.width / data.crop_ratio)),
        interpolation=data.interpolation,
        mean=data.mean,
        std=data.std,
        channels=model.channels,
        crop_pct=data.crop_ratio,
    )
