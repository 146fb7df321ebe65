"""The diagrams of the book, as SVG: `python docs/generate.py` writes them to docs/images/.

Each has a ground of its own, for a page may be dark where the picture's reader asked for light.
"""

from __future__ import annotations

import html
from collections.abc import Callable

STYLE = """\
text { font: 14px system-ui, sans-serif; fill: #1b2733; }
.code { font: 13px ui-monospace, Menlo, Consolas, monospace; }
.small { font-size: 12px; fill: #51606e; }
.strong { font-weight: 600; }
.ground { fill: #ffffff; stroke: #d5dde5; }
.box { fill: #eef3f8; stroke: #8195a8; }
.leaf { fill: #e3f3e6; stroke: #4d9159; }
.op { fill: #e4edfc; stroke: #4a78c2; }
.hot { fill: #fdecd8; stroke: #c9781f; }
.line { stroke: #51606e; fill: none; stroke-width: 1.5; }
.back { stroke: #c9781f; fill: none; stroke-width: 1.8; }
.head { fill: #51606e; } .backhead { fill: #c9781f; }
@media (prefers-color-scheme: dark) {
  text { fill: #e4e9ee; } .small { fill: #a9b6c2; }
  .ground { fill: #171c22; stroke: #343e48; }
  .box { fill: #232c35; stroke: #66788a; }
  .leaf { fill: #1c3322; stroke: #5fae6d; }
  .op { fill: #1d2c47; stroke: #6d9be6; }
  .hot { fill: #40290f; stroke: #e39a45; }
  .line { stroke: #a9b6c2; } .back { stroke: #e39a45; }
  .head { fill: #a9b6c2; } .backhead { fill: #e39a45; }
}"""


