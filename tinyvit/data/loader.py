"""The loader: from a split's 8-bit images to normalised float32 batches, the same ones on every run."""

from collections.abc import Iterator, Sequence

import numpy as np

from tinyvit.data.datasets import DataError, Split
from tinyvit.data.transforms import Augmentation

ORDER, AUGMENT = 0, 1  # the two random streams of an epoch; see Loader._generator


def _unit(images: np.ndarray) -> np.ndarray:
    if images.dtype != np.uint8 or images.ndim != 4:
        raise DataError(f"images must be uint8 of shape (B, C, H, W), but are {images.dtype} {images.shape}")
    return images.astype(np.float32) / np.float32(255)


def _normalise(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    channels = images.shape[1]
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise DataError(
            f"images of {channels} channels need {channels} means and as many standard deviations above 0, "
            f"but mean is {tuple(mean)} and std is {tuple(std)}"
        )
    centre, spread = (np.array(value, np.float32).reshape(-1, 1, 1) for value in (mean, std))
    return (images - centre) / spread


def preprocess(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Turn 8-bit images into what a model is trained on: ``(images / 255 − mean) / std``, channel by channel.

    Args:
        images: uint8 ``(B, C, H, W)``.
        mean, std: C floats each, in units in which 255 is 1 (see `Dataset.statistics`).

    Returns:
        float32 ``(B, C, H, W)``, bit for bit what a `Loader` without augmentation gives.

    Raises:
        DataError: where a shape or a dtype is another, or a std is not above 0.

    >>> preprocess(np.full((1, 1, 1, 2), 255, np.uint8), mean=[0.5], std=[0.25])
    array([[[[2., 2.]]]], dtype=float32)
    """
    return _normalise(_unit(images), mean, std)


class Loader:
    """Batches of a split, epoch after epoch.

    A batch depends on ``(seed, epoch, batch index)`` alone, never on what was drawn before: a run that stops
    within an epoch and goes on at that batch sees exactly what it would have seen.

    Args:
        split: the images and labels.
        batch_size: images a batch; the last batch of an epoch may be smaller.
        mean, std: of each channel, as in `preprocess`.
        augment: applied to the float32 images in [0, 1], before they are normalised.
        shuffle: take the images in another order in each epoch, instead of always as they stand.
        drop_last: leave out the last batch where it is smaller.
        seed: of the order and of the augmentation, at least 0.

    Raises:
        DataError: where there would be no batch, or an argument is out of range.

    >>> from tinyvit.data import digits
    >>> data = digits()
    >>> mean, std = data.statistics()
    >>> loader = Loader(data.train, 128, mean=mean, std=std, shuffle=True)
    >>> len(loader)
    10
    >>> images, labels = next(loader.epoch(3))
    >>> images.shape, images.dtype, labels.shape
    ((128, 1, 8, 8), dtype('float32'), (128,))
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        augment: Augmentation | None = None,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
    ) -> None:
        if batch_size < 1:
            raise DataError(f"batch_size must be at least 1, not {batch_size}")
        if seed < 0:
            raise DataError(f"the loader's seed must be at least 0, not {seed}")
        if not len(split):
            raise DataError("the split has no images to load")
        if drop_last and len(split) < batch_size:
            few = f"{len(split)} images make no whole batch of {batch_size}"
            raise DataError(f"{few}: lower batch_size or turn drop_last off")
        preprocess(split.images[:1], mean, std)  # a wrong mean or std is told here, not in the first epoch
        self.split, self.batch_size, self.mean, self.std = split, batch_size, mean, std
        self.augment, self.shuffle, self.drop_last, self.seed = augment, shuffle, drop_last, seed

    def __len__(self) -> int:
        n = len(self.split)
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return self.epoch(0)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Iterate over the batches of one epoch, from batch `start` on.

        Args:
            epoch: which epoch, from 0.
            start: the first batch to give, 0 to ``len(self)``; at ``len(self)`` the epoch is over.

        Yields:
            ``(images, labels)``: float32 ``(B, C, H, W)``, normalised, and int64 ``(B,)``.

        Raises:
            DataError: where `epoch` or `start` is out of range; at once, not at the first batch.
        """
        if epoch < 0 or not 0 <= start <= len(self):
            raise DataError(
                f"epoch must be at least 0 and start from 0 to {len(self)} (the batches of an epoch), "
                f"but they are {epoch} and {start}"
            )
        n = len(self.split)
        order = self._generator(epoch, ORDER).permutation(n) if self.shuffle else np.arange(n)
        return (self._batch(epoch, index, order) for index in range(start, len(self)))

    def _batch(self, epoch: int, index: int, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = order[index * self.batch_size : (index + 1) * self.batch_size]
        images = _unit(self.split.images[rows])
        if self.augment:
            images = self.augment(images, self._generator(epoch, AUGMENT, index))
        return _normalise(images, self.mean, self.std), self.split.labels[rows]

    def _generator(self, *key: int) -> np.random.Generator:
        # A spawn key, unlike a longer seed, keeps these streams apart from each other and from every
        # default_rng(seed) elsewhere in the run.
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))
