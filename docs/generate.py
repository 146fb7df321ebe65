"""Make the documents that come from the code: `python docs/generate.py` writes them, `--check` says what has drifted.

A page is a function that returns its text, in the table PAGES below. Formulas come from tinyvit/study/equations.py, the
lines of code from the source of the rules themselves, and the errors are measured by tests/test_equations.py while the
page is made. The chapters in docs/engine/ are written by hand, but for the code in them: below each line

    <!-- code: tinyvit/engine/tape.py Node.__init__ -->

stands that function, method, class or statement as the file has it. Diagrams come from docs/diagrams.py.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import difflib
import functools
import importlib
import inspect
import itertools
import json
import math
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from tinyvit import ops
from tinyvit.engine import Primitive
from tinyvit.study import audit
from tinyvit.study.audit.samples import KINKS, NOT_DIFFERENTIABLE, SAMPLES, WITHOUT
from tinyvit.study.equations import EQUATIONS, Code, Equation, equations_of
from tinyvit.study.explain.sources import verdicts_of

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent

sys.path += [str(DOCS)] * (str(DOCS) not in sys.path)
from diagrams import DIAGRAMS  # noqa: E402 -- beside this file, which the tests load by its path

# -------------------------------------------------------------------------------------------------------- the equations

INTRODUCTION = """\
# The tutorial's equations, and the code that computes them

This page is made by `python docs/generate.py` from [the table of equations](../tinyvit/study/equations.py), the source
of the ops and the measurements of [the tests](../tests/test_equations.py); `python docs/generate.py --check` fails when
it has drifted from them. Do not edit it by hand.

<!-- fmt: off -->

For each equation: the formula as the tutorial writes it; what holds here, where that is another one, with the
[erratum](errata.md) that derives it; the code that implements it; the test that computes it by hand from raw arrays,
with loops and dot products; and the largest error measured, in float64, relative to the largest number by hand (in
S13, where that is zero, to the largest number of ∂L/∂K).

Notation: the tutorial multiplies a weight by a column, W · x. In tinyvit tokens are rows, X · Wᵀ, and weights are
(out, in), so that W is the same in both. What holds is written in columns, as the tutorial writes, but for 10 to 19,
the attention, which is written in rows. b counts the images of a batch, n and m tokens; ⊙ multiplies element by
element. In the code `gy` is the gradient ∂L/∂y of the op's result, `F` or `xp` the array library. Sums over what was
broadcast, a bias for instance, are done once for all rules by the engine (`unbroadcast`).
"""

LEFT_OUT = "## What the tutorial leaves out\n"


def equations_page() -> str:
    """Every equation with its code, its test and its error: docs/equations.md."""
    errata = erratum_links()
    own = [e for e in EQUATIONS if e.tutorial is not None]
    left_out = [e for e in EQUATIONS if e.tutorial is None]
    blocks = [INTRODUCTION, *_chapter(own, "## ", errata), LEFT_OUT, *_chapter(left_out, "### In: ", errata)]
    return "\n".join(blocks)


def _chapter(equations: list[Equation], heading: str, errata: dict[int, str]) -> Iterator[str]:
    level = heading.split()[0]
    for section, members in itertools.groupby(equations, key=lambda e: e.section):
        yield f"{heading}{section}\n"
        yield from (_entry(e, errata, level) for e in members)


def _entry(e: Equation, errata: dict[int, str], level: str) -> str:
    test = f"[`{name_of_test(e.number)}`](../tests/test_equations.py)"
    parts = [
        f"{level}# {e.number}. {e.title}",
        *_formulas(e, ", ".join(errata[n] for n in e.errata)),
        f"Code: {'; '.join(_link(code) for code in e.implemented_by)}",
        f"```python\n{_listing(e.implemented_by)}\n```",
        f"Test: {test}, largest error: {rounded_up(measure(e.number))}\n",
    ]
    return "\n\n".join(parts)


def _formulas(e: Equation, errata: str) -> list[str]:
    """The tutorial's formula and what holds instead; or the one that there is."""
    if e.tutorial is not None and e.corrected is not None:
        return [_displayed(e.tutorial), f"What holds here ({errata}):", _displayed(e.corrected)]
    return [_displayed(e.formula), *([f"See {errata}."] if errata else [])]


def _displayed(formula: str) -> str:
    """LaTeX on lines of its own; plain words are set as such."""
    if "\\" not in formula:
        formula = rf"\text{{{formula}}}"
    return f"$$\n{formula}\n$$"


