"""Data: labelled images on the host, their augmentation, and the loader that turns them into batches.

Images are kept as 8-bit arrays ``(n, C, H, W)``, or stay in their files until they are asked for, and become
normalised float32 batches only in the loader. The room knows nothing of tensors and models and keeps NumPy arrays; an
augmentation computes where the batch that it is given lies, be it on a GPU. ``digits`` is part of the package, all else
is read from disk; and only a dataset that is asked for by its name, and is not on this machine, is downloaded.
"""

from tinyvit.data.datasets import DataError, Dataset, Reading, Split, unknown_name
from tinyvit.data.images import ImageFiles, read_image
from tinyvit.data.loader import Loader, preprocess
from tinyvit.data.sources import (
    DATASETS,
    digits,
    load_cifar,
    load_dataset,
    load_folder,
    load_idx,
    load_npz,
)
from tinyvit.data.transforms import (
    AUGMENTATIONS,
    Augmentation,
    ColorJitter,
    CutMix,
    Mixing,
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
    "ImageFiles",
    "Loader",
    "Mixing",
    "Mixup",
    "RandAugment",
    "RandomAffine",
    "RandomCrop",
    "RandomErasing",
    "RandomFlip",
    "RandomResizedCrop",
    "Reading",
    "Split",
    "augmentation",
    "augmentations",
    "digits",
    "load_cifar",
    "load_dataset",
    "load_folder",
    "load_idx",
    "load_npz",
    "preprocess",
    "read_image",
    "unknown_name",
    "warp",
]
