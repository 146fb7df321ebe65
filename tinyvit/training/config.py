"""The config of a run: three tables of plain values, in a TOML file, from the command line, or both.

    [model]     the fields of `ViTConfig`; image size, channels and classes are the data's where they are not given
    [data]      what to train on, in what batches, augmented how
    [training]  how long, and with what optimizer and schedule

What is not given has a default that trains the digits in half a minute. A name that does not exist, or a value of
another type, is an error that names the nearest right one.
"""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from tinyvit.data import DATASETS, DataError, Dataset, Mixing, Reading, augmentations, load_dataset, unknown_name
from tinyvit.engine.mixed_precision import PRECISIONS
from tinyvit.training.finetuning import ALL_BUT_THE_HEAD, Initial
from tinyvit.training.optim import OPTIMIZERS
from tinyvit.training.schedules import SCHEDULES
from tinyvit.vit import ViTConfig


class ConfigError(ValueError):
    """A config that asks for something that does not exist."""


@dataclass(frozen=True)
class DataConfig:
    """What a run trains on.

    Args:
        name: a dataset's name or the path of its file.
        batch_size: images a step.
        augment: what happens to training images before the model sees them, in turn: names of
            `tinyvit.data.AUGMENTATIONS`, with settings where others are wanted: ["crop(padding=2)", "flip"].
        mean, std: of each channel, 1 being white; those of the training images if empty.
        validation, test: share of the images that is held out for them, where the data has no such split of its own.
        split_seed: which images these are.
        crop_ratio: of a photograph, the share of the shorter side that is seen in evaluation: the middle.
        interpolation: how photographs are resized: "bilinear", "bicubic", "lanczos", "box", "hamming" or "nearest".
        on_bad_image: "raise", or "skip" an image file that cannot be used, and count it.
    """

    name: str = "digits"
    batch_size: int = 128
    augment: tuple[str, ...] = ("affine",)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    validation: float = Reading.validation
    test: float = Reading.test
    split_seed: int = Reading.split_seed
    crop_ratio: float = Reading.crop_ratio
    interpolation: str = Reading.interpolation
    on_bad_image: str = Reading.on_bad_image


@dataclass(frozen=True)
class TrainingConfig:
    """How a run trains.

    Args:
        epochs: passes over the training images.
        optimizer: "adamw", "adam" or "sgd".
        lr: peak step size.
        layer_decay: factor on the step size from each encoder layer to the one below it, in (0, 1]: the head has `lr`,
            the last layer layer_decay · lr, and so on down to the embeddings (`layer_scales`).
        weight_decay: of weight matrices; biases, norms, tokens and positions have none.
        momentum: of "sgd".
        schedule: "cosine", "constant" or "step" (a tenth at 60 % and at 85 % of the run).
        warmup_epochs: of linear warm-up, before the schedule's own course; at most a tenth of the epochs if not given.
        label_smoothing: share of a target that is spread over all classes.
        clip_norm: largest joint norm of the gradients; 0 for no clipping.
        precision: what a GPU computes in: "fp32", "tf32", "bf16" or "fp16" (see `tinyvit.precision`). A CPU takes
            "fp32".
        shards: parts that a batch is cut into, which worker threads take in turn; 0: as many as suit the model, at
            most eight, and one on a GPU. The bits of a run depend on it, and not on the number of workers. More
            shards take less memory.
        ema: decay of the averaged weights that are evaluated and kept; 0 for none.
        seed: of the weights, the order, the augmentation and dropout.
        checkpoint_epochs: epochs between checkpoints; the newest two are kept.
        init: the path of weights to start from; fresh ones if empty.
        freeze: 0 for nothing; n for the embeddings (patches, tokens, positions) and the first n encoder layers; -1 for
            all but the head. What is frozen gets no gradient, and its dropout and DropPath stay off.
    """

    epochs: int = 100
    optimizer: str = "adamw"
    lr: float = 4e-3
    layer_decay: float = 1.0
    weight_decay: float = 0.05
    momentum: float = 0.9
    schedule: str = "cosine"
    warmup_epochs: int = 10
    label_smoothing: float = 0.1
    clip_norm: float = 1.0
    precision: str = "fp32"
    shards: int = 0
    ema: float = 0.0
    seed: int = 0
    checkpoint_epochs: int = 10
    init: str = ""
    freeze: int = 0


