"""Probes: how much of a dataset's classes can be read off frozen features, by neighbours and by a linear model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tinyvit.data import DataError, Dataset, ImageFiles, Split
from tinyvit.data.datasets import held_out
from tinyvit.engine import Tensor, ops
from tinyvit.engine.backend import namespace_on
from tinyvit.pretrained.features import BATCH, FeatureError, features_of_split
from tinyvit.pretrained.preprocessing import Preprocessing
from tinyvit.training.parallel import WORTH, default_shards, in_workers, parallel_backward
from tinyvit.vit import ViT

TEMPERATURE = 0.07  # DINO's
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
TEST_ROWS, TRAIN_ROWS = 256, 2**13  # similarities that are in memory at once, for each worker: 8 MiB and a few copies
MOST_LOGITS = 2**22  # of a shard of the linear model's training images: 16 MiB and a few copies


# ---------------------------------------------------------------------------------------------------------- neighbours


def nearest(train: np.ndarray, test: np.ndarray, k: int, workers: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the k training rows that are most similar to each test row, by the cosine of the angle between them.

    Works in blocks, so that only the features themselves must fit into memory.

    Args:
        train: (m, D), m ≥ k.
        test: (n, D).
        k: how many.
        workers: threads; the result does not depend on it.

    Returns:
        (similarities, rows): float32 and int64, both (n, k), the most similar first, of equal ones the earlier row.

    Raises:
        ValueError: shapes that do not fit, numbers that are not finite (a DataError), or a k outside 1 to m.

    >>> similarities, rows = nearest(np.array([[1.0, 0], [0, 2], [3, 3]]), np.array([[0.0, 1]]), k=2)
    >>> rows, similarities.round(3)
    (array([[1, 2]]), array([[1.   , 0.707]], dtype=float32))
    """
    ours, theirs = _directions("train", train), _directions("test", test)
    if ours.shape[1] != theirs.shape[1]:
        raise ValueError(f"train is {train.shape} and test {test.shape}; both must have the same number of features")
    if not 1 <= k <= len(ours):
        raise ValueError(f"k is {k}; it must be from 1 to the {len(ours)} training images")

    def of_block(start: int) -> tuple[np.ndarray, np.ndarray]:
        block = theirs[start : start + TEST_ROWS]
        best: np.ndarray = np.empty((len(block), 0), np.float32)
        rows: np.ndarray = np.empty((len(block), 0), np.int64)
        for first in range(0, len(ours), TRAIN_ROWS):
            some = ours[first : first + TRAIN_ROWS]
            best = np.concatenate([best, block @ some.T], axis=1)
            rows = np.concatenate([rows, np.tile(np.arange(first, first + len(some)), (len(block), 1))], axis=1)
            largest = _largest(best, k)
            best, rows = (np.take_along_axis(part, largest, axis=1) for part in (best, rows))
        order = np.argsort(-best, axis=1, kind="stable")
        return np.take_along_axis(best, order, axis=1), np.take_along_axis(rows, order, axis=1)

    found = in_workers(of_block, range(0, len(theirs), TEST_ROWS), workers)
    similarities, rows = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return similarities, rows


def _largest(values: np.ndarray, k: int) -> np.ndarray:
    """The columns of each row's k largest values, ascending; of equal values the first."""
    if values.shape[1] <= k:
        return np.tile(np.arange(values.shape[1]), (len(values), 1))
    kth = np.partition(values, -k, axis=1)[:, -k, None]
    above, equal = values > kth, values == kth
    room = k - above.sum(axis=1, keepdims=True)
    chosen = above | (equal & (equal.cumsum(axis=1, dtype=np.int32) <= room))
    return np.nonzero(chosen)[1].reshape(len(values), k)