def _link(code: Code) -> str:
    path = Path(inspect.getsourcefile(inspect.unwrap(code.function)) or "").resolve()
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else Path(path.name)
    return f"[`{_label(code)}`](../{shown.as_posix()})"


def _label(code: Code) -> str:
    name = code.name.partition(":")[2]
    return f"{name}, rule of {code.rule}" if code.rule else name


def erratum_links() -> dict[int, str]:
    """Number → a link to the erratum of that number in errata.md."""
    text = (DOCS / "errata.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### ((\d+)\. (.*))$", text, flags=re.MULTILINE)
    return {int(number): f"[erratum {number}](errata.md#{_anchor(heading)})" for heading, number, _ in headings}


def _anchor(heading: str) -> str:
    """The name that a heading gets in a link."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


# ------------------------------------------------------------------------------------------------------------ the ops

OPS_INTRODUCTION = """\
# The ops, their backward rules and what they were checked with

This page is made by `python docs/generate.py` from the source of the ops and from
[the registry of samples](../tinyvit/study/audit/samples.py) that the tests and `tinyvit audit` use too; `python
docs/generate.py --check` fails when it has drifted. Do not edit it by hand.

<!-- fmt: off -->

In a rule, `gy` is the gradient ∂L/∂y of the result and `F` the array library, or `tinyvit.ops` when the sweep itself is
recorded. Sums over what was broadcast, dtypes and accumulation are the engine's. The largest error is that of the whole
Jacobian of all samples beside five-point differences, in float64, relative to max(1, |slope|); `tinyvit audit` checks
every sample by a dozen methods more. How to read its table is [further down](#the-methods-of-the-audit).
"""

FUSED = "Fused: one op on the tape. Its forward, in elementary ops, for which a kernel may stand in:"

METHODS = """\
## The methods of the audit

`tinyvit audit` looks at each sample by every method that is meant for it. A row names the op, the shapes, the dtype,
how many numbers were compared, the worst error, where it is, the two values, the tolerance and the margin: how many
times smaller than the tolerance the error is.

| method | what it compares |
|---|---|
"""


def ops_page() -> str:
    """Every public op with its rules and samples: docs/ops.md."""
    differentiable = sorted({sample.op for sample in SAMPLES})
    steps = ", ".join(f"`{op}`" for op in sorted(NOT_DIFFERENTIABLE))
    methods = "\n".join(f"| {_shown(name)} | {_first_sentence(method)} |" for name, method in audit.METHODS.items())
    return "\n".join([
        OPS_INTRODUCTION,
        *(_op_entry(op) for op in differentiable),
        f"## Without a gradient\n\nWhat compares, counts or chooses gives bools or integers: {steps}.\n",
        f"{METHODS}{methods}\n| dtype | What compares or counts carries no gradient. |\n",
    ])  # fmt: skip


def _shown(method: str) -> str:
    """A method under the names that its rows have."""
    return "slopes: rows `jacobian`, `projections`, `linearity`" if method == "slopes" else method


def _op_entry(name: str) -> str:
    function = getattr(ops, name)
    op = _primitive_of(name)
    text = f"## {name}\n\n`{name}{_signature(function)}`: {_first_sentence(function)}\n\n"
    if op is None:
        text += "Made of other ops, whose rules apply.\n"
    else:
        text += f"{_rules_link(op)}\n\n```python\n{_rules(op)}\n```\n"
        if op.fused:
            text += f"\n{FUSED}\n\n```python\n{source(_forward(op))}\n```\n"
    facts = [f"{sum(s.op == name for s in SAMPLES)} samples", *_traits(name)]
    if numbers := [e.number for e in equations_of(op.name if op else name)]:
        facts.append(f"[equations](equations.md) {', '.join(numbers)}")
    return f"{text}\nChecked with {', '.join(facts)}; largest error: {rounded_up(_largest_error(name))}\n"


def _signature(function: Any) -> str:
    signature = inspect.signature(function)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(inspect.Signature(bare))


def _primitive_of(name: str) -> Primitive | None:
    """The op on the tape behind a public name, if it is one op."""
    function = getattr(ops, name)
    if isinstance(function, Primitive):
        return function
    found = getattr(sys.modules[function.__module__], f"_{name}", None)
    return found if isinstance(found, Primitive) else None


def _rules_link(op: Primitive) -> str:
    path = Path(inspect.getsourcefile(op.forward) or "").resolve().relative_to(ROOT)
    return f"In [{path.name}](../{path.as_posix()}):"


def _forward(op: Primitive) -> Code:
    return Code(f"{op.forward.__module__}:{op.forward.__name__}")


def _rules(op: Primitive) -> str:
    name = _forward(op).name
    functions = [op.joint[0]] if op.joint else [rule for rule, _ in op.rules.values()]
    helpers = _helpers(functions, sys.modules[op.forward.__module__])
    if op.joint:
        return "\n".join([source(Code(f"{op.joint[0].__module__}:{op.joint[0].__name__}")), *helpers])
    shown = {}
    for argument, (rule, _) in op.rules.items():
        code = Code(name, argument)
        lines = source(code)
        shown[lines] = lines if rule.__name__ == "<lambda>" else f"# {argument}\n{lines}"
    return "\n".join([*shown.values(), *helpers])


def _helpers(functions: list[Any], module: ModuleType) -> Iterator[str]:
    """The module's own functions that rules call, also through one another."""
    waiting, seen = [name for f in functions for name in f.__code__.co_names], set()
    while waiting:
        name = waiting.pop(0)
        helper = vars(module).get(name)
        if name not in seen and inspect.isfunction(helper) and helper.__module__ == module.__name__:
            yield f"\n{inspect.getsource(helper).rstrip()}"
            waiting += helper.__code__.co_names
        seen.add(name)


def _first_sentence(function: Any) -> str:
    return " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())


def _traits(name: str) -> Iterator[str]:
    """Which samples there are besides the ordinary ones, or why not."""
    arrays = [a for s in SAMPLES if s.op == name for a in s.arrays() if a.dtype.kind == "f"]
    for trait, there in (("empty", any(a.size == 0 for a in arrays)), ("0-d", any(a.ndim == 0 for a in arrays))):
        yield f"some {trait}" if there else f"none {trait} (it {WITHOUT[name, trait]})"
    if any(s.op == name for s in KINKS):
        yield "and on its kinks, where the rule's choice lies between the slopes on both sides"


@functools.cache
def _largest_error(name: str) -> float:
    rows = [r for s in SAMPLES if s.op == name for r in audit.examine(s, methods=["slopes"])]
    return max((r.absolute / max(1.0, abs(r.measured)) for r in rows), default=0.0)


# ------------------------------------------------------------------------------------------------------ lines of code


def _listing(codes: tuple[Code, ...]) -> str:
    """The lines of each place in the code, under its name where there are several."""
    if len(codes) == 1:
        return source(codes[0])
    return "\n".join(f"# {_label(code)}\n{source(code)}" for code in codes)


def source(code: Code) -> str:
    """The lines of a rule, of an op's forward, or of a method, without the docstring.

    Raises:
        ValueError: a line that is asked for is not there.
    """
    function = inspect.unwrap(code.function)
    tree, lines = _parsed(inspect.getsourcefile(function) or "")
    start = function.__code__.co_firstlineno
    if function.__name__ == "<lambda>":
        return _lambda(tree, lines, start, code)
    [found] = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and _first_line(n) == start]
    body = found.body[1:] if ast.get_docstring(found) is not None else found.body
    if not code.lines:
        return textwrap.dedent("".join(lines[body[0].lineno - 1 : found.end_lineno])).rstrip()
    statements = sorted((n for n in ast.walk(found) if isinstance(n, ast.stmt)), key=lambda n: n.lineno)
    simple = [_text(n, lines) for n in statements if not hasattr(n, "body")]
    for wanted in code.lines:
        if not any(text.startswith(wanted) for text in simple):
            raise ValueError(f"{code.name} has no line that begins with {wanted!r}; look at tinyvit/study/equations.py")
    return "\n".join(text for text in simple if text.startswith(code.lines))