@dataclass(frozen=True)
class Config:
    """A whole run, resolved: nothing is left to be filled in. It stands in the run's folder as `config.toml`."""

    model: ViTConfig
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def to_dict(self) -> dict[str, Any]:
        """Return the three tables as plain dicts, tuples as lists."""
        tables = dataclasses.asdict(self)
        return {t: {k: list(v) if isinstance(v, tuple) else v for k, v in tables[t].items()} for t in tables}

    def to_toml(self) -> str:
        """Return the text of `config.toml`, which `tinyvit train --config` repeats exactly."""
        return tomli_w.dumps(self.to_dict())


_TABLES = {"model": ViTConfig, "data": DataConfig, "training": TrainingConfig}
_SMALL_MODEL = {"dim": 64, "depth": 3, "num_heads": 4, "mlp_ratio": 2.0}  # what a laptop trains
_FACTS = ("image_size", "channels", "num_classes")  # of the data
_PATCHES, _MANY_TOKENS = (4, 7, 8, 14, 16, 32), 200  # if nobody says: the smallest that leaves no more tokens
_ALSO_CALLED = {
    "learning_rate": "lr",
    "wd": "weight_decay",
    "warmup": "warmup_epochs",
    "smoothing": "label_smoothing",
    "width": "dim",
    "embed_dim": "dim",
    "hidden_size": "dim",
    "heads": "num_heads",
    "classes": "num_classes",
    "layers": "depth",
    "num_layers": "depth",
    "img_size": "image_size",
    "patch": "patch_size",
    "batch": "batch_size",
    "bs": "batch_size",
    "dataset": "name",
    "path": "name",
    "augmentation": "augment",
}


def read_toml(path: str | Path) -> dict[str, dict[str, Any]]:
    """Return the tables of a TOML file.

    Raises:
        ConfigError: the file is missing, or not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a TOML file: {error}") from error


def parse_assignments(assignments: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Read ["training.lr=1e-3", "model.pool=mean"]; values are TOML, and a bare word is a string.

    Raises:
        ConfigError: not of the form table.key=value.

    >>> parse_assignments(["training.lr=1e-3", "model.pool=mean"])
    {'training': {'lr': 0.001}, 'model': {'pool': 'mean'}}
    """
    tables: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        table, dot, key = name.strip().partition(".")
        if not (equals and dot and key):
            raise ConfigError(f"--set {assignment!r} is not of the form table.key=value, for instance training.lr=1e-3")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        tables.setdefault(table, {})[key] = value
    return tables


