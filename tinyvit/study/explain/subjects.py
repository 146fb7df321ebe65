"""What `tinyvit explain` explains: a model with fresh weights, a trained run, or what somebody's script computes."""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tinyvit.data import Dataset, preprocess, read_image
from tinyvit.engine import TapeError, Tensor, ops, tensor
from tinyvit.study.explain.document import Page, explain, facts, write
from tinyvit.study.explain.recording import Recording, watch
from tinyvit.training import load_trained
from tinyvit.training.config import ConfigError, merge, open_dataset, read_toml, resolve
from tinyvit.vit import ViT, ViTConfig

FEW = 4  # images, where they have few tokens; else one
HEAD_STD = 0.02


class ExplainError(ValueError):
    """A script that cannot be explained; the message is one sentence."""


# --------------------------------------------------------------------------------------------------------------- models


def explain_fresh(
    name: str | None,
    out: str | Path,
    *,
    images: int | None = None,
    image: str | Path | None = None,
    seed: int = 0,
    audit: bool = False,
) -> tuple[Page, str]:
    """Explain the loss of a model with fresh weights; return the page and its title.

    Args:
        name: like "vit_tiny_patch16_224", on random pixels; a config.toml, on the test images of its dataset; None for
            the digits' own.
        out: the page.
        images: how many; 4, or 1 where they have more than 100 tokens.
        image: a file to show the model instead.
        seed: of the weights, of random images and of their classes.
        audit: see `explain`.

    The head, which starts at zero and would let no gradient through, is drawn from a normal distribution too.

    Raises:
        ConfigError, DataError: the name, the config, its data or the image cannot be used.
    """
    dataset, config, mean, std = _described(name)
    rng = np.random.default_rng(seed)
    model = ViT(config, rng)
    if model.head is None:
        raise ConfigError(f"{name} describes a model without a head (num_classes 0), which has no loss to explain")
    model.head.weight.data[...] = HEAD_STD * rng.standard_normal(model.head.weight.shape)
    n = _how_many(images, config)
    if image is None and dataset is not None:
        pixels, labels = dataset.test.images[:n], dataset.test.labels[:n]
        shown = f"{len(pixels)} test images of {dataset.name}"
    elif image is None:
        pixels = rng.integers(0, 256, (n, config.channels, config.height, config.width), dtype=np.uint8)
        labels = rng.integers(0, config.num_classes, n)
        shown = f"{n} image{'s' * (n > 1)} of random pixels and a random class (seed {seed})"
    else:
        pixels, labels, shown = _from_file(image, config), None, Path(image).name
    title = f"{name or 'ViT for digits'} with fresh weights, {shown}"
    classes = dataset.classes if dataset is not None else ()
    return _explained(model, pixels, labels, mean, std, classes, out, title, audit), title


def explain_run(
    run: str | Path, out: str | Path, *, images: int | None = None, image: str | Path | None = None, audit: bool = False
) -> tuple[Page, str]:
    """Explain the loss of a trained model on the first test images of its data, or on an image file.

    Args:
        run: a run's folder, a model file or a checkpoint.
        out, images, image, audit: see `explain_fresh`.

    Raises:
        CheckpointError, DataError: the run, its data or the image cannot be used.
    """
    trained = load_trained(run)
    config, data = trained.config.model, trained.config.data
    labels: np.ndarray | None = None
    if image is None:
        test = open_dataset(trained.config.to_dict()).test
        n = _how_many(images, config)
        pixels, labels = test.images[:n], test.labels[:n]
        shown = f"{len(pixels)} test images of {data.name}"
    else:
        pixels, shown = _from_file(image, config, data.crop_ratio, data.interpolation), Path(image).name
    title = f"{run}, {shown}"
    return _explained(trained.model, pixels, labels, data.mean, data.std, trained.classes, out, title, audit), title


def _described(name: str | None) -> tuple[Dataset | None, ViTConfig, Sequence[float], Sequence[float]]:
    """The dataset (None: random pixels), the model and the normalisation that a name or a config stand for."""
    if name is not None and not name.endswith(".toml"):
        try:
            config = ViTConfig.named(name)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return None, config, (0.5,) * config.channels, (0.5,) * config.channels
    tables = merge(read_toml(Path(name)) if name else {})
    dataset = open_dataset(tables)
    whole = resolve(tables, dataset)
    return dataset, whole.model, whole.data.mean, whole.data.std


def _how_many(images: int | None, config: ViTConfig) -> int:
    if images is None:
        return FEW if config.num_patches + config.num_prefix_tokens <= 100 else 1
    if images < 1:
        raise ConfigError(f"--images is {images}; it must be at least 1")
    return images


def _from_file(image: str | Path, config: ViTConfig, *fitted: Any) -> np.ndarray:
    return read_image(image, config.channels, (config.height, config.width), *fitted)[None]