@functools.cache
def _parsed(file: str) -> tuple[ast.Module, list[str]]:
    text = Path(file).read_text(encoding="utf-8")
    return ast.parse(text), text.splitlines(keepends=True)


def _first_line(function: ast.FunctionDef | ast.ClassDef) -> int:
    return min([function.lineno, *(d.lineno for d in function.decorator_list)])


def _lambda(tree: ast.Module, lines: list[str], start: int, code: Code) -> str:
    """The line `argument=lambda …` with the comments behind and directly above it."""
    keywords = (n for n in ast.walk(tree) if isinstance(n, ast.keyword) and isinstance(n.value, ast.Lambda))
    found = [n for n in keywords if n.value.lineno == start]
    if not found:  # a rule that was put there in another way
        return _text(next(n for n in ast.walk(tree) if isinstance(n, ast.stmt) and n.lineno == start), lines)
    if [n.arg for n in found] != [code.rule]:
        raise ValueError(f"{code.name}: line {start} holds several rules, or not that of {code.rule!r}")
    above = start - 1
    while above and lines[above - 1].lstrip().startswith("#"):
        above -= 1
    return textwrap.dedent("".join(lines[above : found[0].value.end_lineno])).rstrip()


def _text(node: ast.stmt, lines: list[str]) -> str:
    """A statement's own lines, comments behind it included."""
    return textwrap.dedent("".join(lines[node.lineno - 1 : node.end_lineno])).rstrip()


