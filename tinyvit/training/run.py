"""A run: from a config to a folder that holds all that came of it.

    config.toml         the resolved config; `tinyvit train --config` repeats the run
    metrics.jsonl       a record a line: one an epoch, at last {"event": "final", "test_accuracy": …, "seconds": …}
    checkpoints/        step-*.safetensors, the newest two: what `--resume` goes on from
    model.safetensors   the trained weights, with the config and the class names in the header

Nothing is written before the config, the data, the device and the model are known to be good.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyvit.data import Dataset, ImageFiles, Loader, augmentations
from tinyvit.engine import Tensor
from tinyvit.training.checkpoint import (
    CheckpointError,
    checkpoint_path,
    latest_checkpoint,
    load_checkpoint,
    newest_first,
    prune,
    save_checkpoint,
    save_model,
    write_atomically,
)
from tinyvit.training.config import (
    Config,
    ConfigError,
    DataConfig,
    TrainingConfig,
    is_whole,
    merge,
    open_dataset,
    read_toml,
    resolve,
)
from tinyvit.training.ema import EMA
from tinyvit.training.finetuning import Initial, freeze, layer_scales
from tinyvit.training.optim import OPTIMIZERS, Optimizer
from tinyvit.training.schedules import Schedule, constant, cosine, step_decay
from tinyvit.training.trainer import Interrupted, NonFiniteLossError, Record, Trainer
from tinyvit.vit import ViT, ViTConfig

KEPT_CHECKPOINTS = 2
EVALUATION_BATCH = 256
_MAY_CHANGE = {"epochs", "warmup_epochs", "checkpoint_epochs", "checkpoint"}  # on resuming


class Run:
    """One training run, ready to go: `Run(tables, folder).train()`.

    Args:
        tables: the config; what it leaves open is filled in.
        folder: where the run is written.
        device: "cpu", "gpu" or "auto".
        workers: threads that compute the shards of a batch, and as many that decode images; one a core if None.
        graph: on a GPU, launch a step as one CUDA graph.
        offline: download nothing, not even a dataset that is asked for by name.
        resume: go on from the folder's newest checkpoint; without one, start.
        initial: the weights of `training.init`, opened, from which a run starts that has no checkpoint.

    Raises:
        ConfigError: a config that makes no run, a folder that holds another run, or weights to start from that the
            config does not name, or names alone.
        DataError, BackendError, CheckpointError: the data, the device or the checkpoint cannot be used.
    """

    def __init__(
        self,
        tables: Mapping[str, Mapping[str, Any]],
        folder: str | Path,
        device: str = "auto",
        resume: bool = False,
        workers: int | None = None,
        graph: bool = False,
        offline: bool = False,
        initial: Initial | None = None,
    ):
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"{self.folder} is a file; choose another --out for the run's folder")
        if not resume and ((self.folder / "checkpoints").exists() or self._model_path.exists()):
            raise ConfigError(f"{self.folder} holds a run already: go on with it by --resume, or choose another --out")
        tables = merge(tables)
        self.damaged: list[CheckpointError] = []
        found = self._newest_readable() if resume else None
        if found is None:  # one that was interrupted before its first checkpoint starts again
            _check_initial(tables["training"].get("init", ""), initial)
        self.dataset = open_dataset(tables, offline=offline, initial=initial)
        if workers:
            for split in (self.dataset.train, self.dataset.validation, self.dataset.test):
                if isinstance(split.images, ImageFiles):
                    split.images.workers = workers
        self.config = resolve(tables, self.dataset, initial)
        self.trainer = make_trainer(self.config, self.dataset, device, workers, graph, None if found else initial)
        self.resumed_from: Path | None = None
        if found:
            self._resume(*found)

    @staticmethod
    def holds_run(folder: Path) -> bool:
        """Whether a run was begun in this folder."""
        return (folder / "config.toml").exists()

    @property
    def metrics_path(self) -> Path:
        """The records of the run, a JSON object a line."""
        return self.folder / "metrics.jsonl"

    @staticmethod
    def goes_on(folder: Path) -> bool:
        """Whether the run in this folder, resumed, goes on from a checkpoint instead of starting again."""
        return bool(newest_first(folder / "checkpoints"))

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is something to go on from."""
        return latest_checkpoint(self.folder / "checkpoints") is not None

    @property
    def _model_path(self) -> Path:
        return self.folder / "model.safetensors"

    def train(
        self,
        on_step: Callable[[Trainer], None] | None = None,
        on_record: Callable[[Record], None] | None = None,
    ) -> Record:
        """Train to the end and return the final record.

        Args:
            on_step: called with the trainer after each step.
            on_record: called with each record after it was written.

        Raises:
            NonFiniteLossError: the weights cannot be trained further; the last checkpoint is from before.
            Interrupted: `trainer.stop` was set; a checkpoint of the last step was written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / "config.toml", [self.config.to_toml().encode()])
        self._cut_metrics()
        if self.resumed_from and self.trainer.epoch < self.trainer.epochs:  # it goes on: its weights will be others
            self._model_path.unlink(missing_ok=True)

        def log(record: Record) -> None:
            with self.metrics_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            if on_record:
                on_record(record)

        try:
            for record in self.trainer.run(on_step):
                log(record)
                if self.trainer.epoch % self.config.training.checkpoint_epochs == 0:
                    self.checkpoint()
        except Interrupted:
            self.checkpoint()
            raise
        self.checkpoint()
        return self._finish(log)

    def checkpoint(self) -> Path:
        """Write a checkpoint of this moment, and let go of old ones.

        Raises:
            NonFiniteLossError: the weights are not finite; the older checkpoints stay.
        """
        arrays, numbers = self.trainer.state()
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise NonFiniteLossError(f"the weights are not finite at step {self.trainer.step}: lower training.lr")
        path = checkpoint_path(self.folder / "checkpoints", self.trainer.step)
        save_checkpoint(path, arrays, {**self._about(), "kind": "checkpoint", "state": numbers})
        prune(path.parent, KEPT_CHECKPOINTS)
        return path

    def _about(self) -> dict[str, Any]:
        unnamed = range(len(self.dataset.classes), self.config.model.num_classes)
        return {"config": self.config.to_dict(), "classes": [*self.dataset.classes, *map(str, unnamed)]}

    def _finish(self, log: Callable[[Record], None]) -> Record:
        """Keep the weights, and look at the test images: once, after every choice was made."""
        trainer = self.trainer
        with trainer.ema.applied() if trainer.ema else nullcontext():
            weights = trainer.model.state_dict()
        save_model(self._model_path, weights, {**self._about(), "kind": "model"})
        final = {"event": "final", "epoch": trainer.epoch, "step": trainer.step}
        if len(self.dataset.test):
            scores = trainer.evaluate(evaluation_loader(self.config, self.dataset.test))
            final |= {f"test_{name}": score for name, score in scores.items()}
        if bad := self.dataset.skipped():
            final["skipped"] = bad
        final["seconds"] = round(trainer.seconds, 3)
        log(final)
        return final

    def _resume(self, newest: Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        try:
            self.trainer.load_state(arrays, meta["state"])
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{newest} does not fit this config: {error}") from error
        self._refuse_changes(newest, meta["config"])
        self.resumed_from = newest

    def _newest_readable(self) -> tuple[Path, dict[str, np.ndarray], dict[str, Any]] | None:
        """The newest checkpoint that is not damaged; those that are stay where they are, and are named."""
        for path in newest_first(self.folder / "checkpoints"):
            try:
                return path, *load_checkpoint(path)
            except CheckpointError as error:
                self.damaged.append(error)
        if self.damaged:
            raise self.damaged[0]
        return None

    def _refuse_changes(self, newest: Path, before: Mapping[str, Mapping[str, Any]]) -> None:
        """A run goes on as it was begun, or its config.toml would not be its own; only its length may change."""
        then, now = merge(before), merge(self.config.to_dict())
        defaults = asdict(Config(ViTConfig()))
        for table, values in now.items():
            for key, new in values.items():  # of which one may be younger than the run
                if key not in _MAY_CHANGE and (old := then[table].get(key, defaults[table][key])) != new:
                    raise ConfigError(f"{newest} was trained with {table}.{key} {old} and cannot go on with {new}")

    def _cut_metrics(self) -> None:
        """Drop the records of epochs that will be trained again, and a last line that was not finished."""
        if not self.metrics_path.exists():
            return
        kept = []
        for line in self.metrics_path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if record.get("event") == "epoch" and record["epoch"] <= self.trainer.epoch:
                kept.append(line)
        write_atomically(self.metrics_path, [f"{line}\n".encode() for line in kept])


def _check_initial(init: str, initial: Initial | None) -> None:
    """Weights to start from, and the config's word for them: one without the other is no run that could be repeated."""
    if init and not initial:
        raise ConfigError(f"training.init names {init!r}, but these weights were not given: open them, as `initial`")
    if initial and not init:
        raise ConfigError("weights to start from were given, but training.init is empty: set it to their path")


