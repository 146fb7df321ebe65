"""Where the pixels of an image come from: maps, crops, mirrors. Whole batches, on the device of the images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tinyvit.data.datasets import DataError
from tinyvit.engine.backend import namespace_of

Array = Any  # a numpy.ndarray or a cupy.ndarray
Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels


def check_ranges(step: Any, **limits: tuple[float, float]) -> None:
    """Refuse a setting outside of its range, ends included."""
    for name, (low, high) in limits.items():
        value = getattr(step, name)
        if not low <= value <= high:
            wanted = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise DataError(f"{type(step).__name__} needs {name} {wanted}, not {value}")


def per_image(xp: Any, values: np.ndarray, dtype: Any = np.float32) -> Array:
    """One number an image, drawn on the host, as (B, 1, 1, 1) on the device of the images."""
    return xp.asarray(values.astype(dtype)).reshape(-1, 1, 1, 1)


def _lerp(a: Array, b: Array, t: Array) -> Array:
    b -= a  # in place: fresh memory costs more than this arithmetic
    b *= t
    b += a
    return b


def warp(images: Array, inverse: np.ndarray, fill: float = 0.0) -> Array:
    """Resample each image through its own affine map, bilinearly.

    Args:
        images: float32 ``(B, C, H, W)``, on any device.
        inverse: ``(B, 2, 3)`` on the host, for each image the map from an output pixel ``(x, y, 1)`` to the place
            ``(x, y)`` of the input that it shows: pixels from the image's centre, x rightward, y downward.
        fill: the value outside the input.

    Returns:
        float32 ``(B, C, H, W)``.

    Raises:
        DataError: where a shape or a dtype is another.

    Source: the sampler of Jaderberg et al., Spatial Transformer Networks, 2015, equations 1 and 5.

    >>> image = np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)
    >>> look_one_to_the_left = np.array([[[1, 0, -1], [0, 1, 0]]])  # so the picture moves to the right
    >>> warp(image, look_one_to_the_left)[0, 0]
    array([[0., 0., 1.], [0., 3., 4.]], dtype=float32)
    """
    if images.dtype != np.float32 or images.ndim != 4:
        given = f"{images.dtype} of shape {images.shape}"
        raise DataError(f"images must be float32 of shape (B, C, H, W), but are {given}")
    B, C, H, W = images.shape
    if inverse.shape != (B, 2, 3):
        raise DataError(f"{B} images need maps of shape ({B}, 2, 3), but these have {inverse.shape}")

    # A frame of fill makes every place outside the image equal to a place on the frame: the gather below
    # needs no masks, and the image's border blends into the fill. It is two wide to the right and below,
    # because there a place on the frame still has a neighbour.
    xp = namespace_of(images)
    framed = xp.full((B, C, H + 3, W + 3), fill, np.float32)
    framed[:, :, 1:-2, 1:-2] = images
    centre_x, centre_y = (W - 1) / 2, (H - 1) / 2
    y, x = np.mgrid[:H, :W]
    grid = np.stack([x - centre_x, y - centre_y, np.ones((H, W))]).reshape(3, H * W).astype(np.float32)
    x, y = xp.matmul(xp.asarray(inverse.astype(np.float32)), xp.asarray(grid)).swapaxes(0, 1)  # (B, H·W) each
    x = xp.clip(x + np.float32(centre_x + 1), 0, W + 1)
    y = xp.clip(y + np.float32(centre_y + 1), 0, H + 1)
    left, top = x.astype(np.intp), y.astype(np.intp)
    x -= left
    y -= top

    planes = xp.arange(B * C).reshape(B, C, 1) * ((H + 3) * (W + 3))
    corner = (top * (W + 3) + left)[:, None] + planes  # (B, C, H·W): the upper left of the four neighbours
    pixels = framed.ravel()
    upper = _lerp(xp.take(pixels, corner), xp.take(pixels, corner + 1), x[:, None])
    corner += W + 3
    lower = _lerp(xp.take(pixels, corner), xp.take(pixels, corner + 1), x[:, None])
    return _lerp(upper, lower, y[:, None]).reshape(B, C, H, W)


@dataclass(frozen=True)
class RandomAffine:
    """Shear, scale, turn and shift each image about its centre, by amounts drawn for it alone.

    Args:
        degrees: the turn is uniform in ±`degrees`; a positive one is counter-clockwise.
        translate: the shifts right and down are each uniform in ±`translate` pixels.
        scale: the size is multiplied by 1 / (1 + `scale`) to 1 + `scale`, log-uniform.
        shear: the horizontal shear is uniform in ±`shear` degrees; a positive one moves the bottom rightward.
        fill: what comes in from outside: the value of the background, in the units of the images.

    Raises:
        DataError: where a range is negative or not finite, or `shear` is not below 90.

    Source: P. Simard et al., Best Practices for Convolutional Neural Networks, 2003, section 2.

    >>> images = np.ones((2, 1, 8, 8), np.float32)
    >>> RandomAffine(degrees=10, translate=1)(images, np.random.default_rng(0)).shape
    (2, 1, 8, 8)
    """

    degrees: float = 0.0
    translate: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    fill: float = 0.0

    def __post_init__(self) -> None:
        limits = {"degrees": math.inf, "translate": math.inf, "scale": math.inf, "shear": 90}
        for name, limit in limits.items():
            if not 0 <= (value := getattr(self, name)) < limit:
                raise DataError(f"RandomAffine needs {name} from 0 to below {limit}, not {value}")

    def __call__(self, images: Array, rng: np.random.Generator) -> Array:
        """Return changed copies of float32 images ``(B, C, H, W)``, in [0, 1] and not yet normalised."""
        turn, shear, size, right, down = rng.uniform(-1, 1, (5, len(images)))
        cos, sin = np.cos(np.radians(self.degrees * turn)), np.sin(np.radians(self.degrees * turn))
        tan = np.tan(np.radians(self.shear * shear))
        size = np.exp(math.log1p(self.scale) * size)
        # The inverse of "shear, scale, turn": turn back, scale back, shear back.
        linear = np.array([[cos - tan * sin, -sin - tan * cos], [sin, cos]]) / size  # (2, 2, B)
        shift = np.array([self.translate * right, self.translate * down])  # (2, B)
        offset = -np.einsum("ijb,jb->ib", linear, shift)
        return warp(images, np.concatenate([linear, offset[:, None]], axis=1).transpose(2, 0, 1), self.fill)


@dataclass(frozen=True)
class RandomFlip:
    """Mirror an image left to right, with probability `p`.

    >>> RandomFlip(p=1.0)(np.float32([[[[1, 2, 3]]]]), np.random.default_rng(0))
    array([[[[3., 2., 1.]]]], dtype=float32)
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        check_ranges(self, p=(0, 1))

    def __call__(self, images: Array, rng: np.random.Generator) -> Array:
        """Return images (B, C, H, W), some of them mirrored."""
        xp = namespace_of(images)
        return xp.where(per_image(xp, rng.random(len(images)) < self.p, bool), images[..., ::-1], images)


