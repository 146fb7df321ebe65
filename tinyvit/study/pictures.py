"""Pictures of a run: its curves, and where its attention looks. They need matplotlib (the extra `vision`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinyvit.data import preprocess
from tinyvit.study.records import epochs_of, read_metrics
from tinyvit.training import TrainedModel
from tinyvit.training.evaluation import evaluating
from tinyvit.training.trainer import Record


def draw_curves(metrics: str | Path, out: str | Path) -> None:
    """Draw loss, accuracy and learning rate over the epochs of a `metrics.jsonl` into an image file.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the metrics hold no epoch.
    """
    figure_class = _figure_class()
    records = read_metrics(metrics)
    if not epochs_of(records):
        raise ValueError(f"{metrics} holds no epoch to draw")
    figure = figure_class(figsize=(10, 3.2), layout="constrained")
    for axes, curve in zip(figure.subplots(1, len(CURVES)), CURVES, strict=True):
        draw_curve(axes, curve, records)
    figure.savefig(out, dpi=120)


CURVES: dict[str, dict[str, str | None]] = {
    "loss (nats)": {"loss": "training (augmented, smoothed)", "validation_loss": "validation"},
    "accuracy": {"train_accuracy": "training (augmented)", "validation_accuracy": "validation"},
    "learning rate": {"lr": None},
}
"""Title → key of an epoch's record → label."""


def draw_curve(axes: Any, curve: str, records: list[Record]) -> None:
    """Draw one of the `CURVES` into matplotlib's axes."""
    epochs = epochs_of(records)
    for key, label in CURVES[curve].items():
        points = [(r["epoch"], r[key]) for r in epochs if key in r]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="o" if len(points) == 1 else None)
    final = records[-1]
    if curve == "accuracy" and "test_accuracy" in final:
        ink = axes.xaxis.label.get_color()
        test = f"test {final['test_accuracy']:.1%}"
        axes.plot(epochs[-1]["epoch"], final["test_accuracy"], "*", color=ink, markersize=9, label=test)
    axes.set(title=curve, xlabel="epoch", yscale="log" if curve.startswith("loss") else "linear")
    if len(CURVES[curve]) > 1:
        axes.legend(fontsize="small")


def check_drawable(out: str | Path) -> None:
    """Say before the work whether a picture can be drawn into such a file.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: matplotlib writes no files of this kind.
    """
    known = _figure_class()().canvas.get_supported_filetypes()
    suffix = Path(out).suffix.removeprefix(".").lower()
    if suffix and suffix not in known:
        raise ValueError(f"a picture is written as one of {', '.join(sorted(known))}, not as {suffix}")


def draw_attention(
    trained: TrainedModel, images: np.ndarray, out: str | Path, titles: Sequence[str] | None = None
) -> None:
    """Draw images and what the pooled token reads of each patch, layer by layer, into an image file.

    Args:
        trained: the model and its normalisation.
        images: uint8 (n, C, H, W), of the model's size.
        out: the image file.
        titles: what stands above each image.

    The maps are those of `attention_maps`, bright where attention is strong.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: matplotlib writes no files of this kind.
    """
    attention_figure(trained, images, titles).savefig(out, dpi=120)


def attention_figure(trained: TrainedModel, images: np.ndarray, titles: Sequence[str] | None = None) -> Any:
    """Return matplotlib's figure that `draw_attention` saves: a row an image, a column a layer."""
    figure_class = _figure_class()
    maps = attention_maps(trained, images)  # (n, L, rows, columns)
    n, depth = maps.shape[:2]
    height, width = images.shape[2:]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    titled = 0.25 if titles else 0  # inches
    figure = figure_class(figsize=(1.3 * (depth + 1), (1.4 + titled) * n + 0.3), layout="constrained")
    for row, axes in enumerate(figure.subplots(n, depth + 1, squeeze=False)):
        shown = images[row].transpose(1, 2, 0) if len(images[row]) in (3, 4) else images[row].mean(axis=0)
        axes[0].imshow(shown, cmap="gray")
        for layer, a in enumerate(axes[1:]):
            a.imshow(np.full((1, 1, 3), 255, np.uint8), extent=extent)  # white below, on a dark page too
            a.imshow(shown, cmap="gray", alpha=0.4)
            a.imshow(maps[row, layer], cmap="magma", alpha=0.6, extent=extent)
        for layer, a in enumerate(axes):
            a.set_axis_off()
            if row == 0:
                a.set_title("image" if layer == 0 else f"layer {layer}", fontsize="small")
        if titles:
            _set_row_title(axes[0], titles[row])
    return figure


def _set_row_title(axes: Any, title: str) -> None:
    """Above the row, as wide as it may be, without moving the columns: a blank line in their titles keeps its place."""
    column = axes.get_title()
    axes.set_title(f" \n{column}" if column else " ", fontsize="small")
    above = (0, 17 if column else 4)
    written = axes.annotate(title, (0, 1), above, "axes fraction", "offset points", fontsize="small", parse_math=False)
    written.set_in_layout(False)


def attention_maps(trained: TrainedModel, images: np.ndarray) -> np.ndarray:
    """Return how much the pooled token attends to each patch: uint8 (n, C, H, W) → (n, L, rows, columns).

    The mean over the heads; with pool "mean" also over all patches that look.
    """
    model, config = trained.model, trained.config
    P, prefix = config.model.patch_size, config.model.num_prefix_tokens
    grid = images.shape[2] // P, images.shape[3] // P
    maps = []
    with evaluating(model):
        x = model.embed(preprocess(images, config.data.mean, config.data.std))
        for layer in model.blocks:
            attention = layer.attn.attention(layer.norm1(x)).numpy().mean(axis=1)  # (n, T, T)
            looks = attention[:, prefix:].mean(axis=1) if config.model.pool == "mean" else attention[:, 0]
            maps.append(looks[:, prefix:].reshape(len(images), *grid))
            x = layer(x)
    return np.stack(maps, axis=1) if maps else np.empty((len(images), 0, *grid))


def _figure_class() -> Any:
    """matplotlib's Figure, without a window system."""
    from matplotlib.figure import Figure

    return Figure
