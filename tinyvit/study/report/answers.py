"""What a model answers to the images of a split, and the scores of these answers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tinyvit.data import DataError, Dataset, ImageFiles, Split
from tinyvit.training import TrainedModel, predict

MOST_IMAGES = 10_000  # so many are looked at, evenly spread over a larger split
AT_ONCE = 1024  # images in memory; a split may decode them when they are asked for
BINS = 15


@dataclass(frozen=True)
class Answers:
    """What a model said of n images.

    Args:
        split: what the images are called: "test", "validation" or "training".
        of: how many images the split has.
        rows: where the n images stand in the split.
        labels, predicted: the right class of each, and the likeliest.
        confidence, of_truth: the probabilities of these two.
        num_classes: K.
    """

    split: str
    of: int
    rows: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    of_truth: np.ndarray
    num_classes: int

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sampled(self) -> bool:
        """Whether the split has more images than are looked at."""
        return self.of > MOST_IMAGES

    @cached_property
    def right(self) -> np.ndarray:
        """Which answers are right."""
        return self.predicted == self.labels

    @property
    def accuracy(self) -> float:
        """The share that is right."""
        return float(self.right.mean())

    @cached_property
    def losses(self) -> np.ndarray:
        """The cross-entropy of each answer, in nats; where the probability is 0 in float32, its least above that."""
        return -np.log(np.maximum(self.of_truth, np.finfo(np.float32).tiny))

    def worst(self, n: int, right: bool = False) -> np.ndarray:
        """The n wrong (or right) answers of the largest loss, the largest first."""
        some = np.flatnonzero(self.right == right)
        return some[np.argsort(-self.losses[some], kind="stable")[:n]]


def check_fits(trained: TrainedModel, dataset: Dataset) -> None:
    """Raise a DataError where a dataset's images or classes are not those of a model."""
    model = trained.config.model
    if (dataset.channels, *dataset.image_size) != (model.channels, model.height, model.width):
        raise DataError(
            f"{dataset.name} has images of {(dataset.channels, *dataset.image_size)} (C, H, W), "
            f"but {trained.path} takes {(model.channels, model.height, model.width)}"
        )
    if dataset.num_classes > model.num_classes:
        raise DataError(f"{dataset.name} has {dataset.num_classes} classes, but {trained.path} {model.num_classes}")


def answers(trained: TrainedModel, split: Split, name: str, workers: int | None = None) -> Answers:
    """Ask a model of the images of a split; of at most `MOST_IMAGES`, less those that cannot be read."""
    n, d = len(split), trained.config.data
    wanted = np.arange(n) if n <= MOST_IMAGES else np.arange(MOST_IMAGES) * n // MOST_IMAGES
    found: list[tuple[np.ndarray, ...]] = []
    for start in range(0, len(wanted), AT_ONCE):
        pixels, rows = read_rows(split, wanted[start : start + AT_ONCE])
        p = predict(trained.model, pixels, d.mean, d.std, workers=workers)
        labels = split.labels[rows]
        found.append((rows, labels, p.argmax(axis=1), p.max(axis=1), p[np.arange(len(p)), labels]))
    rows, labels, predicted, confidence, of_truth = map(np.concatenate, zip(*found, strict=True))
    confidence, of_truth = confidence.astype(np.float64), of_truth.astype(np.float64)
    return Answers(name, n, rows, labels, predicted, confidence, of_truth, trained.config.model.num_classes)


def read_rows(split: Split, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of these rows, and the rows: without those whose files cannot be read and are skipped."""
    if not isinstance(split.images, ImageFiles):
        return split.images[rows], rows
    pixels, readable = split.images.read(rows)
    return pixels[readable], rows[readable]


@dataclass(frozen=True)
class ClassScores:
    """Of each of K classes: its images, precision, recall and F1; NaN where there is nothing to divide by."""

    images: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


def class_scores(a: Answers) -> ClassScores:
    """Precision TP / (TP + FP), recall TP / (TP + FN), and F1 = 2·TP / (2·TP + FP + FN)."""
    images, named, right = (
        np.bincount(some, minlength=a.num_classes) for some in (a.labels, a.predicted, a.labels[a.right])
    )
    with np.errstate(invalid="ignore"):
        return ClassScores(images, right / named, right / images, 2 * right / (named + images))


def confusion(a: Answers) -> np.ndarray:
    """How many images of a class (row) were said to be of another (column): int (K, K)."""
    K = a.num_classes
    return np.bincount(a.labels * K + a.predicted, minlength=K * K).reshape(K, K)


def most_confused(a: Answers, n: int) -> list[tuple[int, int, int]]:
    """The n pairs (class, what it was said to be, times) that occur most."""
    pairs, times = np.unique(np.stack([a.labels, a.predicted])[:, ~a.right], axis=1, return_counts=True)
    first = np.argsort(-times, kind="stable")[:n]
    return [(int(pairs[0, i]), int(pairs[1, i]), int(times[i])) for i in first]


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: Σ |B|/n · |share right in B − mean confidence in B| over bins of equal width.

    Source: Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017, equation 3.

    >>> round(calibration_error(np.array([0.9, 0.9, 0.6]), np.array([True, False, True])), 3)
    0.4
    """
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # (0, 1/bins], …, (1 − 1/bins, 1]
    gap = np.bincount(bin_of, weights=right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))
