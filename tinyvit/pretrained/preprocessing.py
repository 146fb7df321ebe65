"""What a family of weights makes of an image before it sees it, in evaluation, to the pixel.

Libraries agree on "resize, crop, normalise" and on little else: the filter, whether it antialiases, how the longer side
is rounded and where the middle begins. A `Preprocessing` says all of it in plain numbers and words.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tinyvit.data import DataError
from tinyvit.data.images import in_parallel, read_picture
from tinyvit.layers import Resampling
from tinyvit.pretrained.containers.weights import WeightsError, quoted

Size = tuple[int, int]

HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

PILLOW = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # its numbers 0 to 5
RESIZES = ("shortest", "longest", "squash", "none")
CONVENTIONS = ("timm", "huggingface", "vit_jax", "big_vision")
SMALL = 1e-6  # what is divided by is larger
MAX_SIDE = 2**14  # pixels; a strip of 1 × 9999 with its shortest side at 256 would take gigabytes


def _area(n_in: int, n_out: int) -> np.ndarray:
    """Return what averages an axis over each output pixel's share of it: float64 (n_out, n_in)."""
    edges = np.arange(n_out + 1) * (n_in / n_out)
    pixels = np.arange(n_in)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return overlap.clip(0) * (n_out / n_in)


MATRICES: dict[str, Callable[[int, int], np.ndarray]] = {
    "bilinear without antialias": Resampling("bilinear").matrix,  # TensorFlow's tf.image.resize as it is called
    "area": _area,  # its method="area"
}
INTERPOLATIONS = (*PILLOW, *MATRICES)