def knn(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    k: int = 20,
    temperature: float = TEMPERATURE,
    workers: int | None = None,
) -> np.ndarray:
    """Return the probability of each class by the votes of the k most similar training images: (n, K).

    A neighbour's vote weighs exp(similarity / temperature), the similarity being the cosine of two features' angle.

    Args:
        train, test: features (m, D) and (n, D).
        train_labels: classes, whole numbers (m,) from 0 to K − 1.
        k: neighbours that vote.
        temperature: above 0; the smaller it is, the more the nearest of them count.
        workers: threads; the result does not depend on it.

    Raises:
        ValueError: shapes, labels or settings that make no vote.

    Source: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, 2018, in the form of
    Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021 (DINO's eval_knn.py).

    >>> train, labels = np.array([[1.0, 0], [1, 1], [0, 1]]), np.array([0, 1, 1])
    >>> knn(train, labels, np.array([[5.0, 1], [0, 3]]), k=2).argmax(axis=1)
    array([0, 1])
    """
    labels = _labels("train_labels", train_labels, train)
    similarities, rows = nearest(train, test, k, workers)
    return _votes(similarities, labels[rows], int(labels.max()) + 1, temperature)


def _votes(similarities: np.ndarray, labels: np.ndarray, classes: int, temperature: float) -> np.ndarray:
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    weights = np.exp((similarities - similarities[:, :1]).astype(np.float64) / temperature)  # the nearest's is 1
    votes = np.zeros((len(labels), classes))
    np.add.at(votes, (np.arange(len(labels))[:, None], labels), weights)
    return votes / votes.sum(axis=1, keepdims=True)


# -------------------------------------------------------------------------------------------------------- linear model


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A linear classifier on standardised features: W · (x − mean) / std + b.

    Attributes:
        weight: float32 (K, D).
        bias: float32 (K,).
        mean, std: float32 (D,), of the training features.
        strength: λ of the L2 penalty that was chosen.
        validation_accuracy: its accuracy on the validation images, in [0, 1].
        accuracies: {λ: validation accuracy} of all that were tried.
    """

    weight: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    strength: float
    validation_accuracy: float
    accuracies: dict[float, float]

    def logits(self, features: np.ndarray) -> np.ndarray:
        """(n, D) → float32 (n, K)."""
        return _standardised(features, self.mean, self.std) @ self.weight.T + self.bias

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(n, D) → the likeliest class of each, int64 (n,)."""
        classes: np.ndarray = self.logits(features).argmax(axis=1)
        return classes


