"""The page: all that is known of one tape, as JSON, inside one HTML file that needs nothing else."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tinyvit
from tinyvit.engine import Primitive, Tensor
from tinyvit.engine.backend import to_device
from tinyvit.engine.tape import Leaf, Node, Part
from tinyvit.study.explain.attention import described_look
from tinyvit.study.explain.recording import Line, Note, Scope, constant
from tinyvit.study.explain.sources import audited, described_op, shipped_verdicts
from tinyvit.study.explain.sweep import Backward, swept
from tinyvit.study.explain.tape import Saved, Tape, code_of, shown_path
from tinyvit.study.explain.values import flags, number, text
from tinyvit.training.checkpoint import write_atomically

VERSION = 1
FILES = Path(__file__).parent / "page"
PALETTE = Path(__file__).parents[1] / "palette.css"
SCRIPTS = ("helpers", "model", "layout", "drawing", "sweep", "panel", "attention", "finding", "routes")  # in this order


@dataclass(frozen=True)
class Page:
    """A page that was written: where, how many nodes it shows, how many bytes it has."""

    path: Path
    nodes: int
    size: int


def explain(
    loss: Tensor,
    out: str | Path = "tape.html",
    *,
    title: str | None = None,
    pixels: np.ndarray | None = None,
    labels: Sequence[int] | None = None,
    classes: Sequence[str] = (),
    audit: bool = False,
) -> Page:
    """Write a page that shows how a loss was computed, and how its gradients are made: one HTML file, no network.

    Args:
        loss: a single number on the tape, not yet swept. Its gradients are computed here, apart: no `.grad` changes,
            and `loss.backward()` works afterwards.
        out: the file; its folder is made if need be.
        title: of the page.
        pixels: for a ViT, its images before they were normalised, uint8 (B, C, H, W).
        labels: the right classes of the images.
        classes: the names of the classes.
        audit: check the ops of this tape now, some seconds each, instead of showing what the last whole audit found.

    What was computed inside `watch()` is shown with lines, layers, times and all values; without it, with what the
    tape itself keeps. To see the gradient on a ViT's pixels, give it the images as `tv.tensor(…, requires_grad=True)`.

    Raises:
        TypeError: the loss is no Tensor.
        ValueError: it is not a single number.
        TapeError: nothing was recorded for it, it was swept already, or a saved value was overwritten since.
        OSError: the file cannot be written.

    >>> import tempfile, tinyvit as tv
    >>> w = tv.tensor([1.0, -2.0], requires_grad=True)
    >>> with tv.study.watch():
    ...     loss = (w * w).sum()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = tv.study.explain(loss, f"{folder}/tape.html")
    ...     page.nodes, page.path.name, w.grad
    (3, 'tape.html', None)
    """
    return write(facts(loss, title=title, pixels=pixels, labels=labels, classes=classes, audit=audit), out)


def facts(
    loss: Tensor,
    *,
    title: str | None = None,
    pixels: np.ndarray | None = None,
    labels: Sequence[int] | None = None,
    classes: Sequence[str] = (),
    audit: bool = False,
) -> dict[str, Any]:
    """All that a page shows, ready for JSON; see `explain` for the arguments and errors."""
    tape = Tape(loss)
    if loss.size != 1:
        raise ValueError(
            f"a page explains a single number, and this Tensor has the shape {loss.shape}: reduce it first, with "
            ".sum() or .mean()"
        )
    numbers = {node.number for node in tape.nodes}
    look = next((look for look in reversed(tape.recording.looks) if look.number in numbers), None)
    image = None if look is None else look.images_number
    backward = swept(tape, frozenset() if image is None else frozenset({image}))
    gradient = backward.pixels.get(image) if image is not None else None
    writer = _Writer(tape, backward)
    nodes = [writer.node(node) for node in tape.nodes]
    verdicts = audited({op.name for op in writer.ops.values()}) if audit else shipped_verdicts()
    memory = writer.memory()
    return {
        "version": VERSION,
        "title": title or "The tape of a loss",
        "made_by": f"tinyvit {tinyvit.__version__}",
        "watched": tape.watched,
        "totals": writer.totals(memory),
        "scopes": writer.scopes,
        "lines": writer.lines,
        "nodes": nodes,
        "ops": {name: described_op(op, op in writer.by_kernel, verdicts) for name, op in writer.ops.items()},
        "sweep": writer.sweep(),
        "memory": memory,
        "attention": look
        and described_look(look, None if gradient is None else to_device(gradient, "cpu"), pixels, labels, classes),
    }


class _Writer:
    """A tape and its sweep in the page's words; lines and scopes are numbered as they come up."""

    def __init__(self, tape: Tape, backward: Backward):
        self.tape = tape
        self.backward = backward
        self.values = tape.values()
        self.seconds = {step.node: step.seconds for step in backward.steps}
        self.by_kernel = {node.op for node in tape.nodes if node.kernel}
        self.ops: dict[str, Any] = {}
        self.lines: list[dict[str, Any]] = []
        self.scopes: list[dict[str, Any]] = []
        self._line_numbers: dict[Line, int] = {}
        self._scope_numbers: dict[Scope, int] = {}
        self._add_root()

    # ----------------------------------------------------------------------------------------------------- the nodes

    def node(self, node: Node) -> dict[str, Any]:
        """One node."""
        note, place = self.tape.note(node), self.tape.place
        value, gradient = self.values.get(node), self.backward.gradients.get(node)
        several = isinstance(node.shape, list)
        shown = {
            "id": place[node],
            "kind": "leaf" if isinstance(node, Leaf) else "part" if isinstance(node, Part) else "op",
            "op": self._op(node.op),
            "scope": self._scope(self._note_of_whole(node).scope),
            "parents": [
                {"id": place[parent], "argument": argument}
                for argument, parent in zip(self.tape.arguments(node), node.parents, strict=True)
                if parent is not None
            ],
            "constants": note.constants or self._saved_constants(node),
            "shape": [list(s) for s in node.shape] if several else list(node.shape),
            "dtype": str(np.dtype(node.dtype[0] if several else node.dtype)),
            "line": self._line(self._note_of_whole(node).line),
            "value": value,
            "gradient": gradient,
            "saved": [self._saved(kept) for kept in self.tape.saved[node]],
            "saved_bytes": self.tape.held(node),
            "forward_us": None if note.seconds is None else number(1e6 * note.seconds),
            "backward_us": number(1e6 * self.seconds[node]) if node in self.seconds else None,
            "flags": [*self._value_flags(node, value), *flags(gradient, "gradient")],
        }
        if isinstance(node, Leaf):
            shown["name"] = self.tape.name(node)
        return shown

    def _op(self, op: Any) -> str | None:
        """The name of an op; of two that have the same one, the later is numbered."""
        if op is None:
            return None
        same = [name for name, other in self.ops.items() if other is op or type(other) is type(op) is not Primitive]
        if not same:
            taken = sum(other.name == op.name for other in self.ops.values())
            same = [f"{op.name} ({taken + 1})" if taken else op.name]
            self.ops[same[0]] = op
        return same[0]

    def _note_of_whole(self, node: Node) -> Note:
        whole = node.parents[0] if isinstance(node, Part) else node
        assert whole is not None
        return self.tape.note(whole)

    def _value_flags(self, node: Node, value: dict[str, Any] | None) -> list[str]:
        """Zero is worth a word where it was made: a leaf may well be zero, and what is computed from zeros alone."""
        zero = ["zero value"]
        found = flags(value, "value")
        given = [flags(self.values.get(parent), "value") for parent in node.parents if parent is not None]
        return [] if found == zero and all(flag == zero for flag in given) else found

    def _saved_constants(self, node: Node) -> list[dict[str, Any]]:
        """Without a recording, the constants that a rule has named."""
        names = {
            name
            for name, parent in zip(self.tape.arguments(node), node.parents, strict=True)
            if parent is None and not isinstance(node, Part)
        }
        return [
            {"argument": kept.name, **constant(kept.name, kept.value)}
            for kept in self.tape.saved[node]
            if kept.name in names and kept.value is not None
        ]

    def _saved(self, kept: Saved) -> dict[str, Any]:
        is_array = hasattr(kept.value, "dtype")
        shown: dict[str, Any] = {
            "name": kept.name,
            "shape": list(kept.value.shape) if is_array else [],
            "dtype": str(kept.value.dtype) if is_array else type(kept.value).__name__,
            "bytes": kept.bytes,
            "of": self.tape.place.get(kept.of) if kept.of is not None else None,
            "shared": is_array and not kept.held,
            "why": kept.why,
        }
        return shown if is_array else shown | {"value": {"text": text(kept.value)}}

    # ----------------------------------------------------------------------------------------------- lines and scopes

    def _line(self, line: Line | None) -> int | None:
        if line is None:
            return None
        if line not in self._line_numbers:
            self._line_numbers[line] = len(self.lines)
            self.lines.append(
                {
                    "file": shown_path(line.path),
                    "line": line.number,
                    "code": code_of(line),
                    "function": line.function,
                }
            )
        return self._line_numbers[line]

    def _add_root(self) -> None:
        """Scope 0: the model, where there is one and no other; else the whole computation."""
        notes = [self.tape.note(node) for node in self.tape.nodes]
        roots = sorted({note.scope.root for note in notes if note.scope is not None})
        self._single = roots[0] if len(roots) == 1 else None
        if self._single is not None:
            root = self.tape.recording.roots[self._single]
            self.scopes.append({"path": "", "type": root.types[""], "label": root.name, "parent": None})
            self._scope_numbers[Scope(self._single, "")] = 0
        else:
            self.scopes.append({"path": "", "type": "", "label": "computation", "parent": None})

    def _scope(self, scope: Scope | None) -> int:
        if scope is None:
            return 0
        if scope in self._scope_numbers:
            return self._scope_numbers[scope]
        root = self.tape.recording.roots[scope.root]
        above, parent = "", 0
        if scope.path:
            inside = [path for path in root.types if path == "" or scope.path.startswith(path + ".")]
            above = max(inside, key=len)
            parent = self._scope(Scope(scope.root, above))
        prefix = "" if self._single is not None else root.name
        self._scope_numbers[scope] = len(self.scopes)
        self.scopes.append(
            {
                "path": ".".join(filter(None, (prefix, scope.path))),
                "type": root.types[scope.path],
                "label": scope.path[len(above) :].lstrip(".") or root.name,
                "parent": parent,
            }
        )
        return self._scope_numbers[scope]

    # ------------------------------------------------------------------------------------------------ sweep and memory

    def sweep(self) -> list[dict[str, Any]]:
        """The steps of the sweep in their order."""
        place, gradients = self.tape.place, self.backward.gradients
        reached = {step.node for step in self.backward.steps}
        return [
            {
                "node": place[step.node],
                "gives": [
                    {
                        "to": place[gift.to],
                        "argument": gift.argument,
                        "adds": gift.adds,
                        "value": gift.value,
                        "summed": gift.summed,
                    }
                    for gift in step.gives
                    if gift.to in reached or gift.to in gradients
                ],
                "freed": step.freed,
                "memory": step.memory,
            }
            for step in self.backward.steps
        ]

    def memory(self) -> list[dict[str, Any]]:
        """Bytes that the tape holds after each node, forward and then backward."""
        held, found = 0, []
        for node in self.tape.nodes:
            if not isinstance(node, (Leaf, Part)):
                held += self.tape.held(node)
                found.append({"phase": "forward", "node": self.tape.place[node], "bytes": held})
        for step in self.backward.steps:
            found.append({"phase": "backward", "node": self.tape.place[step.node], "bytes": step.memory})
        return found

    def totals(self, memory: list[dict[str, Any]]) -> dict[str, Any]:
        """The numbers of the whole."""
        nodes = self.tape.nodes
        forward = [s for node in nodes if (s := self.tape.note(node).seconds) is not None]
        leaves = sum(isinstance(node, Leaf) for node in nodes)
        return {
            "nodes": len(nodes),
            "ops": sum(not isinstance(node, (Leaf, Part)) for node in nodes),
            "leaves": leaves,
            "forward_ms": number(1e3 * sum(forward)) if forward else None,
            "backward_ms": number(1e3 * sum(self.seconds.values())),
            "saved_bytes": sum(map(self.tape.held, nodes)),
            "peak_bytes": max((moment["bytes"] for moment in memory), default=0),
            "loss": number(self.tape.loss.item()),
        }


