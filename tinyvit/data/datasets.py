"""What a dataset is: labelled images in three splits, the names of their classes, and how pictures are read."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

PARTS = ("training", "validation", "test")  # the three splits, as messages call them
INTERPOLATIONS = ("box", "bilinear", "hamming", "bicubic", "lanczos")  # Pillow's filters that do not alias
ON_BAD_IMAGE = ("raise", "skip")
SAMPLE = 1024  # images in files that `Dataset.statistics` looks at


class DataError(ValueError):
    """A dataset, a file or a setting of the loader that cannot be used; the message is one sentence."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> DataError:
    """Return the error for a `name` that is not among the `known` ones; it offers the nearest of them.

    >>> unknown_name("dataset", "digit", ["digits", "letters"])
    DataError("unknown dataset 'digit': did you mean 'digits'? The known names are digits, letters")
    """
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f": did you mean {nearest[0]!r}? The" if nearest else "; the"
    return DataError(f"unknown {kind} {name!r}{hint} known names are {', '.join(known)}")


def kind_of(value: object) -> str:
    """Say in a few words what was given where an array was expected."""
    return f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images: one part (training, validation or test) of a dataset.

    Args:
        images: uint8 ``(n, C, H, W)``, grey levels 0 (black) to 255 (white): an array, or `ImageFiles`.
        labels: int64 ``(n,)``, the class of each image, counted from 0.

    Raises:
        DataError: where a shape or a dtype is another.

    >>> len(Split(np.zeros((5, 1, 8, 8), np.uint8), np.zeros(5, np.int64)))
    5
    """

    images: Any
    labels: np.ndarray

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        shape = getattr(images, "shape", ())
        if getattr(images, "dtype", None) != np.uint8 or len(shape) != 4 or 0 in shape[1:]:
            raise DataError(f"images must be uint8 of shape (n, C, H, W), but are {kind_of(images)}")
        if getattr(labels, "dtype", None) != np.int64 or labels.shape != (len(images),):
            wanted = f"int64 of shape ({len(images)},), one class an image"
            raise DataError(f"labels must be {wanted}, but are {kind_of(labels)}")

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits of images of one size, and the names of their classes.

    Args:
        name: what reports and run folders call it.
        train, validation, test: the splits; `train` has at least one image, the others may be empty.
        classes: a name for each class; label ``k`` means ``classes[k]``.
        licence: the terms under which the images may be used, and whom to credit.

    Raises:
        DataError: where the splits differ in image shape, a label has no class, or `train` is empty.

    >>> from tinyvit.data import digits
    >>> data = digits()
    >>> data.channels, data.image_size, data.num_classes
    (1, (8, 8), 10)
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    licence: str

    def __post_init__(self) -> None:
        if not len(self.train):
            raise DataError("the training split has no images")
        shape = self.train.images.shape[1:]
        for part, split in zip(PARTS, (self.train, self.validation, self.test), strict=True):
            if (other := split.images.shape[1:]) != shape:
                raise DataError(f"the {part} images are (C, H, W) = {other}, but the training images {shape}")
            low, high = int(split.labels.min(initial=0)), int(split.labels.max(initial=0))
            if low < 0 or high >= self.num_classes:
                raise DataError(
                    f"the {part} labels reach from {low} to {high}, "
                    f"but with {self.num_classes} classes must lie in 0 to {self.num_classes - 1}"
                )

    @property
    def channels(self) -> int:
        """Number of colour channels C: 1 for grey, 3 for RGB."""
        return int(self.train.images.shape[1])

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width ``(H, W)`` of every image, in pixels."""
        _, _, height, width = self.train.images.shape
        return height, width

    @property
    def num_classes(self) -> int:
        """Number of classes K; labels are 0 to K − 1."""
        return len(self.classes)

    def skipped(self) -> dict[str, str]:
        """Return path → reason of the image files that could not be used, among those looked at so far."""
        found = [getattr(split.images, "bad", {}) for split in (self.train, self.validation, self.test)]
        return {os.path.abspath(path): reason for bad in found for path, reason in bad.items()}

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the mean and the standard deviation of each channel of the training images.

        Of images in files it is those of a sample: at most 1,024, evenly spread over the training files and the
        same ones each time, less those that cannot be read (where `Reading.on_bad_image` allows for such).

        Returns:
            ``(mean, std)``, C floats each, in units in which 0 is black and 1 is white. A std is never below
            one grey level (1/255), so that one may divide by it even where a channel is constant.

        Raises:
            DataError: where a file cannot be read, or none of the sample can.

        >>> from tinyvit.data import digits
        >>> mean, std = digits().statistics()
        >>> round(mean[0], 3), round(std[0], 3)
        (0.306, 0.376)
        """
        pixels, sums, squares = 0, np.zeros(self.channels, np.int64), np.zeros(self.channels, np.int64)
        for images in self._sample():
            # Whole numbers, summed without ever holding a wide copy of the images.
            pixels += images.size // self.channels
            sums += images.sum(axis=(0, 2, 3), dtype=np.int64)
            squares += np.einsum("nchw,nchw->c", images, images, dtype=np.int64)
        if not pixels:
            raise DataError("none of the training images can be read")
        mean = sums / pixels
        std = np.sqrt(np.maximum(squares / pixels - mean**2, 1.0))
        return tuple((mean / 255).tolist()), tuple((std / 255).tolist())

    def _sample(self) -> Iterator[np.ndarray]:
        images = self.train.images
        if isinstance(images, np.ndarray):
            yield images
            return
        for rows in np.array_split(spread(len(images), SAMPLE), -(-min(len(images), SAMPLE) // 64)):
            decoded, readable = images.read(rows)
            yield decoded[readable]


def spread(n: int, most: int) -> np.ndarray:
    """Return at most `most` of the rows 0 to n − 1, evenly spread.

    >>> spread(10, 4)
    array([0, 3, 6, 9])
    """
    return np.linspace(0, n - 1, min(n, most)).round().astype(np.int64)


@dataclass(frozen=True)
class Reading:
    """How a dataset is read, where its source leaves that open.

    Args:
        validation, test: the shares of the images that are held out where the source has no such split of its
            own, the same share of each class. Files in the layouts of MNIST and CIFAR have a test split, so
            only `validation` is taken from their training images; one folder of classes gives both.
        split_seed: of the draw, at least 0.
        image_size: H = W, or ``(H, W)``, in pixels, that pictures in files are brought to.
        channels: 1 (grey) or 3 (RGB), of pictures in files.
        crop_ratio: the share of a picture's shorter side that the centre crop of evaluation keeps, above 0 and
            at most 1 (timm's ``crop_pct``).
        interpolation: Pillow's filter for resizing, with antialias: box, bilinear, hamming, bicubic or lanczos.
        on_bad_image: "raise" on a picture that cannot be used, or "skip" it.
        offline: never download.

    Raises:
        DataError: where a value is out of range.

    >>> Reading(image_size=(192, 256)).size
    (192, 256)
    >>> Reading(validation=0.5, test=0.5)
    Traceback (most recent call last):
    tinyvit.data.datasets.DataError: validation 0.5 and test 0.5 leave no training images; ...
    """

    validation: float = 0.1
    test: float = 0.1
    split_seed: int = 0
    image_size: int | tuple[int, int] = 224
    channels: int = 3
    crop_ratio: float = 1.0
    interpolation: str = "bilinear"
    on_bad_image: str = "raise"
    offline: bool = False

    def __post_init__(self) -> None:
        for name in ("validation", "test"):
            if not 0 <= (share := getattr(self, name)) < 1:
                raise DataError(f"{name} is {share}; it is a share of the images, at least 0 and below 1")
        if self.validation + self.test >= 1:
            shares = f"validation {self.validation} and test {self.test}"
            raise DataError(f"{shares} leave no training images; their sum must be below 1")
        if not _is_whole(self.split_seed, 0):
            raise DataError(f"split_seed is {self.split_seed!r}; it must be a whole number of at least 0")
        if len(self.size) != 2 or not all(_is_whole(side, 1) for side in self.size):
            raise DataError(f"image_size is {self.image_size!r}; it must be whole pixels, H = W or (H, W)")
        if not 0 < self.crop_ratio <= 1:
            raise DataError(f"crop_ratio is {self.crop_ratio}; it must be above 0 and at most 1")
        if self.interpolation not in INTERPOLATIONS:
            raise unknown_name("interpolation", self.interpolation, INTERPOLATIONS)
        if self.on_bad_image not in ON_BAD_IMAGE:
            raise unknown_name("on_bad_image", self.on_bad_image, ON_BAD_IMAGE)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width ``(H, W)`` that pictures are brought to."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def held_out(labels: np.ndarray, shares: tuple[float, float], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw rows for training, validation and test: the same shares of each class, at least one left for training.

    Args:
        labels: int64 ``(n,)``.
        shares: those of validation and test.
        seed: of the draw; the draw of a class does not depend on the other classes.

    Returns:
        Three arrays of rows, each ascending.

    >>> [rows.tolist() for rows in held_out(np.array([0, 0, 0, 0, 1, 1, 1, 1]), (0.25, 0.25), seed=0)]
    [[2, 3, 5, 7], [1, 6], [0, 4]]
    """
    part = np.zeros(len(labels), np.int8)
    for k in np.unique(labels):
        rows = np.flatnonzero(labels == k)
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(k),)))
        validation = min(int(len(rows) * shares[0] + 0.5), len(rows) - 1)
        test = min(int(len(rows) * shares[1] + 0.5), len(rows) - 1 - validation)
        drawn = rng.permutation(rows)
        part[drawn[:validation]] = 1
        part[drawn[validation : validation + test]] = 2
    train, val, held = (np.flatnonzero(part == p) for p in range(3))
    return train, val, held


def with_validation(
    name: str, whole: Split, test: Split, classes: tuple[str, ...], licence: str, reading: Reading
) -> Dataset:
    """Return a `Dataset` whose validation images are drawn from the training images: `Reading.validation` of them."""
    train, validation, _ = held_out(whole.labels, (reading.validation, 0.0), reading.split_seed)
    parts = [Split(whole.images[rows], whole.labels[rows]) for rows in (train, validation)]
    return Dataset(name, parts[0], parts[1], test, classes, licence)
