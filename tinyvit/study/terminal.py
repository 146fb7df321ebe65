"""How a run goes, told in a terminal: a bar or plain lines, and the table at its end."""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate, pairwise

from tqdm import tqdm

from tinyvit.engine import kernels
from tinyvit.study.machine import peak_memory
from tinyvit.study.records import best_epoch, describe_skipped, epochs_of, many, median_rate, read_metrics
from tinyvit.training import Run, Trainer
from tinyvit.training.trainer import Record

PRINTED_EPOCHS = 15  # about so many lines a run where there is no terminal for a bar
LOOK = {"cpu": 0.5, "gpu": 10.0}  # seconds between looks at the loss; a GPU has to be waited for


@contextmanager
def progress(trainer: Trainer) -> Iterator[tuple[Callable[[Trainer], None], Callable[[Record], None]]]:
    """Give the `on_step` and `on_record` of `Run.train`: a bar on a terminal, plain lines elsewhere."""
    if not sys.stderr.isatty():
        lines = _Lines(trainer)
        yield (lambda _: None), lines.on_record
        return
    shown = _Bar(trainer)
    with shown.bar:
        yield shown.on_step, shown.on_record


class _Lines:
    def __init__(self, trainer: Trainer):
        self.epochs, self.every = trainer.epochs, max(1, trainer.epochs // PRINTED_EPOCHS)
        self.ended = [time.perf_counter()]

    def on_record(self, record: Record) -> None:
        """Print an epoch, if it is its turn."""
        if record["event"] != "epoch":
            return
        self.ended.append(time.perf_counter())
        if record["epoch"] % self.every and record["epoch"] < self.epochs:
            return
        facts = [f"loss {record['loss']:.3f}", f"training {record['train_accuracy']:.2%}"]
        if "validation_accuracy" in record:
            facts.append(f"validation {record['validation_accuracy']:.2%}")
        if "images_per_second" in record:
            facts.append(f"{record['images_per_second']:,.0f} images/s")
        facts.append(f"{record['seconds']:.1f} s")
        if remaining := self.epochs - record["epoch"]:
            usual = statistics.median(end - begin for begin, end in pairwise(self.ended))  # the first one may compile
            facts.append(f"{tqdm.format_interval(remaining * usual)} left")
        print(f"epoch {record['epoch']}/{self.epochs}: {', '.join(facts)}", flush=True)


class _Bar:
    """One bar for the whole run, counted in images."""

    def __init__(self, trainer: Trainer):
        self.trainer, self.images = trainer, len(trainer.loader.split)
        self.looked, self.before = 0.0, 0.0  # when the loss was last read, and what it was in the epoch before
        self.validation: list[str] = []
        self.begun = False
        self.bar = tqdm(
            total=trainer.epochs * self.images,
            initial=self._seen(),
            unit=" images",
            unit_scale=True,
            smoothing=0.1,
            bar_format="{desc}{percentage:3.0f}%|{bar}|",
            ncols=_columns(),
        )
        if trainer.model.device == "cpu" and kernels.to_be_compiled():
            self.bar.set_description_str("compiling the loops, once: ")

    def _seen(self) -> int:
        trainer = self.trainer
        return trainer.epoch * self.images + min(trainer.batch * trainer.loader.batch_size, self.images)

    def on_step(self, trainer: Trainer) -> None:
        """Move on; look at the loss now and then."""
        now = time.monotonic()
        if now - self.looked >= LOOK[trainer.model.device] and (running := trainer.running):
            self.looked = now
            self._look(*running)
        if self.begun:
            self.bar.update(self._seen() - self.bar.n)
        else:
            self._begin()

    def _begin(self) -> None:
        """Count from after the first step, which may compile: the time that is left is not to be told from it."""
        self.begun = True
        self.bar.initial = self.bar.n = self.bar.last_print_n = self._seen()
        self.bar.unpause()
        self.bar.refresh()

    def _look(self, loss: float, accuracy: float) -> None:
        """Show the loss of about the last epoch's worth of images, and this epoch's accuracy."""
        share = self.trainer.batch / len(self.trainer.loader) if self.before else 1
        self._show(share * loss + (1 - share) * self.before, accuracy, self.trainer.lr)

    def on_record(self, record: Record) -> None:
        """Show an epoch that has ended."""
        if record["event"] != "epoch":
            return
        self.before = record["loss"]
        if "validation_accuracy" in record:
            self.validation = [f"val={record['validation_accuracy']:.1%}"]
        self._show(record["loss"], record["train_accuracy"], record["lr"])
        self.bar.refresh()

    def _show(self, loss: float, accuracy: float, lr: float) -> None:
        epochs = self.trainer.epochs
        epoch = f"epoch {min(self.trainer.epoch + 1, epochs)}/{epochs}: "
        facts = [f"loss={loss:.3f}", *self.validation, f"train={accuracy:.1%}", RATE, f"lr={lr:.1e}"]
        self.bar.ncols = _columns()
        shown = _fitting(facts, self.bar.ncols - len(epoch) - AROUND)
        self.bar.bar_format = ", ".join(["{desc}{percentage:3.0f}%|{bar}| {remaining} left", *shown])
        self.bar.set_description_str(epoch, refresh=False)


RATE = "{rate_noinv_fmt}"
AROUND = len("100%||1:23:45 left") + 8  # what always stands there, and so much of a bar


def _fitting(facts: list[str], room: int) -> list[str]:
    """The first of the facts, those that matter most, as far as there is room."""
    ends = accumulate(len(f", {fact if fact != RATE else '12.3k images/s'}") for fact in facts)
    return [fact for fact, end in zip(facts, ends, strict=True) if end <= room]


def _columns() -> int:
    """The width of the terminal, less the "^C" that it writes itself."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    return (columns or shutil.get_terminal_size((80, 24)).columns) - 3


@contextmanager
def busy(doing: str) -> Iterator[None]:
    """Say on a terminal what is being done, as long as it is."""
    on_terminal = sys.stderr.isatty()
    if on_terminal:
        print(doing, end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if on_terminal:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------------------ the table


def results(run: Run) -> str:
    """Return the table of a run that is at its end: its best and its last epoch, and what it took."""
    records = read_metrics(run.metrics_path)
    epochs, final = epochs_of(records), records[-1]
    facts: list[tuple[str, ...]] = []
    if "test_accuracy" in final:
        of = f"of {many(final['test_images'], 'image')}, by the last weights; nothing was chosen on them"
        facts.append(("test accuracy", f"{final['test_accuracy']:.2%} {of}"))
    if rate := median_rate(epochs):
        facts.append(("speed", f"{rate:,.0f} images/s"))
    memory = peak_memory()
    facts += [
        ("training", f"{final['seconds']:.1f} s, {many(final['step'], 'step')}"),
        ("parameters", f"{run.trainer.model.num_parameters:,}"),
        ("peak memory", "unknown" if memory is None else f"{memory / 2**20:,.0f} MiB, of the process"),
    ]
    if bad := run.dataset.skipped():
        facts.append(("skipped", describe_skipped(bad)))
    facts.append(("files", f"config.toml, metrics.jsonl, model.safetensors, checkpoints/ in {run.folder}"))
    return "\n".join([*_aligned(_epoch_rows(epochs)), "", *_aligned(facts)])


def _epoch_rows(epochs: list[Record]) -> list[tuple[str, ...]]:
    if not epochs:
        return []
    best = best_epoch(epochs)
    rows: list[tuple[str, Record]] = []
    if best and best is not epochs[-1]:
        rows.append((" (best)", best))
    rows.append((" (last)" if rows else "", epochs[-1]))
    names = {"loss": "loss", "train_accuracy": "training", "validation_accuracy": "validation"}
    shown = {key: name for key, name in names.items() if key in epochs[-1]}
    table: list[tuple[str, ...]] = [("epoch", *shown.values())]
    for name, epoch in rows:
        numbers = (f"{epoch[key]:.4f}" if key == "loss" else f"{epoch[key]:.2%}" for key in shown)
        table.append((f"{epoch['epoch']}{name}", *numbers))
    return table


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
