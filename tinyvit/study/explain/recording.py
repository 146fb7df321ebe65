"""Watching a computation: what the tape itself does not keep is noted while it is recorded.

The tape keeps what the backward rules need and nothing else. To explain it one wants more: the line that made a node,
its value, its constants, how long it took, and in which layer it was made. `watch()` notes these, in the place of
`Primitive.apply` and `Module.__call__`, which it puts back at its end. Nothing of it is there, and nothing costs a
nanosecond, while no recording is open.

A note is found by its node's number, which no other node ever has. So a recording refers to no node and no array: it
keeps nothing alive, and nothing keeps it alive but the place of the last one.
"""

from __future__ import annotations

import inspect
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np

import tinyvit
from tinyvit.engine import Primitive, Tensor, no_grad
from tinyvit.engine.backend import namespace_of
from tinyvit.engine.tape import Leaf, Node, Part
from tinyvit.layers import Module, MultiHeadSelfAttention
from tinyvit.study.explain.values import described
from tinyvit.vit import ViT, ViTConfig

ENGINE = os.path.join(os.path.dirname(tinyvit.__file__), "engine", "")
MAP_BYTES = 4_000_000  # of attention maps in a page: so many images are looked at, and at least one
MAP_IMAGES = 8


@dataclass(frozen=True)
class Line:
    """A line of code: file as it is shown, number from 1, and the function that it stands in."""

    path: str
    number: int
    function: str


@dataclass(frozen=True)
class Scope:
    """A place in a model: the number of the outermost layer, and the path to the layer within."""

    root: int
    path: str


@dataclass
class Note:
    """What is noted of a node beside what the tape keeps."""

    value: dict[str, Any] | None = None
    line: Line | None = None
    scope: Scope | None = None
    seconds: float | None = None
    constants: list[dict[str, Any]] = field(default_factory=list)
    name: str | None = None
    version: int | None = None  # of a leaf, which is overwritten in training


@dataclass
class Root:
    """An outermost layer: what it is called, and the type of each layer within."""

    name: str
    types: dict[str, str]


@dataclass
class Look:
    """One call of a ViT: its first images, what it said of them, and the attention in each layer."""

    config: ViTConfig
    images: np.ndarray  # (n, C, H, W), as the model was given them
    images_number: int | None  # of their node, where a gradient flows to the pixels
    patch: int
    maps: list[np.ndarray] = field(default_factory=list)  # L × (n, h, T, T)
    logits: np.ndarray | None = None  # (n, K)
    number: int | None = None  # of the logits' node


