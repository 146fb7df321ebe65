"""The training loop. Each of its parts (loader, optimizer, schedule, EMA, checkpoint) works in a loop of one's own too.

Everything random in a step is drawn from a generator made of (seed, step): the order and augmentation of the images
by the loader, dropout here. So the random state of a run is two numbers, and a run that was interrupted goes on
exactly as if it had not been.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from tinyvit.data import Loader
from tinyvit.engine import Tensor, ops, precision, random
from tinyvit.engine.backend import namespace_of
from tinyvit.layers import Module
from tinyvit.training.ema import EMA
from tinyvit.training.evaluation import evaluate
from tinyvit.training.graph import StepGraph
from tinyvit.training.loss_scale import LossScale
from tinyvit.training.optim import Optimizer, clip_grad_norm
from tinyvit.training.parallel import parallel_backward, shards_for
from tinyvit.training.schedules import Schedule
from tinyvit.training.transfer import on_device
from tinyvit.vit import ViT

Record = dict[str, Any]
DROPOUT = 2**32 - 1  # a stream that no epoch of the loader, whose streams begin with its number, will ever have


class NonFiniteLossError(ArithmeticError):
    """The loss became infinite or NaN: the run cannot go on."""


class Interrupted(Exception):  # noqa: N818 -- no error: somebody asked for it
    """The run was asked to stop, and did so after a whole step."""


class Trainer:
    """Trains a model for some epochs, and says after each what came of it.

    Args:
        model: what is trained, on its device.
        optimizer: over the model's named parameters.
        schedule: the step size of each step, counted from 0.
        loader: the training batches.
        epochs: passes over the loader.
        validation: batches to evaluate on after each epoch, or None.
        label_smoothing, clip_norm: see `TrainingConfig`.
        shards: parts that a batch is cut into: see `parallel_backward`; by default what `shards_for` says.
        workers: threads that compute shards; one a core if None. The run does not depend on it.
        ema: averaged weights, evaluated instead of the model's own, or None.
        seed: of dropout and DropPath.
        precision: what a GPU computes in, see `tv.precision`; "fp16" scales the loss (`LossScale`).
        graph: on a GPU, launch a step's forward and backward pass as one CUDA graph (`StepGraph`).

    Layers without a parameter that requires a gradient stay in evaluation mode: their dropout and DropPath are off, and
    that of the embeddings with them.

    Attributes:
        step, epoch, batch: how far the run is: steps made in all, the epoch it is in, batches seen of that epoch.
        seconds: time spent training so far, in this process and those before it.
        stop: set it (from a signal handler, say) to end the run after the current step.

    >>> import tinyvit as tv
    >>> from tinyvit.data import digits
    >>> from tinyvit.training import AdamW, cosine
    >>> data = digits()
    >>> mean, std = data.statistics()
    >>> loader = Loader(data.train, 128, mean=mean, std=std, shuffle=True)
    >>> tv.seed(0)
    >>> model = tv.ViT(tv.ViTConfig(8, 4, channels=1, num_classes=10, dim=16, depth=1, num_heads=2))
    >>> optimizer = AdamW(model.named_parameters(), lr=1e-2)
    >>> trainer = Trainer(model, optimizer, cosine(1e-2, total=2 * len(loader)), loader, epochs=2)
    >>> [sorted(record) for record in trainer.run()]
    [['epoch', 'event', 'images_per_second', 'loss', 'lr', 'seconds', 'step', 'train_accuracy'], [...]]
    """

    def __init__(
        self,
        model: ViT,
        optimizer: Optimizer,
        schedule: Schedule,
        loader: Loader,
        *,
        epochs: int,
        validation: Loader | None = None,
        label_smoothing: float = 0.0,
        clip_norm: float = 0.0,
        shards: int | None = None,
        workers: int | None = None,
        ema: EMA | None = None,
        seed: int = 0,
        precision: str = "fp32",
        graph: bool = False,
    ):
        self.model, self.optimizer, self.schedule, self.loader = model, optimizer, schedule, loader
        self.epochs, self.validation, self.ema, self.seed = epochs, validation, ema, seed
        self.label_smoothing, self.clip_norm = label_smoothing, clip_norm
        self.shards = shards or shards_for(model.config, loader.batch_size, model.device)
        self.workers = workers if model.device == "cpu" else 1
        self.step = self.epoch = self.batch = 0
        self.seconds = 0.0
        self.stop = False
        self.precision = precision
        self.scale = LossScale() if precision == "fp16" else None
        self._whole = graph and optimizer.recordable and self.scale is None  # a scaled step may be skipped: a look
        self._backward: Callable[..., Sequence[Any]] = self._sweep
        if graph:
            self._backward = StepGraph(self._sweep, optimizer.parameters, self._update if self._whole else None)
        self.lr = schedule(0)
        self._frozen = [layer for layer in model.modules() if _is_frozen(layer)]
        self._totals = _Totals()

    def run(self, on_step: Callable[[Trainer], None] | None = None) -> Iterator[Record]:
        """Train from where the run is to its end; yield a record after each epoch.

        Args:
            on_step: called after each step, for a progress bar.

        Raises:
            NonFiniteLossError: the loss is infinite or NaN; the weights are those before that step (on a GPU, where the
                loss is looked at once an epoch, those at the end of that epoch).
            Interrupted: `stop` was set.
        """
        while self.epoch < self.epochs:
            began, before = time.perf_counter(), self._totals.seen
            for images, labels in on_device(self.loader.raw(self.epoch, self.batch), self.model.device):
                started = time.perf_counter()
                images, labels = self.loader.finish(images, labels, self.epoch, self.batch)
                with np.errstate(over="ignore", invalid="ignore"):  # a loss that is not finite is told in one sentence
                    self.train_step(images, labels)
                self.seconds += time.perf_counter() - started
                if on_step:
                    on_step(self)
                if self.stop:
                    raise Interrupted
            yield self._end_epoch(began, before)

    def train_step(self, images: Any, labels: Any) -> None:
        """Forward, backward, update: one step on one batch."""
        self._set_mode()
        self.optimizer.zero_grad()
        chance = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(DROPOUT, self.step)))
        with random.using(chance), random.on_gpu(), precision(self.precision):
            loss, norm, right = self._backward(images, labels)
        self._check(loss, "loss")
        if self.scale is None:
            self._check(norm, "gradient")
            if not self._whole:
                self._update()
        elif self.scale.undo(self.optimizer.parameters):
            if self.clip_norm:
                clip_grad_norm(self.optimizer.parameters, self.clip_norm)
            self._update()
        elif self.scale.lost:
            raise NonFiniteLossError(self._non_finite("gradient"))
        self._totals.add(loss, right, len(labels))
        self.step += 1
        self.batch += 1

    def _set_mode(self) -> None:
        self.model.train()
        for layer in self._frozen:
            layer.eval()
        if self.model.patch_embed in self._frozen:
            self.model.training = False  # the embeddings' dropout is the model's own

    def _update(self) -> None:
        self.lr = self.optimizer.lr = self.schedule(self.step)
        self.optimizer.step()
        if self.ema:
            self.ema.update()

    def _sweep(self, images: Any, labels: Any) -> tuple[Any, Any, Any]:
        """Fill the gradients, clipped; return mean loss, norm (the loss if nothing clips) and how many were right."""
        right: list[Any] = []  # of each shard; in no order, for they are only counted

        def mean_loss(some: Any, wanted: Any) -> Tensor:
            logits = self.model(some)
            right.append(_count_right(logits, wanted))
            loss = ops.cross_entropy(logits, wanted, self.label_smoothing)
            return loss if self.scale is None else self.scale.of(loss)

        loss = parallel_backward(mean_loss, images, labels, shards=self.shards, workers=self.workers).data
        if self.scale is not None:
            return loss / self.scale.array, None, sum(right)
        norm = clip_grad_norm(self.optimizer.parameters, self.clip_norm) if self.clip_norm else loss
        return loss, norm, sum(right)

    def _check(self, number: Any, what: str) -> None:
        """On a CPU; on a GPU the loss is looked at once an epoch, so that no step waits."""
        if self.model.device == "cpu" and not math.isfinite(number):
            raise NonFiniteLossError(self._non_finite(what))

    @property
    def running(self) -> tuple[float, float] | None:
        """Mean loss and accuracy of the epoch so far, None before its first step; to look waits for a GPU."""
        return self._totals.means() if self._totals.seen else None

    def _end_epoch(self, began: float, before: int) -> Record:
        loss, accuracy = self._totals.means()  # waits for a GPU, so that the time is that of the work
        seconds, images = time.perf_counter() - began, self._totals.seen - before
        if not math.isfinite(loss):
            raise NonFiniteLossError(self._non_finite("loss"))
        record = {
            "event": "epoch",
            "epoch": self.epoch + 1,
            "step": self.step,
            "loss": loss,
            "train_accuracy": accuracy,
            "lr": self.lr,
            "seconds": round(self.seconds, 3),
        }
        if images:  # none if the run was stopped after the last step of this epoch
            record["images_per_second"] = round(images / seconds, 1)
        self.epoch, self.batch, self._totals = self.epoch + 1, 0, _Totals()
        if self.validation:
            scores = self.evaluate(self.validation)
            record |= {"validation_loss": scores["loss"], "validation_accuracy": scores["accuracy"]}
        return record

    def evaluate(self, loader: Loader) -> dict[str, float]:
        """Return {"images", "loss", "accuracy"} of the weights that will be kept: the averaged ones, if there are."""
        averaged = self.ema.applied() if self.ema else nullcontext()
        with averaged, precision(self.precision), np.errstate(over="ignore", invalid="ignore"):
            return evaluate(self.model, loader, self.workers)

    def _non_finite(self, what: str) -> str:
        return (
            f"the {what} is not finite at step {self.step} (epoch {self.epoch + 1}): "
            "lower training.lr, lengthen training.warmup_epochs, or set training.clip_norm"
        )

    # ------------------------------------------------------------------------------------------------------- resuming

    def state(self) -> tuple[dict[str, np.ndarray], Record]:
        """Return (arrays, numbers): everything that a run needs to go on as if it had not stopped."""
        arrays = {f"model.{name}": array for name, array in self.model.state_dict().items()}
        arrays |= {f"optimizer.{name}": array for name, array in self.optimizer.state_dict().items()}
        if self.ema:
            arrays |= {f"ema.{name}": array for name, array in self.ema.state_dict().items()}
        numbers = {"step": self.step, "epoch": self.epoch, "batch": self.batch, "seconds": self.seconds}
        if self.scale:
            numbers |= self.scale.state()
        return arrays, {**numbers, "seed": self.seed, "totals": self._totals.to_list()}

    def load_state(self, arrays: Mapping[str, np.ndarray], numbers: Mapping[str, Any]) -> None:
        """Go to where `state` was taken.

        Raises:
            ValueError: the arrays are of another model or optimizer, or the seed is another.
        """
        if numbers["seed"] != self.seed:
            raise ValueError(f"the run was started with seed {numbers['seed']} and cannot go on with {self.seed}")
        self.model.load_state_dict(_part(arrays, "model."))
        self.optimizer.load_state_dict(_part(arrays, "optimizer."))
        if self.ema:
            self.ema.load_state_dict(_part(arrays, "ema."))
        self.step, self.epoch, self.batch = numbers["step"], numbers["epoch"], numbers["batch"]
        self.seconds = numbers["seconds"]
        if self.scale:
            self.scale.load_state(numbers)
        self.lr = self.schedule(max(self.step - 1, 0))
        self._totals = _Totals(*numbers["totals"])


class _Totals:
    """Sums over the epoch so far; they stay on the device, so that no step waits for the GPU."""

    def __init__(self, loss: Any = 0.0, right: Any = 0, seen: int = 0):
        self.loss, self.right, self.seen = loss, right, seen

    def add(self, loss: Any, right: Any, count: int) -> None:
        self.loss = self.loss + loss * count
        self.right = self.right + right
        self.seen += count

    def to_list(self) -> list[Any]:
        return [float(self.loss), int(self.right), self.seen]

    def means(self) -> tuple[float, float]:
        return float(self.loss) / self.seen, int(self.right) / self.seen


def _is_frozen(layer: Module) -> bool:
    parameters = list(layer.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)


def _count_right(logits: Tensor, labels: np.ndarray) -> Any:
    wanted = namespace_of(logits.data).asarray(labels)
    if wanted.ndim > 1:  # shares of the classes, as mixup and CutMix make them: the largest one counts
        wanted = wanted.argmax(axis=-1)
    return (logits.data.argmax(axis=-1) == wanted).sum()


def _part(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