def _explained(
    model: ViT,
    pixels: np.ndarray,
    labels: np.ndarray | None,
    mean: Sequence[float],
    std: Sequence[float],
    classes: Sequence[str],
    out: str | Path,
    title: str,
    audit: bool,
) -> Page:
    """Compute the loss twice, for what is compiled at its first use should not be timed, and explain the second."""
    model.eval()
    images = preprocess(pixels, mean, std)
    warm = model(images)
    targets = warm.numpy().argmax(axis=-1) if labels is None else labels  # unknown: what the model says itself
    ops.cross_entropy(warm, targets).backward()
    model.zero_grad()
    with watch():
        loss = ops.cross_entropy(model(tensor(images, requires_grad=True)), targets)
    named = labels.tolist() if labels is not None else None
    return explain(loss, out, title=title, pixels=pixels, labels=named, classes=classes, audit=audit)


# -------------------------------------------------------------------------------------------------------------- scripts


class _Enough(BaseException):
    """Ends a script whose wanted step was seen; no script catches it by mistake."""


def explain_script(
    path: str | Path, out: str | Path, *, step: int | None = None, audit: bool = False
) -> tuple[Page, str]:
    """Run a Python file under `watch()`; explain its global `loss`, or else its last `backward()`.

    Of a result of several numbers, the sum of result · gradient is explained, for the gradient that it was given.

    Args:
        path: the file; it runs as `python FILE` would.
        out: the page.
        step: explain the step-th `backward()` instead, from 1, and end the script there. For
            training loops: each step that is watched costs several times what it would.
        audit: see `explain`.

    Raises:
        ConfigError: the step is not at least 1.
        ExplainError: the file is missing or fails, or there is nothing in it to explain.
    """
    path = Path(path)
    if not path.is_file():
        raise ExplainError(f"there is no script {path}")
    if step is not None and step < 1:
        raise ConfigError(f"--step is {step}; the first backward() is 1")
    names: dict[str, Any] = {}
    with watch() as recording, _backward_seen(recording, path.name, step, audit) as seen:
        try:
            with _as_main(path):
                names = runpy.run_path(str(path), run_name="__main__")
        except _Enough:
            pass
        except SystemExit as stop:
            if stop.code not in (None, 0):
                advice = "; --step N explains its N-th backward() and ends it there" if seen else ""
                raise ExplainError(f"{path} ended with {stop.code!r}{advice}") from stop
        except Exception as error:
            raise ExplainError(_failure(path, error)) from error
        if step is not None and len(seen) < step:
            raise ExplainError(f"{path} called backward() {len(seen)} times, so there is no step {step}")
        data = _wanted(path, names.get("loss") if step is None else None, seen, audit)
    return write(data, out), str(data["title"])


def _wanted(path: Path, loss: Any, seen: list[tuple[Any, Any]], audit: bool) -> dict[str, Any]:
    """The facts of the global `loss`, or of the last backward()."""
    last, data = seen[-1] if seen else (None, None)
    if isinstance(loss, Tensor) and loss is not last:
        try:
            return facts(loss, title=path.name, audit=audit)
        except (TapeError, ValueError) as error:
            raise ExplainError(f"the global `loss` of {path}: {error}") from error
    if data is None:
        raise ExplainError(
            f"{path} has nothing to explain: name its result `loss`, outside of all functions, or call backward() in "
            "its own thread (parallel_backward has others)"
        )
    return dict(data)


@contextmanager
def _backward_seen(
    recording: Recording, name: str, step: int | None, audit: bool
) -> Iterator[list[tuple[Any, dict[str, Any] | None]]]:
    """Inside the block, look at each tape before `backward()` frees it; only the last look is kept."""
    seen: list[tuple[Any, dict[str, Any] | None]] = []
    original = Tensor.backward

    def backward(self: Tensor, gradient: Any = None, **options: Any) -> None:
        looked = recording.listening and self.node is not None and (self.size == 1 or gradient is not None)
        if looked:
            seen[:] = [(None, None) for _ in seen]
            wanted = step is None or len(seen) + 1 == step
            title = f"{name}, backward() number {len(seen) + 1}"
            with recording.pause():
                single = self if self.size == 1 else (self * gradient).sum()
            seen.append((self, facts(single, title=title, audit=audit) if wanted else None))
        original(self, gradient, **options)
        recording.forget_ops()
        if looked and len(seen) == step:
            raise _Enough

    Tensor.backward = backward  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        Tensor.backward = original  # type: ignore[method-assign]


@contextmanager
def _as_main(path: Path) -> Iterator[None]:
    """Arguments and the first folder of imports as `python FILE` has them."""
    arguments, folders = sys.argv, sys.path
    sys.argv, sys.path = [str(path)], [str(path.resolve().parent), *sys.path]
    try:
        yield
    finally:
        sys.argv, sys.path = arguments, folders


def _failure(path: Path, error: Exception) -> str:
    """What went wrong in a script, and on which of its lines."""
    here = [f.lineno for f in traceback.extract_tb(error.__traceback__) if os.path.basename(f.filename) == path.name]
    where = f", line {here[-1]}" if here else f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
    said = error.msg if isinstance(error, SyntaxError) else str(error)  # which would name the place once more
    what = " ".join(said.split()) or "no message"
    return f"{path}{where}: {type(error).__name__}: {what}"
