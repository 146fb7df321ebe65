"""The same training loop on a CPU and on a GPU: what changes is the device, and there the precision and the graph.

    python demos/13_on_a_gpu.py

Where there is no GPU it says so and trains on the CPU. Where there is one, it trains four times from the same weights:
on the CPU; on the GPU in float32, whose losses must be the CPU's; in bfloat16, near them; and in bfloat16 with forward
and backward as one CUDA graph, where every bit must be that of the run before. See docs/gpu.md.
"""

import statistics
import time
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

import tinyvit as tv
from tinyvit.data import Loader, digits
from tinyvit.training import AdamW, StepGraph, cosine, on_device, parallel_backward


def train(device: str, precision: str = "fp32", graph: bool = False) -> np.ndarray:
    """Two epochs of the digits from fixed weights: the loss of every step."""
    data = digits()
    mean, std = data.statistics()
    loader = Loader(data.train, 64, mean=mean, std=std, shuffle=True, drop_last=True)
    schedule = cosine(peak=1e-3, total=400, warmup=10)

    config = tv.ViTConfig(image_size=8, patch_size=4, channels=1, num_classes=10, dim=64, depth=3, num_heads=4)
    model = tv.ViT(config, np.random.default_rng(0))
    model.to(device=device)  # before the optimizer is made
    optimizer = AdamW(model.named_parameters())

    def loss_of(images: Any, labels: Any) -> tv.Tensor:
        return tv.ops.cross_entropy(model(images), labels)

    def sweep(images: Any, labels: Any) -> Sequence[Any]:
        with tv.precision(precision):  # in what a GPU computes; parameters and their gradients are float32 always
            return (parallel_backward(loss_of, images, labels).data,)

    backward = StepGraph(sweep, optimizer.parameters) if graph else sweep
    losses: list[float] = []
    seconds: list[float] = []
    for images, labels in on_device(chain(loader.epoch(0), loader.epoch(1)), device):  # copied while the GPU computes
        started = time.perf_counter()
        optimizer.zero_grad()
        [loss] = backward(images, labels)
        optimizer.lr = schedule(len(losses))
        optimizer.step()
        losses.append(float(loss))  # this waits for the GPU; the Trainer looks once an epoch
        seconds.append(time.perf_counter() - started)
    name = f"{device} {precision}{', graph' if graph else ''}"
    milliseconds = 1e3 * statistics.median(seconds)
    print(f"{name:<17} loss {losses[0]:.4f} → {losses[-1]:.4f} in {len(losses)} steps of {milliseconds:.1f} ms")
    assert losses[-1] < 0.9 * losses[0]
    return np.array(losses)


def why_not() -> str:
    """Why there is no GPU here; "" where there is one."""
    try:
        with tv.use_backend("cupy"):
            return ""
    except tv.BackendError as error:
        return str(error)


def main() -> None:
    if reason := why_not():
        print(f"No GPU here, so all of it on the CPU: {reason}")
        train("cpu")
        return
    cpu, gpu, bf16 = train("cpu"), train("gpu"), train("gpu", "bf16")
    for name, losses, tolerance in (("fp32", gpu, 1e-3), ("bf16", bf16, 5e-2)):
        difference = np.abs(losses / cpu - 1).max()
        print(f"{name} on the GPU beside float32 on the CPU: losses differ by {difference:.0e} at most")
        assert difference < tolerance
    assert (train("gpu", "bf16", graph=True) == bf16).all()
    print("with a graph: the same bits")


if __name__ == "__main__":
    main()
