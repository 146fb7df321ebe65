"""The backward sweep, step by step: what each node gets and gives, how long it takes, and what is held meanwhile."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tinyvit.engine.backend import namespace_of
from tinyvit.engine.tape import Leaf, Node, Part, recording, settle, sweep
from tinyvit.study.explain.tape import Tape, flat, memory_of
from tinyvit.study.explain.values import described


@dataclass
class Gift:
    """What a node passes back to one of its arguments: a part of that value's gradient.

    Attributes:
        to: the node of the argument.
        argument: its name.
        adds: whether it is added to what was there already.
        value: the part itself, in words and numbers, summed over what was broadcast; None where the rule gave nothing.
        summed: the shape that the rule gave, where it was summed over what was broadcast.
    """

    to: Node
    argument: str
    adds: bool
    value: dict[str, Any] | None = None
    summed: list[int] | None = None


@dataclass
class Step:
    """One node of the sweep.

    Attributes:
        node: it, whose gradient is complete.
        gives: what it passes back, one for each argument that carries a gradient.
        seconds: of its rule.
        freed: bytes that are let go after it.
        memory: bytes that the tape holds after it, pending gradients included.
    """

    node: Node
    gives: list[Gift]
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
    books = _Books(tape)
    given: set[Node] = {root}  # those that have been handed a gradient, and of them those that wait
    waiting: set[Node] = set()
    with recording(False), tape.recording.pause(), _overheard(tape) as said:
        walk: Any = sweep([(root, seed)], set(tape.nodes), retain_graph=True)
        while True:
            began = time.perf_counter()
            step = next(walk, None)
            seconds = time.perf_counter() - began
            if found.steps:  # what the last node's rule took, and what is held after it
                last = found.steps[-1]
                last.seconds = 0.0 if isinstance(last.node, Leaf) else seconds
                pending = inspect.getgeneratorlocals(walk)["pending"] if step else {}
                last.memory = books.after(last.node, [pending.get(node) for node in waiting] + [step and step[1]])
                _describe(last, said)
            if step is None:
                return found
            node, gradient, _ = step
            waiting.discard(node)
            if not isinstance(gradient, list):
                found.gradients[node] = described(gradient)
            if node.number in keep:
                found.pixels[node.number] = gradient.copy()
            gives = []
            for argument, parent in zip(tape.arguments(node), node.parents, strict=True):
                if parent is not None:
                    adds = parent in given and not isinstance(node, Part)  # parts lie beside one another
                    gives.append(Gift(parent, argument, adds))
                    given.add(parent)
                    waiting.add(parent)
            if isinstance(node, Part):
                gives[0].value = found.gradients[node]
            found.steps.append(Step(node, gives, 0.0, tape.held(node), 0))


@contextmanager
def _overheard(tape: Tape) -> Iterator[list[tuple[Node, Any]]]:
    """A list of what the rule that ran last gave: (parent, gradient), in the order of the arguments."""
    said: list[tuple[Node, Any]] = []
    kinds = {type(node.op) for node in tape.nodes if node.op is not None}
    originals = {kind: kind.pull_back for kind in kinds}

    def hearing(original: Any) -> Any:
        def pull_back(op: Any, *arguments: Any) -> Any:
            said[:] = original(op, *arguments)
            return list(said)

        return pull_back

    try:
        for kind, original in originals.items():
            kind.pull_back = hearing(original)
        yield said
    finally:
        for kind, original in originals.items():
            kind.pull_back = original


def _describe(step: Step, said: list[tuple[Node, Any]]) -> None:
    """Put what a rule gave beside the arguments that it was for; a gradient of None is left out by rules."""
    waiting = list(said)
    for gift in step.gives:
        if waiting and waiting[0][0] is gift.to:
            given = waiting.pop(0)[1]
            gift.value = described(settle(step.node, gift.to, given, None))
            gift.summed = list(given.shape) if given.shape != gift.to.shape else None
    said.clear()


class _Books:
    """What the tape holds while it is swept and freed."""

    def __init__(self, tape: Tape):
        self.held = {node: tape.held(node) for node in tape.nodes}
        self.total = sum(self.held.values())
        self.places = {n: [memory_of(kept.value)[0] for kept in tape.saved[n] if kept.held] for n in tape.nodes}
        self.alive = {place for places in self.places.values() for place in places}

    def after(self, node: Node, pending: list[Any]) -> int:
        """Bytes that are held once a node is freed: what others saved, and the gradients that wait."""
        self.total -= self.held[node]
        self.alive.difference_update(self.places[node])
        waiting = dict(memory_of(part) for part in flat(pending) if part is not None)
        return self.total + sum(size for place, size in waiting.items() if place not in self.alive)
