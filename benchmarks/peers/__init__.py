"""The same Vision Transformer in tinyvit and in the libraries beside it, with the same weights and the same batch."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

import numpy as np
from _work import Work

from tinyvit.engine import kernels


class Peer(Protocol):
    """One library's way to do the work."""

    def step(self) -> float:
        """Forward, backward, AdamW on the batch; return the loss before the update, in nats."""

    def forward(self) -> np.ndarray:
        """Return the batch's logits (B, K); nothing is kept for a backward pass."""


class Kind(NamedTuple):
    """Where a peer is made: the package that it needs, its file here, its class and what the class is told."""

    package: str
    module: str
    name: str
    settings: dict[str, Any]


OURS = "tinyvit"
EVERY = "tinyvit, every token"
PLAIN = "tinyvit without kernels"
GRAPH = "tinyvit graph"
KINDS = {
    OURS: Kind("tinyvit", "ours", "Ours", {}),
    EVERY: Kind("tinyvit", "ours", "Ours", {"every_token": True}),
    PLAIN: Kind("tinyvit", "ours", "Ours", {"kernels": False}),
    "tinyvit checkpoint": Kind("tinyvit", "ours", "Ours", {"checkpoint": True}),
    GRAPH: Kind("tinyvit", "ours", "Ours", {"graph": True}),
    "torch": Kind("torch", "pytorch", "PyTorch", {}),
    "torch checkpoint": Kind("torch", "pytorch", "PyTorch", {"checkpoint": True}),
    "compile": Kind("torch", "pytorch", "PyTorch", {"compiled": True}),
    "jax": Kind("jax", "jax_jit", "Jax", {}),
    "autograd": Kind("autograd", "hips_autograd", "HipsAutograd", {}),
}
OTHERS = ("torch", "compile", "jax", "autograd")


def make(name: str, work: Work, device: str = "cpu", **more: Any) -> Any:
    """Return a peer that is ready to do the work on a device, "cpu" or "gpu", perhaps with more settings."""
    kind = KINDS[name]
    return getattr(import_module(f"peers.{kind.module}"), kind.name)(work, device, **kind.settings, **more)


def installed(names: Iterable[str]) -> list[str]:
    """Return those of the names that can run here, and say of the others why they are left out."""
    found = []
    for name in names:
        if not find_spec(KINDS[name].package):
            print(f"{name} is left out: {KINDS[name].package} is not installed", file=sys.stderr)
        elif name == PLAIN and not kernels.in_use():
            print(f"{name} is left out: {OURS} has no kernels here (no Numba, or switched off)", file=sys.stderr)
        else:
            found.append(name)
    return found


def check_losses(peers: dict[str, Peer], steps: int = 2, tolerance: float = 1e-4) -> dict[str, list[float]]:
    """Let each peer make some steps, and return their losses: the first compares forwards, the second backwards too.

    Raises:
        SystemExit: a loss is another than the first peer's, by more than the relative tolerance.
    """
    losses = {name: [peer.step() for _ in range(steps)] for name, peer in peers.items()}
    reference, expected = next(iter(losses.items()))
    for name, given in losses.items():
        for i, (loss, right) in enumerate(zip(given, expected, strict=True)):
            if not math.isclose(loss, right, rel_tol=tolerance):
                raise SystemExit(
                    f"the loss of step {i + 1} is {loss:.7g} with {name} and {right:.7g} with {reference}: they do not "
                    "compute the same, so nothing was timed"
                )
    return losses


def check_logits(peers: dict[str, Peer], tolerance: float = 1e-3) -> None:
    """Let each peer classify the batch once.

    Raises:
        SystemExit: a logit is another than the first peer's, by more than the tolerance (logits are about 1 large).
    """
    logits = {name: peer.forward() for name, peer in peers.items()}
    reference, expected = next(iter(logits.items()))
    for name, given in logits.items():
        error = float(np.abs(given - expected).max())
        if not error <= tolerance:
            raise SystemExit(f"logits of {name} and {reference} differ by {error:.2g}: nothing was timed")