class Recording:
    """What `watch()` noted: by node number, with the layers and the calls of ViTs that it saw."""

    def __init__(self) -> None:
        self.notes: dict[int, Note] = {}
        self.roots: list[Root] = []
        self.looks: list[Look] = []
        self.thread = threading.get_ident()
        self.paused = False
        self._known: weakref.WeakKeyDictionary[Module, int] = weakref.WeakKeyDictionary()
        self._stack: list[Scope] = []
        self._paths: dict[int, str] = {}
        self._look: Look | None = None

    @property
    def listening(self) -> bool:
        """Whether what is computed right here and now is to be noted."""
        return not self.paused and threading.get_ident() == self.thread

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Note nothing inside the block."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before

    def note_op(self, op: Primitive, arguments: tuple[Any, ...], result: Any, seconds: float) -> None:
        """Note what an op was given and gave."""
        results = result if isinstance(result, tuple) else (result,)
        nodes = [(part.node, part.data) for part in results if isinstance(part, Tensor) and part.node is not None]
        if not nodes or nodes[0][0].number in self.notes:  # off the tape, or noted: the last op of a readable twin
            return
        frame = _creating_frame()
        first = nodes[0][0]
        node = first.parents[0] if isinstance(first, Part) and first.parents[0] is not None else first
        for argument in arguments:
            if isinstance(argument, Tensor) and argument.node is not None:
                self._note_given(argument, frame)
        scope = self._stack[-1] if self._stack else None
        constants = [
            {"argument": name, **constant(name, argument)}
            for name, argument in zip(argument_names(op, len(arguments)), arguments, strict=True)
            if argument is not None and not (isinstance(argument, Tensor) and argument.node is not None)
        ]
        self.notes[node.number] = Note(None, _line_of(frame), scope, seconds, constants)
        for part, data in nodes:
            if part is not node:
                self.notes[part.number] = Note(scope=scope)
            self.notes[part.number].value = described(data)

    def _note_given(self, given: Tensor, frame: FrameType | None) -> None:
        """Note a value that no op was seen to make: a leaf, or what was computed before or by recomputation."""
        assert given.node is not None
        note = self.notes.get(given.node.number)
        leaf = isinstance(given.node, Leaf)
        if note is None:
            note = self.notes[given.node.number] = Note(name=_name_in(frame, given) if leaf else None)
        if note.value is None or (leaf and note.version != given.version[0]):
            note.value, note.version = described(given.data), given.version[0]

    def forget_ops(self) -> None:
        """Let go of all notes but those of leaves: what was computed so far is not asked for any more."""
        self.notes = {number: note for number, note in self.notes.items() if note.version is not None}

    # ------------------------------------------------------------------------------------------------------ layers

    def call(self, module: Module, original: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Call a layer, and know meanwhile that one is inside it."""
        outermost = not self._stack
        if outermost:
            self._enter_root(module, sys._getframe(2))
        scope = self._scope_of(module)
        look = self._look
        if isinstance(module, ViT):
            self._look = self._begin_look(module, arguments[0] if arguments else named.get("images"))
        self._stack.append(scope)
        try:
            result = original(module, *arguments, **named)
            if isinstance(module, MultiHeadSelfAttention) and self._look is not None:
                self._look_at(module, arguments[0] if arguments else named["x"])
            if isinstance(module, ViT) and self._look is not None:
                self._end_look(result)
            return result
        finally:
            self._stack.pop()
            if isinstance(module, ViT):
                self._look = look
            if outermost:
                self._paths = {}

    def _enter_root(self, module: Module, frame: FrameType) -> None:
        """Find the path of every layer within, and the name of every parameter."""
        paths = dict(_paths(module))
        if module not in self._known:
            self._known[module] = len(self.roots)
            name = _name_in(frame, module) or "model"
            same = sum(root.name.partition(" ")[0] == name for root in self.roots)
            self.roots.append(Root(f"{name} {same + 1}" if same else name, {}))
        root = self._known[module]
        self.roots[root].types |= {path: type(inner).__name__ for path, inner in paths.items()}
        self._paths = {id(inner): path for path, inner in paths.items()}
        for parameter, p in module.named_parameters():
            if p.node is not None:
                owner = max((path for path in paths if _within(parameter, path)), key=len)
                note = self.notes.setdefault(p.node.number, Note())
                note.scope, note.name = Scope(root, owner), parameter
                self._note_given(p, None)

    def _scope_of(self, module: Module) -> Scope:
        if not self._stack:
            return Scope(self._known[module], "")
        above = self._stack[-1]
        path = self._paths.get(id(module))
        if path is None:  # held where nobody finds it
            kind = type(module).__name__
            path = f"{above.path}.{kind}" if above.path else kind
            self.roots[above.root].types[path] = kind
        return Scope(above.root, path)

    # --------------------------------------------------------------------------------------------------- attention

    def _begin_look(self, model: ViT, images: Any) -> Look | None:
        c = model.config
        shape: Any = getattr(images, "shape", ())
        if len(shape) != 4:
            return None  # the model will say what it thinks of them
        P = c.patch_size
        tokens = (shape[2] // P) * (shape[3] // P) + c.num_prefix_tokens
        each = max(1, c.depth * c.num_heads * tokens * tokens)
        n = min(shape[0], MAP_IMAGES, max(1, MAP_BYTES // each))
        array = images.numpy() if isinstance(images, Tensor) else namespace_of(images).to_device(images, "cpu")
        number = images.node.number if isinstance(images, Tensor) and images.node is not None else None
        return Look(c, np.array(array[:n]), number, P)

    def _look_at(self, layer: MultiHeadSelfAttention, x: Tensor) -> None:
        assert self._look is not None
        with self.pause(), no_grad():
            self._look.maps.append(layer.attention(Tensor(x.data[: len(self._look.images)])).numpy())

    def _end_look(self, logits: Tensor) -> None:
        assert self._look is not None
        self._look.logits = np.array(logits.numpy()[: len(self._look.images)])
        self._look.number = logits.node.number if logits.node is not None else None
        self.looks = [*self.looks[-1:], self._look]  # they hold arrays, and nobody asks for older ones


# ------------------------------------------------------------------------------------------------------------- watching

_last: Recording | None = None  # the open one, or the one that was open last
_open = threading.Lock()


@contextmanager
def watch() -> Iterator[Recording]:
    """Note what is computed inside the block, so that `explain` and `tape` can show it.

    Of each op on the tape: the line that called it, the layer that was running, its value, its constants and its time;
    of a ViT, the attention of its first images. Values are noted as they are then: what is overwritten later stays as
    it was. Only this thread is watched. It is slow, for every value is looked at; the computation itself is the same
    to the last bit. It grows with what is computed: open it around one step, not around a training. On a GPU the times
    are those of the launches.

    `explain` and `tape` find what the last recording noted by themselves; there is nothing to pass on.

    Raises:
        RuntimeError: another recording is open.

    >>> import tinyvit as tv
    >>> x = tv.tensor([3.0], requires_grad=True)
    >>> with tv.study.watch() as recording:
    ...     y = (x * x).sum()
    >>> recording.notes[y.node.number].value["numbers"], recording.notes[x.node.number].name
    (9.0, 'x')
    """
    global _last
    if not _open.acquire(blocking=False):
        raise RuntimeError("a recording is open already: watch() cannot be opened inside watch(), nor in two threads")
    recording = _last = Recording()
    apply, call = Primitive.apply, Module.__call__

    def watched_apply(op: Primitive, arguments: tuple[Any, ...]) -> Any:
        if not recording.listening:
            return apply(op, arguments)
        began = time.perf_counter()
        result = apply(op, arguments)
        seconds = time.perf_counter() - began
        recording.note_op(op, arguments, result, seconds)
        return result

    def watched_call(module: Module, *arguments: Any, **named: Any) -> Any:
        if not recording.listening:
            return call(module, *arguments, **named)
        return recording.call(module, call, arguments, named)

    try:
        Primitive.apply, Module.__call__ = watched_apply, watched_call  # type: ignore[method-assign, assignment]
        yield recording
    finally:
        Primitive.apply, Module.__call__ = apply, call  # type: ignore[method-assign]
        _open.release()


def last_recording() -> Recording:
    """The recording that is open, or the one that was open last; an empty one where there was none."""
    return _last or Recording()


# -------------------------------------------------------------------------------------------------------------- helpers


def argument_names(op: Any, count: int) -> list[str]:
    """The names of an op's arguments, as many as it was given: those of `*arrays` are `arrays[0]` and on."""
    names: tuple[str, ...] = getattr(op, "names", ("x",) if count else ())
    many = count - len(names)
    kinds = op.__signature__.parameters.values() if isinstance(op, Primitive) else ()
    star = next((p.name for p in kinds if p.kind is p.VAR_POSITIONAL), None)
    if isinstance(op, Primitive):
        return [*(f"{star}[{i}]" for i in range(many)), *names]
    return [*names, *(f"parameters[{i}]" for i in range(many))]


def constant(name: str, value: Any) -> dict[str, Any]:
    """An argument without a gradient."""
    value = value.data if isinstance(value, Tensor) else value
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return {"shape": list(value.shape), "dtype": str(value.dtype), "value": described(value)}
    return {"shape": [], "dtype": type(value).__name__, "value": {"text": f"{name}={described(value)['text']}"}}


def _creating_frame() -> FrameType | None:
    """The innermost frame that is neither here nor in the engine."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (frame.f_code.co_filename == __file__ or frame.f_code.co_filename.startswith(ENGINE)):
        frame = frame.f_back
    return frame


def _line_of(frame: FrameType | None) -> Line | None:
    if frame is None:
        return None
    code = frame.f_code
    return Line(code.co_filename, frame.f_lineno, code.co_qualname)


def _name_in(frame: FrameType | None, value: Any) -> str | None:
    """What the code of a frame calls a value, where it has a plain name."""
    if frame is None:
        return None
    spaces = frame.f_locals, frame.f_globals
    found = next((name for space in spaces for name, held in space.items() if held is value and name != "self"), None)
    if isinstance(frame.f_locals, dict) and frame.f_code.co_flags & inspect.CO_OPTIMIZED:
        frame.f_locals.clear()  # before Python 3.13 a copy, which the frame would keep alive with all that is in it
    return found


def _paths(module: Module, path: str = "") -> Iterator[tuple[str, Module]]:
    """Every layer within, by the names of the attributes that lead to it."""
    yield path, module
    for name, child in module.children():
        yield from _paths(child, f"{path}.{name}" if path else name)


def _within(name: str, path: str) -> bool:
    return not path or name == path or name.startswith(path + ".")


__all__ = ["Line", "Look", "Node", "Note", "Recording", "Scope", "last_recording", "watch"]
