"""Optimizers: what one step does to the parameters, given their gradients.

The updates are PyTorch's, term for term, so that a recipe written for it gives the same run here.
An optimizer writes into `p.data` and into its own state arrays and into nothing else: gradients stay as
they are. Nothing in `step` waits for the GPU: every number it computes on the host is a Python float.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np

from tinyvit.engine import Tensor
from tinyvit.engine.backend import namespace_of, to_device

Parameters: TypeAlias = Iterable[Tensor] | Iterable[tuple[str, Tensor]]
"""What `model.parameters()` or `model.named_parameters()` gives."""


class Optimizer:
    """What all optimizers share: the parameters, the state arrays beside each of them, and the step.

    A subclass names its state arrays in `slots` and gives `update`, the rule for one parameter.

    Build the optimizer after the model has been moved to its device and dtype: the state arrays are made
    like the parameters' arrays of that moment.

    Args:
        parameters: Tensors, or (name, Tensor) pairs as `model.named_parameters()` gives them. The names
            become the keys of `state_dict()`; without them the keys are "0", "1", …
        lr: step size, ≥ 0. The attribute `lr` is plain and read at each step: a schedule sets it.
        weight_decay: ≥ 0; applies to a parameter whose `decay` is true and, where there is no such
            attribute, to arrays of two or more axes: neither biases nor norm scales are decayed.
        slots: names of the state arrays that each parameter has; they start at zero.

    Raises:
        ValueError: a setting is negative or NaN, there are no parameters, or one (or a name) comes twice.
    """

    def __init__(self, parameters: Parameters, lr: float, weight_decay: float, slots: tuple[str, ...] = ()) -> None:
        require(lr >= 0, "lr", lr, "at least 0")
        require(weight_decay >= 0, "weight_decay", weight_decay, "at least 0")
        self.lr = lr
        self.weight_decay = weight_decay
        self.names, self.parameters = named(parameters)
        self.steps = [0] * len(self.parameters)  # a parameter's own: it may get its first gradient late
        self.state: dict[str, list[Any]] = {
            slot: [namespace_of(p.data).zeros_like(p.data) for p in self.parameters] for slot in slots
        }
        self._scratch: dict[tuple[type, Any, int], Any] = {}

    def update(self, xp: Any, p: Any, g: Any, state: list[Any], step: int, weight_decay: float) -> None:
        """Move the array `p` by its gradient `g` (same shape), in place; `state` in the order of `slots`.

        `step` counts from 1, and `weight_decay` is 0.0 where this parameter is not decayed.
        """
        raise NotImplementedError

    def step(self) -> None:
        """Update every parameter that has a gradient; those whose `grad` is None stay as they are.

        Raises:
            RuntimeError: a parameter has changed device or dtype since the optimizer was built.
        """
        for i, p in enumerate(self.parameters):
            if p.grad is None:
                continue
            state = [arrays[i] for arrays in self.state.values()]
            for array in state:
                if type(array) is not type(p.data) or array.dtype != p.data.dtype:
                    raise RuntimeError(
                        f"parameter {self.names[i]!r} has changed device or dtype since the optimizer was"
                        " built; build the optimizer after model.to(...)"
                    )
            self.steps[i] += 1
            decay = self.weight_decay if getattr(p, "decay", p.data.ndim > 1) else 0.0
            self.update(namespace_of(p.data), p.data, p.grad.data, state, self.steps[i], decay)
            p.bump_version()

    def zero_grad(self) -> None:
        """Forget all gradients: every `p.grad` becomes None."""
        for p in self.parameters:
            if p.grad is not None:  # a frozen parameter has no place for one
                p.grad = None

    def state_dict(self) -> dict[str, np.ndarray]:
        """Everything needed to resume bit for bit, as copies on the host.

        "step" holds each parameter's number of updates, shape (len(parameters),), int64; each state array
        goes by "slot.name" and has its parameter's shape, e.g. "exp_avg.blocks.0.attn.qkv.weight".
        """
        return {
            "step": np.array(self.steps, dtype=np.int64),
            **{key: to_host(array) for key, array in self._arrays().items()},
        }

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what `state_dict()` gave, in an optimizer of the same kind over the same parameters.

        Raises:
            ValueError: an entry is missing, unexpected or of the wrong shape. Nothing has changed then.
        """
        arrays = self._arrays()
        shapes = {"step": (len(self.steps),), **{key: array.shape for key, array in arrays.items()}}
        check_entries(type(self).__name__, shapes, state)
        steps = [int(n) for n in state["step"]]
        overwrite(arrays, state)
        self.steps = steps

    def _arrays(self) -> dict[str, Any]:
        return {
            f"{slot}.{name}": array
            for slot, arrays in self.state.items()
            for name, array in zip(self.names, arrays, strict=True)
        }

    def scratch(self, xp: Any, like: Any, which: int = 0) -> Any:
        """Return an uninitialized array shaped like `like`, the memory shared by all parameters.

        One array, as long as the largest parameter of its device and dtype, is cut to each shape in turn:
        a step allocates nothing. `which` tells apart arrays in use at the same time.
        """
        key = (type(like), like.dtype, which)
        flat = self._scratch.get(key)
        if flat is None or flat.size < like.size:
            flat = self._scratch[key] = xp.empty(like.size, like.dtype)
        return flat[: like.size].reshape(like.shape)


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum as PyTorch has it (the step size outside the average).

        g ← ∂L/∂p + weight_decay · p
        m ← momentum · m + g
        p ← p − lr · m                        (nesterov: p ← p − lr · (g + momentum · m))

    Source: Sutskever, Martens, Dahl and Hinton, "On the importance of initialization and momentum in deep
    learning", 2013, in `torch.optim.SGD`'s form. The other arguments and errors are `Optimizer`'s.

    Args:
        momentum: ≥ 0; at 0 the optimizer keeps no state array.
        nesterov: look ahead by one momentum step; needs momentum > 0.

    >>> import tinyvit as tv
    >>> w = tv.tensor([[1.0, 2.0]], requires_grad=True)
    >>> optimizer = SGD([w], lr=0.25)
    >>> (w * w).sum().backward()
    >>> optimizer.step()
    >>> w.numpy()
    array([[0.5, 1. ]], dtype=float32)
    """

    def __init__(
        self,
        parameters: Parameters,
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        require(momentum >= 0, "momentum", momentum, "at least 0")
        if nesterov:
            require(momentum > 0, "momentum", momentum, "above 0 with nesterov=True")
        super().__init__(parameters, lr, weight_decay, slots=("momentum",) if momentum else ())
        self.momentum = momentum
        self.nesterov = nesterov

    def update(self, xp: Any, p: Any, g: Any, state: list[Any], step: int, weight_decay: float) -> None:
        """One step of the formulas above; the arguments are `Optimizer.update`'s."""
        if weight_decay:
            decayed = xp.multiply(p, weight_decay, out=self.scratch(xp, p, 1))
            g = xp.add(decayed, g, out=decayed)
        s = self.scratch(xp, p)
        if not self.momentum:
            xp.multiply(g, float(self.lr), out=s)
        else:
            (m,) = state
            m *= self.momentum
            m += g
            if self.nesterov:
                xp.multiply(m, self.momentum, out=s)
                s += g
                s *= float(self.lr)
            else:
                xp.multiply(m, float(self.lr), out=s)
        p -= s


