"""The backward sweep, step by step: what each node gets and gives, how long it takes, and what is held meanwhile."""

from __future__ import annotations

import inspect
import time
from dataclasses import dataclass
from typing import Any

from tinyvit.engine.backend import namespace_of
from tinyvit.engine.tape import Leaf, Node, Part, recording, sweep
from tinyvit.study.explain.tape import Tape, flat, memory_of
from tinyvit.study.explain.values import described


@dataclass
class Step:
    """One node of the sweep.

    Attributes:
        node: it, whose gradient is complete.
        gives: (parent, argument, whether it is added to a gradient that was there already).
        seconds: of its rule.
        freed: bytes that are let go after it.
        memory: bytes that the tape holds after it, pending gradients included.
    """

    node: Node
    gives: list[tuple[Node, str, bool]]
    seconds: float
    freed: int
    memory: int


@dataclass
class Backward:
    """A whole sweep: the gradient of each node, in words and numbers, and the steps in their order."""

    gradients: dict[Node, dict[str, Any]]
    pixels: dict[int, Any]  # whole gradients that were asked for, by node number
    steps: list[Step]


def swept(tape: Tape, keep: frozenset[int] = frozenset()) -> Backward:
    """Sweep a tape back without freeing it or touching any `.grad`.

    Args:
        tape: of a single number.
        keep: numbers of nodes whose gradient is wanted as an array too.

    What is freed is what an ordinary sweep, which does free, lets go; the memory held is counted as if it had.
    """
    root = tape.loss.node
    assert root is not None
    seed = namespace_of(tape.loss.data).ones(tape.loss.shape, dtype=tape.loss.dtype)
    found = Backward({}, {}, [])
    held = sum(map(tape.held, tape.nodes))
    alive = {memory_of(kept.value)[0]: node for node in tape.nodes for kept in reversed(tape.saved[node]) if kept.held}
    given: set[Node] = {root}
    with recording(False), tape.recording.pause():
        walk: Any = sweep([(root, seed)], set(tape.nodes), retain_graph=True)
        while True:
            began = time.perf_counter()
            step = next(walk, None)
            seconds = time.perf_counter() - began
            pending: dict[Node, Any] = inspect.getgeneratorlocals(walk).get("pending", {}) if step else {}
            if found.steps:  # what the last node's rule took, and what there is after it
                last = found.steps[-1]
                last.seconds = 0.0 if isinstance(last.node, Leaf) else seconds
                held -= last.freed
                alive = {where: node for where, node in alive.items() if node is not last.node}
                waiting = [part for g in [*pending.values(), step and step[1]] for part in flat(g) if part is not None]
                places = dict(memory_of(part) for part in waiting)
                last.memory = held + sum(size for where, size in places.items() if where not in alive)
            if step is None:
                return found
            node, gradient, _ = step
            if not isinstance(gradient, list):
                found.gradients[node] = described(gradient)
            if node.number in keep:
                found.pixels[node.number] = gradient.copy()
            gives = []
            for argument, parent in zip(tape.arguments(node), node.parents, strict=True):
                if parent is not None:
                    adds = parent in given and not isinstance(node, Part)  # parts lie beside one another
                    gives.append((parent, argument, adds))
                    given.add(parent)
            found.steps.append(Step(node, gives, 0.0, tape.held(node), 0))
