"""RandAugment: a few changes an image, drawn from fourteen, all of one strength."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyvit.data.transforms import colour
from tinyvit.data.transforms.geometry import check_ranges, warp
from tinyvit.engine.backend import namespace_of

Array = Any  # a numpy.ndarray or a cupy.ndarray
STRONGEST = 10  # the scale of the magnitude; some papers count to 30


def _mapped(images: Array, xx: Any = 1, xy: Any = 0, x: Any = 0, yx: Any = 0, yy: Any = 1, y: Any = 0) -> Array:
    entries = np.broadcast_arrays(np.zeros(len(images)), xx, xy, x, yx, yy, y)[1:]
    return warp(images, np.stack(entries, axis=1).reshape(-1, 2, 3))


def _turned(images: Array, s: np.ndarray) -> Array:
    cos, sin = np.cos(np.radians(30 * s)), np.sin(np.radians(30 * s))
    return _mapped(images, xx=cos, xy=-sin, yx=sin, yy=cos)


# Each takes images and their strengths, −1 to 1: of either sign where a change has two directions.
CHANGES: dict[str, Callable[[Array, np.ndarray], Array]] = {
    "identity": lambda images, s: images,
    "autocontrast": lambda images, s: colour.autocontrast(images),
    "equalize": lambda images, s: colour.equalize(images),
    "rotate": _turned,
    "solarize": lambda images, s: colour.solarize(images, (256 - np.round(256 * abs(s))) / 255),
    "color": lambda images, s: colour.saturation(images, 1 + 0.9 * s),
    "posterize": lambda images, s: colour.posterize(images, 8 - np.round(4 * abs(s))),
    "contrast": lambda images, s: colour.contrast(images, 1 + 0.9 * s),
    "brightness": lambda images, s: colour.brightness(images, 1 + 0.9 * s),
    "sharpness": lambda images, s: colour.sharpness(images, 1 + 0.9 * s),
    "shear_x": lambda images, s: _mapped(images, xy=0.3 * s),
    "shear_y": lambda images, s: _mapped(images, yx=0.3 * s),
    "translate_x": lambda images, s: _mapped(images, x=0.45 * s * images.shape[3]),
    "translate_y": lambda images, s: _mapped(images, y=0.45 * s * images.shape[2]),
}


@dataclass(frozen=True)
class RandAugment:
    """Change each image `number` times, each time in one of fourteen ways (`CHANGES`), with one strength.

    Args:
        number: changes an image.
        magnitude: their strength, 0 (none) to 10; of a change with two directions, one is drawn.
        deviation: standard deviation of the strength, which is drawn for each change and cut to 0 … 10.

    Raises:
        DataError: a setting outside of its range.

    Source: E. Cubuk et al., RandAugment, 2020, figure 2 and appendix; ranges as in AutoAugment, table 6. What comes in
    from outside is black.

    >>> images = np.random.default_rng(0).random((4, 3, 8, 8), dtype=np.float32)
    >>> changed = RandAugment(number=2, magnitude=9)(images, np.random.default_rng(0))
    >>> changed.shape, changed.dtype
    ((4, 3, 8, 8), dtype('float32'))
    """

    number: int = 2
    magnitude: float = 9.0
    deviation: float = 0.5

    def __post_init__(self) -> None:
        check_ranges(self, number=(0, 14), magnitude=(0, STRONGEST), deviation=(0, STRONGEST))

    def __call__(self, images: Array, rng: np.random.Generator) -> Array:
        """Return changed images (B, C, H, W)."""
        xp = namespace_of(images)
        images = images.copy()
        for _ in range(self.number):
            which = rng.integers(0, len(CHANGES), len(images))
            magnitudes = np.clip(rng.normal(self.magnitude, self.deviation, len(images)), 0, STRONGEST)
            strengths = rng.choice([-1, 1], len(images)) * magnitudes / STRONGEST
            for i, change in enumerate(CHANGES.values()):
                rows = np.flatnonzero(which == i)
                if len(rows):
                    places = xp.asarray(rows)
                    images[places] = change(images[places], strengths[rows])
        return images