class Adam(Optimizer):
    """Adam, weight decay added to the gradient (that is, L2 regularization).

        g ← ∂L/∂p + weight_decay · p
        m ← β₁ m + (1 − β₁) g
        v ← β₂ v + (1 − β₂) g²
        p ← p − lr · m̂ / (√v̂ + eps),          m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)

    The state arrays are m, "exp_avg", and v, "exp_avg_sq". t counts this parameter's own updates.

    Source: Kingma and Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1. The other
    arguments and errors are `Optimizer`'s.

    Args:
        betas: β₁ and β₂, each in [0, 1).
        eps: ≥ 0; outside the root, after the bias correction.

    The first step is lr in size whatever the gradient's scale is.

    >>> import tinyvit as tv
    >>> w = tv.tensor([[1.0, 2.0]], requires_grad=True)
    >>> optimizer = Adam([("w", w)], lr=0.5)
    >>> (w * w).sum().backward()
    >>> optimizer.step()
    >>> w.numpy().round(3)
    array([[0.5, 1.5]], dtype=float32)
    >>> sorted(optimizer.state_dict())
    ['exp_avg.w', 'exp_avg_sq.w', 'step']
    """

    decoupled = False

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        require(len(betas) == 2 and all(0 <= beta < 1 for beta in betas), "betas", betas, "two in [0, 1)")
        require(eps >= 0, "eps", eps, "at least 0")
        super().__init__(parameters, lr, weight_decay, slots=("exp_avg", "exp_avg_sq"))
        self.betas = betas
        self.eps = eps

    def update(self, xp: Any, p: Any, g: Any, state: list[Any], step: int, weight_decay: float) -> None:
        """One step of the formulas above; the arguments are `Optimizer.update`'s."""
        m, v = state
        lr, (beta1, beta2) = float(self.lr), self.betas
        s = self.scratch(xp, p)
        if weight_decay and self.decoupled:
            p *= 1 - lr * weight_decay
        elif weight_decay:
            decayed = xp.multiply(p, weight_decay, out=self.scratch(xp, p, 1))
            g = xp.add(decayed, g, out=decayed)

        xp.subtract(g, m, out=s)  # m ← m + (1 − β₁)(g − m), PyTorch's way to round β₁m + (1 − β₁)g
        s *= 1 - beta1
        m += s

        xp.multiply(g, g, out=s)
        s *= 1 - beta2
        v *= beta2
        v += s

        xp.sqrt(v, out=s)  # then s ← √v̂ + eps; the corrections themselves are two Python floats
        s /= math.sqrt(1 - beta2**step)
        s += self.eps
        xp.divide(m, s, out=s)
        s *= lr / (1 - beta1**step)
        p -= s