# ---------------------------------------------------------------------------------------------- tests, measured errors


def _tests() -> ModuleType:
    tests = str(ROOT / "tests")
    if tests not in sys.path:
        sys.path.append(tests)
    return importlib.import_module("test_equations")


def name_of_test(number: str) -> str:
    """The name of the function that holds an equation."""
    name: str = _tests().CLOSED_FORMS[number].__name__
    return name


def measure(number: str) -> float:
    """The largest error of an equation, measured now."""
    error: float = _tests().measured(number)
    return error


def rounded_up(error: float) -> str:
    """One significant digit, never less than the error itself."""
    if error == 0:
        return "0"
    exponent = math.floor(math.log10(error))
    digit = math.ceil(round(error / 10.0**exponent, 9))
    return f"1e{exponent + 1:03d}" if digit == 10 else f"{digit}e{exponent:03d}"


# ------------------------------------------------------------------------------------------- what ships in the package


def mathml_file() -> str:
    """Every formula as MathML, which a browser sets by itself: tinyvit/study/explain/mathml.json."""
    from latex2mathml.converter import convert

    formulas = dict.fromkeys(f for e in EQUATIONS for f in (e.tutorial, e.corrected) if f)
    found = {f: _plain_mathml(convert(f if "\\" in f else rf"\text{{{f}}}", display="block")) for f in formulas}
    return json.dumps(found, ensure_ascii=False, indent=0) + "\n"


def _plain_mathml(markup: str) -> str:
    """Without the name of the language, which HTML knows, and with letters in the place of their numbers."""
    markup = markup.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")
    return re.sub(r"&#x([0-9A-F]+);", lambda m: m[0] if chr(int(m[1], 16)) in "<>&" else chr(int(m[1], 16)), markup)


def verdicts_file() -> str:
    """What a whole audit finds of each op, now: tinyvit/study/explain/verdicts.json. Takes about a minute."""
    report = audit.run(workers=os.cpu_count() or 1)
    found = verdicts_of(report, f"audit of {datetime.date.today()}")
    lines = (f"{json.dumps(op)}: {json.dumps(verdict, ensure_ascii=False)}" for op, verdict in sorted(found.items()))
    return "{\n" + ",\n".join(lines) + "\n}\n"


# ------------------------------------------------------------------------------------------ chapters that show the code

_SHOWN = re.compile(
    r"^<!-- code: (\S+) (\S+)( without its docstring)? -->\n(?:\[.*\n\n```python\n(?:.*\n)*?```\n)?", re.M
)


def chapter(name: str) -> str:
    """A chapter as it is, with the code that it shows as it is now."""
    folder = (DOCS / name).parent

    def show(mark: re.Match[str]) -> str:
        file, definition, without = mark.groups()
        code = excerpt(ROOT / file, definition, docstring=not without)
        first = mark[0].partition("\n")[0]
        up = "../" * len(folder.relative_to(ROOT).parts)
        return f"{first}\n[`{definition}`]({up}{file}) in `{Path(file).name}`:\n\n```python\n{code}\n```\n"

    return _SHOWN.sub(show, (DOCS / name).read_text(encoding="utf-8"))


def excerpt(file: Path, name: str, docstring: bool = True) -> str:
    """A definition as the file has it, with the comments directly above it.

    Args:
        file: a Python file.
        name: a function, a class, a method (`Node.free`), what is assigned to (`_numbers`), or the statement that calls
            something (`softmax.gradients`).
        docstring: whether the docstring is shown too, without its examples.

    Raises:
        ValueError: the file has no such definition.
    """
    tree, lines = _parsed(str(file))
    found = next((node for node in _statements(tree.body) if name in node[0]), None)
    if found is None:
        raise ValueError(f"{file.name} has no {name!r}: a chapter in docs/engine/ shows it")
    _, node = found
    first = _first_line(node) if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else node.lineno
    while lines[first - 2].lstrip().startswith("# ") and not lines[first - 2].startswith("# ---"):
        first -= 1
    numbers = range(first, (node.end_lineno or first) + 1)
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
        text = node.body[0]
        inside = range(text.lineno, (text.end_lineno or text.lineno) + 1)
        left_out = set(_examples(inside, lines) if docstring else inside)
        numbers = [n for n in numbers if n not in left_out]  # type: ignore[assignment]
    code = textwrap.dedent("".join(lines[n - 1] for n in numbers)).rstrip()
    return re.sub(r'^( *""".*)\n *"""$', r'\1"""', code, count=1, flags=re.M)  # what is left of it may be one line


