"""The Tensor: an array, its place on the tape, and the operators. No mathematics: `x + y` is `ops.add(x, y)`."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tinyvit.engine import tape
from tinyvit.engine.backend import Array, default_namespace, namespace_of, namespace_on, to_device
from tinyvit.engine.tape import Leaf, Node, TapeError


def _operator(name: str) -> tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]:
    """The methods of an operator: tensor ∘ other, and other ∘ tensor."""

    def forward(self: Tensor, other: Any) -> Any:
        if isinstance(other, (list, tuple)):
            other = self._operand(other)
        return getattr(ops, name).apply((self, other))

    def reflected(self: Tensor, other: Any) -> Any:
        if isinstance(other, (list, tuple)):
            other = self._operand(other)
        return getattr(ops, name).apply((other, self))

    return forward, reflected


def _in_place(name: str) -> Callable[[Any, Any], Any]:
    """The method of `x += other`: writes to a leaf inside `no_grad`, and otherwise computes a new Tensor."""

    def method(self: Tensor, other: Any) -> Any:
        if not isinstance(self.node, Leaf):
            return getattr(ops, name)(self, self._operand(other))
        if tape.mode.recording:
            raise TapeError(_OVERWRITING)
        self.data[...] = getattr(ops, name)(self, self._operand(other)).data
        self.bump_version()
        return self

    return method


_OVERWRITING = (
    "item assignment (or +=) would change a value that the tape needs: choose values with ops.where, assign to a "
    "copy (tv.tensor(x)), or, for a leaf, do it inside `with tv.no_grad():`"
)


class Tensor:
    """An array on a device, with a place on the tape where a gradient is wanted. Made by `tv.tensor`.

    Operators follow NumPy's broadcasting and type promotion, and `array + tensor` is a Tensor too.

    Attributes:
        data: the numpy.ndarray or cupy.ndarray itself.
        node: its place on the tape, None where no gradient flows.

    >>> import numpy as np, tinyvit as tv
    >>> x = tv.tensor([[1.0, 2.0]], requires_grad=True)
    >>> y = (np.float32(3) * x**2).sum()
    >>> y
    Tensor(15., dtype=float32, op=sum)
    >>> y.backward()
    >>> x.grad
    Tensor([[ 6., 12.]], dtype=float32)
    """

    __slots__ = ("__weakref__", "_version", "data", "node")
    __array_ufunc__ = None  # numpy.ndarray + Tensor defers to Tensor

    def __init__(self, data: Array, node: Node | None = None, version: list[int] | None = None):
        self.data = data
        self.node = node
        self._version = version

    @property
    def version(self) -> list[int]:
        """A counter in a list, shared by views, that item assignment advances."""
        if self._version is None:  # most results are never asked; a leaf, which threads may share, has one at once
            self._version = [0]
        return self._version

    # -------------------------------------------------------------------------------------------------------- the array

    @property
    def shape(self) -> tuple[int, ...]:
        """Size along each axis."""
        return self.data.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.data.ndim

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.data.size

    @property
    def dtype(self) -> np.dtype:
        """The type of an element, a numpy.dtype."""
        return self.data.dtype

    @property
    def device(self) -> str:
        """Where the array lives: "cpu" or "gpu"."""
        return namespace_of(self.data).device

    @property
    def T(self) -> Tensor:  # noqa: N802 -- NumPy's name
        """All axes reversed."""
        return ops.transpose(self)

    def numpy(self) -> np.ndarray:
        """Return the values as a NumPy array: the Tensor's own memory on the CPU, a copy from the GPU."""
        return to_device(self.data, "cpu")

    def item(self) -> Any:
        """Return the only element as a Python number (waits for the GPU)."""
        return self.data.item()

    def tolist(self) -> Any:
        """Return the values as nested lists of Python numbers."""
        return self.data.tolist()

    # --------------------------------------------------------------------------------------------------------- the tape

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient flows to this Tensor. May be set on a leaf, before it is used."""
        return self.node is not None

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        if not self.is_leaf:
            raise TapeError("requires_grad can be set on a leaf only; take x.detach() of a computed Tensor first")
        if not wanted:
            self.node = None
        elif self.node is None:
            self.node = _leaf(self.data)

    @property
    def is_leaf(self) -> bool:
        """Whether this Tensor was given, not computed on the tape."""
        return self.node is None or isinstance(self.node, Leaf)

    @property
    def grad(self) -> Tensor | None:
        """The gradient gathered by `backward()`: same shape, dtype and device; None before, and on computed Tensors."""
        return self.node.grad if isinstance(self.node, Leaf) else None

    @grad.setter
    def grad(self, gradient: Tensor | None) -> None:
        if not isinstance(self.node, Leaf):
            raise TapeError("only a leaf made with requires_grad=True keeps a gradient")
        if gradient is not None and gradient.shape != self.shape:
            raise ValueError(f"a gradient of shape {gradient.shape} does not fit a Tensor of shape {self.shape}")
        self.node.grad = gradient

    def backward(self, gradient: Any = None, *, retain_graph: bool = False, create_graph: bool = False) -> None:
        """Add ∂self/∂leaf to the `.grad` of every leaf that this Tensor was computed from.

        Args:
            gradient: ∂L/∂self, of this Tensor's shape; may be left out when this is a single number.
            retain_graph: keep the saved values, so that the same graph can be swept again.
            create_graph: record the sweep, so that the gradients can be differentiated again.

        Raises:
            TapeError: nothing was recorded, the graph was swept before, or a saved value was overwritten.
            ValueError: `gradient` is missing or has another shape.

        >>> import tinyvit as tv
        >>> x = tv.tensor([1.0, 2.0], requires_grad=True)
        >>> (x * x).sum().backward()
        >>> x.grad
        Tensor([2., 4.], dtype=float32)
        """
        if self.node is None:
            raise TapeError("backward() of a Tensor that nothing with requires_grad=True was recorded for")
        seed = _seed(self, gradient, create_graph)
        F = ops if create_graph else None
        with tape.recording(create_graph):
            for leaf, g, owned in tape.sweep([(self.node, seed)], F=F, retain_graph=retain_graph or create_graph):
                gather(leaf, g, owned)

    def detach(self) -> Tensor:
        """Return the same memory, off the tape."""
        return Tensor(self.data, version=self.version)

    def bump_version(self) -> None:
        """Tell the tape that `data` was written to, so that a sweep which needs the old values says so."""
        self.version[0] += 1

    def rebind(self, data: Array) -> None:
        """Put another array in the place of a leaf's own: its old gradient and recorded uses no longer count."""
        if not self.is_leaf:
            raise TapeError("rebind() is for leaves; a computed Tensor belongs to the tape")
        self.data = data
        self._version = [0]
        if self.node is not None:
            self.node = _leaf(data)

    # ---------------------------------------------------------------------------------------------- device and dtype

    def to(self, device: str) -> Tensor:
        """Return this Tensor on "cpu" or "gpu"; the gradient travels back the same way."""
        return self if namespace_on(device).device == self.device else ops.to_device(self, device)

    def astype(self, dtype: Any) -> Tensor:
        """Return the values in another dtype; the gradient comes back in this one's."""
        return self if self.dtype == dtype else ops.astype(self, dtype)

    # ------------------------------------------------------------------------------------------------------- operators

    __add__, __radd__ = _operator("add")
    __sub__, __rsub__ = _operator("subtract")
    __mul__, __rmul__ = _operator("multiply")
    __truediv__, __rtruediv__ = _operator("divide")
    __pow__, __rpow__ = _operator("power")
    __and__, __rand__ = _operator("bitwise_and")
    __or__, __ror__ = _operator("bitwise_or")
    __iadd__, __isub__ = _in_place("add"), _in_place("subtract")
    __imul__, __itruediv__ = _in_place("multiply"), _in_place("divide")
    __lt__, __gt__ = _operator("less")[0], _operator("greater")[0]
    __le__, __ge__ = _operator("less_equal")[0], _operator("greater_equal")[0]
    __eq__, __ne__ = _operator("equal")[0], _operator("not_equal")[0]  # elementwise
    __hash__ = object.__hash__  # by identity: a Tensor may stand in a set or be a key

    def _operand(self, other: Any) -> Any:
        """A list means the array of its numbers."""
        return namespace_of(self.data).asarray(other) if isinstance(other, (list, tuple)) else other

    def __matmul__(self, other: Any) -> Any:
        return ops.matmul(self, self._operand(other))

    def __rmatmul__(self, other: Any) -> Any:
        return ops.matmul(self._operand(other), self)

    def __neg__(self) -> Tensor:
        return ops.negative(self)

    def __abs__(self) -> Tensor:
        return ops.abs(self)

    def __invert__(self) -> Tensor:
        return ops.invert(self)

    def __getitem__(self, index: Any) -> Tensor:
        return ops.getitem(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        if self.node is not None and (tape.mode.recording or not self.is_leaf):
            raise TapeError(_OVERWRITING)
        if isinstance(value, Tensor) and value.requires_grad and tape.mode.recording:
            raise TapeError("item assignment would lose the gradient of the value: use ops.where, or value.detach()")
        value = plain(self._operand(value))
        namespace_of(self.data, value)  # or an error that says where the two are
        self.data[plain(index)] = value
        self.bump_version()

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Tensor]:
        if not self.ndim:
            raise TypeError("a 0-d Tensor has no axis to iterate over")
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        return bool(self.data)

    def __float__(self) -> float:
        return float(self.data)

    def __int__(self) -> int:
        return int(self.data)

    def __index__(self) -> int:
        if self.ndim:
            raise TypeError(f"a Tensor of shape {self.shape} is no single whole number, as an index must be")
        return operator.index(self.data.item())

    def __format__(self, spec: str) -> str:
        return format(self.item() if spec and self.size == 1 else str(self), spec)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self.requires_grad:
            raise TypeError("NumPy would lose this Tensor's gradient: use tinyvit.ops, or x.detach().numpy()")
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        values = np.array2string(self.numpy(), separator=", ", prefix="Tensor(", threshold=100, edgeitems=3)
        facts = [f"dtype={self.dtype}"]
        if self.size > 100:
            facts.insert(0, f"shape={self.shape}")
        if self.device != "cpu":
            facts.append(f"device={self.device}")
        if isinstance(self.node, Leaf):
            facts.append("requires_grad=True")
        elif self.node is not None:
            facts.append(f"op={self.node.op.name}")
        return f"{type(self).__name__}({values}, {', '.join(facts)})"

    # --------------------------------------------------------------------------- the ops people call as methods

    def sum(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """See `ops.sum`."""
        return ops.sum(self, axis, keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """See `ops.mean`."""
        return ops.mean(self, axis, keepdims)

    def var(self, axis: Any = None, ddof: int = 0, keepdims: bool = False) -> Tensor:
        """See `ops.var`."""
        return ops.var(self, axis, ddof, keepdims)

    def max(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """See `ops.max`."""
        return ops.max(self, axis, keepdims)

    def min(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """See `ops.min`."""
        return ops.min(self, axis, keepdims)

    def argmax(self, axis: int | None = None) -> Tensor:
        """See `ops.argmax`."""
        return ops.argmax(self, axis)

    def reshape(self, *shape: Any) -> Tensor:
        """See `ops.reshape`; the sizes may stand one by one."""
        return ops.reshape(self, shape[0] if len(shape) == 1 else shape)

    def transpose(self, *axes: Any) -> Tensor:
        """See `ops.transpose`; the axes may stand one by one."""
        return ops.transpose(self, axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes or None)

    def swapaxes(self, axis1: int, axis2: int) -> Tensor:
        """See `ops.swapaxes`."""
        return ops.swapaxes(self, axis1, axis2)

    def squeeze(self, axis: Any = None) -> Tensor:
        """See `ops.squeeze`."""
        return ops.squeeze(self, axis)


# --------------------------------------------------------------------------------------------------------------------


def tensor(data: Any, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """Make a Tensor of a copy of `data`.

    Args:
        data: an array or a Tensor (keeps its dtype and device), or numbers and nested lists (become float32; lists
            of True and False become bool), of any shape.
        dtype: float16, float32, float64, an integer type or bool.
        device: "cpu" or "gpu"; left out: where `data` is, or the default of `tv.use_backend`.
        requires_grad: whether `backward()` shall gather a gradient here.

    Raises:
        TypeError: elements that are no numbers, or a gradient wanted for integers or bools.
        BackendError: a GPU is asked for and there is none.

    >>> tensor([1, 2]).dtype, tensor(np.arange(2)).dtype
    (dtype('float32'), dtype('int64'))
    """
    data = plain(data)
    if hasattr(data, "dtype"):
        array = to_device(data, device) if device else data
        array = namespace_of(array).array(array, dtype=dtype)
    else:
        host = np.asarray(data)
        if host.dtype.kind not in "fiub":
            raise TypeError(f"a Tensor holds numbers, not {data!r}")
        host = host.astype(dtype or (bool if host.dtype == bool else np.float32))
        array = (namespace_on(device) if device else default_namespace()).asarray(host)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"a Tensor holds floating-point numbers, integers or bools, not {array.dtype}")
    return Tensor(array, _leaf(array) if requires_grad else None, version=[0])


def grad(
    outputs: Any,
    inputs: Sequence[Tensor],
    grad_outputs: Any = None,
    *,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool = False,
) -> list[Any]:
    """Return the gradients of the outputs with respect to the inputs; no `.grad` is touched.

    Args:
        outputs: a Tensor or several; their gradients are added.
        inputs: Tensors on the tape, leaves or computed.
        grad_outputs: ∂L/∂output for each output, of its shape; may be left out for single numbers.
        retain_graph: keep the saved values for another sweep; by default only if `create_graph`.
        create_graph: record the sweep, so that the result can be differentiated again.
        allow_unused: give None for an input that the outputs do not depend on, instead of an error.

    Returns:
        A list of one Tensor an input, of its shape, dtype and device (or None, see `allow_unused`).

    Raises:
        TapeError: an input is not on the tape or not used, or the graph was swept before.

    >>> x = tensor([3.0], requires_grad=True)
    >>> [dx] = grad((x**3).sum(), [x], create_graph=True)
    >>> [ddx] = grad(dx.sum(), [x])
    >>> dx.item(), ddx.item()
    (27.0, 18.0)
    """
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    if grad_outputs is None or not isinstance(grad_outputs, (list, tuple)):
        grad_outputs = [grad_outputs] * len(outputs)
    places: dict[Node, list[int]] = {}
    for i, x in enumerate(inputs):
        if x.node is None:
            raise TapeError(f"input {i} of grad() is not on the tape: make it with requires_grad=True")
        places.setdefault(x.node, []).append(i)
    F = ops if create_graph else None
    retain_graph = create_graph if retain_graph is None else retain_graph
    found: list[Any] = [None] * len(inputs)
    with tape.recording(create_graph):
        seeds = [
            (y.node, _seed(y, g, create_graph))
            for y, g in zip(outputs, grad_outputs, strict=True)
            if y.node is not None
        ]
        for node, g, owned in tape.sweep(seeds, set(places), F=F, retain_graph=retain_graph):
            result = g if isinstance(g, Tensor) else Tensor(g if owned else g.copy())
            for i in places[node]:
                found[i] = result
    unused = [i for i, g in enumerate(found) if g is None]
    if unused and not allow_unused:
        raise TapeError(
            f"the outputs do not depend on input {unused[0]} of grad(); pass allow_unused=True to get None for it"
        )
    return found


@contextmanager
def unfused() -> Iterator[None]:
    """Compute fused ops by their readable twins inside the block: the tape then shows their elementary ops.

    >>> import tinyvit as tv
    >>> x = tv.tensor([1.0], requires_grad=True)
    >>> with tv.unfused():
    ...     y = tv.ops.gelu(x)
    >>> y.node.op.name, tv.ops.gelu(x).node.op.name
    ('multiply', 'gelu')
    """
    previous, tape.mode.twins_in = tape.mode.twins_in, ops
    try:
        yield
    finally:
        tape.mode.twins_in = previous


def _leaf(data: Array) -> Leaf:
    if data.dtype.kind != "f":
        raise TypeError(f"a gradient needs floating-point numbers, not {data.dtype}: convert with dtype=np.float32")
    return Leaf(data.shape, data.dtype)


def _seed(y: Tensor, gradient: Any, as_tensor: bool) -> Any:
    """∂L/∂y to start a sweep from: what the caller gave, in y's dtype, or 1 for a single number."""
    if gradient is None:
        if y.size != 1:
            raise ValueError(
                f"the gradient of a Tensor of shape {y.shape} needs ∂L/∂y of that shape; only a single number's is 1 "
                "(reduce it first, with .sum() or .mean()?)"
            )
        gradient = namespace_of(y.data).ones(y.shape, dtype=y.dtype)
    if not isinstance(gradient, Tensor):
        gradient = Tensor(namespace_of(y.data).asarray(gradient, dtype=y.dtype))
    if gradient.shape != y.shape:
        raise ValueError(f"a gradient of shape {gradient.shape} was given for a Tensor of shape {y.shape}")
    gradient = gradient.astype(y.dtype)
    return gradient if as_tensor else gradient.data


_gathering = threading.Lock()  # threads may sweep onto the same leaves


def gather(leaf: Any, gradient: Any, owned: bool) -> None:
    """Add to the gradient that a leaf keeps: in the leaf's place in a flat buffer, or in an array of its own."""
    with _gathering:
        if isinstance(gradient, Tensor):
            gradient = gradient if owned else gradient * 1
            leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
        elif leaf.grad is None:
            leaf.grad = Tensor(_settled(leaf, gradient, owned))
        elif leaf.grad.node is None:
            leaf.grad.data += gradient
            leaf.grad.bump_version()
        else:  # the gradient of a recorded sweep, which the tape may need as it is
            leaf.grad = Tensor(leaf.grad.data + gradient)


def _settled(leaf: Any, gradient: Any, owned: bool) -> Any:
    """A leaf's first gradient, in its place where it has one."""
    if leaf.lent is not None and leaf.lent() is gradient:
        return gradient
    place = leaf.place()
    if place is None:
        return gradient if owned else gradient.copy()
    place[...] = gradient
    return place


def plain(value: Any) -> Any:
    """Tensors in an index or a value, as arrays."""
    if isinstance(value, Tensor):
        return value.data
    return tuple(map(plain, value)) if isinstance(value, tuple) else value


from tinyvit.engine import ops  # noqa: E402 -- the operators; ops need the Tensor first