class AdamW(Adam):
    """Adam with the weight decay decoupled from the gradient.

        p ← p − lr · weight_decay · p

    before Adam's step, in which it has no part: the decay is the same for all weights, whatever the size
    of their gradients.

    Source: Loshchilov and Hutter, "Decoupled weight decay regularization", 2019, algorithm 2, in
    `torch.optim.AdamW`'s form: the decay is multiplied by lr, and so follows the schedule. The arguments
    and errors are `Adam`'s.

    Without a gradient to speak of only the decay is left, and a bias, of one axis, has none.

    >>> import tinyvit as tv
    >>> w = tv.tensor([[1.0, 2.0]], requires_grad=True)
    >>> b = tv.tensor([1.0], requires_grad=True)
    >>> optimizer = AdamW([w, b], lr=0.5, weight_decay=0.5)
    >>> (w.sum() * 0.0 + b.sum() * 0.0).backward()
    >>> optimizer.step()
    >>> w.numpy(), b.numpy()
    (array([[0.75, 1.5 ]], dtype=float32), array([1.], dtype=float32))
    """

    decoupled = True

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}
"""The optimizers by the name that a config gives them."""


def clip_grad_norm(parameters: Parameters, max_norm: float | None) -> Any:
    """Scale all gradients by one factor so that their joint Euclidean norm is at most `max_norm`.

        g ← g · min(1, max_norm / (‖g‖ + 1e-6)),    ‖g‖ = √(Σ over all parameters and elements g²)

    Nothing waits for the GPU: on a GPU the factor is computed there, and so is the norm that is returned. The
    squares are summed in float64 by NumPy's own summation, not by BLAS, whose result would depend on its
    number of threads.

    Args:
        parameters: as for `Optimizer`, all on one device; those whose `grad` is None count as zero.
        max_norm: > 0; None or 0 switches the clipping off, and the norm is still measured.

    Returns:
        The norm before clipping: a float64 scalar on the CPU, a 0-d float64 array on a GPU. Where it is
        not finite, the gradients are left as they are, for whoever looks for the cause; the caller is to
        stop.

    Raises:
        ValueError: `max_norm` is negative or NaN.

    Source: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", 2013,
    algorithm 1, in the form of `torch.nn.utils.clip_grad_norm_` (whence 1e-6; but there non-finite
    gradients are scaled too).

    >>> import tinyvit as tv
    >>> w = tv.tensor([1.5, 2.0], requires_grad=True)
    >>> (w * w).sum().backward()
    >>> float(clip_grad_norm([w], max_norm=1.0))
    5.0
    >>> w.grad.numpy().round(3)
    array([0.6, 0.8], dtype=float32)
    """
    if max_norm is not None:
        require(max_norm >= 0, "max_norm", max_norm, "above 0, or None or 0 for no clipping")
    gradients = [p.grad for p in named(parameters)[1] if p.grad is not None]
    if not gradients:
        return np.float64(0.0)
    xp = namespace_of(*[g.data for g in gradients])
    with np.errstate(over="ignore", invalid="ignore"):  # the norm itself reports it
        norm = xp.sqrt(sum(xp.square(g.data, dtype=_wide(g)).sum(dtype=np.float64) for g in gradients))
        if max_norm:
            scale = xp.where(xp.isfinite(norm), xp.minimum(max_norm / (norm + 1e-6), 1.0), 1.0)
            for g in gradients:
                g.data *= scale.astype(g.dtype)
                g.bump_version()
    return norm