# ------------------------------------------------------------------------------------------------------------- the file


def write(data: dict[str, Any], out: str | Path) -> Page:
    """Put the facts into the page and the page into a file, whole or not at all."""
    out = Path(out)
    content = assembled(data).encode()
    if out.is_dir():
        raise IsADirectoryError(f"the page cannot be written to {out}: it is a folder")
    try:
        write_atomically(out, [content])
    except OSError as error:  # whose own words name the file under which it is written first
        raise OSError(f"the page cannot be written to {out}: {error.strerror or error}") from error
    return Page(out, data["totals"]["nodes"], len(content))


def assembled(data: dict[str, Any]) -> str:
    """The HTML file: page.html with its styles, its scripts, what it borrows from others, and the facts."""
    parts = {
        "{{title}}": html.escape(data["title"]),
        "/*{{page.css}}*/": PALETTE.read_text(encoding="utf-8") + _read("page.css"),
        "/*{{vendor}}*/": "\n".join(path.read_text(encoding="utf-8") for path in sorted(FILES.glob("vendor/*.js"))),
        "/*{{script}}*/": "\n".join(_read(f"script/{name}.js") for name in SCRIPTS),
        "{{data}}": as_json(data),
    }
    pattern = "|".join(map(re.escape, parts))
    return re.sub(pattern, lambda found: parts[found[0]], _read("page.html"))  # at once: nothing is filled in twice


def as_json(data: dict[str, Any]) -> str:
    """JSON that may stand inside a script element: what would end it is escaped."""
    words = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return words.replace("</", "<\\/").replace("<!--", "<\\u0021--")


def _read(name: str) -> str:
    return (FILES / name).read_text(encoding="utf-8")
