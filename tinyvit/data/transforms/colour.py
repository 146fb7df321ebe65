"""What the pixels of an image become: the brightness, contrast and colour of whole batches, on their device.

Each function takes float32 images (B, C, H, W) in [0, 1] and one number an image, and is Pillow's of the same name
(`ImageOps`, `ImageEnhance`) up to the rounding to 256 levels, which is left out except where the levels are the point.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyvit.data.transforms.geometry import check_ranges, per_image
from tinyvit.engine.backend import namespace_of

Array = Any  # a numpy.ndarray or a cupy.ndarray
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, of red, green and blue


def _blend(images: Array, other: Array, factor: np.ndarray) -> Array:
    """From `other` at factor 0 through the images at 1 and beyond, in [0, 1]."""
    xp = namespace_of(images)
    return xp.clip(other + per_image(xp, factor) * (images - other), 0, 1)


def grey(images: Array) -> Array:
    """Return the brightness of each pixel, (B, 1, H, W): luma of RGB, else the mean of the channels."""
    xp = namespace_of(images)
    if images.shape[1] != 3:
        return images.mean(axis=1, keepdims=True)
    return (images * xp.asarray(np.array(LUMA, np.float32)).reshape(3, 1, 1)).sum(axis=1, keepdims=True)


def brightness(images: Array, factor: np.ndarray) -> Array:
    """Towards black (0) or away from it (above 1)."""
    return _blend(images, namespace_of(images).zeros_like(images), factor)


def contrast(images: Array, factor: np.ndarray) -> Array:
    """Towards the image's mean grey (0) or away from it (above 1)."""
    return _blend(images, grey(images).mean(axis=(2, 3), keepdims=True), factor)


def saturation(images: Array, factor: np.ndarray) -> Array:
    """Towards grey (0) or away from it (above 1)."""
    return _blend(images, grey(images), factor)


def sharpness(images: Array, factor: np.ndarray) -> Array:
    """Towards a smoothed image (0) or away from it (above 1); the outermost pixels stay."""
    smooth = images.copy()
    if min(images.shape[2:]) > 2:
        H, W = images.shape[2:]
        windows = [images[:, :, y : y + H - 2, x : x + W - 2] for y in range(3) for x in range(3)]
        smooth[:, :, 1:-1, 1:-1] = (sum(windows) + 4 * windows[4]) / 13
    return _blend(images, smooth, factor)


def solarize(images: Array, threshold: np.ndarray) -> Array:
    """Turn to its negative whatever is as bright as the threshold, or brighter."""
    xp = namespace_of(images)
    return xp.where(images >= per_image(xp, threshold), 1 - images, images)


def posterize(images: Array, bits: np.ndarray) -> Array:
    """Keep the highest `bits` (1 to 8) of the 8 of each pixel."""
    xp = namespace_of(images)
    step = per_image(xp, 2.0 ** (8 - bits))
    return xp.floor(_levels(images) / step) * step / np.float32(255)


def autocontrast(images: Array) -> Array:
    """Stretch each channel so that it reaches from 0 to 1; one of a single value stays."""
    xp = namespace_of(images)
    low, high = images.min(axis=(2, 3), keepdims=True), images.max(axis=(2, 3), keepdims=True)
    flat = high <= low
    return xp.where(flat, images, (images - low) / xp.where(flat, 1, high - low))


def equalize(images: Array) -> Array:
    """Map the 256 levels of each channel so that all are about as frequent."""
    xp = namespace_of(images)
    B, C, H, W = images.shape
    planes = xp.arange(B * C)[:, None]
    levels = _levels(images).astype(np.int32).reshape(B * C, H * W)
    counts = xp.scatter_add(xp.ones_like(levels), (planes, levels), (B * C, 256))  # bincount would wait for a GPU
    brightest = levels.max(axis=1, keepdims=True)
    step = (H * W - counts[planes, brightest]) // 255  # as in Pillow: the last level has nowhere to go
    before = xp.cumsum(counts, axis=1) - counts
    table = xp.clip((before + step // 2) // xp.maximum(step, 1), 0, 255)
    table = xp.where(step == 0, xp.arange(256), table)
    return (table[planes, levels].reshape(B, C, H, W) / 255).astype(np.float32)


def _levels(images: Array) -> Array:
    """The 8-bit level of each pixel, as float32."""
    return namespace_of(images).rint(images * np.float32(255))


@dataclass(frozen=True)
class ColorJitter:
    """Change brightness, contrast and saturation of each image by factors uniform in 1 ± their amount.

    Raises:
        DataError: an amount outside 0 to 1.

    Source: A. Howard, Some Improvements on Deep Convolutional Neural Network Based Image Classification, 2013.

    >>> ColorJitter(0.5, 0, 0)(np.full((1, 3, 1, 1), 0.5, np.float32), np.random.default_rng(0)).ravel().round(3)
    array([0.568, 0.568, 0.568], dtype=float32)
    """

    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3

    def __post_init__(self) -> None:
        check_ranges(self, brightness=(0, 1), contrast=(0, 1), saturation=(0, 1))

    def __call__(self, images: Array, rng: np.random.Generator) -> Array:
        """Return changed images (B, C, H, W)."""
        changes: list[tuple[Callable[[Array, np.ndarray], Array], float]] = [
            (brightness, self.brightness),
            (contrast, self.contrast),
            (saturation, self.saturation),
        ]
        draws = rng.uniform(-1, 1, (len(changes), len(images)))
        for (change, amount), draw in zip(changes, draws, strict=True):
            if amount:
                images = change(images, 1 + amount * draw)
        return images