def make_trainer(
    config: Config,
    dataset: Dataset,
    device: str = "cpu",
    workers: int | None = None,
    graph: bool = False,
    initial: Initial | None = None,
) -> Trainer:
    """Build everything that a config describes, ready for its first step; its weights are fresh, or the initial ones.

    Raises:
        ConfigError: a precision or a graph that a CPU does not have, or weights that do not fit the model.
        BackendError: the device is not there.
    """
    t, d = config.training, config.data
    model = ViT(config.model, np.random.default_rng(t.seed))
    if initial:
        _load_initial(model, initial, t.init)
    model.to(device=device)
    freeze(model, t.freeze)
    if model.device == "cpu" and (graph or t.precision != "fp32"):
        asked = "a graph" if graph else f"training.precision {t.precision!r}"
        raise ConfigError(f"{asked} is for a GPU, and this run is on the CPU: use --device gpu, or leave it out")
    loader = Loader(
        dataset.train,
        d.batch_size,
        mean=d.mean,
        std=d.std,
        augment=augmentations(d.augment),
        classes=config.model.num_classes,
        shuffle=True,
        seed=t.seed,
    )
    return Trainer(
        model,
        make_optimizer(config, model),
        make_schedule(config, len(loader)),
        loader,
        epochs=t.epochs,
        validation=evaluation_loader(config, dataset.validation) if len(dataset.validation) else None,
        label_smoothing=t.label_smoothing,
        clip_norm=t.clip_norm,
        shards=t.shards,
        workers=workers,
        ema=EMA(trained_parameters(model), t.ema) if t.ema else None,
        seed=t.seed,
        precision=t.precision,
        graph=graph,
    )


