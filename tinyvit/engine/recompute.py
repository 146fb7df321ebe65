"""Recomputation: keep a function's input on the tape instead of all that it computed, and compute it again when the
sweep comes back. A forward pass more, for the memory of everything between the input and the result.

Source: Griewank & Walther 2000, algorithm 799, for one level; Chen et al. 2016, *Training Deep Nets with Sublinear
Memory Cost*.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from tinyvit.engine import random
from tinyvit.engine.mixed_precision import current, precision
from tinyvit.engine.primitive import Primitive, alias
from tinyvit.engine.tape import Leaf, Node, mode, recording, sweep
from tinyvit.engine.tensor import Tensor


def checkpoint(function: Callable[[Tensor], Tensor], x: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """Return function(x), and let the tape keep x alone; the backward sweep calls the function again.

    Args:
        function: computes one Tensor from x and the parameters, and from nothing else that carries a gradient. What it
            draws at random (dropout), it draws again.
        x: its input, any shape.
        parameters: the leaves that it uses.

    Raises:
        TapeError: in the sweep, when x or a parameter was overwritten since.

    >>> import tinyvit as tv
    >>> w = tv.tensor([2.0], requires_grad=True)
    >>> y = tv.checkpoint(lambda x: tv.ops.exp(x * w), tv.tensor([0.0]), [w])
    >>> list(y.node.saved)
    ['x']
    >>> y.backward()
    >>> w.grad.item()
    0.0
    """
    leaves = [p for p in parameters if p.node is not None]
    if not mode.recording or (x.node is None and not leaves):
        return function(x)
    chance = copy.deepcopy(random.generator())
    with recording(False):
        y = function(x)
    node = Node(_Checkpoint(function, leaves, chance, current()), (x.node, *(p.node for p in leaves)), y.shape, y.dtype)
    node.saved = {"x": x.data}
    node.stamps = tuple((name, t.version, t.version[0]) for name, t in [("x", x), *(("w", p) for p in leaves)])
    return Tensor(y.data, node)


class _Checkpoint:
    """What a checkpointed node has in the place of a `Primitive`: one function, called again for its gradients."""

    name = "checkpoint"
    twin = None

    def __init__(
        self, function: Callable[[Tensor], Tensor], leaves: list[Tensor], chance: np.random.Generator, numbers: str
    ):
        self.function = function
        self.leaves = leaves
        self.chance = chance
        self.precision = numbers

    check_unwritten: Any = Primitive.check_unwritten

    def pull_back(self, node: Node, gy: Any, wanted: set[Node], F: Any) -> list[tuple[Node, Any]]:
        """See `Primitive.pull_back`."""
        assert node.saved is not None
        data, parent = node.saved["x"], node.parents[0]
        if F is None:
            x = Tensor(data, Leaf(data.shape, data.dtype) if parent in wanted else None)
        else:  # on the tape itself, so that the recorded sweep can be differentiated again
            x = Tensor(data, parent)
            x = alias(x) if parent is not None else x
        with recording(True), precision(self.precision), random.using(copy.deepcopy(self.chance)):
            y = self.function(x)
        if y.node is None:
            return []
        place: dict[Any, Any] = {p: p for p in node.parents[1:] if p in wanted}
        if parent in wanted:
            place[x.node] = parent
        swept = sweep([(y.node, gy)], set(place), F=F, retain_graph=F is not None)
        return [(place[target], gradient) for target, gradient, _ in swept]
