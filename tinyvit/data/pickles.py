"""Pickles as data: what they describe is built, and nothing that they name is run.

Python's own `pickle` is no help against a hostile file, even with `find_class` shut: a tuple that is nested a million
times and used as a key overflows the stack in C and ends the process; a memo index may ask for 16 GB. So the few
instructions in which data is written are carried out here, one by one, and all others are refused.

Source: the instructions as `pickletools` of Python's standard library documents and decodes them.
"""

from __future__ import annotations

import pickletools
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MAX_STEPS = 1_000_000  # instructions: CIFAR-100 takes some 200,000, a checkpoint of a large ViT fewer

_shorten = reprlib.Repr()
_shorten.maxstring = 100


class PickleError(ValueError):
    """A pickle that cannot be read here; the message says why, with "it" for the pickle."""


class ForbiddenNameError(PickleError):
    """A pickle names a class or a function that is not among the known ones; `name` is which."""

    def __init__(self, name: str) -> None:
        super().__init__(f"it names {_shorten.repr(name)[1:-1]}, which is not run here")
        self.name = name


@dataclass(frozen=True)
class Global:
    """A class or a function that a pickle names, by its full name; it is never looked up."""

    name: str


@dataclass(eq=False)
class Call:
    """A call that a pickle asks for, noted down with the state that it sets; nothing is called."""

    name: str
    args: tuple[Any, ...]
    state: Any = ()


def noted(name: str) -> Callable[..., Call]:
    """Return what makes a `Call` of that name out of its arguments."""
    return lambda *args: Call(name, args)


def read_pickle(
    data: bytes, known: Mapping[str, Callable[..., Any]], persistent: Callable[[Any], Any] | None = None
) -> Any:
    """Build what a pickle describes out of numbers, text, bytes, lists, tuples and dicts.

    Byte strings of Python 2 become bytes. The keys of a dict must be text, bytes or whole numbers. Time and memory are
    proportional to the pickle's size, as long as those of the known functions are.

    Args:
        data: the pickle, of any protocol.
        known: by its full name each class or function that the pickle may name, and what is called in its place.
        persistent: what is called with a persistent id; without it such ids are refused.

    Raises:
        ForbiddenNameError: the pickle names anything else.
        PickleError: it is damaged, too long, or does anything but describing data.

    >>> import collections, pickle
    >>> data = pickle.dumps({"epoch": 3, "weights": collections.OrderedDict(a=[1.5])})
    >>> read_pickle(data, {"collections.OrderedDict": dict})
    {'epoch': 3, 'weights': {'a': [1.5]}}
    >>> read_pickle(pickle.dumps(print), {})
    Traceback (most recent call last):
        ...
    tinyvit.data.pickles.ForbiddenNameError: it names builtins.print, which is not run here
    """
    machine = _Machine(known, persistent)
    try:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if step == MAX_STEPS:
                raise PickleError(f"it has more than {MAX_STEPS:,} instructions")
            machine.step(opcode.name, argument)
        return machine.pop()
    except (PickleError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle makes the decoder, lists and dicts raise a dozen types
        reason = _shorten.repr(str(error))[1:-1] or type(error).__name__
        raise PickleError(f"it is no pickle, or a damaged one: {reason}") from error


_MARK = object()
_LITERALS = frozenset(
    ["INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"]
    + ["UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"]
    + ["SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"]
)
_PYTHON_2 = frozenset(["STRING", "BINSTRING", "SHORT_BINSTRING"])


class _Machine:
    """The stack and the memo, and one method for each kind of instruction."""

    def __init__(self, known: Mapping[str, Callable[..., Any]], persistent: Callable[[Any], Any] | None) -> None:
        self.known, self.persistent = known, persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _PYTHON_2:
            self.stack.append(argument.encode("latin-1"))
        elif name in _INSTRUCTIONS:
            _INSTRUCTIONS[name](self, argument)
        else:
            raise PickleError(f"it uses the instruction {name}, which data does without")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if self.stack[-1] is _MARK:
            raise PickleError("it takes more from its stack than it put there")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:  # past the beginning this is an IndexError in the end
            at -= 1
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def pop_tuple(self, size: int) -> tuple[Any, ...]:
        values = tuple(self.stack[-size:])
        if len(values) < size or any(value is _MARK for value in values):
            raise PickleError("it takes more from its stack than it put there")
        del self.stack[-size:]
        return values

    def remember(self, index: int) -> None:
        value = self.pop()
        self.memo[index] = value
        self.push(value)

    def append(self, values: list[Any]) -> None:
        self.top(list).extend(values)

    def new_dict(self, pairs: list[Any]) -> None:
        self.push({})
        self.put(pairs)

    def put(self, pairs: list[Any]) -> None:
        into = self.top(dict)
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str | bytes | int):
                raise PickleError(f"it uses {type(key).__name__} as a key, where text or a number is expected")
            into[key] = value

    def top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise PickleError(f"it fills a {type(self.stack[-1]).__name__} as if it were a {kind.__name__}")
        return self.stack[-1]

    def name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleError("it names a class by something else than text")
        if f"{module}.{name}" not in self.known:
            self.forbid(f"{module} {name}")
        self.push(Global(f"{module}.{name}"))

    def forbid(self, names: str) -> None:
        raise ForbiddenNameError(names.replace(" ", "."))

    def call(self) -> None:
        args, function = self.pop(), self.pop()
        if not isinstance(function, Global) or not isinstance(args, tuple):
            raise PickleError(f"it calls a {type(function).__name__}")
        self.push(self.known[function.name](*args))

    def set_state(self) -> None:
        state, of = self.pop(), self.stack[-1]
        if isinstance(of, Call):
            of.state = state
        elif not isinstance(of, dict):  # the attributes of an OrderedDict say nothing of its contents
            raise PickleError(f"it changes {of.name if isinstance(of, Global) else type(of).__name__}")

    def persist(self) -> None:
        if self.persistent is None:
            raise PickleError("it has a persistent id, which belongs to another file")
        self.push(self.persistent(self.pop()))