def _wide(gradient: Tensor) -> np.dtype:
    """Give a dtype in which squares do not overflow at once: float16 ends at 65504."""
    return np.promote_types(gradient.dtype, np.float32)


def named(parameters: Parameters) -> tuple[list[str], list[Tensor]]:
    """Split Tensors or (name, Tensor) pairs into names and Tensors; unnamed ones are "0", "1", ...

    Raises:
        ValueError: there are no parameters, or one (or a name) comes twice: it would be stepped twice.
    """
    pairs = [p if isinstance(p, tuple) else (str(i), p) for i, p in enumerate(parameters)]
    names, tensors = [name for name, _ in pairs], [p for _, p in pairs]
    if not pairs:
        raise ValueError("got no parameters; give model.parameters() or model.named_parameters()")
    if len(set(names)) < len(names) or len({id(p) for p in tensors}) < len(tensors):
        raise ValueError("the same parameter, or the same name, was given twice; give each parameter once")
    return names, tensors


def to_host(array: Any) -> np.ndarray:
    """Copy a NumPy or CuPy array into a new NumPy array."""
    return np.array(to_device(array, "cpu"))


def check_entries(what: str, shapes: Mapping[str, tuple[int, ...]], given: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError, naming the entries, unless `given` has exactly the keys and shapes of `shapes`.

    >>> check_entries("SGD", {"step": (2,)}, {"step": np.zeros(3), "velocity.w": np.zeros(2)})
    Traceback (most recent call last):
    ...
    ValueError: the state does not fit this SGD: unexpected 'velocity.w'; 'step' has shape (3,), expected (2,)
    """
    faults = [f"missing {key!r}" for key in shapes if key not in given]
    faults += [f"unexpected {key!r}" for key in given if key not in shapes]
    faults += [
        f"{key!r} has shape {np.shape(given[key])}, expected {shape}"
        for key, shape in shapes.items()
        if key in given and np.shape(given[key]) != shape
    ]
    if faults:
        shown = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
        raise ValueError(f"the state does not fit this {what}: {shown}")


def overwrite(arrays: Mapping[str, Any], values: Mapping[str, np.ndarray]) -> None:
    """Copy host arrays into `arrays` of the same keys and shapes: all of them or, on an error, none."""
    moved = [namespace_of(array).asarray(values[key], dtype=array.dtype) for key, array in arrays.items()]
    for array, value in zip(arrays.values(), moved, strict=True):
        array[...] = value


def require(good: bool, name: str, value: object, expected: str) -> None:
    """Raise ValueError unless `good`: what was given, and what was expected."""
    if not good:
        raise ValueError(f"{name} is {value!r}; it must be {expected}")
