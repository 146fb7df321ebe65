"""The digits that come with tinyvit."""

from pathlib import Path

import numpy as np

from tinyvit.data.datasets import Dataset, Split

LICENCE = "CC BY 4.0: E. Alpaydin and C. Kaynak, https://doi.org/10.24432/C50P49"


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
    with np.load(Path(__file__).parents[1] / "digits" / "digits.npz", allow_pickle=False) as file:
        images, labels, split = file["images"], file["labels"], file["split"]
    images = np.rint(images[:, None] * (255 / 16)).astype(np.uint8)
    labels = labels.astype(np.int64)
    train, validation, test = (Split(images[split == part], labels[split == part]) for part in range(3))
    return Dataset("digits", train, validation, test, tuple("0123456789"), LICENCE)
