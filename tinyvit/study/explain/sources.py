"""What there is to say of an op: its signature, its code as it is written, its equations, its verdict."""

from __future__ import annotations

import ast
import functools
import inspect
import json
import linecache
import re
import textwrap
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from types import CodeType
from typing import Any

from tinyvit.engine import ops
from tinyvit.engine.primitive import Primitive
from tinyvit.engine.recompute import checkpoint
from tinyvit.study import audit
from tinyvit.study.audit.report import FAIL, SEVERITY, Report
from tinyvit.study.audit.report import SKIP as NOT_CHECKED
from tinyvit.study.equations import Equation, equations_of
from tinyvit.study.explain.tape import shown_path
from tinyvit.study.explain.values import number

HERE = Path(__file__).parent
LAYERS_OF = {  # the tutorial's headings, and the layers in which their equations are computed
    "Input Layer - Patching": ("PatchEmbedding", "ViT"),
    "Patch Embedding": ("PatchEmbedding", "ViT"),
    "Positional Encoding": ("PositionalEncoding", "ViT"),
    "Transformer Encoder Layers": ("EncoderLayer", "LayerNorm"),
    "Multi-Head Self-Attention (MHSA)": ("MultiHeadSelfAttention",),
    "Feedforward Neural Network (FFN)": ("FeedForward",),
    "Classification Head": ("ClassificationHead", ""),
}


def described_op(op: Any, kernel: bool, verdicts: dict[str, Any]) -> dict[str, Any]:
    """An op in the page's words.

    Args:
        op: the `Primitive`, or what stands in its place on a checkpointed node.
        kernel: whether a compiled kernel computed it.
        verdicts: of `shipped_verdicts` or `audited`.
    """
    forward = op.forward if isinstance(op, Primitive) else checkpoint
    rules = _rules(op) if isinstance(op, Primitive) else [_rule("*", type(op).pull_back)]
    lines, first = _source(forward)
    own = (forward.__module__ or "").startswith("tinyvit.")
    known = verdicts.get(op.name) if own and isinstance(op, Primitive) else None
    if known and known["code"] not in ("", fingerprint(op)):
        known = {"verdict": NOT_CHECKED, "rows": 0, "from": f"its code is another than in the {known['from']}"}
    return {
        "signature": f"{op.name}{_signature(op if isinstance(op, Primitive) else checkpoint)}",
        "doc": _doc(op if isinstance(op, Primitive) else checkpoint),
        "file": shown_path(code.co_filename) if (code := _code(forward)) else "",
        "line": first,
        "forward": lines,
        "rules": rules,
        "kernel": kernel,
        "equations": [_equation(e, op.name) for e in equations_of(op.name)] if own else [],
        "verdict": known or {"verdict": NOT_CHECKED, "rows": 0},
    }


def _signature(function: Any) -> str:
    parameters = [
        p.replace(annotation=inspect.Parameter.empty) for p in inspect.signature(function).parameters.values()
    ]
    return str(inspect.Signature(parameters))


def _doc(op: Any) -> str:
    """The first line of its docstring, or of the public function's around it."""
    for function in (op, getattr(ops, getattr(op, "name", ""), None)):
        if text := inspect.getdoc(function) if function is not None else None:
            return text.split("\n\n")[0].replace("\n", " ")
    return ""


# ----------------------------------------------------------------------------------------------------- as it is written


def _rules(op: Primitive) -> list[dict[str, Any]]:
    if op.joint:
        return [_rule("*", op.joint[0])]
    return [_rule(argument, rule) for argument, (rule, _) in op.rules.items()]


def _rule(argument: str, rule: Callable[..., Any]) -> dict[str, Any]:
    code, line = _source(rule, argument)
    return {"argument": argument, "code": code, "line": line}


def _source(function: Callable[..., Any], argument: str = "") -> tuple[str, int]:
    """A function's code as it is written, comments beside it included, and its first line; "" where no file has it."""
    code = _code(function)
    if code is None:
        return "", 0
    file, start = code.co_filename, code.co_firstlineno
    lines = linecache.getlines(file)
    tree = _parsed("".join(lines))
    if tree is None:
        return "", start
    if code.co_name != "<lambda>":
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and start in (node.lineno, *(d.lineno for d in node.decorator_list)):
                return textwrap.dedent("".join(lines[start - 1 : node.end_lineno])).rstrip(), start
        return "", start
    keywords = [
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.keyword) and isinstance(n.value, ast.Lambda) and n.lineno == start
    ]
    found = next((n for n in keywords if n.arg == argument), None)
    if len(keywords) > 1 and found is not None:  # several rules on a line: without the others
        return str(ast.get_source_segment("".join(lines), found)), start
    end = next((n.end_lineno for n in ast.walk(tree) if isinstance(n, ast.Lambda) and n.lineno == start), start)
    while start > 1 and lines[start - 2].lstrip().startswith("#"):
        start -= 1
    return textwrap.dedent("".join(lines[start - 1 : end])).rstrip(), start