@dataclass(frozen=True)
class RandomCrop:
    """Pad each image on all sides and cut a window of its own size out of it, anywhere.

    Args:
        padding: pixels a side, fewer than an image has.
        mode: what is outside: "constant" (0, black), "reflect" or "edge", as in `numpy.pad`.

    Raises:
        DataError: a padding below 0, or another mode; or, called, a padding as wide as the images.

    Source: K. He et al., Deep Residual Learning, 2016, section 4.2.

    >>> RandomCrop(padding=1)(np.ones((1, 1, 2, 2), np.float32), np.random.default_rng(0))
    array([[[[1., 1.],
             [0., 0.]]]], dtype=float32)
    """

    padding: int = 4
    mode: str = "constant"

    def __post_init__(self) -> None:
        check_ranges(self, padding=(0, math.inf))
        if self.mode not in ("constant", "reflect", "edge"):
            raise DataError(f"RandomCrop pads by 'constant', 'reflect' or 'edge', not {self.mode!r}")

    def __call__(self, images: Array, rng: np.random.Generator) -> Array:
        """Return moved images (B, C, H, W)."""
        B, C, H, W = images.shape
        p = self.padding
        if p >= min(H, W):  # a window could miss the image, and there is nothing left to reflect
            raise DataError(f"a crop of images of {H} × {W} needs a padding below {min(H, W)}, not {p}")
        xp = namespace_of(images)
        padded = xp.pad(images, ((0, 0), (0, 0), (p, p), (p, p)), mode=self.mode)
        top, left = rng.integers(0, 2 * p + 1, (2, B))
        rows = xp.asarray(top[:, None] + np.arange(H))[:, None, :, None]
        columns = xp.asarray(left[:, None] + np.arange(W))[:, None, None, :]
        return padded[xp.arange(B)[:, None, None, None], xp.arange(C)[:, None, None], rows, columns]