class Drawing:
    """Boxes, words and arrows, in pixels from the top left corner."""

    def __init__(self, width: int, height: int, title: str):
        self.width, self.height, self.title = width, height, title
        self.shapes: list[str] = []

    def text(self, x: float, y: float, words: str, kind: str = "", anchor: str = "middle") -> None:
        """Write words with their middle (or start) at (x, y)."""
        self.shapes.append(
            f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}" dominant-baseline="central">'
            f"{html.escape(words)}</text>"
        )

    def box(
        self, x: float, y: float, w: float, h: float, *lines: str, kind: str = "box", first: str = "strong"
    ) -> None:
        """Draw a box with lines of words in its middle: the first in its own style, the others small."""
        self.shapes.append(f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="6" class="{kind}"/>')
        for i, words in enumerate(lines):
            style = "small" if i else first
            self.text(x + w / 2, y + h / 2 + 18 * (i - (len(lines) - 1) / 2), words, style)

    def arrow(self, *points: tuple[float, float], words: str = "", kind: str = "line") -> None:
        """Draw a line through points with a head at its end, and words beside its middle."""
        path = " L".join(f"{x:g},{y:g}" for x, y in points)
        head = "backhead" if kind == "back" else "head"
        self.shapes.append(f'<path d="M{path}" class="{kind}" marker-end="url(#{head})"/>')
        if words:
            (x1, y1), (x2, y2) = points[0], points[-1]
            self.text((x1 + x2) / 2, (y1 + y2) / 2 - 10, words, "small")

    def svg(self) -> str:
        """The text of the file."""
        markers = "".join(
            f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path d="M0,0 L8,4 L0,8 z" class="{name}"/></marker>'
            for name in ("head", "backhead")
        )
        return "\n".join([
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" role="img">',
            f"<title>{html.escape(self.title)}</title>\n<style>\n{STYLE}\n</style>\n<defs>{markers}</defs>",
            f'<rect x="0.5" y="0.5" width="{self.width - 1}" height="{self.height - 1}" rx="8" class="ground"/>',
            *self.shapes,
            "</svg>\n",
        ])  # fmt: skip


def house() -> str:
    """The rooms, from the ground up, and the engine's own floors."""
    d = Drawing(820, 420, "The rooms of the house: each imports only rooms below it")
    rooms = [
        ("cli.py", "the command"),
        ("study/", "everything that shows: the audit, the tape, pictures"),
        ("training/", "optimizers, schedules, the Trainer"),
        ("data/", "datasets, transforms, the loader"),
        ("vit.py", "the Vision Transformer"),
        ("layers/", "its layers"),
        ("engine/", "the calculus"),
    ]
    for i, (name, what) in enumerate(rooms):
        d.box(20, 20 + 56 * i, 360, 46, name, what, kind="op" if name == "engine/" else "box", first="code strong")
    inside = [
        ("gradcheck.py", "the judge"),
        ("ops/", "forwards and rules, side by side"),
        ("primitive.py", "what an op is"),
        ("tensor.py", "an array with a place on the tape"),
        ("tape.py", "nodes, and the sweep"),
        ("kernels/", "how an op is made fast"),
        ("backend.py", "NumPy or CuPy"),
    ]
    for i, (name, what) in enumerate(inside):
        d.box(440, 20 + 56 * i, 360, 46, name, what, kind="op", first="code strong")
    d.shapes.append('<path d="M380,356 L440,20 M380,402 L440,402" class="line" stroke-dasharray="4 4"/>')
    return d.svg()


def tape() -> str:
    """y = w·x + x, as nodes in creation order."""
    d = Drawing(820, 250, "The tape of y = w·x + x with w = 3 and x = 2")
    nodes = [
        (20, "0: leaf w", "3", "leaf"),
        (215, "1: leaf x", "2", "leaf"),
        (410, "2: multiply", "w·x = 6", "op"),
        (605, "3: add", "y = 8", "op"),
    ]
    for x, name, value, kind in nodes:
        d.box(x, 100, 150, 56, name, value, kind=kind)
    d.arrow((410, 128), (369, 128))
    d.arrow((605, 128), (564, 128))
    d.arrow((470, 100), (470, 60), (95, 60), (95, 98))
    d.arrow((680, 100), (680, 34), (290, 34), (290, 98))
    d.text(485, 178, "saved: a = 3, b = 2", "code")
    d.text(680, 178, "saved: nothing", "code")
    d.arrow((20, 220), (750, 220), words="")
    d.text(410, 206, "creation order: an arrow to a parent never points to the right", "small")
    return d.svg()


def sweep() -> str:
    """The sweep over y = w·x + x, step by step, with what is pending."""
    d = Drawing(820, 332, "The sweep over y = w·x + x: what is pending after each step")
    columns = [(20, "step"), (210, "w"), (330, "x"), (450, "multiply"), (570, "add"), (690, "what happens")]
    for x, name in columns[1:5]:
        d.text(x + 50, 28, name, "strong")
    d.text(20, 28, "pending after", "small", "start")
    rows: list[tuple[str, list[str], int, str]] = [
        ("the seed", ["", "", "", "1"], 3, "∂y/∂y = 1"),
        ("add, number 3", ["", "1", "1", ""], 2, "handed on twice"),
        ("multiply, number 2", ["2", "1 + 3 = 4", "", ""], 1, "x: a sum, owned"),
        ("x, number 1", ["2", "", "", ""], 0, "4 goes to x.grad"),
        ("w, number 0", ["", "", "", ""], -1, "2 goes to w.grad"),
    ]
    for i, (step, pending, following, note) in enumerate(rows):
        y = 46 + 52 * i
        d.text(20, y + 20, step, "", "start")
        for j, value in enumerate(pending):
            kind = "hot" if j == following else "leaf" if value else "box"
            d.box(columns[j + 1][0], y, 108, 40, value or "·", kind=kind, first="code")
        d.text(690, y + 20, note, "small", "start")
    d.text(410, 314, "orange: whose turn is next, the highest number that is left", "small")
    return d.svg()


def unbroadcast() -> str:
    """A bias of three numbers, used by two rows."""
    d = Drawing(820, 210, "A bias of shape (3,) is broadcast over two rows, and its gradient is summed over them")
    d.text(150, 24, "forward: b is used in both rows", "strong")
    d.text(560, 24, "backward: the gradient of both rows comes back", "strong")
    for i, name in enumerate(("b₀", "b₁", "b₂")):
        d.box(26 + 86 * i, 50, 80, 34, name, kind="leaf", first="code")
        for row in range(2):
            d.box(26 + 86 * i, 110 + 44 * row, 80, 34, f"x{'₀₁'[row]}{'₀₁₂'[i]} + {name}", kind="op", first="code")
        d.arrow((66 + 86 * i, 84), (66 + 86 * i, 108))
        for row in range(2):
            d.box(426 + 86 * i, 110 + 44 * row, 80, 34, f"g{'₀₁'[row]}{'₀₁₂'[i]}", kind="op", first="code")
        d.box(426 + 86 * i, 50, 80, 34, "Σ", kind="hot", first="code")
        d.arrow((466 + 86 * i, 110), (466 + 86 * i, 86), kind="back")
    d.text(690, 67, "shape (3,), as b", "small", "start")
    d.text(690, 149, "shape (2, 3), as y", "small", "start")
    return d.svg()


def second() -> str:
    """A recorded sweep writes further nodes on the same tape."""
    d = Drawing(820, 230, "A recorded sweep: the gradient is computed by ops, which leave nodes of their own")
    for x, name, what, kind in [
        (20, "x", "leaf", "leaf"),
        (150, "square", "y = x²", "op"),
        (430, "multiply", "2·x", "hot"),
        (600, "multiply", "g = gy·2x", "hot"),
    ]:
        d.box(x, 86, 110, 56, name, what, kind=kind)
    d.arrow((150, 114), (132, 114))
    d.arrow((485, 86), (485, 46), (75, 46), (75, 84))
    d.arrow((600, 114), (542, 114))
    d.text(280, 34, "the rule asked for x, and got the Tensor x", "small")
    d.arrow((330, 190), (170, 190), kind="back")
    d.text(250, 206, "first sweep", "small")
    d.arrow((760, 190), (440, 190), kind="back")
    d.text(600, 206, "second sweep: from g back to x", "small")
    d.text(140, 162, "recorded by the forward pass", "small")
    d.text(570, 162, "recorded by the first sweep (create_graph=True)", "small")
    return d.svg()


def fused() -> str:
    """What computes a fused op."""
    d = Drawing(820, 250, "One fused op: its array code, its twin and its kernel")
    d.box(20, 90, 170, 60, "ops.gelu(x)", "one node on the tape", kind="op", first="code strong")
    rows = [
        (20, "forward(NumPy, x)", "its own array code: runs everywhere", "otherwise", "box"),
        (95, "kernel of the same name", "one pass over memory", "the arrays suit it", "hot"),
        (170, "forward(tv.ops, x)", "its twin: elementary ops, each a node", "inside unfused()", "leaf"),
    ]
    for y, name, what, when, kind in rows:
        d.box(430, y, 370, 60, name, what, kind=kind, first="code strong")
        d.arrow((190, 120), (300, y + 30), (428, y + 30))
        d.text(362, y + 18, when, "small")
    return d.svg()


def vit() -> str:
    """From an image to its classes, with shapes."""
    d = Drawing(820, 300, "A Vision Transformer: from an image to one number a class")
    steps = [
        ("image", "(B, C, H, W)", "box"),
        ("patches", "(B, N, C·P²)", "op"),
        ("embedding", "(B, N, D)", "op"),
        ("+ class token", "(B, N + 1, D)", "op"),
        ("+ positions", "(B, N + 1, D)", "op"),
    ]
    for i, (name, shape, kind) in enumerate(steps):
        d.box(20 + 160 * i, 20, 140, 56, name, shape, kind=kind)
        if i:
            d.arrow((20 + 160 * i - 20, 48), (20 + 160 * i - 2, 48))
    d.arrow((730, 76), (730, 96), (80, 96), (80, 140))
    d.shapes.append('<rect x="130" y="112" width="400" height="128" rx="8" class="box"/>')
    d.text(330, 228, "encoder layer, L times: (B, N + 1, D) → (B, N + 1, D)", "small")
    d.box(20, 142, 90, 44, "tokens", kind="box")
    d.arrow((110, 164), (150, 164))
    for x, name in ((152, "norm1, MHSA"), (352, "norm2, FFN")):
        d.box(x, 142, 110, 44, name, kind="op", first="")
        d.shapes.append(f'<circle cx="{x + 142}" cy="164" r="11" class="leaf"/>')
        d.text(x + 142, 164, "+", "strong")
        d.arrow((x + 110, 164), (x + 130, 164))
        d.arrow((x - 16, 164), (x - 16, 204), (x + 142, 204), (x + 142, 177))
    d.arrow((305, 164), (350, 164))
    d.arrow((505, 164), (548, 164))
    d.box(550, 142, 60, 44, "norm", kind="op")
    d.arrow((610, 164), (628, 164))
    d.box(630, 142, 80, 44, "token 0", "(B, D)", kind="op")
    d.arrow((710, 164), (728, 164))
    d.box(730, 142, 70, 44, "head", "(B, K)", kind="hot")
    d.text(410, 272, "the way of the + carries the gradient back whole, past every branch", "small")
    return d.svg()


DIAGRAMS: dict[str, Callable[[], str]] = {
    drawing.__name__: drawing for drawing in (house, tape, sweep, unbroadcast, second, fused, vit)
}