def _code(function: Any) -> CodeType | None:
    """The code behind wrappers and partial arguments, where it is Python's."""
    function = inspect.unwrap(function)
    while isinstance(function, functools.partial):
        function = inspect.unwrap(function.func)
    return getattr(function, "__code__", None)


@functools.lru_cache(maxsize=64)
def _parsed(text: str) -> ast.Module | None:
    try:
        return ast.parse(text) if text else None
    except SyntaxError:  # a notebook's magic, for instance
        return None


# ------------------------------------------------------------------------------------------------------------ equations


@functools.cache
def mathml() -> dict[str, str]:
    """LaTeX → MathML of every formula; made by docs/generate.py, so that nobody else needs the converter."""
    return dict(json.loads((HERE / "mathml.json").read_text(encoding="utf-8")))


def _equation(e: Equation, op: str) -> dict[str, Any]:
    """An equation, and for which of the op's arguments it gives the rule ("": it is the forward)."""
    known = mathml()
    shown: dict[str, Any] = {
        "number": e.number,
        "title": e.title,
        "section": e.section,
        "layers": list(LAYERS_OF.get(e.section, ())),
        "rules": [code.rule for code in e.implemented_by if code.op == op],
        "mathml": known.get(e.tutorial or e.formula),
    }
    if e.tutorial is not None and e.corrected is not None:
        shown["holds"] = known.get(e.corrected)
        shown["note"] = f"the tutorial's formula is corrected: errata {', '.join(map(str, e.errata))}"
    return shown


# ------------------------------------------------------------------------------------------------------------- verdicts


@functools.cache
def shipped_verdicts() -> dict[str, Any]:
    """Op → what the last whole audit found of it; made by `python docs/generate.py --verdicts`, with its date."""
    return dict(json.loads((HERE / "verdicts.json").read_text(encoding="utf-8")))


def audited(names: Iterable[str]) -> dict[str, Any]:
    """Op → what the audit finds of it now, for those of the ops that it has samples of."""
    known = set(audit.names())
    return {name: found for name in names if name in known for found in _audited(name).values()}


@functools.cache
def _audited(name: str) -> dict[str, Any]:
    return verdicts_of(audit.run(audit.registry([name])), "audited now")


def verdicts_of(report: Report, origin: str) -> dict[str, Any]:
    """A report as one verdict an op: the worst of its rows, and the row that says most; layers are left out."""
    found: dict[str, Any] = {}
    worst = {row.op: row for row in report.worst()}
    primitives = own_primitives()
    for op, rows in audit.by_op(report.rows).items():
        if op not in primitives:
            continue
        row = worst[op]
        verdict = (
            FAIL if any(r.verdict == FAIL for r in rows) else max((r.verdict for r in rows), key=SEVERITY.__getitem__)
        )
        found[op] = {"verdict": verdict, "rows": len(rows), "from": origin, "code": fingerprint(primitives[op])}
        if row.elements:
            found[op]["worst"] = {
                "method": row.method,
                "error": number(row.absolute),
                "tolerance": number(row.tolerance),
                "margin": number(row.margin),
                "given": number(row.given),
                "expected": number(row.measured),
            }
    return found


def own_primitives() -> dict[str, Primitive]:
    """Every op of the engine by its name on the tape."""
    modules = {inspect.getmodule(getattr(ops, name)) for name in ops.__all__}
    found = [value for module in modules for value in vars(module).values() if isinstance(value, Primitive)]
    return {op.name: op for op in found}


def fingerprint(op: Primitive) -> str:
    """A short number that changes when an op's forward, its rules or what they call in their file change.

    A verdict belongs to the code that was audited: the page does not show it for other code.
    """
    waiting: list[tuple[Any, str]] = [(op.forward, ""), *([(op.joint[0], "")] if op.joint else [])]
    waiting += [(rule, argument) for argument, (rule, _) in op.rules.items()]
    seen: dict[str, str] = {}
    for function, argument in waiting:
        key = f"{getattr(function, '__qualname__', '')} {argument}"
        if key not in seen:
            seen[key] = _source(function, argument)[0]
            known = getattr(function, "__globals__", {})
            called = (known.get(name) for name in re.findall(r"\w+", seen[key]))
            waiting += [(f, "") for f in called if inspect.isfunction(f) and f.__module__ == function.__module__]
    return f"{zlib.crc32(''.join(seen.values()).encode()):08x}"
