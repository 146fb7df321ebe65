"""The tape: what was computed from what, and the sweep back over it.

Every recorded op leaves a `Node`: the nodes it was computed from, and the values its backward rules will ask for. A
node is numbered when it is made, and an op can only use what exists already, so **creation order is topological
order**: the sweep walks the numbers downwards, with neither recursion nor a list of all nodes that somebody must
clear. When a sweep has passed a node, the values it saved are let go.

The sweep keeps the books so that no rule has to: which gradients are needed, the sum over broadcast axes, the dtype,
the sum over the uses of a value, and who owns a gradient's buffer.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from operator import attrgetter
from typing import Any

from tinyvit.engine import kernels
from tinyvit.engine.backend import namespace_of


class TapeError(RuntimeError):
    """A gradient that the tape cannot give: already swept, overwritten, or not recorded."""


# --------------------------------------------------------------------------------------------------------------------
# Recording


class _Mode(threading.local):
    recording = True
    twins_in: Any = None  # the namespace to compute fused ops' twins in, in place of the fused ops


mode = _Mode()  # one a thread: `no_grad` in one thread leaves the others alone


@contextmanager
def recording(on: bool) -> Iterator[None]:
    """Record (or not) what this thread computes inside the block."""
    previous, mode.recording = mode.recording, on
    try:
        yield
    finally:
        mode.recording = previous


def no_grad() -> AbstractContextManager[None]:
    """Record nothing inside the block: results carry no gradient and nothing is saved.

    >>> import tinyvit as tv
    >>> w = tv.tensor([2.0], requires_grad=True)
    >>> with tv.no_grad():
    ...     (3 * w).requires_grad
    False
    """
    return recording(False)


def enable_grad() -> AbstractContextManager[None]:
    """Record again, inside a `no_grad` block."""
    return recording(True)


# --------------------------------------------------------------------------------------------------------------------
# Nodes

_numbers = itertools.count()  # its next() is atomic, so that threads can record at once


class Node:
    """One use of an op: its parents (None where no gradient flows) and what its rules need.

    Attributes:
        op: the `Primitive` that was used; None for a leaf.
        parents: one entry an argument of the op.
        saved: {name: value}, the values that the rules asked for; None once a sweep has passed.
        stamps: (name, version, version when saved) of the saved arguments, to notice overwriting.
        kernel: the backward function of the kernel that computed the result, and what it needs; None where none did.
        shape, dtype: of the result, which its gradient shares.
        number: position in creation order.
    """

    __slots__ = ("dtype", "kernel", "number", "op", "parents", "saved", "shape", "stamps")

    def __init__(self, op: Any, parents: tuple[Node | None, ...], shape: Any, dtype: Any):
        self.op = op
        self.parents = parents
        self.saved: dict[str, Any] | None = None
        self.kernel: Any = None
        self.stamps: tuple[tuple[str, list[int], int], ...] = ()
        self.shape = shape
        self.dtype = dtype
        self.number = next(_numbers)

    def free(self) -> None:
        """Let go of the saved values, and of the graph behind."""
        self.saved = None
        self.kernel = None
        self.stamps = ()
        self.parents = ()

    def __repr__(self) -> str:
        return f"<Node {self.number}: {self.op.name if self.op else type(self).__name__} {self.shape}>"


class Leaf(Node):
    """Where a gradient ends and is kept: a Tensor made with `requires_grad=True`."""

    __slots__ = ("grad", "home", "lent")

    def __init__(self, shape: tuple[int, ...], dtype: Any):
        super().__init__(None, (), shape, dtype)
        self.grad: Any = None  # a Tensor, once there is one
        self.home: Any = None  # an optimizer's array to gather it in, so that all gradients lie side by side
        self.lent: Any = None  # a weak reference to the view of it that somebody has

    def place(self) -> Any:
        """A view of `home` to gather in; None where there is no home, or somebody still holds the last gradient."""
        if self.home is None or (self.lent is not None and self.lent() is not None):
            return None
        view = self.home[...]
        self.lent = weakref.ref(view)
        return view

    def free(self) -> None:
        """A leaf holds nothing that could be freed."""


class Part(Node):
    """One of several results of an op (`split`): it hands its gradient to its place in the op's node."""

    __slots__ = ("place",)

    def __init__(self, whole: Node, place: int, shape: tuple[int, ...], dtype: Any):
        super().__init__(whole.op, (whole,), shape, dtype)
        self.place = place


# --------------------------------------------------------------------------------------------------------------------
# The sweep

Swept = tuple[Node, Any, bool]


