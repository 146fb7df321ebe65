"""Optimizers: what one step does to the parameters, given their gradients.

The updates are PyTorch's, term for term, so that a recipe written for it gives the same run here.
An optimizer writes into `p.data` and into its own state arrays and into nothing else: gradients stay as
they are. Nothing in `step` waits for the GPU: every number it computes on the host is a Python float.

Parameters, gradients and state lie side by side in flat buffers, so that a step is one pass over memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from tinyvit.engine import Tensor, kernels
from tinyvit.engine.backend import namespace_of, to_device
from tinyvit.engine.tape import Leaf
from tinyvit.training.flat import Layout, address, crew, decays, merged, stretches, tiles
from tinyvit.training.parallel import in_workers

Parameters: TypeAlias = Iterable[Tensor] | Iterable[tuple[str, Tensor]]
"""What `model.parameters()` or `model.named_parameters()` gives."""


class Optimizer:
    """What all optimizers share: the parameters, the state arrays beside each of them, and the step.

    A subclass names its state arrays in `slots` and gives `update`, the rule for a stretch of numbers.

    Building an optimizer moves the parameters' arrays into a flat buffer, of which `p.data` is a view from then on,
    and gives their gradients places in another. Build it after the model has been moved to its device and dtype.

    Args:
        parameters: Tensors, or (name, Tensor) pairs as `model.named_parameters()` gives them. The names
            become the keys of `state_dict()`; without them the keys are "0", "1", …
        lr: step size, ≥ 0. The attribute `lr` is plain and read at each step: a schedule sets it.
        weight_decay: ≥ 0; applies to a parameter whose `decay` is true and, where there is no such
            attribute, to arrays of two or more axes: neither biases nor norm scales are decayed.
        slots: names of the state arrays that each parameter has; they start at zero.
        lr_scales: a parameter's name → the factor, ≥ 0, on its step size; 1 for those that it does not name.

    Attributes:
        gradients: the flat buffers of the gradients, one a device and dtype (so one, of an ordinary model).
        lr_scales: the factor of every parameter, by its name.

    Raises:
        ValueError: a setting is negative or NaN, there are no parameters, one (or a name) comes twice, or `lr_scales`
            names one that is not among them.
    """

    def __init__(
        self,
        parameters: Parameters,
        lr: float,
        weight_decay: float,
        slots: tuple[str, ...] = (),
        lr_scales: Mapping[str, float] | None = None,
    ) -> None:
        require(lr >= 0, "lr", lr, "at least 0")
        require(weight_decay >= 0, "weight_decay", weight_decay, "at least 0")
        self.lr = lr
        self.weight_decay = weight_decay
        self.names, self.parameters = named(parameters)
        self.lr_scales = _scales_of(self.names, lr_scales or {})
        self.steps = [0] * len(self.parameters)  # a parameter's own: it may get its first gradient late
        self._layout = Layout(self.parameters)
        self._data, self._gradients = self._layout.flats(), self._layout.flats()
        self._slots = {slot: self._layout.flats() for slot in slots}
        self._views = self._layout.in_order(self._data)
        self.state: dict[str, list[Any]] = {slot: self._layout.in_order(flats) for slot, flats in self._slots.items()}
        for p, view, home in zip(self.parameters, self._views, self._layout.in_order(self._gradients), strict=True):
            view[...] = p.data
            p.data = view
            if isinstance(p.node, Leaf):
                p.node.home = home

    @property
    def gradients(self) -> list[Any]:
        """The flat buffers of the gradients: what workers on several machines would average."""
        return [flat.whole for flat in self._gradients]

    @property
    def recordable(self) -> bool:
        """Whether a CUDA graph can hold the update: a kernel does all of it, with numbers that lie in memory."""
        return False

    def update(self, xp: Any, p: Any, g: Any, state: list[Any], lr: float, step: int, weight_decay: float) -> None:
        """Move the numbers `p` by their gradients `g` (both of one axis), in place; `state` in the order of `slots`.

        `lr` is the step size of these numbers, `step` counts from 1, and `weight_decay` is 0.0 where they are not
        decayed. Each number is moved by itself: a stretch may be part of a parameter, or several.
        """
        raise NotImplementedError

    def step(self) -> None:
        """Update every parameter that has a gradient; those whose `grad` is None stay as they are.

        Raises:
            RuntimeError: a parameter has changed device or dtype since the optimizer was built.
        """
        for i, p in enumerate(self.parameters):
            if p.grad is not None:
                self._take_back(i, p)
        work = [part for group in range(len(self._data)) for run in self._runs(group) for part in self._cut(group, run)]
        for p in self.parameters:
            if p.grad is not None:
                p.bump_version()
        in_workers(self._update, work, crew([p for (p, *_), *_ in work]))

    def _take_back(self, i: int, p: Tensor) -> None:
        """A parameter that was given another array lies in the flat buffer again."""
        view = self._views[i]
        if p.data is view:
            return
        if type(view) is not type(p.data) or view.dtype != p.data.dtype:
            raise RuntimeError(
                f"parameter {self.names[i]!r} has changed device or dtype since the optimizer was"
                " built; build the optimizer after model.to(...)"
            )
        view[...] = p.data
        p.data = view

    def _runs(self, group: int) -> list[_Run]:
        """What is updated alike: neighbours in the flat buffer with the same step size, count and decay are one."""
        runs: list[_Run] = []
        for i, span in zip(self._layout.groups[group], self._data[group].spans, strict=True):
            p = self.parameters[i]
            if p.grad is None:
                continue
            self.steps[i] += 1
            at_home = isinstance(p.node, Leaf) and p.node.lent is not None and p.node.lent() is p.grad.data
            elsewhere = None if at_home else p.grad.data.reshape(-1)
            lr = float(self.lr) * self.lr_scales[self.names[i]]
            run = _Run(span, elsewhere, lr, self.steps[i], self.weight_decay if decays(p) else 0.0)
            if runs and run.follows(runs[-1]):
                runs[-1] = run._replace(span=slice(runs[-1].span.start, span.stop))
            else:
                runs.append(run)
        return runs

    def _cut(self, group: int, run: _Run) -> Iterator[tuple[Any, ...]]:
        """The arguments of `update` for each part of a run that a worker takes."""
        data = self._data[group].whole[run.span]
        gradients = self._gradients[group].whole[run.span] if run.elsewhere is None else run.elsewhere
        state = [flats[group].whole[run.span] for flats in self._slots.values()]
        return ((arrays, run.lr, run.step, run.decay) for arrays in stretches(data, gradients, *state))

    def _update(self, part: tuple[Any, ...]) -> None:
        (p, g, *state), *settings = part
        xp = namespace_of(p)
        for tile in tiles(xp, p.size):
            self.update(xp, p[tile], g[tile], [array[tile] for array in state], *settings)

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


class _Run(NamedTuple):
    """Neighbours in a flat buffer that are updated alike; `elsewhere` is their gradient where it is in no buffer."""

    span: slice
    elsewhere: Any
    lr: float
    step: int
    decay: float

    def follows(self, other: _Run) -> bool:
        at_home = self.elsewhere is None and other.elsewhere is None
        return at_home and other.span.stop == self.span.start and self[2:] == other[2:]


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
        lr_scales: Mapping[str, float] | None = None,
    ) -> None:
        require(momentum >= 0, "momentum", momentum, "at least 0")
        if nesterov:
            require(momentum > 0, "momentum", momentum, "above 0 with nesterov=True")
        super().__init__(parameters, lr, weight_decay, slots=("momentum",) if momentum else (), lr_scales=lr_scales)
        self.momentum = momentum
        self.nesterov = nesterov

    def update(self, xp: Any, p: Any, g: Any, state: list[Any], lr: float, step: int, weight_decay: float) -> None:
        """One step of the formulas above; the arguments are `Optimizer.update`'s."""
        if weight_decay:
            g = g + weight_decay * p
        if self.momentum:
            (m,) = state
            m *= self.momentum
            m += g
            g = g + self.momentum * m if self.nesterov else m
        p -= lr * g


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

    @property
    def recordable(self) -> bool:
        """See `Optimizer.recordable`: all of it is on a GPU with kernels, in float32, and L2 decay is not asked for."""
        alike = all(p.device == "gpu" and p.dtype == np.float32 for p in self.parameters)
        return alike and (self.decoupled or not self.weight_decay) and kernels.find("adamw", "gpu") is not None

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        lr_scales: Mapping[str, float] | None = None,
    ) -> None:
        require(len(betas) == 2 and all(0 <= beta < 1 for beta in betas), "betas", betas, "two in [0, 1)")
        require(eps >= 0, "eps", eps, "at least 0")
        super().__init__(parameters, lr, weight_decay, slots=("exp_avg", "exp_avg_sq"), lr_scales=lr_scales)
        self.betas = betas
        self.eps = eps

    def update(self, xp: Any, p: Any, g: Any, state: list[Any], lr: float, step: int, weight_decay: float) -> None:
        """One step of the formulas above; the arguments are `Optimizer.update`'s."""
        m, v = state
        beta1, beta2 = self.betas
        if weight_decay and not self.decoupled:
            g = g + weight_decay * p
            weight_decay = 0.0
        correction1, correction2 = 1 - beta1**step, 1 - beta2**step
        fused = kernels.find("adamw", xp.device)
        if fused and fused.forward(p, g, m, v, lr * weight_decay, lr, beta1, beta2, self.eps, correction1, correction2):
            return
        if weight_decay:
            p *= 1 - lr * weight_decay
        m += (1 - beta1) * (g - m)  # PyTorch's way to round β₁m + (1 − β₁)g
        v *= beta2
        v += (1 - beta2) * (g * g)
        s = xp.sqrt(v)
        s *= 1 / math.sqrt(correction2)
        s += self.eps
        xp.divide(m, s, out=s)
        s *= lr / correction1
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
        lr_scales: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay, lr_scales)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}
