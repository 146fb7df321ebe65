"""What a trained model is worth, and what it says of an image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tinyvit.data import Loader, preprocess
from tinyvit.engine import no_grad, ops
from tinyvit.training.parallel import map_shards, shards_for
from tinyvit.vit import ViT


@contextmanager
def evaluating(model: ViT) -> Iterator[None]:
    """Without dropout and without a tape inside the block; the model's mode comes back after it."""
    was_training = model.training
    model.eval()
    try:
        with no_grad():
            yield
    finally:
        model.train(was_training)


def infer(model: ViT, images: Any, workers: int | None = None) -> Any:
    """Return the logits of a batch of any size, computed without a tape, in parts: (n, C, H, W) → (n, K) on the host.

    Args:
        model: in evaluation or not, as it stands.
        images: normalised, as the model takes them.
        workers: threads, see `parallel_backward`. The bits do not depend on it. A single image is left to BLAS and its
            threads.
    """
    if len(images) <= 1:
        with no_grad():
            return model(images).numpy()
    shards = shards_for(model.config, len(images), model.device)
    return np.concatenate(map_shards(lambda part: model(part).numpy(), images, shards=shards, workers=workers))


def evaluate(model: ViT, loader: Loader, workers: int | None = None) -> dict[str, float]:
    """Return {"images", "loss", "accuracy"} over one pass.

    How many images it saw, without those that were skipped; their mean cross-entropy in nats; and the share of them,
    in [0, 1], that is right.
    """
    loss, right, seen = 0.0, 0, 0
    with evaluating(model):
        for images, labels in loader:
            logits = infer(model, images, workers)
            loss += ops.cross_entropy(logits, labels, reduction="sum").item()
            right += int((logits.argmax(axis=-1) == labels).sum())
            seen += len(labels)
    return {"images": seen, "loss": loss / seen, "accuracy": right / seen}


def predict(
    model: ViT,
    images: np.ndarray,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int = 256,
    workers: int | None = None,
) -> np.ndarray:
    """Return the probability of every class: uint8 images (n, C, H, W) → float32 (n, K).

    Source: the tutorial's Classification Head, O_class = softmax(W_class · X_class + b_class).
    """
    with evaluating(model):
        return np.concatenate(
            [
                ops.softmax(infer(model, preprocess(images[i : i + batch_size], mean, std), workers)).numpy()
                for i in range(0, len(images), batch_size)
            ]
        )


def top_k(probabilities: np.ndarray, classes: Sequence[str], k: int) -> list[list[dict[str, Any]]]:
    """Return for each row the k likeliest classes, best first: {"class", "probability"}.

    >>> top_k(np.array([[0.2, 0.7, 0.1]]), ["cat", "dog", "owl"], 2)
    [[{'class': 'dog', 'probability': 0.7}, {'class': 'cat', 'probability': 0.2}]]
    """
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    return [
        [{"class": classes[j], "probability": float(row[j])} for j in order]
        for row, order in zip(probabilities, best, strict=True)
    ]