def _nothing(machine: _Machine, argument: Any) -> None:
    pass


_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(["PROTO", "FRAME", "STOP"], _nothing),
    **dict.fromkeys(["PUT", "BINPUT", "LONG_BINPUT"], lambda m, index: m.remember(index)),
    "MEMOIZE": lambda m, _: m.remember(len(m.memo)),
    **dict.fromkeys(["GET", "BINGET", "LONG_BINGET"], lambda m, index: m.push(m.memo[index])),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "MARK": lambda m, _: m.push(_MARK),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "TUPLE1": lambda m, _: m.push(m.pop_tuple(1)),
    "TUPLE2": lambda m, _: m.push(m.pop_tuple(2)),
    "TUPLE3": lambda m, _: m.push(m.pop_tuple(3)),
    "TUPLE": lambda m, _: m.push(tuple(m.pop_to_mark())),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "LIST": lambda m, _: m.push(m.pop_to_mark()),
    "APPEND": lambda m, _: m.append([m.pop()]),
    "APPENDS": lambda m, _: m.append(m.pop_to_mark()),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "DICT": lambda m, _: m.new_dict(m.pop_to_mark()),
    "SETITEM": lambda m, _: m.put(list(m.pop_tuple(2))),
    "SETITEMS": lambda m, _: m.put(m.pop_to_mark()),
    "GLOBAL": lambda m, names: m.name(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.name(*m.pop_tuple(2)),
    "INST": lambda m, names: m.forbid(names),  # makes an instance of a class, which no data needs
    "REDUCE": lambda m, _: m.call(),
    "BUILD": lambda m, _: m.set_state(),
    "BINPERSID": lambda m, _: m.persist(),
}