def _load_initial(model: ViT, initial: Initial, path: str) -> None:
    weights = initial.weights(model.config)
    try:
        model.load_state_dict(weights)
    except ValueError as error:
        raise ConfigError(f"training.init {path!r}: {error}") from error


def make_optimizer(config: Config, model: ViT) -> Optimizer:
    """Build the optimizer that a config names, over what is not frozen."""
    t, parameters = config.training, trained_parameters(model)
    settings: dict[str, Any] = {"momentum": t.momentum} if t.optimizer == "sgd" else {}
    settings["lr_scales"] = layer_scales((name for name, _ in parameters), config.model.depth, t.layer_decay)
    return OPTIMIZERS[t.optimizer](parameters, lr=t.lr, weight_decay=t.weight_decay, **settings)


def trained_parameters(model: ViT) -> list[tuple[str, Tensor]]:
    """Return the parameters of a model that are not frozen, with their names."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def make_schedule(config: Config, steps_an_epoch: int) -> Schedule:
    """Build the schedule that a config names, over the steps of its epochs."""
    t = config.training
    total, warmup = t.epochs * steps_an_epoch, t.warmup_epochs * steps_an_epoch
    if t.schedule == "cosine":
        return cosine(t.lr, total, warmup)
    if t.schedule == "step":
        falls = {max(warmup + 1, round(share * total)) for share in (0.6, 0.85)}
        return step_decay(t.lr, sorted(falls), warmup=warmup)
    return constant(t.lr, warmup)


def evaluation_loader(config: Config, split: Any) -> Loader:
    """Return the images of a split as the model is to see them: in order, not augmented, normalised as in training."""
    return Loader(split, EVALUATION_BATCH, mean=config.data.mean, std=config.data.std)


@dataclass(frozen=True)
class TrainedModel:
    """A model from a run, and what is needed to use it: its config (with the normalisation) and its classes."""

    model: ViT
    config: Config
    classes: tuple[str, ...]
    path: Path


def load_trained(path: str | Path, device: str = "cpu") -> TrainedModel:
    """Open a run's folder (its final model, else its newest checkpoint), a model file or a checkpoint.

    From a checkpoint of a run with averaged weights, those are taken.

    Raises:
        CheckpointError: there is no such file, or it cannot be used.
        BackendError: the device is not there.
    """
    path = Path(path)
    if path.is_dir():
        final = path / "model.safetensors"
        found = final if final.exists() else latest_checkpoint(path / "checkpoints")
        if found is None:
            raise CheckpointError(
                f"{path} holds neither model.safetensors nor a checkpoint; give a run's folder or file"
            )
        path = found
    arrays, meta = load_checkpoint(path)
    try:
        tables = merge(meta["config"])
        config = Config(
            ViTConfig(**tables["model"]), DataConfig(**tables["data"]), TrainingConfig(**tables["training"])
        )
        model = ViT(config.model, np.random.default_rng(0))
        model.load_state_dict(_weights(arrays) if meta["kind"] == "checkpoint" else arrays)
        classes = tuple(meta["classes"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} holds no model that this version can open: {error}") from error
    model.to(device=device)
    model.eval()
    return TrainedModel(model, config, classes, path)


def _weights(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The averaged weights of a checkpoint where it has them, else (all, or those that are frozen) the model's own."""
    weights = {k.removeprefix("model."): v for k, v in arrays.items() if k.startswith("model.")}
    return {name: arrays.get(f"ema.shadow.{name}", own) for name, own in weights.items()}


def continue_config(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the config of a run that is to be resumed.

    Raises:
        ConfigError: there is no run in the folder.
    """
    if not Run.holds_run(folder):
        raise ConfigError(f"{folder} holds no run to resume: there is no config.toml in it")
    return read_toml(folder / "config.toml")


def read_model_config(path: Path, open_initial: Callable[[str], Initial] | None = None) -> ViTConfig:
    """Return the model that a config file describes: as it stands there, or, with gaps, as it would be trained.

    Args:
        open_initial: opens the weights of `training.init`, where they are to fill the gaps.

    Raises:
        ConfigError, DataError: the file, or the data that is to fill the gaps, cannot be used.
    """
    tables = merge(read_toml(path))
    if not is_whole(tables):
        init = tables["training"].get("init")
        initial = open_initial(init) if init and open_initial else None
        return resolve(tables, open_dataset(tables, initial=initial), initial).model
    try:
        return ViTConfig(**tables["model"])  # a run's own config is whole, and its data may be gone
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
