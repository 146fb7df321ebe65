"""Datasets: the digits that come with tinyvit, and any ``.npz`` file in MedMNIST's layout."""

import difflib
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SPLITS = {"train": "training", "val": "validation", "test": "test"}  # MedMNIST's prefix: our word
MAX_CHANNELS = 4  # grey, grey + alpha, RGB, RGBA: anything wider is another layout, not an image
MAX_CLASSES = 2**16  # in a file that does not name its classes: a larger label is a damaged label


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


def _describe(value: object) -> str:
    return f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images: one part (training, validation or test) of a dataset.

    Args:
        images: uint8 ``(n, C, H, W)``, grey levels 0 (black) to 255 (white).
        labels: int64 ``(n,)``, the class of each image, counted from 0.

    Raises:
        DataError: where a shape or a dtype is another.

    >>> len(Split(np.zeros((5, 1, 8, 8), np.uint8), np.zeros(5, np.int64)))
    5
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if getattr(images, "dtype", None) != np.uint8 or images.ndim != 4 or 0 in images.shape[1:]:
            raise DataError(f"images must be uint8 of shape (n, C, H, W), but are {_describe(images)}")
        if getattr(labels, "dtype", None) != np.int64 or labels.shape != (len(images),):
            wanted = f"int64 of shape ({len(images)},), one class an image"
            raise DataError(f"labels must be {wanted}, but are {_describe(labels)}")

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
        for part, split in zip(SPLITS.values(), (self.train, self.validation, self.test), strict=True):
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

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the mean and the standard deviation of each channel of the training images.

        Returns:
            ``(mean, std)``, C floats each, in units in which 0 is black and 1 is white. A std is never below
            one grey level (1/255), so that one may divide by it even where a channel is constant.

        >>> mean, std = digits().statistics()
        >>> round(mean[0], 3), round(std[0], 3)
        (0.306, 0.376)
        """
        images = self.train.images
        pixels = images.size // self.channels
        # Whole numbers, summed without ever holding a wide copy of the images.
        sums = images.sum(axis=(0, 2, 3), dtype=np.int64)
        squares = np.einsum("nchw,nchw->c", images, images, dtype=np.int64)
        mean = sums / pixels
        std = np.sqrt(np.maximum(squares / pixels - mean**2, 1.0))
        return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def digits() -> Dataset:
    """Return the handwritten digits that come with tinyvit: 1,797 grey images of 8 × 8 pixels in 10 classes.

    Training 1,259, validation 179, test 359 images, drawn once from each class (70 %, 10 %, 20 %; the recipe
    is in ``digits/LICENSE``). The file holds the grey levels 0 to 16 of the source; here they are scaled to
    0 to 255 and rounded, as in any 8-bit image. The splits share their 13 writers: a test accuracy tells of
    unseen images, not of unseen hands.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits (its test set), UCI Machine
    Learning Repository, 1998, https://doi.org/10.24432/C50P49.

    >>> data = digits()
    >>> len(data.train), len(data.validation), len(data.test)
    (1259, 179, 359)
    """
    with np.load(Path(__file__).parent / "digits" / "digits.npz", allow_pickle=False) as file:
        images, labels, split = file["images"], file["labels"], file["split"]
    images = np.rint(images[:, None] * (255 / 16)).astype(np.uint8)
    labels = labels.astype(np.int64)
    train, validation, test = (Split(images[split == part], labels[split == part]) for part in range(3))
    licence = "CC BY 4.0: E. Alpaydin and C. Kaynak, https://doi.org/10.24432/C50P49"
    return Dataset("digits", train, validation, test, tuple("0123456789"), licence)


def load_npz(path: str | Path) -> Dataset:
    """Read a dataset from an ``.npz`` file in MedMNIST's layout. Nothing in the file is ever unpickled.

    The file holds ``train_images``, ``train_labels``, ``val_images``, ``val_labels``, ``test_images`` and
    ``test_labels``: images uint8 ``(n, H, W)`` or ``(n, H, W, C)`` with C from 1 to 4, labels whole numbers
    from 0, ``(n,)`` or ``(n, 1)``. It may hold ``classes``, the names of the classes ``(K,)``, as text;
    without it they are called "0", "1" and so on up to the largest label.

    Raises:
        DataError: where the file is missing, damaged or in another layout.

    Source: the file format of MedMNIST (Yang et al., Scientific Data 2023), https://medmnist.com.

    >>> import tempfile
    >>> part = {"images": np.zeros((4, 28, 28, 3), np.uint8), "labels": np.array([[0], [1], [1], [0]])}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "cells.npz"
    ...     np.savez(file, **{f"{s}_{k}": v for s in ("train", "val", "test") for k, v in part.items()})
    ...     data = load_npz(file)
    >>> data.name, data.channels, data.image_size, data.classes
    ('cells', 3, (28, 28), ('0', '1'))
    """
    path = Path(path)
    arrays = _read_npz(path)
    missing = [key for s in SPLITS for key in (f"{s}_images", f"{s}_labels") if key not in arrays]
    if missing:
        raise DataError(
            f"{path} lacks {', '.join(missing)}: MedMNIST's layout has train_images and train_labels, "
            "and the same for val and test"
        )
    splits = []
    for prefix, part in SPLITS.items():
        try:
            splits.append(_medmnist_split(arrays[f"{prefix}_images"], arrays[f"{prefix}_labels"]))
        except DataError as error:
            raise DataError(f"{path}: the {part} {error}") from None
    classes = arrays.get("classes")
    if classes is None:
        highest = max(int(split.labels.max(initial=0)) for split in splits)
        if highest >= MAX_CLASSES:
            raise DataError(f"{path}: label {highest} is too large for a class number; labels are 0 to K - 1")
        classes = np.arange(highest + 1).astype(str)
    elif classes.ndim != 1 or classes.dtype.kind != "U":
        raise DataError(f"{path}: classes must be text (K,), one name a class, but is {_describe(classes)}")
    try:
        train, validation, test = splits
        return Dataset(path.stem, train, validation, test, tuple(classes.tolist()), "not stated in the file")
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    wanted = {f"{s}_{kind}" for s in SPLITS for kind in ("images", "labels")} | {"classes"}
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):  # np.load would take it for a pickle and speak of that
                raise zipfile.BadZipFile("it is no zip archive, or an incomplete one")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                return {key: np.asarray(archive[key]) for key in wanted.intersection(archive)}
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except Exception as error:  # a damaged file makes zipfile, zlib and NumPy's parser raise a dozen types
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"{path} cannot be read as an .npz file: {reason}") from error


def _medmnist_split(images: np.ndarray, labels: np.ndarray) -> Split:
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or not 1 <= images.shape[-1] <= MAX_CHANNELS:
        wanted = f"uint8 of shape (n, H, W) or (n, H, W, C) with C from 1 to {MAX_CHANNELS}"
        raise DataError(f"images must be {wanted}, but are {_describe(images)}")
    if labels.shape == (len(images), 1):
        labels = labels[:, 0]
    if np.issubdtype(labels.dtype, np.integer):  # others are left to Split, which refuses them
        labels = labels.astype(np.int64)
    return Split(np.ascontiguousarray(np.moveaxis(images, -1, 1)), labels)


DATASETS: dict[str, Callable[[], Dataset]] = {"digits": digits}


def load_dataset(name_or_path: str | Path) -> Dataset:
    """Return a dataset by its name, or read it from an ``.npz`` file (see `load_npz`).

    Raises:
        DataError: where there is no such name or file, or the file cannot be used.

    >>> load_dataset("digits").name
    'digits'
    >>> load_dataset("digit")
    Traceback (most recent call last):
    tinyvit.data.datasets.DataError: unknown dataset 'digit': did you mean 'digits'? ...
    """
    name, path = str(name_or_path), Path(name_or_path)
    if name in DATASETS:
        return DATASETS[name]()
    if path.suffix.lower() == ".npz":
        return load_npz(path)
    if path.exists():
        raise DataError(f"{path} is not an .npz file, the only kind of file that datasets are read from")
    if path.name != name:
        raise DataError(f"{path} does not exist; give an .npz file, or one of {', '.join(DATASETS)}")
    raise DataError(f"{unknown_name('dataset', name, DATASETS)}; or give the path of an .npz file")
