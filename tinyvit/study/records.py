"""What a run has written down: the records of its `metrics.jsonl`, and which images it skipped."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tinyvit.training.trainer import Record

NAMED = 5  # so many skipped images


def read_metrics(path: str | Path) -> list[Record]:
    """Return the records of a run, in their order: none if it has written none, without a line that was cut short."""
    records, path = [], Path(path)
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def epochs_of(records: list[Record]) -> list[Record]:
    """Return the records of epochs."""
    return [record for record in records if record["event"] == "epoch"]


def best_epoch(epochs: list[Record]) -> Record | None:
    """Return the epoch of the highest validation accuracy, and of the lowest validation loss among equals."""
    validated = [epoch for epoch in epochs if "validation_accuracy" in epoch]
    return max(validated, key=lambda e: (e["validation_accuracy"], -e["validation_loss"]), default=None)


def median_rate(epochs: list[Record]) -> float | None:
    """Return the median of the epochs' images a second, None where none is known."""
    rates = [epoch["images_per_second"] for epoch in epochs if "images_per_second" in epoch]
    return statistics.median(rates) if rates else None


def many(n: int, word: str) -> str:
    """Count things: 1 image, 2 images, 3 classes."""
    plural = f"{word}es" if word.endswith("s") else f"{word}s"
    return f"{n:,} {word if n == 1 else plural}"


def describe_skipped(bad: Mapping[str, str]) -> str:
    """Say how many images were skipped, and why the first of them were."""
    shown = "; ".join(f"{path} ({reason})" for path, reason in list(bad.items())[:NAMED])
    more = f"; and {len(bad) - NAMED:,} more" if len(bad) > NAMED else ""
    return f"{many(len(bad), 'image')}: {shown}{more}"