def _statements(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[list[str], ast.stmt]]:
    """Each statement of a file or of a class in it, with the names under which it can be asked for."""
    for node in body:
        names = []
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names = [node.name]
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            names = [ast.unparse(t) for t in (node.targets if isinstance(node, ast.Assign) else [node.target])]
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            names = [ast.unparse(node.value.func)]
        yield [prefix + name for name in names], node
        if isinstance(node, ast.ClassDef):
            yield from _statements(node.body, f"{prefix}{node.name}.")


def _examples(docstring: range, lines: list[str]) -> Iterator[int]:
    """The lines of a docstring's examples, with the empty line above them."""
    inside = False
    for n in docstring[:-1]:
        inside = lines[n].lstrip().startswith(">>>") if not lines[n - 1].strip() else inside
        if inside:
            yield n


# ------------------------------------------------------------------------------------------------------ write and check

STUDY = ROOT / "tinyvit" / "study" / "explain"
PAGES: dict[str, Callable[[], str]] = {
    "equations.md": equations_page,
    "ops.md": ops_page,
    **{f"engine/{page.name}": functools.partial(chapter, f"engine/{page.name}") for page in DOCS.glob("engine/*.md")},
    **{f"images/{name}.svg": draw for name, draw in DIAGRAMS.items()},
    "../tinyvit/study/explain/mathml.json": mathml_file,
}

_FIGURE = re.compile(r"(?<=largest error: )[\d.e+-]+")


def differences(page: str, now: str) -> list[str]:
    """What differs between a page and the same page made now, line by line.

    A measured error is no text: it may be up to 100 times that on the page, or 1e-13, for machines round differently.
    """
    old, new = page.splitlines(), now.splitlines()
    without_figures = difflib.SequenceMatcher(
        None, [_FIGURE.sub("…", a) for a in old], [_FIGURE.sub("…", b) for b in new], autojunk=False
    )
    found = []
    for kind, i, i_end, j, j_end in without_figures.get_opcodes():
        pairs = itertools.zip_longest(old[i:i_end], new[j:j_end], fillvalue="nothing")
        for number, (a, b) in enumerate(pairs, start=i + 1):
            if kind != "equal" or _grown(_FIGURE.findall(a), _FIGURE.findall(b)):
                found.append(f"line {number}: the page has: {a}\n    the code gives: {b}")
    return found


def _grown(page: list[str], now: list[str]) -> bool:
    return any(float(b) > max(100 * float(a), 1e-13) for a, b in zip(page, now, strict=True))


def drifted(docs: Path) -> list[str]:
    """What has drifted in the pages of a folder; empty when all are up to date."""
    reports = []
    for name, make in PAGES.items():
        if not (docs / name).exists():
            reports.append(f"{name} is missing")
            continue
        found = differences((docs / name).read_text(encoding="utf-8"), make())
        reports += [f"{name}, {report}" for report in found]
    return reports


def main(arguments: list[str] | None = None) -> int:
    """Write the pages, or check them: 0 when they are up to date, 1 when something has drifted."""
    parser = argparse.ArgumentParser(description="Make the documents that come from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 and name what has drifted")
    parser.add_argument("--to", type=Path, default=DOCS, help="the folder of the pages (docs/)")
    parser.add_argument("--verdicts", action="store_true", help="write only what a whole audit finds now, a minute")
    options: Any = parser.parse_args(arguments)
    if options.verdicts:
        (STUDY / "verdicts.json").write_text(verdicts_file(), encoding="utf-8")
        return 0
    if not options.check:
        for name, make in PAGES.items():
            (options.to / name).parent.mkdir(parents=True, exist_ok=True)
            (options.to / name).write_text(make(), encoding="utf-8")
        return 0
    reports = drifted(options.to)
    for report in reports[:20]:
        print(report, file=sys.stderr)
    if reports:
        print(f"{len(reports)} lines have drifted: run `python docs/generate.py`", file=sys.stderr)
    return 1 if reports else 0


if __name__ == "__main__":
    sys.exit(main())
