"""The losses of 50 train steps, computed in every way that tinyvit has, and twice in the usual way.

    python benchmarks/losses.py

A small ViT on the digits that come with the package, with the step sizes of the usual recipe: a linear warm-up. With
kernels, without them, and with fused ops taken apart into elementary ones (`tv.unfused()`), the numbers are rounded at
other places and nothing else may differ. The same way twice, and on another number of threads, must give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import count, islice
from typing import NamedTuple

import _common
import numpy as np

import tinyvit as tv
from tinyvit.data import Loader, digits
from tinyvit.engine import kernels
from tinyvit.training import AdamW, parallel_backward
from tinyvit.training.config import TrainingConfig
from tinyvit.training.schedules import constant

CONFIG = tv.ViTConfig(image_size=8, patch_size=2, channels=1, num_classes=10, dim=64, depth=4, num_heads=4)
STEPS, BATCH = 50, 64
RECIPE = TrainingConfig()


class Way(NamedTuple):
    """How the losses are computed."""

    holds: Callable[[], AbstractContextManager[None]] = nullcontext
    workers: int | None = None
    dtype: type = np.float32


KERNELS, EXACT = "kernels", "float64, without kernels"
without_kernels = partial(kernels.switched, False)
WAYS = {
    KERNELS: Way(),
    "kernels again": Way(),
    "kernels, one worker": Way(workers=1),
    "without kernels": Way(without_kernels),
    "twins": Way(tv.unfused),
    EXACT: Way(without_kernels, dtype=np.float64),
}


def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the same batches on every call, epoch after epoch."""
    data = digits()
    mean, std = data.statistics()
    loader = Loader(data.train, BATCH, mean=mean, std=std, shuffle=True, drop_last=True)
    for epoch in count():
        yield from loader.epoch(epoch)


def losses(way: Way) -> np.ndarray:
    """Train from the same weights on the same batches, and return the loss of each step in nats."""
    model = tv.ViT(CONFIG, np.random.default_rng(0))
    model.to(dtype=way.dtype)
    optimizer = AdamW(model.named_parameters(), weight_decay=RECIPE.weight_decay)
    lr = constant(RECIPE.lr, warmup=RECIPE.warmup_epochs * len(digits().train) // BATCH)
    found = []
    with way.holds():
        for step, (images, labels) in enumerate(islice(batches(), STEPS)):
            optimizer.zero_grad()
            optimizer.lr = lr(step)
            loss = parallel_backward(_loss_of(model), images, labels, workers=way.workers)
            optimizer.step()
            found.append(loss.item())
    return np.array(found)


def _loss_of(model: tv.ViT) -> Callable[[np.ndarray, np.ndarray], tv.Tensor]:
    return lambda images, labels: tv.ops.cross_entropy(model(images), labels)


def _difference(found: np.ndarray, reference: np.ndarray) -> float:
    """The largest of all steps, relative."""
    return float(np.abs(found / reference - 1).max())


def main() -> None:
    options = _common.parser(__doc__).parse_args()
    found = {name: losses(way) for name, way in WAYS.items()}
    rows = [
        {
            "way": name,
            "first loss": f"{way[0]:.6f}",
            "last loss": f"{way[-1]:.6f}",
            f"differs from {KERNELS}": _difference(way, found[KERNELS]),
            "differs from float64": _difference(way, found[EXACT]),
            f"the bits of {KERNELS}": bool((way == found[KERNELS]).all()),
        }
        for name, way in found.items()
    ]
    print(_common.table(rows))
    result = {"kernels in use": kernels.in_use(), "steps": STEPS, "rows": rows}
    print(
        _common.save("losses", {**result, "losses": {name: way.tolist() for name, way in found.items()}}, options.out)
    )


if __name__ == "__main__":
    main()
