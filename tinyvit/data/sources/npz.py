"""Arrays in an ``.npz`` file, in MedMNIST's layout."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tinyvit.data.datasets import PARTS, DataError, Dataset, Split, kind_of

PREFIXES = ("train", "val", "test")
MAX_CHANNELS = 4  # grey, grey + alpha, RGB, RGBA: anything wider is another layout, not an image
MAX_CLASSES = 2**16  # in a file that does not name its classes: a larger label is a damaged label


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
    missing = [key for s in PREFIXES for key in (f"{s}_images", f"{s}_labels") if key not in arrays]
    if missing:
        raise DataError(
            f"{path} lacks {', '.join(missing)}: MedMNIST's layout has train_images and train_labels, "
            "and the same for val and test"
        )
    splits = []
    for prefix, part in zip(PREFIXES, PARTS, strict=True):
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
        raise DataError(f"{path}: classes must be text (K,), one name a class, but is {kind_of(classes)}")
    try:
        train, validation, test = splits
        return Dataset(path.stem, train, validation, test, tuple(classes.tolist()), "not stated in the file")
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    wanted = {f"{s}_{kind}" for s in PREFIXES for kind in ("images", "labels")} | {"classes"}
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):  # np.load would take it for a pickle and speak of that
                raise zipfile.BadZipFile("it is no zip archive, or an incomplete one")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                return {key: _member(archive, key) for key in wanted.intersection(archive)}
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except Exception as error:  # a damaged file makes zipfile, zlib and NumPy's parser raise a dozen types
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"{path} cannot be read as an .npz file: {reason}") from error


def _member(archive: Mapping[str, Any], key: str) -> np.ndarray:
    try:
        return np.asarray(archive[key])
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        advice = "save numbers, and the names of classes as text"
        raise ValueError(f"{key} holds Python objects, which are never unpickled; {advice}") from error


def _medmnist_split(images: np.ndarray, labels: np.ndarray) -> Split:
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or not 1 <= images.shape[-1] <= MAX_CHANNELS:
        wanted = f"uint8 of shape (n, H, W) or (n, H, W, C) with C from 1 to {MAX_CHANNELS}"
        raise DataError(f"images must be {wanted}, but are {kind_of(images)}")
    n = len(images)
    if labels.ndim == 2 and labels.shape[1] > 1:
        advice = f"give one class an image, ({n},) or ({n}, 1)"
        raise DataError(f"labels are several an image {labels.shape}, which is not supported; {advice}")
    if labels.shape not in ((n,), (n, 1)) or not np.issubdtype(labels.dtype, np.integer):
        wanted = f"whole numbers of shape ({n},) or ({n}, 1), one class for each of {n} images"
        raise DataError(f"labels must be {wanted}, but are {kind_of(labels)}")
    return Split(np.ascontiguousarray(np.moveaxis(images, -1, 1)), labels.reshape(n).astype(np.int64))
