"""Parts of an image taken away, or of another put in its place: erasing, mixup and CutMix, a whole batch at a time.

Mixing changes the targets too: from class numbers (B,) to shares of the classes (B, K).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyvit.data.transforms.geometry import check_ranges, per_image
from tinyvit.engine.backend import namespace_of

Array = Any  # a numpy.ndarray or a cupy.ndarray


def _inside(xp: Any, top: np.ndarray, left: np.ndarray, bottom: np.ndarray, right: np.ndarray, H: int, W: int) -> Array:
    """Which pixels of each image lie in its rectangle: (B, 1, H, W)."""
    top, left, bottom, right = (side[:, None] for side in (top, left, bottom, right))
    y, x = np.arange(H), np.arange(W)
    rows, columns = xp.asarray((y >= top) & (y < bottom)), xp.asarray((x >= left) & (x < right))
    return rows[:, None, :, None] & columns[:, None, None, :]


@dataclass(frozen=True)
class RandomErasing:
    """Replace a rectangle of an image by one random colour, with probability `p`.

    Args:
        p: probability that an image loses a rectangle.
        smallest, largest: its share of the image's area, uniform between them.
        ratio: its height over its width is 1 / `ratio` to `ratio`, log-uniform.

    Raises:
        DataError: a setting outside of its range.

    Source: Z. Zhong et al., Random Erasing Data Augmentation, 2020, algorithm 1; a rectangle that would not fit is cut.

    >>> images = np.full((1, 1, 4, 4), 2.0, np.float32)
    >>> int((RandomErasing(p=1.0, smallest=0.25, largest=0.25)(images, np.random.default_rng(0)) != 2).sum())
    6
    """

    p: float = 0.25
    smallest: float = 0.02
    largest: float = 0.33
    ratio: float = 3.3

    def __post_init__(self) -> None:
        check_ranges(self, p=(0, 1), smallest=(0, 1), largest=(self.smallest, 1), ratio=(1, math.inf))

    def __call__(self, images: Array, rng: np.random.Generator) -> Array:
        """Return images (B, C, H, W) with holes."""
        xp = namespace_of(images)
        B, C, H, W = images.shape
        area = rng.uniform(self.smallest, self.largest, B) * H * W
        ratio = self.ratio ** rng.uniform(-1, 1, B)
        height = np.clip(np.rint(np.sqrt(area * ratio)), 1, H)
        width = np.clip(np.rint(np.sqrt(area / ratio)), 1, W)
        top, left = np.floor(rng.random(B) * (H - height + 1)), np.floor(rng.random(B) * (W - width + 1))
        height *= rng.random(B) < self.p
        colours = xp.asarray(rng.random((B, C, 1, 1), dtype=np.float32))
        return xp.where(_inside(xp, top, left, top + height, left + width, H, W), colours, images)


@dataclass(frozen=True)
class Mixing:
    """What makes one image, and one target, of two of a batch: `Mixup`, `CutMix`, or a subclass of one's own.

    Args:
        alpha: the share of the image itself is drawn from Beta(alpha, alpha), for each image; nearer to 0, most images
            stay nearly whole.
        p: probability that a batch is mixed.

    Raises:
        DataError: an `alpha` that is not above 0, or a `p` outside 0 to 1.

    >>> class Halves(Mixing):
    ...     def __call__(self, images, targets, rng):
    ...         return (images + images[::-1]) / 2, (targets + targets[::-1]) / 2
    >>> Halves()(np.ones((2, 1, 4, 4), np.float32), np.eye(2, dtype=np.float32), np.random.default_rng(0))[1]
    array([[0.5, 0.5],
           [0.5, 0.5]], dtype=float32)
    """

    alpha: float = 1.0
    p: float = 1.0

    def __post_init__(self) -> None:
        check_ranges(self, alpha=(1e-9, math.inf), p=(0, 1))

    def __call__(self, images: Array, targets: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        """Return mixed images (B, C, H, W) and targets, shares of the classes (B, K)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Mixup(Mixing):
    """Blend each image, and its target, with another of the batch. Settings and errors are those of `Mixing`.

    Source: H. Zhang et al., mixup: Beyond Empirical Risk Minimization, 2018, equation 2.

    >>> images, targets = np.float32([[[[0]]], [[[1]]]]), np.eye(2, dtype=np.float32)
    >>> mixed, shares = Mixup(alpha=1.0)(images, targets, np.random.default_rng(3))
    >>> bool(np.allclose(mixed[:, 0, 0, 0], shares[:, 1]))
    True
    """

    alpha: float = 0.8

    def __call__(self, images: Array, targets: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        """Return blended images (B, C, H, W) and targets (B, K)."""
        xp = namespace_of(images)
        other = xp.asarray(rng.permutation(len(images)))
        share = rng.beta(self.alpha, self.alpha, len(images))
        if rng.random() >= self.p:
            return images, targets
        mixed = images[other] + per_image(xp, share) * (images - images[other])
        return mixed, _blended(xp, targets, other, share)


@dataclass(frozen=True)
class CutMix(Mixing):
    """Put a rectangle of another image of the batch into each image; its target becomes theirs by area.

    Settings and errors are those of `Mixing`.

    Source: S. Yun et al., CutMix, 2019, equations 1 and 2: a rectangle that reaches over the edge is cut, and the share
    is that of the pixels which are left.

    >>> images, targets = np.float32([[[[0] * 4] * 4], [[[1] * 4] * 4]]), np.eye(2, dtype=np.float32)
    >>> mixed, shares = CutMix()(images, targets, np.random.default_rng(3))
    >>> bool(np.allclose(mixed.mean(axis=(1, 2, 3)), shares[:, 1]))
    True
    """

    def __call__(self, images: Array, targets: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        """Return pieced images (B, C, H, W) and targets (B, K)."""
        xp = namespace_of(images)
        B, _, H, W = images.shape
        other = xp.asarray(rng.permutation(B))
        cut = np.sqrt(1 - rng.beta(self.alpha, self.alpha, B))  # of each side
        y, x = rng.random((2, B))
        if rng.random() >= self.p:
            return images, targets
        top, bottom = (np.clip(np.rint(H * (y + s * cut / 2)), 0, H) for s in (-1, 1))
        left, right = (np.clip(np.rint(W * (x + s * cut / 2)), 0, W) for s in (-1, 1))
        share = 1 - (bottom - top) * (right - left) / (H * W)
        pieced = xp.where(_inside(xp, top, left, bottom, right, H, W), images[other], images)
        return pieced, _blended(xp, targets, other, share)


def _blended(xp: Any, targets: Array, other: Array, share: np.ndarray) -> Array:
    own = xp.asarray(share.astype(np.float32))[:, None]
    return own * targets + (1 - own) * targets[other]