def merge(*sources: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Lay tables over one another; a later source wins.

    Raises:
        ConfigError: a table or a key that does not exist, or a value of another type.
    """
    merged: dict[str, dict[str, Any]] = {table: {} for table in _TABLES}
    for source in sources:
        for table, values in source.items():
            if table not in _TABLES:
                raise ConfigError(str(unknown_name("config table", table, _TABLES)))
            if not isinstance(values, Mapping):
                raise ConfigError(f"config {table!r} must be a table of keys, not {values!r}")
            for key, value in values.items():
                merged[table][key] = _checked(table, key, value)
    return merged


def _checked(table: str, key: str, value: Any) -> Any:
    """The value in the field's own type; whole numbers are numbers too."""
    fields = {f.name: f for f in dataclasses.fields(_TABLES[table])}
    if key not in fields:
        raise _unknown_key(table, key, fields)
    default = fields[key].default
    if key == "image_size" and isinstance(value, (list, tuple)):
        return tuple(_number(table, key, side, int) for side in value)
    if key == "augment":
        return _names(value)
    if isinstance(default, tuple):
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{table}.{key} must be a list of numbers, not {value!r}")
        return tuple(_number(table, key, v, float) for v in value)
    kind: Any = type(default)
    if kind in (int, float):
        return _number(table, key, value, kind)
    if not isinstance(value, kind):
        raise ConfigError(f"{table}.{key} must be of type {kind.__name__}, like {default!r}, not {value!r}")
    return value


def _unknown_key(table: str, key: str, fields: Iterable[str]) -> ConfigError:
    """What it may have been: this key in another table, another word for one, or a slip."""
    meant = _ALSO_CALLED.get(key, key)
    for other in (table, *_TABLES):
        if any(meant == f.name for f in dataclasses.fields(_TABLES[other])):
            return ConfigError(f"unknown key in [{table}] {key!r}: did you mean {other}.{meant}?")
    return ConfigError(str(unknown_name(f"key in [{table}]", key, fields)))


def _names(value: Any) -> tuple[str, ...]:
    """A list of names; a single one, or several between commas, may stand without brackets, and "none" for no name.

    >>> _names("crop(2, mode='edge'), flip")
    ("crop(2, mode='edge')", 'flip')
    """
    if value == "none":
        return ()
    if isinstance(value, str):
        value = re.split(r",\s*(?![^()]*\))", value.strip())
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
        raise ConfigError(f"data.augment must be a list of names, like ['crop', 'flip'], not {value!r}")
    return tuple(value)


def _number(table: str, key: str, value: Any, kind: Any) -> Any:
    """A finite number; a whole one where the field counts something."""
    if isinstance(value, bool) or not isinstance(value, (int, kind)):
        default = getattr(_TABLES[table], key)
        raise ConfigError(f"{table}.{key} must be of type {kind.__name__}, like {default!r}, not {value!r}")
    try:
        number = kind(value)
    except OverflowError:
        number = math.inf
    if kind is float and not math.isfinite(number):
        raise ConfigError(f"{table}.{key} is {value}; it must be finite")
    return number


def for_epochs(tables: Mapping[str, Mapping[str, Any]], epochs: int) -> dict[str, dict[str, Any]]:
    """Return the tables for another number of epochs; a warm-up that would leave nothing of them becomes a tenth.

    >>> for_epochs(merge({"training": {"epochs": 100, "warmup_epochs": 10}}), 5)["training"]
    {'epochs': 5, 'warmup_epochs': 0}
    """
    training = {**tables["training"], "epochs": epochs}
    if training.get("warmup_epochs", 0) >= epochs:
        training["warmup_epochs"] = epochs // 10
    return {**merge(tables), "training": training}


def is_whole(tables: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the tables say what the model is without their data, as a run's own do, one of an older version's too."""
    return {*_FACTS, "patch_size", *_SMALL_MODEL} <= tables["model"].keys()


def reading(tables: Mapping[str, Mapping[str, Any]], offline: bool = False, initial: Initial | None = None) -> Reading:
    """Return how the tables want their data to be read; photographs become of the size that the model takes.

    What the tables leave open, the weights to start from (`initial`) say.

    Raises:
        ConfigError: a share, a size or a word that there cannot be.

    >>> reading({"model": {"image_size": 64}, "data": {"validation": 0.2}}).image_size
    64
    """
    fields = {f.name for f in dataclasses.fields(Reading)}
    asked: dict[str, Any] = {}
    for source in (_given_by(initial), tables):
        asked |= {key: source["model"][key] for key in ("image_size", "channels") if key in source["model"]}
        asked |= {key: value for key, value in source["data"].items() if key in fields}
    try:
        return Reading(**asked, offline=offline)
    except DataError as error:
        raise ConfigError(f"[data]: {error}") from error


def _given_by(initial: Initial | None) -> dict[str, dict[str, Any]]:
    return merge({"model": initial.model, "data": initial.data} if initial else {})


def open_dataset(
    tables: Mapping[str, Mapping[str, Any]],
    name: str | Path | None = None,
    offline: bool = False,
    initial: Initial | None = None,
) -> Dataset:
    """Return the data that the tables describe, or another of that `name` or path, read as they want it read.

    Raises:
        DataError, ConfigError: the data, or the way to read it, cannot be used.
    """
    return load_dataset(name or tables["data"].get("name", DataConfig.name), reading(tables, offline, initial))


def resolve(tables: Mapping[str, Mapping[str, Any]], dataset: Dataset, initial: Initial | None = None) -> Config:
    """Fill in what the tables (see `merge`) leave open, and check the whole.

    The model's image size, channels and classes are the dataset's. Everything else is as the weights to start from
    (`initial`) say, or else the dataset (mean and deviation), or else the defaults.

    Raises:
        ConfigError: values that make no run; or the tables name weights that say what the model is, and they are not
            given.
    """
    if (init := tables["training"].get("init")) and not initial and not is_whole(tables):
        raise ConfigError(
            f"training.init {init!r} says what the model is: open these weights and give them as `initial`, or fill in "
            "the table [model]"
        )
    given = _given_by(initial)
    height, width = dataset.image_size
    size = height if height == width else (height, width)
    facts = dict(zip(_FACTS, (size, dataset.channels, dataset.num_classes), strict=True))
    mean, std = dataset.statistics()
    fitting = {k: v for k, v in given["data"].items() if k not in ("mean", "std") or len(v) == dataset.channels}
    data = {"mean": mean, "std": std, **fitting, **tables["data"]}
    data |= {key: fact for key, fact in (("mean", mean), ("std", std)) if not data[key]}
    if data.get("name", "digits") not in DATASETS:
        data["name"] = str(Path(data["name"]).resolve())  # so that it is found from another folder too
    training = dict(tables["training"])
    if init and "://" not in init:  # which is the same from everywhere
        training["init"] = str(Path(init).resolve())
    if "warmup_epochs" not in training and "epochs" in training:
        training["warmup_epochs"] = min(TrainingConfig.warmup_epochs, training["epochs"] // 10)
    try:
        config = Config(
            ViTConfig(
                **{**_SMALL_MODEL, "patch_size": _patch(height, width), **given["model"], **facts, **tables["model"]}
            ),
            DataConfig(**data),
            TrainingConfig(**training),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    m = config.model
    if (m.channels, m.height, m.width) != (dataset.channels, height, width) or m.num_classes < dataset.num_classes:
        raise ConfigError(
            f"the model is for images of {m.channels}×{m.height}×{m.width} (C×H×W) in {m.num_classes} classes, but "
            f"the data {config.data.name!r} has {dataset.channels}×{height}×{width} in {dataset.num_classes}"
            + ("" if "name" in tables["data"] else ": name yours with --data, for this config names none")
        )
    _check_training(config)
    return config


def _patch(height: int, width: int) -> int:
    """The patch size where nobody says: few enough tokens to be trained on a CPU."""
    fitting = [p for p in _PATCHES if not height % p and not width % p] or [_PATCHES[0]]
    return next((p for p in fitting if height * width <= _MANY_TOKENS * p * p), fitting[-1])


def _check_training(config: Config) -> None:
    m, t, d = config.model, config.training, config.data
    words: list[tuple[str, str, Iterable[str]]] = [
        ("optimizer", t.optimizer, OPTIMIZERS),
        ("schedule", t.schedule, SCHEDULES),
        ("precision", t.precision, PRECISIONS),
    ]
    for name, word, known in words:
        if word not in known:
            raise ConfigError(str(unknown_name(name, word, known)))
    try:
        for step in augmentations(d.augment):
            if not isinstance(step, Mixing):  # tried on a blank image, because not every setting suits every size
                step(np.zeros((1, m.channels, m.height, m.width), np.float32), np.random.default_rng(0))
    except DataError as error:
        raise ConfigError(f"data.augment: {error}") from error
    least: dict[str, tuple[float, int]] = {
        "training.epochs": (t.epochs, 1),
        "training.shards": (t.shards, 0),
        "training.checkpoint_epochs": (t.checkpoint_epochs, 1),
        "data.batch_size": (d.batch_size, 1),
        "training.seed": (t.seed, 0),
        "training.lr": (t.lr, 0),
        "training.weight_decay": (t.weight_decay, 0),
        "training.momentum": (t.momentum, 0),
        "training.warmup_epochs": (t.warmup_epochs, 0),
        "training.clip_norm": (t.clip_norm, 0),
    }
    for name, (value, lowest) in least.items():
        if not value >= lowest:  # NaN too
            raise ConfigError(f"{name} is {value}; it must be at least {lowest}")
    for name, share in (("label_smoothing", t.label_smoothing), ("ema", t.ema)):
        if not 0 <= share < 1:
            raise ConfigError(f"training.{name} is {share}; it must be in [0, 1)")
    if not 0 < t.layer_decay <= 1:
        raise ConfigError(f"training.layer_decay is {t.layer_decay}; it must be above 0 and at most 1")
    if not ALL_BUT_THE_HEAD <= t.freeze <= config.model.depth:
        raise ConfigError(
            f"training.freeze is {t.freeze}; it must be 0 for nothing, a number of encoder layers up to "
            f"{config.model.depth}, or {ALL_BUT_THE_HEAD} for all but the head"
        )
    if t.warmup_epochs >= t.epochs and t.warmup_epochs:
        raise ConfigError(
            f"training.warmup_epochs {t.warmup_epochs} leaves nothing of training.epochs {t.epochs}: lower it"
        )
