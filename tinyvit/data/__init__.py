"""Data: labelled images on the host, their augmentation, and the loader that turns them into batches.

Images are kept as 8-bit arrays ``(n, C, H, W)`` and become normalised float32 batches only in the loader.
The room knows nothing of tensors, models or devices: all that it holds and gives are NumPy arrays. Nothing
is ever downloaded: ``digits`` is part of the package, and all else is read from an ``.npz`` file on disk.
"""

from tinyvit.data.datasets import DATASETS, DataError, Dataset, Split, digits, load_dataset, load_npz
from tinyvit.data.loader import Loader, preprocess
from tinyvit.data.transforms import (
    AUGMENTATIONS,
    Augmentation,
    ColorJitter,
    CutMix,
    Mixup,
    RandAugment,
    RandomAffine,
    RandomCrop,
    RandomErasing,
    RandomFlip,
    RandomResizedCrop,
    augmentation,
    augmentations,
    warp,
)

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "Augmentation",
    "ColorJitter",
    "CutMix",
    "DataError",
    "Dataset",
    "Loader",
    "Mixup",
    "RandAugment",
    "RandomAffine",
    "RandomCrop",
    "RandomErasing",
    "RandomFlip",
    "RandomResizedCrop",
    "Split",
    "augmentation",
    "augmentations",
    "digits",
    "load_dataset",
    "load_npz",
    "preprocess",
    "warp",
]
