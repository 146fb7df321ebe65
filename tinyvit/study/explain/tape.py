"""The tape of one loss: its nodes, what each keeps alive, as a table for a terminal and as a graph for Graphviz."""

from __future__ import annotations

import gc
import linecache
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

import tinyvit
from tinyvit.engine import Tensor
from tinyvit.engine.primitive import Primitive
from tinyvit.engine.tape import Leaf, Node, Part, TapeError
from tinyvit.study.explain.recording import Line, Note, argument_names, last_recording
from tinyvit.study.explain.values import described, in_short

HOME = os.path.dirname(os.path.dirname(os.path.abspath(tinyvit.__file__)))


@dataclass(frozen=True)
class Saved:
    """A value that a node keeps for its backward rule.

    Attributes:
        name: what the rules call it.
        value: an array, or the shape of one, or a setting.
        of: the node whose value it is, where it is one.
        why: who asked for it.
        bytes: of the array; of a view, those of the part that is looked at.
        held: of the memory that nobody before this node keeps: all of the array that a view looks at.
    """

    name: str
    value: Any
    of: Node | None
    why: str
    bytes: int
    held: int


class Tape:
    """What was recorded to compute a loss; `print` it.

    Attributes:
        nodes: in creation order, which is topological; leaves, ops, and the parts of those with several results.
        place: the number of each node in this order.
        notes: what a recording noted, by the node's own number.
        saved: what each node keeps for its rule.
    """

    def __init__(self, loss: Tensor):
        if not isinstance(loss, Tensor):
            raise TypeError(f"a tape belongs to a Tensor that was computed, not to a {type(loss).__name__}")
        if loss.node is None:
            raise TapeError("this Tensor has no tape: nothing with requires_grad=True was recorded for it")
        self.loss = loss
        self.recording = last_recording()
        self.notes = self.recording.notes
        self.nodes = _nodes(loss.node)
        self.place = {node: i for i, node in enumerate(self.nodes)}
        self.leaf_arrays = _leaf_arrays(self.nodes)
        self.saved = self._bookkeep()

    @property
    def watched(self) -> bool:
        """Whether a recording noted any of the ops."""
        return any(node.number in self.notes for node in self.nodes if not isinstance(node, Leaf))

    def note(self, node: Node) -> Note:
        """What was noted of a node; an empty note where nothing was."""
        return self.notes.get(node.number) or Note()

    def name(self, node: Node) -> str:
        """What a node is called: its op, a parameter's or variable's name, or "leaf 3"."""
        if node.op is not None:
            return f"{node.op.name}[{node.place}]" if isinstance(node, Part) else str(node.op.name)
        return self.note(node).name or f"leaf {self.place[node]}"

    def arguments(self, node: Node) -> list[str]:
        """The name of the argument that each parent stands for."""
        return ["" for _ in node.parents] if isinstance(node, Part) else argument_names(node.op, len(node.parents))

    def held(self, node: Node) -> int:
        """Bytes that are kept for the backward sweep from this node on; a leaf's own values are not counted."""
        return sum(kept.held for kept in self.saved[node])

    # -------------------------------------------------------------------------------------------------- bookkeeping

    def _bookkeep(self) -> dict[Node, list[Saved]]:
        """What each node saved; memory that several keep counts at the first, which the sweep comes to last."""
        counted = {memory_of(array)[0] for array in self.leaf_arrays.values()}
        found: dict[Node, list[Saved]] = {}
        for node in self.nodes:
            found[node] = []
            for name, value, of, why in _saved_by(node):
                size = held = 0
                if hasattr(value, "nbytes"):
                    size, (where, whole) = int(value.nbytes), memory_of(value)
                    held = 0 if where in counted else whole
                    counted.add(where)
                found[node].append(Saved(name, value, of, why, size, held))
        return found

    def values(self) -> dict[Node, dict[str, Any]]:
        """The value of each node of which it is known: noted, kept in a leaf, or saved by a rule."""
        known = {node: v for node in self.nodes if (v := self.note(node).value) is not None}
        for node, array in self.leaf_arrays.items():
            if node not in known:
                known[node] = described(array)
        for kept in (kept for saved in self.saved.values() for kept in saved):
            if kept.of is not None and kept.of not in known and hasattr(kept.value, "dtype"):
                known[kept.of] = described(kept.value)
        if self.loss.node is not None and self.loss.node not in known:
            known[self.loss.node] = described(self.loss.data)
        return known

    # ------------------------------------------------------------------------------------------------------- forms

    def __str__(self) -> str:
        """A table: number, op, the numbers that it was computed from, shape, dtype, bytes saved, value, line."""
        header = ["", "op", "from", "shape", "dtype", "saved", "value", *(["line"] if self.watched else [])]
        values = self.values()
        rows = [
            [*self._cells(node), in_short(values.get(node)), self._place(node)][: len(header)] for node in self.nodes
        ]
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        right = (0, 5)
        lines = [
            "  ".join(
                c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in (header, *rows)
        ]
        lines.insert(1, "─" * max(map(len, lines)))
        return "\n".join([*(line.rstrip() for line in lines), "", self.totals()])

    def _cells(self, node: Node) -> list[str]:
        parents = [f"{self.place[parent]}" for parent in node.parents if parent is not None]
        several = isinstance(node.shape, list)
        shape = f"{len(node.shape)} parts" if several else "(" + ",".join(map(str, node.shape)) + ")"
        dtype = "" if several else str(np.dtype(node.dtype))
        held = self.held(node)
        return [str(self.place[node]), self.name(node), " ".join(parents), shape, dtype, f"{held:,}" if held else ""]

    def _place(self, node: Node) -> str:
        line = self.note(node).line
        return f"{shown_path(line.path)}:{line.number}" if line else ""

    def totals(self) -> str:
        """How many nodes, and what they keep, in one line."""
        leaves = sum(isinstance(node, Leaf) for node in self.nodes)
        held = sum(map(self.held, self.nodes))
        return (
            f"{len(self.nodes):,} nodes: {leaves:,} {'leaf' if leaves == 1 else 'leaves'}, "
            f"{len(self.nodes) - leaves:,} from ops; "
            f"{held:,} bytes saved for the backward sweep, values of leaves not counted"
        )

    def to_dot(self) -> str:
        """The graph as Graphviz text: `dot -Tsvg tape.dot > tape.svg`.

        Source: the DOT language, https://graphviz.org/doc/info/lang.html.

        >>> import tinyvit as tv
        >>> x = tv.tensor([1.0, 2.0], requires_grad=True)
        >>> print(tv.study.tape((x * x).sum()).to_dot())
        digraph tape {
          rankdir=TB; node [shape=box, fontname="sans-serif"];
          n0 [label="leaf 0\\n(2)", style="rounded"];
          n1 [label="multiply\\n(2)"];
          n2 [label="sum\\n()"];
          n0 -> n1 [label="a"];
          n0 -> n1 [label="b"];
          n1 -> n2 [label="x"];
        }
        """
        lines = ["digraph tape {", '  rankdir=TB; node [shape=box, fontname="sans-serif"];']
        edges = []
        for i, node in enumerate(self.nodes):
            shape = "" if isinstance(node.shape, list) else "\\n" + self._cells(node)[3]
            style = ', style="rounded"' if isinstance(node, Leaf) else ""
            lines.append(f'  n{i} [label="{_quoted(self.name(node))}{shape}"{style}];')
            for argument, parent in zip(self.arguments(node), node.parents, strict=True):
                if parent is not None:
                    edges.append(f'  n{self.place[parent]} -> n{i} [label="{_quoted(argument)}"];')
        return "\n".join([*lines, *edges, "}"])


def tape(loss: Tensor) -> Tape:
    """The tape of a computed Tensor, to print, to count on or to draw.

    Args:
        loss: any Tensor on the tape, of any shape. What `watch` noted of it is shown too.

    Values are known of leaves, of what a rule has saved, and of everything that was watched.

    Raises:
        TypeError: it is no Tensor.
        TapeError: nothing was recorded for it, or it was swept already.

    >>> import tinyvit as tv
    >>> x = tv.tensor([1.0, 2.0], requires_grad=True)
    >>> print(tv.study.tape((x * x).sum()))
       op        from  shape  dtype    saved  value
    ───────────────────────────────────────────────
    0  leaf 0          (2)    float32         1 2
    1  multiply  0 0   (2)    float32
    2  sum       1     ()     float32         5
    <BLANKLINE>
    3 nodes: 1 leaf, 2 from ops; 0 bytes saved for the backward sweep, values of leaves not counted
    """
    return Tape(loss)


def shown_path(path: str) -> str:
    """A file as it is shown: from the package, from the current folder, or by its bare name.

    >>> shown_path(__file__)
    'tinyvit/study/explain/tape.py'
    """
    if path.startswith("<"):
        return path
    full = os.path.abspath(path)
    if full.startswith(os.path.join(HOME, "tinyvit", "")):
        return full[len(HOME) + 1 :].replace(os.sep, "/")
    here = os.path.join(os.getcwd(), "")
    return full[len(here) :].replace(os.sep, "/") if full.startswith(here) else os.path.basename(path)


def code_of(line: Line) -> str:
    """The text of a line, where its file can be read."""
    return linecache.getline(line.path, line.number).strip()


# -------------------------------------------------------------------------------------------------------------- helpers


def _nodes(root: Node) -> list[Node]:
    """All that a node was computed from, itself included, in creation order."""
    found = {root}
    waiting = [root]
    for node in waiting:
        if node.op is not None and not node.parents:
            raise TapeError(
                f"this tape was swept already: the gradient of `{node.op.name}` was taken and its saved values are "
                "freed; look before backward() or grad(), or pass retain_graph=True to it"
            )
        new = [parent for parent in dict.fromkeys(node.parents) if parent is not None and parent not in found]
        found.update(new)
        waiting += new
    return sorted(found, key=lambda node: node.number)


def _leaf_arrays(nodes: list[Node]) -> dict[Node, Any]:
    """The array of each leaf whose Tensor still lives: a node does not know its Tensor, the garbage collector does."""
    leaves = {node for node in nodes if isinstance(node, Leaf)}
    owners = gc.get_referrers(*leaves) if leaves else []
    return {owner.node: owner.data for owner in owners if isinstance(owner, Tensor) and owner.node in leaves}


def _saved_by(node: Node) -> list[tuple[str, Any, Node | None, str]]:
    """(name, value, whose value it is, who asked for it) of all that a node keeps."""
    kept: list[tuple[str, Any, Node | None, str]] = []
    if isinstance(node, (Leaf, Part)):
        return kept
    arguments = dict(zip(argument_names(node.op, len(node.parents)), node.parents, strict=True))
    for name, value in (node.saved or {}).items():
        why = _why(node, name)
        if name == "inputs":
            kept += [(n, part, arguments[n], why) for n, part in zip(arguments, value, strict=False)]
        elif name == "residue":
            kept += [(name, part, None, why) for part in flat(value)]
        elif name == "y" and isinstance(value, list):
            kept += [(f"y[{i}]", part, None, why) for i, part in enumerate(value)]
        else:
            kept.append((name, value, node if name == "y" else arguments.get(name), why))
    if node.kernel:
        backward, residue = node.kernel
        names = backward.__code__.co_varnames[3 : 3 + len(residue)]  # after gy, needed and saved
        why = "the kernel keeps it for its own backward"
        kept += [(name, part, None, why) for name, value in zip(names, residue, strict=True) for part in flat(value)]
    return kept


def flat(value: Any) -> list[Any]:
    """Everything in nested tuples and lists, in one list."""
    return [part for item in value for part in flat(item)] if isinstance(value, (tuple, list)) else [value]


def _why(node: Node, name: str) -> str:
    """Who asked for a saved value."""
    op = node.op
    if not isinstance(op, Primitive):
        return "it is computed again from this"
    if op.joint:
        asking = name in op.joint[1]
        return "the rule names it" if asking else "its twin is computed from it, to be differentiated again"
    tracked = {op.names[i] for i, parent in enumerate(node.parents) if parent is not None}
    asking_rules = [
        f"`{argument}`" for argument, (_, names) in op.rules.items() if argument in tracked and name in names
    ]
    if not asking_rules:
        return "its twin is computed from it, to be differentiated again"
    if len(asking_rules) == 1:
        return f"the rule of {asking_rules[0]} names it"
    return f"the rules of {' and '.join(asking_rules)} name it"


def memory_of(array: Any) -> tuple[int, int]:
    """Which array owns the memory that an array looks at, and the bytes of that: all of them are kept alive."""
    while hasattr(array.base, "nbytes"):
        array = array.base
    return id(array), int(array.nbytes)


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
