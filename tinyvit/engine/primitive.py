"""What an op is: a forward computation and its backward rules, side by side.

    @primitive
    def multiply(xp, a, b):
        return a * b

    multiply.gradients(
        a=lambda F, gy, b: gy * b,
        b=lambda F, gy, a: gy * a,
    )

`xp` is the array library of the arguments. A rule gets `F`, a namespace with NumPy's names, the gradient `gy` of the
loss with respect to the result, and what else its parameters name: an argument, the result `y`, the shape of an
argument (`x_shape`), or the `residue` (what the forward returned beside its result, for the rules' use). Of an op with
several results `gy` and `y` are lists, and `y0`, `y1`, … one of them. What no rule names, the tape does not keep. Given
arrays a rule runs at once; given Tensors it is recorded, so that it can be differentiated again.

A fused op's forward is written against such an `F` too, in elementary ops. It is then its own readable twin, and a
kernel of the same name (`engine/kernels`) may compute it and its gradients instead, on arrays that suit it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Container, Sequence
from sys import modules
from typing import Any, overload

import numpy as np
from numpy import ndarray

from tinyvit.engine import kernels
from tinyvit.engine.backend import NUMPY, Namespace, namespace_of
from tinyvit.engine.tape import Node, Part, TapeError, mode, recording, sweep
from tinyvit.engine.tensor import Tensor

Rule = Callable[..., Any]
_RESERVED = {"y", "residue", "inputs", "shapes"}  # what a rule can ask for beside arguments


class Primitive:
    """An op: callable on Tensors, arrays and numbers, recorded on the tape where a gradient flows."""

    def __init__(self, forward: Callable[..., Any], twin: Callable[..., Any] | None = None, fused: bool = False):
        functools.update_wrapper(self, forward)
        parameters = list(inspect.signature(forward).parameters.values())[1:]  # all but xp
        self.__signature__ = inspect.Signature(parameters)
        self.name = forward.__name__.strip("_")
        if reserved := {p.name for p in parameters} & _RESERVED:
            raise TypeError(
                f"`{self.name}` has an argument {sorted(reserved)[0]!r}, a name that means something to rules"
            )
        self.forward = forward
        self.twin = forward if fused else twin
        self.fused = fused
        self.has_kernels = fused and forward.__module__.startswith("tinyvit.")  # a user's own `gelu` is another op
        self.variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        self.names = tuple(p.name for p in parameters if p.kind is not p.VAR_POSITIONAL)
        self.defaults = tuple(p.default for p in parameters)
        self.required = sum(default is inspect.Parameter.empty for default in self.defaults)
        self.plain = not (self.has_kernels or self.variadic)  # a forward without a residue, and nothing in its place
        self.rules: dict[str, tuple[Rule, tuple[str, ...]]] = {}
        self.joint: tuple[Rule, tuple[str, ...]] | None = None
        self.has_residue = False
        self._plans: dict[int, tuple[tuple[str, str, int | None], ...]] = {}

    # ------------------------------------------------------------------------------------------------- declaring rules

    def gradients(self, **rules: Rule) -> None:
        """Give a rule for each differentiable argument: name = lambda F, gy, …: the gradient of that argument."""
        unknown = set(rules) - set(self.names)
        if unknown:
            raise TypeError(f"`{self.name}` has no argument {sorted(unknown)}; its arguments are {list(self.names)}")
        for name, rule in rules.items():
            self.rules[name] = rule, self._asked_for(rule)

    def gradient(self, rule: Rule) -> Rule:
        """Give one rule for all arguments, as a decorator; it returns their gradients as a tuple, None where none."""
        self.joint = rule, self._asked_for(rule)
        return rule

    def _asked_for(self, rule: Rule) -> tuple[str, ...]:
        names = tuple(inspect.signature(rule).parameters)[2:]  # all but F and gy
        known = {*_RESERVED, *self.names, *(f"{name}_shape" for name in self.names)}
        if unknown := {name for name in names if name not in known and _place(name) is None}:
            raise TypeError(f"a rule of `{self.name}` asks for {sorted(unknown)}; there is {sorted(known)}")
        self.has_residue |= "residue" in names
        self.plain &= not self.has_residue
        self._plans.clear()
        return names

    # --------------------------------------------------------------------------------------------------------- forward

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Compute, and record where an argument carries a gradient."""
        if named or len(arguments) != len(self.names) or self.variadic:
            arguments = self._bind(arguments, named)
        return self.apply(arguments)

    def apply(self, arguments: tuple[Any, ...]) -> Any:
        """Compute from all arguments, in the order of the signature; the operators call this, which is cheaper."""
        if self.twin is not None and mode.twins_in is not None:
            return self.twin(mode.twins_in, *arguments)
        if self.plain and len(arguments) == 2:  # most uses are, and take an eighth less without the loop
            a, b = arguments
            of_a = of_b = None
            tracked = 0
            if isinstance(a, Tensor):
                of_a, a = a.node, a.data
                if of_a is not None:
                    tracked = 1
            if isinstance(b, Tensor):
                of_b, b = b.node, b.data
                if of_b is not None:
                    tracked += 2
            arrays: Sequence[Any] = (a, b)
            parents: tuple[Node | None, ...] = (of_a, of_b)
            xp = namespace_of(a, b) if "cupy" in modules else NUMPY
            y, residue, kernel = self.forward(xp, a, b), None, None
        else:
            arrays, parents, tracked = _looked_at(arguments)
            xp = namespace_of(*arrays) if "cupy" in modules else NUMPY
            y, residue, kernel = self._run(xp, arrays)
        if tracked and not mode.recording:
            tracked = 0
        if type(y) is not ndarray:
            if isinstance(y, (tuple, list)):
                return self._several(xp, y, residue, kernel, arguments, arrays, parents, tracked)
            y = _not_a_scalar(xp, y)
        looks_at_another = y.base is not None or y is arrays[0]
        result = Tensor(y, None, _version_of(xp, y, arguments) if looks_at_another else None)
        dtype = y.dtype
        # V is bfloat16's kind; integers and bools are steps: their gradient is zero wherever it exists
        if tracked and dtype.kind in "fV":
            node = result.node = Node(self, parents, y.shape, dtype)
            node.kernel = kernel
            self._save(node, tracked, arguments, arrays, result, residue)
        return result

    def _run(self, xp: Namespace, arrays: Sequence[Any]) -> tuple[Any, Any, Any]:
        """(result, residue, kernel): what the forward gives, or a kernel in its place, which has its own residue."""
        if self.has_kernels:
            kernel = kernels.find(self.name, xp.device)
            if kernel and (computed := kernel.forward(*arrays)):
                return computed[0], None, (kernel.backward, computed[1])
        if self.variadic:
            inputs = len(arrays) - len(self.names)
            y = self.forward(xp, *arrays[:inputs], **dict(zip(self.names, arrays[inputs:], strict=True)))
        else:
            y = self.forward(xp, *arrays)
        return (*y, None) if self.has_residue else (y, None, None)

    def _bind(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        """All arguments in the order of the signature, defaults filled in."""
        if not named and self.required <= len(arguments) < len(self.names) and not self.variadic:
            return arguments + self.defaults[len(arguments) :]
        bound = self.__signature__.bind(*arguments, **named)
        bound.apply_defaults()
        return (*bound.args, *bound.kwargs.values())

    def _several(
        self,
        xp: Namespace,
        parts: Any,
        residue: Any,
        kernel: Any,
        arguments: Any,
        arrays: Any,
        parents: Any,
        tracked: Any,
    ) -> tuple[Tensor, ...]:
        """The results of an op that has several, each at its place in the op's one node."""
        parts = [_not_a_scalar(xp, part) for part in parts]
        of_another = [part.base is not None or any(part is array for array in arrays) for part in parts]
        results = tuple(
            Tensor(part, None, _version_of(xp, part, arguments) if looks else None)
            for part, looks in zip(parts, of_another, strict=True)
        )
        if tracked:
            node = Node(self, parents, [part.shape for part in parts], [part.dtype for part in parts])
            node.kernel = kernel
            for i, result in enumerate(results):
                result.node = Part(node, i, result.shape, result.dtype) if result.dtype.kind in "fV" else None
            self._save(node, tracked, arguments, arrays, results, residue)
        return results

    def _save(self, node: Node, tracked: int, arguments: Any, arrays: Any, result: Any, residue: Any) -> None:
        """Keep what the rules of the tracked arguments have named, and nothing else."""
        plan = self._plans.get(tracked)
        if plan is None:
            plan = self._plans[tracked] = self._plan([i for i, parent in enumerate(node.parents) if parent])
        saved: dict[str, Any] = {}
        stamps: tuple[tuple[str, list[int], int], ...] = ()
        for name, kind, i in plan:
            if kind == "argument":
                saved[name] = arrays[i]
                argument = arguments[i]
                if isinstance(argument, Tensor):
                    stamps += ((name, argument.version, argument.version[0]),)
            elif kind == "y":
                saved[name] = [part.data for part in result] if isinstance(result, tuple) else result.data
                stamps += _stamps_of(result, name)
            elif kind == "shape":
                saved[name] = getattr(arrays[i], "shape", ())
            elif kind == "residue":
                saved[name] = residue
            elif kind == "part":
                saved[name] = self._part_of(result, i, name).data
                stamps += _stamps_of(result[i], name)
            elif kind == "shapes":
                saved[name] = [array.shape for array in arrays[:i]]
            else:
                saved[name] = tuple(arrays[:i])
                stamps += tuple(
                    (f"{j}", a.version, a.version[0]) for j, a in enumerate(arguments) if isinstance(a, Tensor)
                )
        node.saved = saved
        node.stamps = stamps

    def _part_of(self, results: Any, i: int | None, name: str) -> Tensor:
        count = len(results) if isinstance(results, tuple) else 0
        if i is None or i >= count:
            gives = f"{count} results" if count else "one result, which is `y`"
            raise TapeError(f"a rule of `{self.name}` asks for `{name}`, and `{self.name}` gives {gives}")
        return results[i]

    def _plan(self, tracked: list[int]) -> tuple[tuple[str, str, int | None], ...]:
        """(name, kind, where) of each value to save when these arguments carry a gradient; worked out once."""
        asked = [*self.joint[1]] if self.joint else [name for i in tracked for name in self._rule_at(i)[1]]
        if self.twin and not self.fused:
            asked += self.names
        places = {name: i - len(self.names) for i, name in enumerate(self.names)}  # from the end: inputs may vary
        plan: list[tuple[str, str, int | None]] = []
        for name in dict.fromkeys(asked):
            if name in places:
                plan.append((name, "argument", places[name]))
            elif name in _RESERVED:
                plan.append((name, name, -len(self.names) or None))
            elif (place := _place(name)) is not None:
                plan.append((name, "part", place))
            else:
                plan.append((name, "shape", places[name.removesuffix("_shape")]))
        return tuple(plan)

    def _rule_at(self, i: int) -> tuple[Rule, tuple[str, ...]]:
        if self.variadic:
            raise TapeError(f"`{self.name}` has no backward rule: declare one with @{self.name}.gradient")
        if self.names[i] not in self.rules:
            raise TapeError(
                f"`{self.name}` has no backward rule for its argument '{self.names[i]}': "
                f"declare one with {self.name}.gradients({self.names[i]}=…), or detach() the argument"
            )
        return self.rules[self.names[i]]

    # -------------------------------------------------------------------------------------------------------- backward

    def pull_back(self, node: Node, gy: Any, wanted: Container[Node], F: Any) -> list[tuple[Node, Any]]:
        """The gradients of the arguments whose nodes are wanted, from the gradient gy of the result."""
        if isinstance(gy, list) and not (F is None and node.kernel):
            gy = self._fill(gy, node, F)
        if F is not None and self.twin and not self.fused:
            return self._pull_back_twin(node, gy, wanted, F)
        if F is None and node.kernel:
            places = _places(node, wanted)
            backward, residue = node.kernel
            gradients = backward(gy, {i for i, _ in places}, node.saved, *residue)
            return [(parent, gradients[i]) for i, parent in places]
        values = node.saved or {}
        if F is not None:
            values = self._as_tensors(node, values)
        else:
            F = namespace_of(gy[0] if isinstance(gy, list) else gy) if "cupy" in modules else NUMPY
        if self.joint:
            rule, names = self.joint
            places = _places(node, wanted)
            gradients = rule(F, gy, *[values[name] for name in names])
            self._check_joint(gradients, places[-1][0] + 1)
            return [(parent, gradients[i]) for i, parent in places if gradients[i] is not None]
        pulled: list[tuple[Node, Any]] = []
        for i, parent in enumerate(node.parents):
            if parent is not None and parent in wanted:
                rule, names = self.rules[self.names[i]]
                if len(names) == 1:  # as most do: a plain call is cheaper
                    pulled.append((parent, rule(F, gy, values[names[0]])))
                else:
                    pulled.append((parent, rule(F, gy, *[values[name] for name in names])))
        return pulled

    def check_unwritten(self, node: Node) -> None:
        """Raise TapeError if a saved value was overwritten since it was saved."""
        for name, version, then in node.stamps:
            if version[0] != then:
                is_result = name == "y" or (_place(name) is not None and name not in self.names)
                what = "its result" if is_result else f"its argument '{name}'"
                raise TapeError(
                    f"`{self.name}` saved {what} for the backward sweep, and it was overwritten since "
                    "(by item assignment or an optimizer step): overwrite a copy, or sweep first"
                )

    def _check_joint(self, gradients: Any, least: int) -> None:
        given = len(gradients) if isinstance(gradients, (tuple, list)) else -1
        if given < least:
            what = f"a tuple of {given}" if given >= 0 else type(gradients).__name__
            raise TapeError(f"the rule of `{self.name}` must give a tuple of {least} or more gradients, not {what}")

    def _fill(self, gradients: list[Any], node: Node, F: Any) -> list[Any]:
        """Zeros where a part of the result was never used."""
        given = next(g for g in gradients if g is not None)
        xp = namespace_of(given if F is None else given.data)
        wrap = Tensor if F is not None else lambda array: array
        return [
            wrap(xp.zeros(shape, dtype)) if g is None else g
            for g, shape, dtype in zip(gradients, node.shape, node.dtype, strict=True)
        ]

    def _as_tensors(self, node: Node, values: dict[str, Any]) -> dict[str, Any]:
        """The saved arrays, put back in their places on the tape, so that a rule computed from them is recorded."""
        tensors = dict(values)
        versions = {name: version for name, version, _ in node.stamps}
        if isinstance(values.get("y"), list):
            tensors["y"] = [_part_on_tape(part, node, i, versions[f"y{i}"]) for i, part in enumerate(values["y"])]
        elif "y" in values:
            tensors["y"] = Tensor(values["y"], node, versions["y"])
        for name in values:
            if name not in self.names and (place := _place(name)) is not None:
                tensors[name] = _part_on_tape(values[name], node, place, versions[name])
        if "inputs" in values:
            tensors["inputs"] = tuple(
                _on_tape(value, parent, versions.get(f"{i}"))
                for i, (value, parent) in enumerate(zip(values["inputs"], node.parents, strict=False))
            )
        offset = len(node.parents) - len(self.names)
        for i, name in enumerate(self.names):
            if name in values:
                tensors[name] = _on_tape(values[name], node.parents[offset + i], versions.get(name))
        return tensors

    def _pull_back_twin(self, node: Node, gy: Tensor, wanted: Container[Node], F: Any) -> list[tuple[Node, Any]]:
        """Differentiate the readable twin instead: its sweep can be recorded, a fused rule's cannot."""
        assert self.twin is not None
        assert node.saved is not None
        versions = {name: version for name, version, _ in node.stamps}
        arguments = [_on_tape(node.saved[n], p, versions.get(n)) for n, p in zip(self.names, node.parents, strict=True)]
        arguments = [alias(a) if isinstance(a, Tensor) and a.node is not None else a for a in arguments]
        with recording(True):
            y = self.twin(F, *arguments)
        parent_of = {
            a.node: parent for a, parent in zip(arguments, node.parents, strict=True) if parent and parent in wanted
        }  # an alias stands for one argument alone, also where the same Tensor was given twice
        seeds = zip(y, gy, strict=True) if isinstance(y, (tuple, list)) else [(y, gy)]
        swept = sweep([(part.node, g) for part, g in seeds], set(parent_of), F=F, retain_graph=True)
        return [(parent_of[a], gradient) for a, gradient, _ in swept]

    def __repr__(self) -> str:
        return f"<primitive {self.name}{self.__signature__}>"


def _looked_at(arguments: Sequence[Any]) -> tuple[list[Any], tuple[Node | None, ...], int]:
    """(arrays, nodes, a bit for each argument that carries a gradient)."""
    arrays: list[Any] = []
    nodes: list[Node | None] = []
    tracked = 0
    for argument in arguments:
        if isinstance(argument, Tensor):
            node = argument.node
            if node is not None:
                tracked |= 1 << len(arrays)
            arrays.append(argument.data)
            nodes.append(node)
        else:
            arrays.append(argument)
            nodes.append(None)
    return arrays, tuple(nodes), tracked


def _places(node: Node, wanted: Container[Node]) -> list[tuple[int, Node]]:
    """The arguments whose gradients are wanted, each with its position."""
    return [(i, parent) for i, parent in enumerate(node.parents) if parent is not None and parent in wanted]


def _not_a_scalar(xp: Namespace, y: Any) -> Any:
    """What NumPy gives for a single number is no array; a Tensor's data always is."""
    return xp.asarray(y) if isinstance(y, (np.generic, int, float)) else y


def _on_tape(value: Any, parent: Node | None, version: list[int] | None) -> Any:
    """A saved array as the Tensor it came from: at its place, and still noticing when it is overwritten."""
    return Tensor(value, parent, version) if hasattr(value, "dtype") else value


def _part_on_tape(value: Any, whole: Node, place: int, version: list[int]) -> Tensor:
    """One of several results, saved, as a Tensor at its place in the op's node."""
    return Tensor(value, Part(whole, place, value.shape, value.dtype) if value.dtype.kind in "fV" else None, version)


def _place(name: str) -> int | None:
    """Which of several results a rule means: 0 by `y0`; None by anything else."""
    return int(name[1:]) if name[0] == "y" and name[1:].isdecimal() else None


def _stamps_of(result: Any, name: str) -> tuple[tuple[str, list[int], int], ...]:
    """(name, version, version now) of a result, or of each of several, so that overwriting it is noticed."""
    if isinstance(result, tuple):
        return tuple((f"{name}{i}", part.version, part.version[0]) for i, part in enumerate(result))
    return ((name, result.version, result.version[0]),)


def _version_of(xp: Namespace, y: Any, arguments: Sequence[Any]) -> list[int] | None:
    """A view (or the very array) is overwritten when what it looks at is, so it shares its Tensor's version."""
    for argument in arguments:
        if isinstance(argument, Tensor) and xp.may_share_memory(y, argument.data):
            return argument.version
    return None


@overload
def primitive(forward: Callable[..., Any], /) -> Primitive: ...
@overload
def primitive(*, twin: Callable[..., Any]) -> Callable[[Callable[..., Any]], Primitive]: ...
@overload
def primitive(*, fused: bool) -> Callable[[Callable[..., Any]], Primitive]: ...
def primitive(forward: Any = None, /, *, twin: Any = None, fused: bool = False) -> Any:
    """Make an op of a function of arrays; its rules follow with `.gradients(…)`.

    Args:
        forward: f(xp, …) computes on plain arrays with the library `xp` and returns the result, or a tuple of
            results, or (result, residue) if a rule asks for the residue.
        twin: for a fused op, the same function f(F, …) written in elementary ops. It is what is differentiated when
            the backward sweep itself is recorded.
        fused: the forward itself is such a function f(F, …), and needs no twin; a kernel may stand in for it.

    Source: the shape of the interface is this project's; a rule is what Griewank & Walther, *Evaluating
    Derivatives* (2008), call the adjoint of an elemental function.

    >>> import numpy as np, tinyvit as tv
    >>> @tv.primitive
    ... def cube(xp, x):
    ...     return x * x * x
    >>> cube.gradients(x=lambda F, gy, x: gy * (3 * x * x))
    >>> x = tv.tensor(np.array([1.0, 2.0]), requires_grad=True)
    >>> cube(x).backward(np.array([1.0, 1.0]))
    >>> x.grad
    Tensor([ 3., 12.], dtype=float64)
    >>> tv.gradcheck(cube, [x])  # silent: the rule is right
    """
    if forward is None:
        return functools.partial(Primitive, twin=twin, fused=fused)
    return Primitive(forward)


@primitive
def alias(xp: Namespace, x: Any) -> Any:
    """Return the same value at a new place on the tape."""
    return x[...]  # a view, so that it shares the version of x


alias.gradients(x=lambda F, gy: gy)
