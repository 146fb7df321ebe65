"""Augmentation: random changes of an image that leave its class alone, a whole batch at a time."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tinyvit.data.datasets import DataError, unknown_name

# From float32 images (B, C, H, W) in [0, 1] and a generator to new images of the same shape and dtype.
Augmentation = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def _lerp(a: np.ndarray, b: np.ndarray, t: np.ndarray) -> np.ndarray:
    b -= a  # in place: fresh memory costs more than this arithmetic
    b *= t
    b += a
    return b


def warp(images: np.ndarray, inverse: np.ndarray, fill: float = 0.0) -> np.ndarray:
    """Resample each image through its own affine map, bilinearly.

    Args:
        images: float32 ``(B, C, H, W)``.
        inverse: ``(B, 2, 3)``, for each image the map from an output pixel ``(x, y, 1)`` to the place
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
    framed = np.full((B, C, H + 3, W + 3), fill, np.float32)
    framed[:, :, 1:-2, 1:-2] = images
    centre_x, centre_y = (W - 1) / 2, (H - 1) / 2
    y, x = np.mgrid[:H, :W]
    grid = np.stack([x - centre_x, y - centre_y, np.ones((H, W))]).reshape(3, H * W).astype(np.float32)
    x, y = (inverse.astype(np.float32) @ grid).swapaxes(0, 1)  # (B, H·W) each
    x = np.clip(x + np.float32(centre_x + 1), 0, W + 1)
    y = np.clip(y + np.float32(centre_y + 1), 0, H + 1)
    left, top = x.astype(np.intp), y.astype(np.intp)
    x -= left
    y -= top

    planes = np.arange(B * C).reshape(B, C, 1) * ((H + 3) * (W + 3))
    corner = (top * (W + 3) + left)[:, None] + planes  # (B, C, H·W): the upper left of the four neighbours
    pixel = framed.ravel().take
    upper = _lerp(pixel(corner), pixel(corner + 1), x[:, None])
    corner += W + 3
    lower = _lerp(pixel(corner), pixel(corner + 1), x[:, None])
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

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
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


AUGMENTATIONS: dict[str, Augmentation | None] = {
    "none": None,
    "affine": RandomAffine(degrees=10.0, translate=0.5, scale=0.1, shear=5.0),
}


def augmentation(name: str) -> Augmentation | None:
    """Return the augmentation that a configuration calls `name`: "none" (which is None) or "affine".

    Raises:
        DataError: where there is no such name.

    >>> augmentation("affine").degrees
    10.0
    """
    if name not in AUGMENTATIONS:
        raise unknown_name("augmentation", name, AUGMENTATIONS)
    return AUGMENTATIONS[name]
