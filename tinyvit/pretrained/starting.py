"""Weights that a training run starts from: what `tinyvit train --init` hands to the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tinyvit.data.datasets import INTERPOLATIONS
from tinyvit.pretrained.containers import WeightsError
from tinyvit.pretrained.loading import FREE, from_pretrained
from tinyvit.pretrained.preprocessing import Preprocessing
from tinyvit.training import Initial
from tinyvit.vit import ViTConfig

SIZES = ("image_size", "patch_size", "channels", "num_classes")
MAY_DIFFER = (*SIZES, *FREE, "layer_scale")  # of which only whether there is one shows in the weights


def initial(path: str | Path, tell: Callable[[str], None] = print) -> Initial:
    """Return what a run needs in order to start from weights that `from_pretrained` opens.

    The model gets a new head, zero at first, unless the data has as many classes as the file. Images are prepared in
    the manner of `tinyvit train` (the middle cut out and resized in one step) with the file's mean, std, filter and
    share of the picture, which comes near to the family's own preprocessing, and is not the same to the last level.

    Args:
        path: a file, a folder, a run or ``hf://owner/name``.
        tell: is given the report of what was done, when it was done.

    Raises:
        WeightsError: the weights cannot be opened; later, where the run's config asks for another model than theirs.

    >>> import tempfile, tinyvit as tv
    >>> from tinyvit.pretrained import save_pretrained
    >>> config = ViTConfig(image_size=32, patch_size=8, dim=64, depth=1, num_heads=1, num_classes=3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_pretrained(tv.ViT(config), folder)
    ...     start = initial(folder, tell=lambda report: None)
    >>> start.model["dim"], start.data["mean"], start.data["crop_ratio"].__round__(2)
    (64, (0.5, 0.5, 0.5), 0.91)
    """
    model = from_pretrained(path, num_classes=0)
    config = {name: value for name, value in asdict(model.config).items() if name != "num_classes"}

    def weights(wanted: ViTConfig) -> Mapping[str, np.ndarray]:
        for name, value in config.items():
            if name not in (*MAY_DIFFER, "pool") and getattr(wanted, name) != value:
                raise WeightsError(f"{path} has model.{name} {value}; a run that starts from it cannot have another")
        if "cls_mean" in (wanted.pool, config["pool"]) and wanted.pool != config["pool"]:
            raise WeightsError(f"{path} has model.pool {config['pool']}; a run that starts from it cannot have another")
        asked = {name: getattr(wanted, name) for name in (*SIZES, *FREE)}
        opened = from_pretrained(path, **asked)
        tell(str(opened.report))
        return opened.state_dict()

    return Initial(config, _data(model.preprocessing), weights)


def _data(preprocessing: Preprocessing) -> dict[str, Any]:
    assert preprocessing.resize_to is not None
    shares = [side / target for side, target in zip(preprocessing.size, preprocessing.resize_to, strict=True)]
    known = preprocessing.interpolation in INTERPOLATIONS
    return {
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "crop_ratio": min(1.0, *shares),
        "interpolation": preprocessing.interpolation if known else "bilinear",
    }