def sweep(
    seeds: Sequence[tuple[Node, Any]],
    targets: set[Node] | None = None,
    *,
    F: Any = None,
    retain_graph: bool = False,
) -> Iterator[Swept]:
    """Walk the tape backwards from the seeds and yield each target with its gradient, as soon as it is complete.

    Args:
        seeds: the nodes to start from, each with the gradient of the loss with respect to it.
        targets: the nodes whose gradients are wanted; None for all leaves.
        F: the namespace that the rules compute in: None for the arrays' own, `tinyvit.ops` to record the sweep
            itself (the gradients are Tensors then).
        retain_graph: keep the saved values for another sweep.

    Yields:
        (node, gradient, owned); a gradient that is not owned shares memory with something else and must be copied
        before anybody writes to it.

    Raises:
        TapeError: a part of the graph was swept before, or a saved value was overwritten since.
    """
    order, pending = _plan([node for node, _ in seeds], targets)
    for node in order:
        if node.stamps and node in pending:
            node.op.check_unwritten(node)  # before anything is freed or handed out
    owned: set[Node] = set()  # the nodes whose gradient is a sum, in memory of its own
    for node, seed in seeds:
        if node in pending:
            _add(pending, owned, node, seed, F)
    while order:
        node = order.pop()
        gy = pending.pop(node, None)
        if gy is None:
            continue
        is_leaf = node.op is None
        if is_leaf if targets is None else node in targets:
            yield node, gy, node in owned
        if is_leaf or (targets is not None and not any(parent in pending for parent in node.parents)):
            continue  # the way down ends here, and what lies below stays for another sweep
        if isinstance(node, Part):
            _add_part(pending, node, gy)
        else:
            for parent, gradient in node.op.pull_back(node, gy, pending, F):
                gradient = settle(node, parent, gradient, F)
                if pending[parent] is None:
                    pending[parent] = gradient
                else:
                    _add(pending, owned, parent, gradient, F)
        if not retain_graph:
            node.free()


def _plan(roots: list[Node], targets: set[Node] | None) -> tuple[list[Node], dict[Node, Any]]:
    """All nodes that the roots were computed from, in creation order, and {node: None} for those to visit."""
    seen: dict[Node, Any] = dict.fromkeys(roots)
    order = list(seen)
    for node in order:
        parents = node.parents
        if not parents and node.op is not None and not (targets and node in targets):
            raise TapeError(
                f"the gradient of `{node.op.name}` was taken before and its saved values are freed; "
                "pass retain_graph=True to the first backward() or grad(), or compute the result anew"
            )
        for parent in parents:
            if parent is not None and parent not in seen:
                seen[parent] = None
                order.append(parent)  # and the loop comes to it
    order.sort(key=attrgetter("number"))
    if targets is None:
        return order, seen
    wanted: dict[Node, Any] = {}
    for node in order:
        if node in targets or any(parent in wanted for parent in node.parents):
            wanted[node] = None
    return order, wanted


def _add(pending: dict[Node, Any], owned: set[Node], node: Node, gradient: Any, F: Any) -> None:
    """Add to the gradient that is pending for a node.

    The first to arrive is kept by reference (it may be gy handed on, a view, a saved value), the second allocates the
    sum, later ones are added to that in place (unless the sweep is recorded, where nothing may be written to).
    """
    present = pending[node]
    if present is None:
        pending[node] = gradient
    elif F is None and node in owned:
        present += gradient
    else:
        total = present + gradient
        if F is None and not node.shape:
            total = namespace_of(present).asarray(total)  # a sum of 0-d arrays is a scalar, which has no place
        pending[node] = total
        owned.add(node)


def _add_part(pending: dict[Node, Any], part: Part, gradient: Any) -> None:
    whole = part.parents[0]
    assert whole is not None
    parts = pending[whole]
    if parts is None:
        parts = pending[whole] = [None] * len(whole.shape)
    parts[part.place] = gradient if parts[part.place] is None else parts[part.place] + gradient


def settle(node: Node, parent: Node, gradient: Any, F: Any) -> Any:
    """Give a gradient the shape and dtype of the value it belongs to: the adjoint of broadcasting and promotion."""
    try:
        shape = gradient.shape
    except AttributeError:
        raise TapeError(f"a backward rule of `{node.op.name}` gave {gradient!r}, which is no array") from None
    if shape != parent.shape:
        gradient = unbroadcast(F or namespace_of(gradient), gradient, parent.shape, node.op.name)
    if gradient.dtype != parent.dtype:
        gradient = _cast(gradient, parent.dtype) if F is None else gradient.astype(parent.dtype)
    if not parent.shape and F is None:  # NumPy's sums give scalars, which nobody can add to in place
        gradient = namespace_of(gradient).asarray(gradient)
    return gradient


def _cast(gradient: Any, dtype: Any) -> Any:
    """Another dtype; on a GPU by a kernel, for in 16 bits this pass is made for every residual branch."""
    kernel = kernels.find("astype", "gpu") if namespace_of(gradient).device == "gpu" else None
    converted = kernel and kernel.forward(gradient, dtype)
    return gradient.astype(dtype) if converted is None else converted


def unbroadcast(F: Any, gradient: Any, shape: tuple[int, ...], name: str = "the op") -> Any:
    """Sum a gradient over the axes along which its value was broadcast: ∂/∂x of x[None, :] + … is a sum."""
    lead = gradient.ndim - len(shape)
    stretched = [lead + i for i, n in enumerate(shape) if n == 1 and gradient.shape[lead + i] != 1] if lead >= 0 else []
    axes = (*range(lead), *stretched)
    if lead < 0 or any(n not in (1, gradient.shape[lead + i]) for i, n in enumerate(shape)):
        raise TapeError(
            f"a backward rule of `{name}` gave a gradient of shape {tuple(gradient.shape)} for a value of shape {shape}"
        )
    return F.reshape(F.sum(gradient, axis=axes), shape)