def linear_probe(
    train: np.ndarray,
    train_labels: np.ndarray,
    validation: np.ndarray,
    validation_labels: np.ndarray,
    strengths: Sequence[float] = STRENGTHS,
    *,
    tolerance: float = 1e-5,
    evaluations: int = 300,
    device: str = "cpu",
    workers: int | None = None,
) -> LinearProbe:
    """Fit a multinomial logistic regression to features, with the L2 strength that is best on validation images.

    For each strength λ it minimises the mean cross-entropy (in nats) + λ/2 · ‖W‖² over the training images, the
    features brought to mean 0 and deviation 1, the biases free: scikit-learn's `LogisticRegression(C=1 / (λ · m))`. The
    gradients are tinyvit's own, over all images at once, and L-BFGS takes the steps; the problem is convex, and nothing
    about it is random. The strongest comes first, and each begins where the one before ended.

    Args:
        train, validation: features (m, D) and (n, D).
        train_labels, validation_labels: classes, whole numbers (m,) and (n,) from 0 to K − 1.
        strengths: the λ to try, each ≥ 0. Of those that are right equally often, the one with the smaller loss on the
            validation images is taken.
        tolerance: a fit ends where no element of its gradient is larger.
        evaluations: of the gradient, the most for each strength. A fit of weak strength may stop there, or at the
            tolerance, before the loss is as low as it can be, which regularises, too.
        device: where the gradients are computed.
        workers: threads; the result does not depend on it.

    Raises:
        ValueError: shapes, labels or settings that make no fit.

    Source: Liu and Nocedal, On the limited memory BFGS method for large scale optimization, 1989.

    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(0, 3, 200)
    >>> features = rng.normal(size=(200, 8)) + np.eye(3, 8)[labels] * 5
    >>> probe = linear_probe(features[:100], labels[:100], features[100:150], labels[100:150])
    >>> probe.validation_accuracy, float((probe.predict(features[150:]) == labels[150:]).mean())
    (1.0, 1.0)
    """
    labels = _labels("train_labels", train_labels, train)
    truth = _labels("validation_labels", validation_labels, validation)
    if not len(strengths) or not all(0 <= strength < np.inf for strength in strengths):
        raise ValueError(f"strengths are {tuple(strengths)}; give at least one, and none below 0")
    features = _features("train", train)
    mean, std = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    std[std <= 1e-6 * np.abs(mean)] = 1.0  # a constant, but for roundings
    mean, std = mean.astype(np.float32), std.astype(np.float32)
    shape = max(labels.max(), truth.max()) + 1, features.shape[1]
    features = _standardised(features, mean, std)
    point = np.zeros(shape[0] * (shape[1] + 1))
    fits = []
    for strength in sorted(set(map(float, strengths)), reverse=True):
        point = _minimise(_loss(features, labels, shape, strength, device, workers), point, tolerance, evaluations)
        weight, bias = _split(point, shape)
        fit = LinearProbe(weight, bias, mean, std, strength, 0.0, {})
        logits = fit.logits(validation)
        accuracy = float((logits.argmax(axis=1) == truth).mean())
        fits.append((accuracy, -ops.cross_entropy(logits, truth).item(), fit))
    accuracy, _, best = max(fits, key=lambda scored: scored[:2])
    tried = {fit.strength: accuracy for accuracy, _, fit in fits}
    return LinearProbe(best.weight, best.bias, mean, std, best.strength, accuracy, tried)