"""The optimizers by the name that a config gives them."""


def clip_grad_norm(parameters: Parameters, max_norm: float | None) -> Any:
    """Scale all gradients by one factor so that their joint Euclidean norm is at most `max_norm`.

        g ← g · min(1, max_norm / (‖g‖ + 1e-6)),    ‖g‖ = √(Σ over all parameters and elements g²)

    Nothing waits for the GPU: on a GPU the factor is computed there, and so is the norm that is returned. The
    squares are summed in float64, in an order that does not depend on the number of threads.

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
    dense = sorted((g.data for g in gradients if g.data.flags.c_contiguous), key=address)
    work = [part for run in merged(dense) for (part,) in stretches(run)]
    work += [g.data for g in gradients if not g.data.flags.c_contiguous]
    workers = crew(work)

    def scaled(part: Any) -> None:
        part *= scale.astype(part.dtype)

    with np.errstate(over="ignore", invalid="ignore"):  # the norm itself reports it
        norm = xp.sqrt(sum(in_workers(_square_sum, work, workers)))
        if max_norm:
            scale = xp.where(xp.isfinite(norm), xp.minimum(max_norm / (norm + 1e-6), 1.0), 1.0)
            in_workers(scaled, work, workers)
            for g in gradients:
                g.bump_version()
    return norm


def _square_sum(array: Any) -> Any:
    """Σ x² in float64."""
    xp = namespace_of(array)
    fused = kernels.find("square_sum", xp.device)
    total = fused and fused.forward(array)
    if total is not None:
        return total
    flat = array.reshape(-1)
    return sum(xp.square(flat[tile], dtype=np.float64).sum() for tile in tiles(xp, flat.size))


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


def _scales_of(names: list[str], given: Mapping[str, float]) -> dict[str, float]:
    """The factor on the step size of each parameter."""
    if unknown := sorted(given.keys() - set(names)):
        raise ValueError(f"lr_scales names {unknown[0]!r}, which is not among the parameters; give their names")
    for name, scale in given.items():
        require(0 <= scale < math.inf, f"lr_scales[{name!r}]", scale, "a finite number of at least 0")
    return {name: float(given.get(name, 1.0)) for name in names}


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