@dataclass(frozen=True)
class RandomResizedCrop:
    """Cut a part of random size, proportions and place out of each image, and resize it to the image's own size.

    As the first augmentation of images in files it is done while they are decoded, on the photograph itself.

    Args:
        smallest, largest: share of the picture's area that the part has, uniform between them.
        ratio: the part's width over its height is 1 / `ratio` to `ratio` times the picture's own where the picture is
            a batch's, and 1 / `ratio` to `ratio` where it is a file; log-uniform.

    Raises:
        DataError: shares outside 0 to 1 or in the wrong order, or a ratio below 1.

    Source: C. Szegedy et al., Going Deeper with Convolutions, 2015, section 6.

    >>> [box] = RandomResizedCrop(smallest=0.25, largest=0.25, ratio=1.0).boxes(1, np.random.default_rng(0))
    >>> left, top, right, bottom = box(100, 100)
    >>> (right - left, bottom - top)
    (50.0, 50.0)
    """

    smallest: float = 0.08
    largest: float = 1.0
    ratio: float = 1.33

    def __post_init__(self) -> None:
        check_ranges(self, smallest=(0, 1), largest=(0, 1), ratio=(1, math.inf))
        if not 0 < self.smallest <= self.largest:
            raise DataError(f"RandomResizedCrop needs 0 < smallest ≤ largest, not {self.smallest} and {self.largest}")

    def boxes(self, n: int, rng: np.random.Generator) -> list[Callable[[int, int], Box]]:
        """Draw for n pictures whose size is not known yet: box(width, height) tells the part."""
        tries = rng.random((n, 10, 4))
        return [partial(self._box, t) for t in tries]

    def _box(self, tries: np.ndarray, width: int, height: int) -> Box:
        for area, stretch, right, down in tries.tolist():
            size = width * height * (self.smallest + area * (self.largest - self.smallest))
            ratio = self.ratio ** (2 * stretch - 1)
            w, h = math.sqrt(size * ratio), math.sqrt(size / ratio)
            if w <= width and h <= height:
                left, top = right * (width - w), down * (height - h)
                return left, top, left + w, top + h
        w, h = min(width, height * self.ratio), min(height, width * self.ratio)  # as much of the middle as may be
        return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2

    def __call__(self, images: Array, rng: np.random.Generator) -> Array:
        """Return resized parts of images (B, C, H, W)."""
        B, _, H, W = images.shape
        left, top, right, bottom = np.array([box(1, 1) for box in self.boxes(B, rng)]).T  # shares of each side
        inverse = np.zeros((B, 2, 3))
        inverse[:, 0, 0], inverse[:, 0, 2] = right - left, ((left + right) / 2 - 0.5) * W
        inverse[:, 1, 1], inverse[:, 1, 2] = bottom - top, ((top + bottom) / 2 - 0.5) * H
        return warp(images, inverse)