@dataclass(frozen=True)
class Preprocessing:
    """How images become what a model has seen in its evaluation; fields are numbers and words, ready for JSON.

    Args:
        size: (H, W) that the model sees, in pixels. Where the resized image is larger, the middle is cut out; where
            it is smaller, it is padded with black, or, of "longest", with the mean.
        resize: "shortest" (the image keeps its proportions and just covers `resize_to`), "longest" (it just fits into
            it), "squash" (it gets that size) or "none".
        resize_to: (H, W) in pixels, `size` unless given.
        interpolation: a filter of Pillow, which antialiases and gives whole grey levels ("nearest", "box",
            "bilinear", "hamming", "bicubic", "lanczos"), or a method of TensorFlow: "bilinear without antialias",
            "area".
        mean, std: of each channel, where white is 1: the model sees ``(level / 255 − mean) / std``.
        channels: 3 (RGB) or 1 (grey).
        convention: whose rules to round by. "timm" (and torchvision) and "huggingface" round the longer side down,
            where `resize_to` is square, and differ in where an odd remainder's middle begins; "big_vision" rounds to
            the nearest and cuts TensorFlow's levels down to whole ones; "vit_jax" leaves these as they are.
        crop_pct: timm's: `for_size` resizes to the new size divided by it.

    Raises:
        WeightsError: a value is unknown or out of range.

    Source: timm, data/transforms_factory.py; torchvision, transforms/functional.py; transformers,
    image_processing_backends.py; vision_transformer, vit_jax/input_pipeline.py; big_vision, pp/ops_image.py.

    >>> timm = Preprocessing.from_timm({"input_size": [3, 224, 224], "crop_pct": 0.9, "mean": HALF, "std": HALF})
    >>> print(timm)
    shortest side to 248 pixels (bicubic), centre 224×224, mean 0.5 0.5 0.5, std 0.5 0.5 0.5
    >>> print(timm.for_size(384))
    shortest side to 426 pixels (bicubic), centre 384×384, mean 0.5 0.5 0.5, std 0.5 0.5 0.5
    >>> timm([np.zeros((480, 640, 3), np.uint8), np.full((50, 40), 255, np.uint8)])[:, :, 0, 0]
    array([[-1., -1., -1.],
           [ 1.,  1.,  1.]], dtype=float32)
    """

    size: Size
    resize: str = "squash"
    resize_to: Size | None = None
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF
    channels: int = 3
    convention: str = "timm"
    crop_pct: float | None = None

    def __post_init__(self) -> None:
        _word("resize", self.resize, RESIZES)
        _word("interpolation", self.interpolation, INTERPOLATIONS)
        _word("convention", self.convention, CONVENTIONS)
        if not _is_whole(self.channels) or self.channels not in (1, 3):
            raise WeightsError(f"channels is {quoted(self.channels)}; images are read as 1 (grey) or 3 (RGB)")
        if self.crop_pct is not None:
            _number("crop_pct", self.crop_pct, above=SMALL)
        tidy = {  # lists out of JSON become tuples
            "size": _sides("size", self.size),
            "resize_to": _sides("resize_to", self.size if self.resize_to is None else self.resize_to),
            "mean": _numbers("mean", self.mean, self.channels),
            "std": _numbers("std", self.std, self.channels, above=SMALL),
        }
        for name, value in tidy.items():
            object.__setattr__(self, name, value)

    def __call__(self, images: Any) -> np.ndarray:
        """Return images as the model wants them.

        Args:
            images: one, or several: paths, Pillow images, or arrays uint8 (H, W, C) or (H, W), as for `levels`.

        Returns:
            float32 (n, C, H, W), normalised; on the host.

        Raises:
            DataError: one of them is no image, or too long for its width.
        """
        several = _several(images)
        batch = np.empty((len(several), self.channels, *self.size), np.float32)

        def fill(place: int) -> None:
            batch[place] = self.levels(several[place])

        in_parallel(fill, range(len(several)))
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        batch /= 255
        batch -= mean
        batch /= std
        return batch

    def levels(self, image: Any) -> np.ndarray:
        """Return one image before normalisation: float32 (C, H, W), grey levels from 0 to 255.

        Args:
            image: a path, a Pillow image, or uint8 (H, W, C) or (H, W). It is turned as EXIF's orientation says, which
                torchvision, timm and transformers leave to their callers; transparency is dropped, as by torchvision.

        Raises:
            DataError: it is no image, or too long for its width.
        """
        return self._middle(self._resized(read_picture(image, self.channels)))

    def for_size(self, size: int | Size) -> Preprocessing:
        """Return the same for images of another size (H = W, or (H, W)): what is cut off stays the same share.

        Raises:
            WeightsError: the size is out of range.

        >>> print(IMAGENET_256.for_size((224, 448)))
        to cover 256×512 pixels (bicubic), centre 224×448, mean 0.485 0.456 0.406, std 0.229 0.224 0.225
        """
        size = _sides("size", size)
        if self.crop_pct is not None:
            return replace(self, size=size, resize_to=_divided(size, self.crop_pct))
        h, w = (resized * new // old for resized, new, old in zip(self._target, size, self.size, strict=True))
        return replace(self, size=size, resize_to=(h, w))

    def for_images(self, size: Size, channels: int) -> Preprocessing:
        """Return the same for images of this size and so many channels; grey has the mean of the colours' numbers.

        Images of other than one or three channels come in no file: for them the channels stay.
        """
        fitted = self
        if channels == 1 and self.channels == 3:
            mean, std = ((float(np.mean(values)),) for values in (self.mean, self.std))
            fitted = replace(self, channels=1, mean=mean, std=std)
        elif channels == 3 and self.channels == 1:
            fitted = replace(self, channels=3, mean=self.mean * 3, std=self.std * 3)
        return fitted if size == fitted.size else fitted.for_size(size)

    def __str__(self) -> str:
        (h, w), (height, width) = self._target, self.size
        square = {"shortest": f"shortest side to {h}", "longest": f"longest side to {h}"}
        other = {"shortest": f"to cover {h}×{w}", "longest": f"to fit into {h}×{w}", "squash": f"squashed to {h}×{w}"}
        words = other | square if h == w else other
        steps = "as it is" if self.resize == "none" else f"{words[self.resize]} pixels ({self.interpolation})"
        if self.resize != "squash" or self._target != self.size:
            steps += f", centre {height}×{width}"
        mean, std = (" ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"{steps}{', grey' if self.channels == 1 else ''}, mean {mean}, std {std}"

    @classmethod
    def from_timm(cls, pretrained_cfg: Mapping[str, Any]) -> Preprocessing:
        """Read timm's ``pretrained_cfg``, as in the ``config.json`` of its models; defaults are timm's.

        Raises:
            WeightsError: it has a value that timm does not know, or that this library does not.

        Source: timm, data/config.py (`resolve_data_config`).
        """
        given = {**TIMM_DEFAULTS, **{key: value for key, value in pretrained_cfg.items() if value}}
        if not isinstance(given["input_size"], list | tuple) or len(given["input_size"]) != 3:
            raise WeightsError(f"input_size is {quoted(given['input_size'])}; it must be channels, height and width")
        channels, *sides = given["input_size"]
        size, crop_pct = _sides("input_size", sides), _number("crop_pct", given["crop_pct"], above=SMALL)
        return cls(
            size=size,
            resize=CROP_MODES[_word("crop_mode", given["crop_mode"], CROP_MODES)],
            resize_to=_divided(size, crop_pct),
            interpolation=_word("interpolation", given["interpolation"], PILLOW),
            mean=given["mean"],
            std=given["std"],
            channels=channels,
            crop_pct=crop_pct,
        )

    @classmethod
    def from_huggingface(cls, preprocessor_config: Mapping[str, Any]) -> Preprocessing:
        """Read the ``preprocessor_config.json`` of transformers: ViT, DeiT, Bit (DINOv2), CLIP and SigLIP.

        What the file leaves out is the default of its class, or, of a file without one, of ViT's.

        Raises:
            WeightsError: the class, or a value, is none of those that this library knows, or the images would keep
                different sizes.

        Source: transformers, models/*/image_processing_*.py and image_processing_backends.py.

        >>> old = {"do_normalize": True, "do_resize": True, "image_mean": HALF, "image_std": HALF, "size": 224}
        >>> print(Preprocessing.from_huggingface(old))
        squashed to 224×224 pixels (bilinear), mean 0.5 0.5 0.5, std 0.5 0.5 0.5
        """
        given = {key: value for key, value in preprocessor_config.items() if value is not None}
        given = {**_huggingface_defaults(given), **given}
        for key in filter(lambda key: key.startswith("do_"), given):
            if given[key] not in ((False, True) if key in HUGGINGFACE_STEPS else (False,)):
                raise WeightsError(f"{key} is {quoted(given[key])}; such a step is not known here")
        resize, resize_to = _huggingface_size("size", given["size"], given["default_to_square"])
        resize = resize if given["do_resize"] else "none"
        if given["do_center_crop"]:
            crop, size = _huggingface_size("crop_size", given["crop_size"], square=True)
        else:
            crop, size = resize, resize_to
        if crop != "squash":
            raise WeightsError(
                f"size is {quoted(given['size'])} and crop_size {quoted(given['crop_size'])}; "
                "a height and a width are needed, or images would differ in size"
            )
        if not _is_whole(given["resample"]) or given["resample"] not in range(len(PILLOW)):
            raise WeightsError(f"resample is {quoted(given['resample'])}; it must be the number of a filter of Pillow")
        mean, std = _huggingface_normal(given)
        return cls(
            size=size,
            resize=resize,
            resize_to=resize_to,
            interpolation=PILLOW[given["resample"]],
            mean=mean,
            std=std,
            channels=len(mean),
            convention="huggingface",
        )

    # ------------------------------------------------------------------------------------------------------------------

    @property
    def _target(self) -> Size:
        assert self.resize_to is not None
        return self.resize_to

    def _resized(self, picture: Any) -> np.ndarray:
        """Resize a Pillow image: (h, w, C), whole grey levels or not."""
        from PIL import Image

        old = picture.height, picture.width
        new = self._resized_size(*old)
        if new == old:
            return np.asarray(picture).reshape(*new, self.channels)
        if self.interpolation in PILLOW:
            method = Image.Resampling[self.interpolation.upper()]
            # Across, then down, as Pillow did when the weights were made: since 13 it begins with what shrinks more.
            resized = picture.resize((new[1], old[0]), method).resize(new[::-1], method)
            return np.asarray(resized).reshape(*new, self.channels)
        rows, columns = (MATRICES[self.interpolation](*sizes) for sizes in zip(old, new, strict=True))
        planes = np.asarray(picture).reshape(*old, self.channels).transpose(2, 0, 1)
        planes, rows = planes[:, rows.any(axis=0)], rows[:, rows.any(axis=0)]  # most weigh nothing where none antialias
        planes, columns = planes[..., columns.any(axis=0)], columns[:, columns.any(axis=0)]
        levels = np.stack([rows @ plane @ columns.T for plane in planes], axis=2)
        # A rounding error shall not cost a grey level.
        return np.floor(levels + 1e-3) if self.convention == "big_vision" else levels

    def _resized_size(self, height: int, width: int) -> Size:
        """Return (h, w) of an image that was (height, width)."""
        if self.resize == "none":
            return height, width
        if self.resize == "squash":
            return self._target
        (h, w), old = self._target, (height, width)
        if self.convention in ("vit_jax", "big_vision"):  # in TensorFlow's float32
            factors = np.array((h, w), np.float32) / np.array(old, np.float32)
            factor = factors.max() if self.resize == "shortest" else factors.min()
            h, w = (int(np.rint(np.float32(side) * factor)) for side in old)
        elif self.resize == "shortest" and h == w:
            h, w = (int(h * side / min(old)) for side in old)
        else:
            ratios = height / h, width / w
            ratio = min(ratios) if self.resize == "shortest" else max(ratios)
            h, w = (round(side / ratio) for side in old)
        if max(h, w) > MAX_SIDE:
            raise DataError(f"an image of {width} × {height} pixels would be resized to {w} × {h}; cut it before")
        return max(h, 1), max(w, 1)

    def _middle(self, resized: np.ndarray) -> np.ndarray:
        """Cut out the middle, or pad, to `size`: (h, w, C) -> float32 (C, H, W)."""
        levels = np.empty((*self.size, self.channels), np.float32)
        levels[:] = [round(255 * mean) for mean in self.mean] if self.resize == "longest" else 0
        (from_rows, to_rows), (from_columns, to_columns) = map(self._spans, resized.shape[:2], self.size)
        levels[to_rows, to_columns] = resized[from_rows, from_columns]
        return np.ascontiguousarray(levels.transpose(2, 0, 1))

    def _spans(self, side: int, wanted: int) -> tuple[slice, slice]:
        """Return which pixels of an axis go where."""
        if wanted > side:
            before = (wanted - side) // 2
            return slice(0, side), slice(before, before + side)
        start = round((side - wanted) / 2) if self.convention == "timm" else (side - wanted) // 2
        return slice(start, start + wanted), slice(0, wanted)


# ----------------------------------------------------------------------------------------------------------------------


def _several(images: Any) -> list[Any]:
    if isinstance(images, np.ndarray):
        return [images] if images.ndim < 4 else list(images)
    one = isinstance(images, str | os.PathLike) or not isinstance(images, Iterable)
    return [images] if one else list(images)


def _divided(size: Size, crop_pct: float) -> Size:
    h, w = (math.floor(side / crop_pct) for side in size)
    return h, w


def _word(name: str, value: Any, known: Iterable[str]) -> str:
    if value not in tuple(known):
        raise WeightsError(f"{name} is {quoted(value)}; it must be one of {', '.join(known)}")
    return value


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _sides(name: str, value: Any) -> Size:
    sides = (value, value) if _is_whole(value) else value
    good = isinstance(sides, list | tuple) and len(sides) == 2
    if not good or not all(_is_whole(side) and 1 <= side <= MAX_SIDE for side in sides):
        raise WeightsError(f"{name} is {quoted(value)}; it must be pixels, H = W or (H, W), from 1 to {MAX_SIDE:,}")
    return sides[0], sides[1]


def _number(name: str, value: Any, above: float = -1e6) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not above < value < 1e6:
        raise WeightsError(f"{name} is {quoted(value)}; it must be a number from {above:g} to 1e+06")
    return float(value)


def _numbers(name: str, values: Any, channels: int, above: float = -1e6) -> tuple[float, ...]:
    """Return a number for each channel; a single one is for all."""
    values = values if isinstance(values, list | tuple) else [values]
    if len(values) not in (1, channels):
        raise WeightsError(f"{name} is {quoted(values)}; it must be a number for each of the {channels} channels")
    numbers = tuple(_number(name, value, above) for value in values)
    return numbers * channels if len(numbers) == 1 else numbers


# The files of transformers -------------------------------------------------------------------------------------------

HUGGINGFACE_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
_ALWAYS: dict[str, Any] = {
    "do_resize": True,
    "do_center_crop": False,
    "do_rescale": True,
    "do_normalize": True,
    "resample": 2,
}
_ALWAYS |= {"rescale_factor": 1 / 255, "default_to_square": True, "image_mean": HALF, "image_std": HALF}
_ALWAYS |= {"size": 224, "crop_size": None}
_CLIP: dict[str, Any] = {"resample": 3, "default_to_square": False, "do_center_crop": True, "crop_size": 224}
_CLIP |= {"size": {"shortest_edge": 224}, "image_mean": CLIP_MEAN, "image_std": CLIP_STD}
HUGGINGFACE: dict[str, dict[str, Any]] = {
    "ViT": {},
    "DeiT": {"size": 256, "resample": 3, "do_center_crop": True, "crop_size": 224},
    "Bit": _CLIP,
    "CLIP": _CLIP,
    "Siglip": {"size": {"height": 224, "width": 224}, "resample": 3, "default_to_square": False},
}


def _huggingface_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    kind = config.get("image_processor_type", config.get("feature_extractor_type", "ViTImageProcessor"))
    for name, defaults in HUGGINGFACE.items():
        if kind in [name + end for end in ("ImageProcessor", "ImageProcessorFast", "FeatureExtractor")]:
            return _ALWAYS | defaults
    known = ", ".join(f"{name}ImageProcessor" for name in HUGGINGFACE)
    raise WeightsError(f"image_processor_type is {quoted(kind)}; it must be one of {known}")


def _huggingface_size(name: str, size: Any, square: bool) -> tuple[str, Size]:
    """Return "squash" or "shortest", and (H, W)."""
    if isinstance(size, Mapping) and size.keys() == {"height", "width"}:
        return "squash", _sides(name, (size["height"], size["width"]))
    if isinstance(size, Mapping) and size.keys() == {"shortest_edge"}:
        return "shortest", _sides(name, size["shortest_edge"])
    return "squash" if square or not _is_whole(size) else "shortest", _sides(name, size)


def _huggingface_normal(config: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std where white is 1, whatever it is there."""
    channels = len(config["image_mean"]) if isinstance(config["image_mean"], list | tuple) else 3
    means = _numbers("image_mean", config["image_mean"], channels)
    stds = _numbers("image_std", config["image_std"], channels, above=SMALL)
    if not config["do_normalize"]:
        means, stds = (0.0,) * channels, (1.0,) * channels
    factor = _number("rescale_factor", config["rescale_factor"], above=SMALL) if config["do_rescale"] else 1.0
    return tuple(mean / (255 * factor) for mean in means), tuple(std / (255 * factor) for std in stds)


# The families, where a file says nothing ------------------------------------------------------------------------------

TIMM_DEFAULTS = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": IMAGENET_MEAN,
    "std": IMAGENET_STD,
}
CROP_MODES = {"center": "shortest", "squash": "squash", "border": "longest"}

GOOGLE_JAX = Preprocessing((224, 224), interpolation="bilinear without antialias", convention="vit_jax")
BIG_VISION_I1K = Preprocessing((224, 224), "shortest", (256, 256), "area", convention="big_vision")
BIG_VISION_SQUASH = replace(GOOGLE_JAX, convention="big_vision")
TIMM = Preprocessing((224, 224), "shortest", (248, 248), "bicubic", crop_pct=0.9)
IMAGENET_256 = Preprocessing((224, 224), "shortest", (256, 256), "bicubic", IMAGENET_MEAN, IMAGENET_STD)
TORCHVISION = replace(IMAGENET_256, interpolation="bilinear")
HF_VIT = Preprocessing((224, 224), interpolation="bilinear", convention="huggingface")
HF_DINOV2 = replace(IMAGENET_256, convention="huggingface")
CLIP = Preprocessing((224, 224), "shortest", (224, 224), "bicubic", CLIP_MEAN, CLIP_STD)

PREPROCESSING = {
    "vit_jax": GOOGLE_JAX,
    "big_vision": BIG_VISION_I1K,
    "siglip_jax": BIG_VISION_SQUASH,
    "timm": TIMM,
    "deit": IMAGENET_256,
    "dino": IMAGENET_256,
    "dinov2": IMAGENET_256,
    "torchvision": TORCHVISION,
    "hf_vit": HF_VIT,
    "hf_dinov2": HF_DINOV2,
    "clip": CLIP,
}
