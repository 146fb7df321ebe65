"""Single images from files, for a model that was trained to see images of one size."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tinyvit.data.datasets import DataError


def read_image(path: str | Path, channels: int, size: tuple[int, int]) -> np.ndarray:
    """Read an image as uint8 (C, H, W): the largest centred part of the wanted proportions, resized.

    Args:
        path: any format that Pillow reads, or an .npy file of uint8 (H, W), (H, W, C) or (C, H, W) in that size.
        channels: 1 for grey, 3 for RGB.
        size: (H, W) in pixels.

    Raises:
        DataError: the file is missing or no image, or Pillow is not installed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "one.npy"
    ...     np.save(file, np.zeros((8, 8), np.uint8))
    ...     read_image(file, channels=1, size=(8, 8)).shape
    (1, 8, 8)
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no image file {path}")
    return _from_npy(path, channels, size) if path.suffix == ".npy" else _from_picture(path, channels, size)


def _from_npy(path: Path, channels: int, size: tuple[int, int]) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged header makes NumPy's parser raise many types
        raise DataError(f"{path} cannot be read as an .npy file: {str(error).partition(chr(10))[0]}") from error
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3 and array.shape[-1] == channels and array.shape[0] != channels:
        array = array.transpose(2, 0, 1)
    if array.dtype != np.uint8 or array.shape != (channels, *size):
        raise DataError(f"{path} holds {array.dtype} {array.shape}; the model takes uint8 {(channels, *size)}")
    return array


def _from_picture(path: Path, channels: int, size: tuple[int, int]) -> np.ndarray:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise DataError(f"reading {path} needs Pillow: pip install 'tinyvit[vision]'") from error
    if channels not in (1, 3):
        raise DataError(f"an image file gives 1 or 3 channels, but the model takes {channels}: give an .npy file")
    height, width = size
    try:
        with Image.open(path) as picture:
            upright = ImageOps.exif_transpose(picture).convert("L" if channels == 1 else "RGB")
            fitted = ImageOps.fit(upright, (width, height), Image.Resampling.BILINEAR)
    except Exception as error:  # Pillow's decoders raise many types for damaged files and decompression bombs
        raise DataError(f"{path} cannot be read as an image: {error}") from error
    return np.asarray(fitted, np.uint8).reshape(height, width, channels).transpose(2, 0, 1)
