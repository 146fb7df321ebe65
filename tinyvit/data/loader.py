"""The loader: from a split's 8-bit images to normalised float32 batches, the same ones on every run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeGuard

import numpy as np

from tinyvit.data.datasets import DataError, Split
from tinyvit.data.images import ImageFiles
from tinyvit.data.transforms import Augmentation, Mixing, RandomResizedCrop
from tinyvit.engine.backend import namespace_of

Array = Any  # a numpy.ndarray or a cupy.ndarray
Batch = tuple[np.ndarray, np.ndarray]
ORDER, AUGMENT, CROP = 0, 1, 2  # the random streams of an epoch; see Loader._generator
AHEAD = 2  # batches that are decoded while one is computed with


def _unit(images: Array) -> Array:
    if images.dtype != np.uint8 or images.ndim != 4:
        raise DataError(f"images must be uint8 of shape (B, C, H, W), but are {images.dtype} {images.shape}")
    return images.astype(np.float32) / np.float32(255)


def _normal(channels: int, mean: Sequence[float], std: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each channel, (C, 1, 1)."""
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise DataError(
            f"images of {channels} channels need {channels} means and as many standard deviations above 0, "
            f"but mean is {tuple(mean)} and std is {tuple(std)}"
        )
    centre, spread = (np.array(value, np.float32).reshape(-1, 1, 1) for value in (mean, std))
    return centre, spread


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
    unit = _unit(images)
    centre, spread = _normal(unit.shape[1], mean, std)
    return (unit - centre) / spread


class Loader:
    """Batches of a split, epoch after epoch.

    A batch depends on ``(seed, epoch, batch index)`` alone, never on what was drawn before, nor on how many threads
    decode its images: a run that stops within an epoch and goes on at that batch sees exactly what it would have seen.

    An epoch comes in two halves, so that a GPU may do the second: `raw` gives the 8-bit images, and `finish` augments
    and normalises them on the device where they are by then. `epoch` does both.

    Args:
        split: the images and labels.
        batch_size: images a batch; the last batch of an epoch may be smaller.
        mean, std: of each channel, as in `preprocess`.
        augment: applied in turn to the float32 images in [0, 1], before they are normalised. Of several that mix
            (`Mixup`, `CutMix`), one is drawn for each batch. A `RandomResizedCrop` that comes first is done on the
            photographs themselves, where the images are files.
        classes: how many there are; needed where an augmentation mixes targets, which are then shares (B, classes).
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
        augment: Augmentation | Mixing | Sequence[Augmentation | Mixing] | None = None,
        classes: int | None = None,
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
        self._normals = {"cpu": _normal(split.images.shape[1], mean, std)}  # device: what is subtracted, and divided by
        self.split, self.batch_size, self.mean, self.std = split, batch_size, mean, std
        self.classes, self.shuffle, self.drop_last, self.seed = classes, shuffle, drop_last, seed
        self.augment = tuple(augment) if isinstance(augment, Sequence) else (augment,) if augment else ()
        if any(isinstance(step, Mixing) for step in self.augment) and classes is None:
            raise DataError("an augmentation that mixes targets needs to know how many classes there are: give classes")

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
            ``(images, labels)``: float32 ``(B, C, H, W)``, normalised, and int64 ``(B,)``, or where an augmentation
            mixes targets, shares of the classes, float32 ``(B, classes)``.

        Raises:
            DataError: where `epoch` or `start` is out of range; at once, not at the first batch.
        """
        if epoch < 0 or not 0 <= start <= len(self):
            raise DataError(
                f"epoch must be at least 0 and start from 0 to {len(self)} (the batches of an epoch), "
                f"but they are {epoch} and {start}"
            )
        batches = self.raw(epoch, start)
        return (self.finish(*batch, epoch, index) for index, batch in enumerate(batches, start))

    def raw(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Iterate over the batches of one epoch as they are read: uint8 ``(B, C, H, W)`` and int64 ``(B,)``.

        Images in files are decoded ahead, by threads. Those that cannot be, and are skipped, are missing in a batch.

        Raises:
            DataError: an image that is not to be skipped, too many that are, or a batch of which none is left.
        """
        n = len(self.split)
        order = self._generator(epoch, ORDER).permutation(n) if self.shuffle else np.arange(n)
        reads = (partial(self._read, epoch, index, order) for index in range(start, len(self)))
        return _ahead(reads) if isinstance(self.split.images, ImageFiles) else (read() for read in reads)

    def finish(self, images: Array, labels: Array, epoch: int, index: int) -> tuple[Array, Array]:
        """Augment and normalise a batch of `raw`, on the device of its images.

        Args:
            images: uint8 ``(B, C, H, W)``.
            labels: int64 ``(B,)``.
            epoch, index: which batch it is; what is random in it depends on them and the seed.

        Returns:
            What `epoch` yields.
        """
        images, rng = _unit(images), self._generator(epoch, AUGMENT, index)
        for step in self.augment:
            if not isinstance(step, Mixing) and not self._crops_files(step):
                images = step(images, rng)
        mixings = [step for step in self.augment if isinstance(step, Mixing)]
        if mixings:
            chosen = mixings[int(rng.integers(len(mixings)))] if len(mixings) > 1 else mixings[0]
            images, labels = chosen(images, self._shares(labels), rng)
        centre, spread = self._normal_on(namespace_of(images))
        return (images - centre) / spread, labels

    def _normal_on(self, xp: Any) -> tuple[Array, Array]:
        """Copied to a device once, and not with every batch."""
        if xp.device not in self._normals:
            centre, spread = self._normals["cpu"]
            self._normals[xp.device] = xp.asarray(centre), xp.asarray(spread)
        return self._normals[xp.device]

    def _read(self, epoch: int, index: int, order: np.ndarray) -> Batch:
        rows = order[index * self.batch_size : (index + 1) * self.batch_size]
        images, labels = self.split.images, self.split.labels[rows]
        if not isinstance(images, ImageFiles):
            return images[rows], labels
        boxes = None
        if self.augment and self._crops_files(first := self.augment[0]):
            boxes = first.boxes(len(rows), self._generator(epoch, CROP, index))
        pixels, readable = images.read(rows, boxes)
        if readable.all():
            return pixels, labels
        if not readable.any():
            raise DataError(f"none of the {len(rows)} images of a batch can be used: raise batch_size, or mend them")
        return pixels[readable], labels[readable]

    def _crops_files(self, step: Any) -> TypeGuard[RandomResizedCrop]:
        files = isinstance(self.split.images, ImageFiles)
        return files and step is self.augment[0] and isinstance(step, RandomResizedCrop)

    def _shares(self, labels: Array) -> Array:
        xp = namespace_of(labels)
        return (labels[:, None] == xp.arange(self.classes)).astype(np.float32)

    def _generator(self, *key: int) -> np.random.Generator:
        # A spawn key, unlike a longer seed, keeps these streams apart from each other and from every
        # default_rng(seed) elsewhere in the run.
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))


def _ahead(reads: Iterator[Callable[[], Batch]]) -> Iterator[Batch]:
    """What the functions return, in their order; a thread is at most `AHEAD` of them ahead."""
    with ThreadPoolExecutor(1, thread_name_prefix="tinyvit-loader") as thread:
        waiting: deque[Future[Batch]] = deque()
        try:
            for read in reads:
                waiting.append(thread.submit(read))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