def _loss(
    features: np.ndarray,
    labels: np.ndarray,
    shape: tuple[int, int],
    strength: float,
    device: str,
    workers: int | None,
) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """Return what gives the loss of weights and biases, flat and in float64, and its gradient."""
    xp = namespace_on(device)
    x, y = xp.asarray(features), xp.asarray(labels)
    worth = min(default_shards(xp.device), int(features.size * shape[0] / WORTH))
    shards = max(1, worth, -(-len(features) * shape[0] // MOST_LOGITS))

    def loss_and_gradient(point: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = (Tensor(xp.asarray(part)) for part in _split(point, shape))
        weight.requires_grad = bias.requires_grad = True

        def loss_of(x: Any, y: Any) -> Tensor:
            penalty = (weight * weight).sum() * np.float32(strength / 2)
            loss: Tensor = ops.cross_entropy(ops.linear(x, weight, bias), y) + penalty
            return loss

        loss = parallel_backward(loss_of, x, y, shards=shards, workers=workers).item()
        assert weight.grad is not None
        assert bias.grad is not None
        return loss, np.concatenate([weight.grad.numpy().ravel(), bias.grad.numpy()]).astype(np.float64)

    return loss_and_gradient


def _split(point: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Weights (K, D) and biases (K,), in float32."""
    flat = point.astype(np.float32)
    return flat[: shape[0] * shape[1]].reshape(shape), flat[shape[0] * shape[1] :]


def _minimise(
    function: Callable[[np.ndarray], tuple[float, np.ndarray]],
    point: np.ndarray,
    tolerance: float,
    evaluations: int,
    memory: int = 10,
) -> np.ndarray:
    """L-BFGS: Newton's steps by a curvature that is guessed from the last moves, halved until the loss falls."""
    loss, gradient = function(point)
    left = evaluations - 1
    moves: list[tuple[np.ndarray, np.ndarray]] = []  # how the point moved, and the gradient with it
    while left > 0 and np.abs(gradient).max() > tolerance:
        step = _newton_step(gradient, moves)
        descent = gradient @ step
        for size in 0.5 ** np.arange(min(left, 10)):
            new_loss, new_gradient = function(point - size * step)
            left -= 1
            if new_loss <= loss - 1e-4 * size * descent:
                break
        else:
            return point  # it falls by no more than float32 can tell
        moved, turned = -size * step, new_gradient - gradient
        if moved @ turned > 1e-10 * (turned @ turned):
            moves = [*moves, (moved, turned)][-memory:]
        point, loss, gradient = point + moved, new_loss, new_gradient
    return point


def _newton_step(gradient: np.ndarray, moves: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The inverse Hessian, guessed, times the gradient (Nocedal's two loops)."""
    step, shares = gradient.copy(), []
    for moved, turned in reversed(moves):
        share = (moved @ step) / (moved @ turned)
        step -= share * turned
        shares.append(share)
    if moves:
        moved, turned = moves[-1]
        step *= (moved @ turned) / (turned @ turned)
    else:
        step /= max(1.0, float(np.linalg.norm(gradient)))
    for (moved, turned), share in zip(moves, reversed(shares), strict=True):
        step += (share - (turned @ step) / (moved @ turned)) * moved
    return step


# -------------------------------------------------------------------------------------------------- what is handed over


def _features(name: str, features: Any) -> np.ndarray:
    array = np.asarray(features, np.float32)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name} is {array.shape}; it must be features (n, D), of at least one image")
    if not np.isfinite(array).all():
        raise DataError(f"{name} has features that are not finite; look at the images and the weights they come from")
    return array


def _directions(name: str, features: Any) -> np.ndarray:
    array = _features(name, features)
    return array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def _standardised(features: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    return (_features("features", features) - mean) / std


def _labels(name: str, labels: Any, features: Any) -> np.ndarray:
    array = np.asarray(labels)
    if array.shape != np.shape(features)[:1] or array.dtype.kind not in "iu" or not array.size or array.min() < 0:
        raise ValueError(
            f"{name} is {array.dtype} {array.shape}; it must be whole numbers of at least 0, one for each of "
            f"{len(features)} images"
        )
    return array.astype(np.int64)


# ----------------------------------------------------------------------------------------------------------- a dataset


@dataclass(frozen=True)
class ProbeReport:
    """What the probes found on a dataset; accuracies in [0, 1], None where there are no such images.

    Attributes:
        data: the dataset's name.
        features: the kind of features, and `dim`, how many.
        images: {"train", "validation", "test"}: how many.
        knn: for each k, {"k", "validation_accuracy", "test_accuracy"}.
        linear: {"l2", "validation_accuracy", "test_accuracy"}, of the chosen strength.
        seconds: {"features", "knn", "linear"}.
    """

    data: str
    features: str
    dim: int
    images: dict[str, int]
    knn: list[dict[str, Any]]
    linear: dict[str, Any]
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, for JSON."""
        return asdict(self)

    def to_text(self) -> str:
        """Return a short table."""
        sizes = zip(self.images.values(), ("training", *WORDS), strict=True)
        counts = ", ".join(f"{n:,} {part}" for n, part in sizes)
        named = [(f"k-NN, k = {row['k']}", row) for row in self.knn]
        named += [(f"linear, L2 {self.linear['l2']:g}", self.linear)]
        wide = max(len(name) for name, _ in named)
        table = [f"{'probe':<{wide}}  {WORDS[0]:>10}  {WORDS[1]:>7}"]
        for name, row in named:
            validation, test = (_percent(row[f"{part}_accuracy"]) for part in WORDS)
            table.append(f"{name:<{wide}}  {validation:>10}  {test:>7}")
        took = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in zip(TOOK, self.seconds.values(), strict=True))
        title = f"{self.data}: {counts} images, {self.dim:,} features ({self.features})"
        return "\n".join([title, "", *table, "", took])


WORDS, TOOK = ("validation", "test"), ("features", "k-NN", "linear probe")


def _percent(accuracy: float | None) -> str:
    return "–" if accuracy is None else f"{accuracy:.2%}"


def probe_dataset(
    model: ViT,
    preprocessing: Preprocessing,
    dataset: Dataset,
    k: Sequence[int] = (10, 20),
    kind: str = "pooled",
    batch_size: int = BATCH,
    seed: int = 0,
    workers: int | None = None,
    on_images: Callable[[int], Any] = lambda n: None,
) -> ProbeReport:
    """Compute the features of a dataset's images once, and probe them by neighbours and by a linear model.

    The linear model's strength is chosen on the validation images; on the test images nothing is. Where there are no
    validation images, a tenth of the training images of each class stand in for them.

    Args:
        model, preprocessing, kind, batch_size, workers, on_images: as in `features_of_split`.
        dataset: labelled images.
        k: the numbers of neighbours, each from 1 to the number of training images.
        seed: of the draw of a tenth.

    Raises:
        FeatureError: the model has no such features, or there is a k out of range.
        DataError: an image cannot be used, there are too few to hold some out, or features are not finite.
    """
    splits = _splits(dataset, seed)
    most = len(splits["train"])
    if wrong := [n for n in k if not 1 <= n <= most]:
        raise FeatureError(f"k is {wrong[0]}; it must be from 1 to the {most} training images")
    clock = [time.perf_counter()]
    found = {
        part: features_of_split(model, preprocessing, split, kind, batch_size, workers, on_images)
        for part, split in splits.items()
    }
    clock.append(time.perf_counter())
    neighbours = {part: _accuracies(found, splits, part, k, workers) for part in splits if part != "train"}
    clock.append(time.perf_counter())
    probe = linear_probe(
        found["train"],
        splits["train"].labels,
        found["validation"],
        splits["validation"].labels,
        device=model.device,
        workers=workers,
    )
    linear = {part: float((probe.predict(found[part]) == splits[part].labels).mean()) for part in neighbours}
    clock.append(time.perf_counter())
    return ProbeReport(
        data=dataset.name,
        features=kind,
        dim=found["train"].shape[1],
        images={part: len(splits[part]) if part in splits else 0 for part in ("train", *WORDS)},
        knn=[{"k": n, **{f"{p}_accuracy": neighbours.get(p, {}).get(n) for p in WORDS}} for n in k],
        linear={"l2": probe.strength, **{f"{part}_accuracy": linear.get(part) for part in WORDS}},
        seconds={name: round(clock[i + 1] - clock[i], 3) for i, name in enumerate(("features", "knn", "linear"))},
    )


def _splits(dataset: Dataset, seed: int) -> dict[str, Split]:
    """Those that have images; validation is always among them."""
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    if not len(dataset.validation):
        whole = dataset.train
        train, validation, _ = held_out(whole.labels, (0.1, 0.0), seed)
        if not len(validation):
            raise DataError(
                f"{dataset.name} has no validation images to choose the linear probe's strength by, and too few "
                "training images a class to hold some out: give it a validation split"
            )
        splits |= {"train": _part(whole, train), "validation": _part(whole, validation)}
    return {part: split for part, split in splits.items() if len(split)}


def _part(split: Split, rows: np.ndarray) -> Split:
    images = split.images
    if isinstance(images, ImageFiles):  # whose rows would be decoded now
        return Split(ImageFiles([images.paths[row] for row in rows], images.reading), split.labels[rows])
    return Split(images[rows], split.labels[rows])


def _accuracies(
    found: dict[str, np.ndarray], splits: dict[str, Split], part: str, k: Sequence[int], workers: int | None
) -> dict[int, float]:
    """Of the k-NN classifier, for each k."""
    labels = splits["train"].labels
    similarities, rows = nearest(found["train"], found[part], max(k), workers)
    said = {n: _votes(similarities[:, :n], labels[rows[:, :n]], int(labels.max()) + 1, TEMPERATURE) for n in k}
    return {n: float((votes.argmax(axis=1) == splits[part].labels).mean()) for n, votes in said.items()}
