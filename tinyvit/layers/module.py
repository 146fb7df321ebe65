"""What a layer is: parameters and smaller layers, found by the names of the attributes that hold them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tinyvit.engine import Tensor, random
from tinyvit.engine.backend import Array, namespace_on, to_device
from tinyvit.engine.tensor import plain


class Parameter(Tensor):
    """A Tensor that training changes.

    Attributes:
        decay: whether weight decay applies. By default it does to weights, and not to 1-D parameters (biases,
            LayerNorm, LayerScale); tokens and positions say no too.
    """

    __slots__ = ("decay",)

    def __init__(self, data: Array, decay: bool | None = None):
        super().__init__(data, version=[0])
        self.requires_grad = True
        self.decay = data.ndim > 1 if decay is None else decay


class Module:
    """A layer: call it to compute, ask it for its parameters.

    Parameters, other Tensors, Modules and lists of Modules are found where they are set as attributes, in that order.

    >>> from tinyvit.layers import Linear
    >>> [(name, p.shape) for name, p in Linear(3, 2).named_parameters()]
    [('weight', (2, 3)), ('bias', (2,))]
    """

    training: bool = True

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse containers in which `parameters()` would not find what they hold."""
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
        if any(isinstance(v, Parameter) or (isinstance(v, Module) and type(value) is not list) for v in inside):
            raise TypeError(f"{type(self).__name__}.{name}: keep a Parameter as an attribute and layers in a list")
        super().__setattr__(name, value)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """Compute; each layer says what."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """See `forward`."""
        return self.forward(*arguments, **named)

    # ------------------------------------------------------------------------------------------------- what is inside

    def children(self) -> Iterator[tuple[str, Module]]:
        """Yield the smaller layers with their names; those in a list are numbered."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, list):
                yield from ((f"{name}.{i}", item) for i, item in enumerate(value) if isinstance(item, Module))

    def modules(self) -> Iterator[Module]:
        """Yield this layer and all layers within."""
        yield self
        for _, child in self.children():
            yield from child.modules()

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """Yield (name, parameter), for instance ("blocks.0.attn.qkv.weight", …)."""
        for name, value in vars(self).items():
            if isinstance(value, Parameter):
                yield prefix + name, value
        for name, child in self.children():
            yield from child.named_parameters(f"{prefix}{name}.")

    def parameters(self) -> Iterator[Parameter]:
        """Yield the parameters."""
        return (p for _, p in self.named_parameters())

    @property
    def num_parameters(self) -> int:
        """Number of trainable numbers."""
        return sum(p.size for p in self.parameters())

    @property
    def device(self) -> str:
        """Where the parameters live: "cpu" or "gpu"."""
        return next(self.parameters()).device

    # ----------------------------------------------------------------------------------------------------- all at once

    def train(self, mode: bool = True) -> Module:
        """Switch dropout and DropPath on (or off); return the layer itself."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """Switch dropout and DropPath off; return the layer itself."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for p in self.parameters():
            if p.grad is not None:
                p.grad = None

    def to(self, device: str | None = None, dtype: Any = None) -> Module:
        """Move to a device ("cpu", "gpu", "auto") or another floating-point dtype, in place; return the layer itself.

        Raises:
            BackendError: the device is not there. Nothing has moved then.
            TypeError: the dtype is not one of floating-point numbers. Nothing has changed then.
        """
        if dtype is not None and np.dtype(dtype).kind != "f":
            raise TypeError(f"a model computes with floating-point numbers, not {np.dtype(dtype)}")
        device = namespace_on(device).device if device else None
        for module in self.modules():
            for value in vars(module).values():
                if isinstance(value, Tensor):
                    data = to_device(value.data, device) if device else value.data
                    value.rebind(data.astype(dtype) if dtype else data)
        return self

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return copies of all parameters on the host, by name."""
        return {name: np.array(p.numpy()) for name, p in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set all parameters, each in its own dtype and on its own device.

        Raises:
            ValueError: a name is missing or unknown, or a shape differs. Nothing was changed then.
        """
        own = dict(self.named_parameters())
        problems = [f"missing {name}" for name in own if name not in state]
        problems += [f"unexpected {name}" for name in state if name not in own]
        new = {}
        for name in own.keys() & state.keys():
            p, value = own[name], plain(state[name])
            try:
                new[name] = to_device(value if hasattr(value, "dtype") else np.asarray(value), p.device).astype(p.dtype)
            except (TypeError, ValueError):
                problems.append(f"{name} is no array of numbers")
                continue
            if new[name].shape != p.shape:
                problems.append(f"{name} has shape {new[name].shape} instead of {p.shape}")
        if problems:
            shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
            raise ValueError(f"these weights do not fit {type(self).__name__}: {shown}")
        for name, p in own.items():
            p.data[...] = new[name]
            p.bump_version()

    def __repr__(self) -> str:
        inside = [f"  ({name}): {str(child).replace(chr(10), chr(10) + '  ')}" for name, child in self.children()]
        parameters = ", ".join(f"{k}{v.shape}" for k, v in vars(self).items() if isinstance(v, Parameter))
        return f"{type(self).__name__}({parameters}" + ("\n" + "\n".join(inside) + "\n" if inside else "") + ")"


def xavier_uniform(shape: tuple[int, int], rng: np.random.Generator | None) -> np.ndarray:
    """Return weights (out, in) uniform in ±√(6 / (in + out)). Source: Glorot & Bengio 2010; the ViT paper's code."""
    bound = (6 / sum(shape)) ** 0.5
    return (rng or random.generator()).uniform(-bound, bound, shape).astype(np.float32)


def normal(shape: tuple[int, ...], std: float, rng: np.random.Generator | None) -> np.ndarray:
    """Return float32 numbers from a normal distribution around 0."""
    return ((rng or random.generator()).standard_normal(shape) * std).astype(np.float32)
