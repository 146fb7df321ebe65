"""Break every backward rule on purpose, and count how many of the wrong rules the audit notices.

    python benchmarks/mutants.py                     everything, with the result file; exit code 1 if one goes unnoticed
    python benchmarks/mutants.py softmax matmul      some ops

A mutant is a rule with one small mistake in it: another sign, a term less, another axis. It is put in the place of the
right rule, the audit looks at the samples of that op until a row fails, and the right rule is put back. What no row
can notice because nothing differs is listed in `EQUIVALENT`, with the reason.
"""

from __future__ import annotations

import argparse
import ast
import copy
import functools
import inspect
import math
import os
import sys
import time
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import _common
import numpy as np
from threadpoolctl import threadpool_limits

import tinyvit as tv
from tinyvit.engine import kernels, tape
from tinyvit.engine.ops import elementwise, indexing, linalg, nn, reductions, shapes
from tinyvit.engine.primitive import Primitive
from tinyvit.study import audit
from tinyvit.study.audit.report import FAIL
from tinyvit.study.audit.samples import Sample

SIGN, TERM, FACTOR, TRANSPOSE = "sign flipped", "term dropped", "factor dropped", "transpose missing"
AXIS, ZERO, UNBROADCAST, STALE = "axis wrong", "zero returned", "unbroadcast skipped", "stale value"
CONSTANT, COMPARISON, BRANCH, CALL = "constant changed", "comparison changed", "branch swapped", "call dropped"
KINDS = (SIGN, TERM, FACTOR, TRANSPOSE, AXIS, ZERO, UNBROADCAST, STALE, CONSTANT, COMPARISON, BRANCH, CALL)

# The sharpest and cheapest first: a mutant is given up at the first row that fails.
METHODS = (*dict.fromkeys(("slopes", "second order", "recorded sweep", "layout", "repeated", *audit.METHODS)),)
FAMILIES = (elementwise, indexing, linalg, nn, reductions, shapes, import_module("tinyvit.engine.primitive"))


@tv.primitive(twin=lambda F, a, b: F.sin(a) * b)
def _twinned(xp: Any, a: Any, b: Any) -> Any:
    return xp.sin(a) * b


_twinned.gradient(lambda xp, gy, a, b: (gy * xp.cos(a) * b, gy * xp.sin(a)))

# Nobody calls `alias`: it keeps the arguments of an op apart while its twin is differentiated, if it has one. That is
# for ops of a user's own, and so is this one: tinyvit's fused ops are their own twins.
SAMPLES = {
    "alias": [
        Sample("alias", "of an op with a twin", lambda F, a, b: _twinned(a, b), (audit.normal(2, 3), audit.normal(3))),
        Sample("alias", "of one Tensor given twice", lambda F, a: _twinned(a, a), (audit.normal(3),)),
    ]
}

_NOTHING = "zeros negated, made again or kept from the call before are zeros"
_TIED = "where a and b are equal the rule for ties has the say, whatever stands behind it"
_LENGTH = "of x_shape only the number of axes is read, which this mutant keeps"
_BOOLS = "as bools, 0 and 1 are the same numbers, and the engine casts the gradient to the dtype of x"
_NO_MAXIMUM = "no slope: it differs only where the maximum is NaN"
_SHUT = "beyond ±20 the gate is open or shut to the last digit, and its slope 0 from either bound"
_LAST = "the rule calls it for the last axis; that other axes are right is for the forward of log_softmax to show"
_ONE_DEVICE = "on a machine with one device every gradient is there already"
_POWER_A = "return gy * (b * a ** (b - 1)) if b else "
_POWER_AB = "return gy * b * a ** "
_POWER_B = "return gy * (y * (math.log(a) if a > 0 else math.nan)) if a else "
_MASKED = "return gy * F.where(a == 0, 0, y) * F.log(F.where(a == 0, 1.0, a))"
_CHOSEN = "chosen = x == _spread(F, y, x_shape, axis, keepdims)"

# What the audit cannot notice because nothing differs: op, argument, kind, the statement after; and why.
EQUIVALENT: dict[tuple[str, str, str, str], str] = {
    ("sign", "x", SIGN, "-F.zeros_like(gy)"): _NOTHING,
    ("sign", "x", ZERO, "F.zeros_like(F.zeros_like(gy))"): _NOTHING,
    ("sign", "x", STALE, "the gradient of the call before"): _NOTHING,
    ("zeros_like", "x", SIGN, "-F.zeros_like(gy)"): _NOTHING,
    ("zeros_like", "x", ZERO, "F.zeros_like(F.zeros_like(gy))"): _NOTHING,
    ("zeros_like", "x", STALE, "the gradient of the call before"): _NOTHING,
    ("power", "a", SIGN, _POWER_A + "-F.zeros_like(gy)"): _NOTHING,
    ("power", "a", ZERO, _POWER_A + "F.zeros_like(F.zeros_like(gy))"): _NOTHING,
    ("power", "b", SIGN, _POWER_B + "-F.zeros_like(gy)"): _NOTHING,
    ("power", "b", ZERO, _POWER_B + "F.zeros_like(F.zeros_like(gy))"): _NOTHING,
    (
        "power", "a", COMPARISON, _POWER_AB + "F.where(b == 0, 1, b - 1)"
    ): "where b is 0 the factor b makes all of it 0, whatever finite number stands beside it",
    (
        "power", "a", CONSTANT, _POWER_AB + "F.where((a == 0) & (b == 0), 2, b - 1)"
    ): "where b is 0 the factor b makes all of it 0, whatever finite number stands beside it",
    (
        "power", "b", COMPARISON, _POWER_B.replace("a > 0", "a >= 0") + "F.zeros_like(gy)"
    ): "a base of 0 never gets there: `if a` comes first",
    (
        "power", "b", BRANCH, "return gy * (y * math.log(a)) if a else F.zeros_like(gy)"
    ): "no slope: a power of a negative base is a number at whole exponents alone; NaN or an error there is a choice",
    (
        "power", "b", BRANCH, _MASKED.replace("F.where(a == 0, 0, y)", "y")
    ): "where a is 0 the other factor, log 1, is 0; y is infinite there for b below 0, but has no slope",
    (
        "power", "b", CONSTANT, _MASKED.replace("0, y", "1, y")
    ): "where a is 0 the other factor, log 1, is 0",
    (
        "power", "b", CONSTANT, _MASKED.replace("a == 0, 0", "a == 1, 0")
    ): "where a is 0 or 1 the other factor, log 1, is 0",
    (
        "power", "b", CONSTANT, _MASKED.replace("1.0, a", "2.0, a")
    ): "where a is 0 the other factor is 0, and log 2 as good as log 1",
    ("maximum", "a", COMPARISON, "_share(F, gy, a >= b, a == b)"): _TIED,
    ("maximum", "b", COMPARISON, "_share(F, gy, b >= a, a == b)"): _TIED,
    ("minimum", "a", COMPARISON, "_share(F, gy, a <= b, a == b)"): _TIED,
    ("minimum", "b", COMPARISON, "_share(F, gy, b <= a, a == b)"): _TIED,
    ("to_device", "x", CALL, "gy"): _ONE_DEVICE,
    ("to_device", "x", STALE, "residue as in the first call"): _ONE_DEVICE,
    (
        "einsum", "all", BRANCH, "gradients.append(F.broadcast_to(g, full))"
    ): "an array broadcast to the shape it has is the same array",
    (
        "einsum", "all", STALE, "optimize as in the first call"
    ): "it chooses the order of the products, not what they come to",
    (
        "linear", "x", CALL, "F.reshape(F.matmul(gy, weight), x_shape)"
    ): "one product a sample instead of one tall one gives the same rows",
    ("max", "x", CALL, _CHOSEN): _BOOLS,
    ("min", "x", CALL, _CHOSEN): _BOOLS,
    ("max", "x", CALL, "ties = F.sum(chosen, axis=axis, keepdims=True)"): _NO_MAXIMUM,
    ("min", "x", CALL, "ties = F.sum(chosen, axis=axis, keepdims=True)"): _NO_MAXIMUM,
    ("max", "x", STALE, "x_shape as in the first call"): _LENGTH,
    ("min", "x", STALE, "x_shape as in the first call"): _LENGTH,
    ("logsumexp", "x", STALE, "x_shape as in the first call"): _LENGTH,
    (
        "logsumexp", "x", CONSTANT, "y = F.where(y == -math.inf, 1, y)"
    ): "any finite number will do in place of −∞: exp(−∞ − 1) is 0 too",
    (
        "gelu", "_gelu_gate", CALL, "x = x"
    ): "where x³ overflows float16 the gate is open or shut all the same; the clip spares a warning, and NaN in second "
    "slopes in float16, which the audit does not take and tests/test_ops.py does",
    ("gelu", "_gelu_gate", CONSTANT, "x = F.clip(x, -20, 21)"): _SHUT,
    ("gelu", "_gelu_gate", CONSTANT, "x = F.clip(x, -21, 20)"): _SHUT,
    ("gelu", "_gelu_gate_slope", CONSTANT, "x = F.clip(x, -20, 21)"): _SHUT,
    ("gelu", "_gelu_gate_slope", CONSTANT, "x = F.clip(x, -21, 20)"): _SHUT,
    (
        "cross_entropy", "_log_softmax", AXIS, "x = x - F.max(x, axis=-1, keepdims=True)"
    ): _LAST,
    (
        "cross_entropy", "_log_softmax", AXIS, "return x - F.log(F.sum(F.exp(x), axis=-1, keepdims=True))"
    ): _LAST,
    (
        "sum, mean, var, max, min, logsumexp", "_spread", CALL, "return reduced"
    ): "a single number broadcasts against any shape as it is",
}  # fmt: skip

# --------------------------------------------------------------------------------------------------------------------
# What can be broken


@dataclass(frozen=True)
class Rule:
    """A place in an op where a rule stands.

    Attributes:
        module: the short name of the module of the op.
        op: the name of the op in that module.
        argument: whose gradient it gives; "" for a joint rule.
    """

    module: str
    op: str
    argument: str

    @property
    def name(self) -> str:
        """The public name of the op."""
        return self.op.strip("_")

    def primitive(self) -> Primitive:
        """The op itself."""
        found = vars(_module(self.module))[self.op]
        assert isinstance(found, Primitive)
        return found

    def get(self) -> tuple[Any, tuple[str, ...]]:
        """The function that stands there, and the names of the values it asks for."""
        op = self.primitive()
        found = op.rules[self.argument] if self.argument else op.joint
        assert found is not None
        return found

    def put(self, rule: tuple[Any, tuple[str, ...]]) -> None:
        """Let another function stand there."""
        op = self.primitive()
        if self.argument:
            op.rules[self.argument] = rule
        else:
            op.joint = rule


@dataclass(frozen=True)
class Mutant:
    """One mistake in one rule.

    Attributes:
        op: the public name of the op, or the names of all ops that a helper of their rules serves.
        argument: whose gradient is wrong; "all" in a joint rule, the name of a helper in a helper.
        kind: one of `KINDS`.
        before, after: the statement that was changed, or what else is other, in words.
        rules: where it is put.
        helper: the name of the helper that is changed; "" if it is the rule itself.
        source: the changed function; "" for mistakes that are not in the text of the rule.
        place: which of the values asked for is stale; −1 for the gradient itself.
    """

    op: str
    argument: str
    kind: str
    before: str
    after: str
    rules: tuple[Rule, ...]
    helper: str = ""
    source: str = ""
    place: int = 0

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What it is called in `EQUIVALENT`."""
        return self.op, self.argument, self.kind, self.after

    def samples_of(self) -> tuple[str, ...]:
        """The ops whose samples show it."""
        return tuple(dict.fromkeys(rule.name for rule in self.rules))


def _module(short: str) -> types.ModuleType:
    return next(module for module in FAMILIES if module.__name__.endswith(f".{short}"))


def rules_of(module: types.ModuleType) -> list[Rule]:
    """Every backward rule of the ops that a module defines."""
    short = module.__name__.rpartition(".")[2]
    found = []
    for name, value in vars(module).items():
        if isinstance(value, Primitive) and value.forward.__module__ == module.__name__:
            found += [Rule(short, name, argument) for argument in value.rules]
            found += [Rule(short, name, "")] * (value.joint is not None)
    return found


def all_rules() -> list[Rule]:
    """Every backward rule there is."""
    return [rule for module in FAMILIES for rule in rules_of(module)]


@functools.cache
def _tree(short: str) -> ast.Module:
    return ast.parse(inspect.getsource(_module(short)))


@functools.cache
def _functions(short: str) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in _tree(short).body if isinstance(node, ast.FunctionDef)}


def text_of(rule: Rule) -> ast.Lambda | ast.FunctionDef:
    """The text of a rule, as a tree.

    Raises:
        LookupError: it stands nowhere in its module in one of the two forms that rules have.
    """
    functions = _functions(rule.module)
    for node in _tree(rule.module).body:
        if isinstance(node, ast.FunctionDef) and not rule.argument:
            if any(ast.unparse(decorator) == f"{rule.op}.gradient" for decorator in node.decorator_list):
                return node
        elif (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Call)
            and ast.unparse(node.value.func) == f"{rule.op}.gradients"
        ):
            for keyword in node.value.keywords:
                if keyword.arg == rule.argument:
                    if isinstance(keyword.value, ast.Lambda):
                        return keyword.value
                    return functions[ast.unparse(keyword.value)]
    raise LookupError(f"the rule of {rule.op} for {rule.argument or 'all arguments'} was not found in its module")


def helpers_of(rule: Rule) -> set[str]:
    """The functions of the module that a rule calls, also through one another."""
    functions = {name: node for name, node in _functions(rule.module).items() if not node.decorator_list}
    found: set[str] = set()
    waiting: list[ast.AST] = [text_of(rule)]
    while waiting:
        for node in ast.walk(waiting.pop()):
            if isinstance(node, ast.Name) and node.id in functions and node.id not in found:
                found.add(node.id)
                waiting.append(functions[node.id])
    return found


# --------------------------------------------------------------------------------------------------------------------
# Mistakes in the text of a rule

Change = tuple[str, ast.AST, ast.AST]  # the kind, what is replaced, and by what
TRANSPOSES = ("swapaxes", "transpose")
OTHER_AXES = {"-1": ("-2", "0"), "-2": ("-1",), "0": ("1",), "1": ("0",), "True": ("False",), "axis": ("0", "-1"),
              "axis1": ("0",), "axis2": ("0",), "keepdims": ("not keepdims",)}  # fmt: skip


def changes(function: ast.Lambda | ast.FunctionDef, joint: bool) -> Iterator[Change]:
    """Every small mistake that the text of a function has room for."""
    first = function.args.args[0].arg if function.args.args else ""
    F = first if first in ("F", "xp") else ""
    body = [function.body] if isinstance(function, ast.Lambda) else function.body
    spared = {id(node) for statement in body for guard in _guards(statement) for node in ast.walk(guard)}
    yield from _wrong_results(function, joint, F)
    nodes = [node for statement in body for node in ast.walk(statement) if id(node) not in spared]
    axes = {id(inner) for node in nodes for axis in _axes_in(node) for inner in ast.walk(axis)}
    for node in nodes:
        yield from _changes_at(node)
        if isinstance(node, (ast.Constant, ast.UnaryOp)) and id(node) not in axes:
            yield from _other_numbers(node)


def _guards(statement: ast.AST) -> Iterator[ast.AST]:
    """Conditions that only lead to an error are no part of a gradient."""
    for node in ast.walk(statement):
        if isinstance(node, ast.If) and isinstance(node.body[0], ast.Raise):
            yield node.test
            yield node.body[0]


def _wrong_results(function: ast.Lambda | ast.FunctionDef, joint: bool, F: str) -> Iterator[Change]:
    if isinstance(function, ast.Lambda):
        results = [function.body]
    else:
        if function.returns is not None and "list" in ast.unparse(function.returns):
            return  # a helper that gives no numbers
        results = [node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value]
    for result in results:
        for leaf in _leaves(result):
            text = ast.unparse(leaf)
            if joint and not isinstance(result, ast.Tuple):  # a list of gradients
                yield SIGN, leaf, _parsed(f"[-g for g in {text}]")
                yield ZERO, leaf, _parsed(f"[{F}.zeros_like(g) for g in {text}]")
                continue
            if not _begins_with_minus(leaf):
                yield SIGN, leaf, ast.UnaryOp(ast.USub(), leaf)
            yield ZERO, leaf, _parsed(f"{F}.zeros_like({text})" if F else f"0 * ({text})")


def _leaves(result: ast.expr) -> Iterator[ast.expr]:
    if isinstance(result, ast.Tuple):
        for element in result.elts:
            yield from _leaves(element)
    elif isinstance(result, ast.IfExp):
        yield from _leaves(result.body)
        yield from _leaves(result.orelse)
    else:
        yield result


def _begins_with_minus(node: ast.expr) -> bool:
    """Whether taking a minus away does what one more would."""
    while isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Mult, ast.Div)):
        node = node.left
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)


def _parsed(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def _changes_at(node: ast.AST) -> Iterator[Change]:
    if isinstance(node, ast.BinOp):
        yield from _in_arithmetic(node)
    elif isinstance(node, ast.AugAssign):
        yield from _in_assignment(node)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
        yield SIGN, node, node.operand
    elif isinstance(node, ast.Call):
        yield from _in_call(node)
        for axis in _axes_in(node):
            yield from ((AXIS, axis, other) for other in _other_axes(axis))
    elif isinstance(node, ast.Subscript) and ast.unparse(node.slice) == "(..., None)":
        yield AXIS, node.slice, _parsed("(None, ...)")
    elif isinstance(node, ast.Compare):
        yield from _in_comparison(node)
    elif isinstance(node, ast.IfExp):
        yield BRANCH, node, ast.IfExp(node.test, node.orelse, node.body)
        yield BRANCH, node, node.body
        yield BRANCH, node, node.orelse
    elif isinstance(node, ast.If):
        yield BRANCH, node.test, ast.UnaryOp(ast.Not(), node.test)


def _in_arithmetic(node: ast.BinOp) -> Iterator[Change]:
    left, right = node.left, node.right
    if isinstance(node.op, (ast.Add, ast.Sub)):
        minus = isinstance(node.op, ast.Sub)
        yield SIGN, node, ast.BinOp(left, ast.Add() if minus else ast.Sub(), right)
        yield TERM, node, left
        yield TERM, node, ast.UnaryOp(ast.USub(), right) if minus else right
    elif isinstance(node.op, (ast.Mult, ast.Div, ast.Pow)):
        yield FACTOR, node, left
        if isinstance(node.op, ast.Mult):
            yield FACTOR, node, right
    elif isinstance(node.op, (ast.BitAnd, ast.BitOr)):
        yield COMPARISON, node, left
        yield COMPARISON, node, right


def _in_assignment(node: ast.AugAssign) -> Iterator[Change]:
    if isinstance(node.op, (ast.Add, ast.Sub)):
        flipped = ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()
        yield SIGN, node, ast.AugAssign(node.target, flipped, node.value)
        yield TERM, node, ast.Pass()
    elif isinstance(node.op, (ast.Mult, ast.Div)):
        yield FACTOR, node, ast.Pass()


def _in_call(node: ast.Call) -> Iterator[Change]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
    of_library = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) in ("F", "xp")
    if of_library and name in TRANSPOSES:
        yield TRANSPOSE, node, node.args[0]
        if name == "transpose" and len(node.args) > 1:
            yield AXIS, node, ast.Call(node.func, node.args[:1], [])
            yield AXIS, node.args[1], _parsed("tuple(axes)")
    elif of_library and name == "where":
        condition, first, second = node.args
        yield BRANCH, node, ast.Call(node.func, [condition, second, first], [])
        yield BRANCH, node, first
        yield BRANCH, node, second
    elif of_library and node.args:
        yield CALL, node, node.args[0]
        if name == "matmul":
            yield CALL, node, node.args[1]
            yield TRANSPOSE, node, ast.Call(node.func, node.args[::-1], [])  # B · A is (Aᵀ · Bᵀ)ᵀ
    elif name == "astype" and isinstance(node.func, ast.Attribute):
        yield CALL, node, node.func.value
    elif len(node.args) > 1 and ast.unparse(node.args[0]) in ("F", "xp"):  # a helper
        yield CALL, node, node.args[1]


def _axes_in(node: ast.AST) -> list[ast.expr]:
    """The arguments of a call that name axes, or say whether they are kept."""
    if not isinstance(node, ast.Call):
        return []
    found = [keyword.value for keyword in node.keywords if keyword.arg in ("axis", "keepdims")]
    if isinstance(node.func, ast.Attribute) and node.func.attr == "swapaxes":
        return found + node.args[1:]
    return found + [a for a in node.args if isinstance(a, ast.Name) and a.id in ("axis", "keepdims")]


def _other_axes(axis: ast.expr) -> list[ast.expr]:
    return [_parsed(other) for other in OTHER_AXES.get(ast.unparse(axis), ())]


def _in_comparison(node: ast.Compare) -> Iterator[Change]:
    others: dict[type[ast.cmpop], tuple[ast.cmpop, ...]] = {
        ast.Gt: (ast.GtE(), ast.Lt()),
        ast.GtE: (ast.Gt(), ast.LtE()),
        ast.Lt: (ast.LtE(), ast.Gt()),
        ast.LtE: (ast.Lt(), ast.GtE()),
        ast.Eq: (ast.NotEq(),),
        ast.NotEq: (ast.Eq(),),
        ast.Is: (ast.IsNot(),),
        ast.IsNot: (ast.Is(),),
        ast.In: (ast.NotIn(),),
        ast.NotIn: (ast.In(),),
    }
    for other in others[type(node.ops[0])]:
        yield COMPARISON, node, ast.Compare(node.left, [other], node.comparators)


def _other_numbers(node: ast.Constant | ast.UnaryOp) -> Iterator[Change]:
    if isinstance(node, ast.UnaryOp):
        if isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
            yield SIGN, node, node.operand
    elif type(node.value) is int:
        yield CONSTANT, node, ast.Constant(node.value + 1)
    elif type(node.value) is float:
        yield CONSTANT, node, ast.Constant(2 * node.value)


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST):
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        return self.new if node is self.old else self.generic_visit(node)


def mutated(function: ast.Lambda | ast.FunctionDef, joint: bool) -> Iterator[tuple[str, str, str, str]]:
    """(kind, statement before, statement after, whole function after) of each mistake; none occurs twice."""
    seen = {ast.dump(function)}
    for kind, old, new in changes(function, joint):
        statement = _statement_of(function, old)
        # Replaced in a copy, in which the same nodes are found again: a change must not touch the next one.
        memo: dict[int, Any] = {}
        whole = copy.deepcopy(function, memo)
        place, own = memo[id(old)], memo[id(statement)]
        inserted = copy.deepcopy(new)
        whole = _Replace(place, inserted).visit(whole)
        if isinstance(whole, ast.FunctionDef):
            whole.decorator_list = []
        if ast.dump(whole) in seen:
            continue
        seen.add(ast.dump(whole))
        after = inserted if own is place else own
        yield kind, _line(statement), _line(after), ast.unparse(ast.fix_missing_locations(whole))


def _statement_of(function: ast.Lambda | ast.FunctionDef, node: ast.AST) -> ast.AST:
    """The smallest statement around a node; the lambda itself if it is one."""
    around: ast.AST = function
    for statement in ast.walk(function):  # outer ones come first
        if isinstance(statement, ast.stmt) and any(inner is node for inner in ast.walk(statement)):
            around = statement
    return around


def _line(node: ast.AST) -> str:
    if isinstance(node, ast.Lambda):
        return ast.unparse(node.body)
    return ast.unparse(node).splitlines()[0]


# --------------------------------------------------------------------------------------------------------------------
# All mutants


def mutants_of(rules: Sequence[Rule], stretched: Iterable[tuple[Rule, str]] = ()) -> list[Mutant]:
    """The mutants of some rules and of the helpers that they call.

    Args:
        rules: what to break.
        stretched: (rule, argument) of the arguments that some sample broadcasts; skipping their sum is a mistake too.
    """
    found: list[Mutant] = []
    for rule in rules:
        name = rule.name
        blank = Mutant(name, rule.argument or "all", "", "", "", (rule,))
        for kind, before, after, source in mutated(text_of(rule), not rule.argument):
            found.append(replace(blank, kind=kind, before=before, after=after, source=source))
        for place, value in enumerate(rule.get()[1]):
            after = f"{value} as in the first call"
            found.append(replace(blank, kind=STALE, before=value, after=after, place=place))
        after = "the gradient of the call before"
        found.append(replace(blank, kind=STALE, before="the gradient", after=after, place=-1))
    found += _in_helpers(rules)
    for rule, argument in stretched:
        if rule in rules:
            words = "the sum over the broadcast axes", "their first element"
            found.append(Mutant(rule.name, argument, UNBROADCAST, *words, (rule,)))
    return found


def _in_helpers(rules: Sequence[Rule]) -> Iterator[Mutant]:
    users: dict[tuple[str, str], list[Rule]] = {}
    for rule in all_rules():
        for helper in helpers_of(rule):
            users.setdefault((rule.module, helper), []).append(rule)
    for (module, helper), places in sorted(users.items()):
        if set(places) & set(rules):
            ops = ", ".join(dict.fromkeys(rule.name for rule in places))
            for kind, before, after, source in mutated(_functions(module)[helper], joint=False):
                yield Mutant(ops, helper, kind, before, after, tuple(places), helper, source)


# --------------------------------------------------------------------------------------------------------------------
# In the place of the right rules


@contextmanager
def installed(mutant: Mutant) -> Iterator[None]:
    """Let a mutant stand in the place of the right rule inside the block."""
    if mutant.kind == UNBROADCAST:
        with _settling(_first_element(mutant)):
            yield
        return
    right = [rule.get() for rule in mutant.rules]
    wrong = _functions_of(mutant)
    try:
        for rule, function, (_, asked) in zip(mutant.rules, wrong, right, strict=True):
            rule.put((function, asked))
        yield
    finally:
        for rule, own in zip(mutant.rules, right, strict=True):
            rule.put(own)


def _functions_of(mutant: Mutant) -> list[Callable[..., Any]]:
    """The wrong functions: compiled among copies of the helpers, so that the module stays as it is."""
    if not mutant.source:
        rule = mutant.rules[0].get()[0]
        return [_with_last_gradient(rule) if mutant.place < 0 else _with_first_value(rule, mutant.place)]
    world = dict(vars(_module(mutant.rules[0].module)))
    for helper in {name for rule in mutant.rules for name in helpers_of(rule)}:
        world[helper] = _moved(world[helper], world)
    if mutant.helper:
        exec(compile(mutant.source, f"<mutant of {mutant.helper}>", "exec"), world)
        return [_moved(rule.get()[0], world) for rule in mutant.rules]
    if mutant.source.startswith("lambda"):
        return [eval(compile(mutant.source, f"<mutant of {mutant.op}>", "eval"), world)]
    exec(compile(mutant.source, f"<mutant of {mutant.op}>", "exec"), world)
    return [world[mutant.source.partition("(")[0].removeprefix("def ")]]


def _moved(function: Any, world: dict[str, Any]) -> Any:
    """The same function, which looks its names up elsewhere."""
    return types.FunctionType(function.__code__, world, function.__name__, function.__defaults__, function.__closure__)


def _with_first_value(rule: Callable[..., Any], place: int) -> Callable[..., Any]:
    """The rule, but one of its values is the first of that shape and dtype that it ever saw."""
    seen: dict[Any, Any] = {}

    def stale(F: Any, gy: Any, *values: Any) -> Any:
        old = seen.setdefault(_form(values[place]), values[place])
        return rule(F, gy, *values[:place], old, *values[place + 1 :])

    return stale


def _with_last_gradient(rule: Callable[..., Any]) -> Callable[..., Any]:
    """The rule, one call behind for each shape and dtype."""
    last: dict[Any, Any] = {}

    def stale(F: Any, gy: Any, *values: Any) -> Any:
        fresh = rule(F, gy, *values)
        old, last[_form(fresh)] = last.get(_form(fresh), fresh), fresh
        return old

    return stale


def _form(value: Any) -> Any:
    """What two values must share to be taken for one another."""
    if isinstance(value, (tuple, list)):
        return (type(value), *map(_form, value))
    return type(value), getattr(value, "shape", None), str(getattr(value, "dtype", ""))


Settle = Callable[[tape.Node, tape.Node, Any, Any], Any]


@contextmanager
def _settling(settle: Any) -> Iterator[None]:
    right, tape.settle = tape.settle, settle
    try:
        yield
    finally:
        tape.settle = right


def _first_element(mutant: Mutant) -> Settle:
    """The engine's book-keeping, but one argument of one op gets a single element of each sum."""
    op, right = mutant.rules[0].primitive(), tape.settle

    def settle(node: tape.Node, parent: tape.Node, gradient: Any, F: Any) -> Any:
        if node.op is op and argument_at(node, parent) == mutant.argument and _is_stretched(gradient, parent):
            sizes = (1,) * (gradient.ndim - len(parent.shape)) + tuple(parent.shape)
            gradient = gradient[tuple(slice(0, 1) if size == 1 else slice(None) for size in sizes)]
        return right(node, parent, gradient, F)  # which has one element left to sum, or none

    return settle


def _is_stretched(gradient: Any, parent: tape.Node) -> bool:
    """Whether a gradient is still to be summed over the axes that its value was broadcast along."""
    shape, own = getattr(gradient, "shape", parent.shape), parent.shape
    return shape != own and len(shape) >= len(own)


def argument_at(node: tape.Node, parent: tape.Node) -> str:
    """The argument of an op that a parent stands for; all arrays of a variadic op have one name, that of *arrays."""
    place = next(i for i, other in enumerate(node.parents) if other is parent)
    parameters = node.op.__signature__.parameters.values()
    return next((p.name for i, p in enumerate(parameters) if i == place or p.kind is p.VAR_POSITIONAL), "")


# --------------------------------------------------------------------------------------------------------------------
# The audit of a mutant


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant: "caught", by which method and with which sentence; "equivalent", and why; "survived"."""

    mutant: Mutant
    verdict: str
    method: str = ""
    sentence: str = ""


def first_failure(ops: Iterable[str], methods: Sequence[str] = METHODS) -> audit.Row | None:
    """The first row that fails when the samples of some ops are examined; None if none does.

    No kernels: where one computes an op, it computes the gradients too, and hides a rule from all but a recorded sweep.
    """
    with warnings.catch_warnings(), np.errstate(all="ignore"), kernels.switched(False):
        warnings.simplefilter("ignore")  # a wrong rule may divide by zero, and a warning alone is no verdict
        samples = [sample for op in ops for sample in _samples(op)]
        for method in methods:
            for sample in samples:
                for row in audit.examine(sample, methods=[method]):
                    if row.verdict == FAIL:
                        return row
    return None


@functools.cache
def _samples(op: str) -> list[Sample]:
    """The samples of an op, small ones first."""
    if op in SAMPLES:
        return SAMPLES[op]
    samples = [sample for sample in audit.registry([op]) if isinstance(sample, Sample)]
    return sorted(samples, key=lambda sample: sum(math.prod(array.shape) for array in sample.arrays()))


def judge(mutant: Mutant, methods: Sequence[str] = METHODS) -> Verdict:
    """Install a mutant and see whether the audit notices."""
    with installed(mutant):
        row = first_failure(mutant.samples_of(), methods)
    if row is not None:
        return Verdict(mutant, "caught", row.method if row.elements else f"an error in {row.method}", row.sentence())
    if mutant.key in EQUIVALENT:
        return Verdict(mutant, "equivalent", sentence=EQUIVALENT[mutant.key])
    return Verdict(mutant, "survived")


def watch(op: str) -> tuple[str, set[tuple[Rule, str]]]:
    """Audit an op as it is: the row that fails ("" if all is well), and which arguments of its rules are broadcast."""
    places = {id(rule.primitive()): rule for rule in all_rules() if op == rule.name}
    found: set[tuple[Rule, str]] = set()
    right = tape.settle

    def settle(node: tape.Node, parent: tape.Node, gradient: Any, F: Any) -> Any:
        if id(node.op) in places and _is_stretched(gradient, parent):
            argument = argument_at(node, parent)
            rule = places[id(node.op)]
            found.add((replace(rule, argument=argument if rule.argument else ""), argument))
        return right(node, parent, gradient, F)

    with _settling(settle):
        row = first_failure([op])
    return row.sentence() if row else "", found


# --------------------------------------------------------------------------------------------------------------------
# The command


def examine(ops: Sequence[str], jobs: int = 1, methods: Sequence[str] = METHODS) -> list[Verdict]:
    """Make the mutants of some ops, of all if none is named, and judge them.

    Raises:
        ValueError: an op has no backward rule.
        RuntimeError: the audit of an unbroken op fails; it would "catch" every mutant.
    """
    rules = [rule for rule in all_rules() if not ops or rule.name in ops]
    if unknown := set(ops) - {rule.name for rule in rules}:
        raise ValueError(f"{sorted(unknown)[0]!r} is no op with a backward rule")
    with _mapping(jobs) as mapped:
        names = dict.fromkeys(rule.name for rule in rules)
        seen = list(mapped(watch, names))
        if wrong := [sentence for sentence, _ in seen if sentence]:
            raise RuntimeError(f"the audit fails before anything is broken: {wrong[0]}")
        stretched = sorted({pair for _, pairs in seen for pair in pairs}, key=repr)
        return list(mapped(functools.partial(judge, methods=methods), mutants_of(rules, stretched)))


@contextmanager
def _mapping(jobs: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """A map over processes, or the ordinary one; small products want one thread each."""
    if jobs == 1:
        with threadpool_limits(1):
            yield map
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), _one_thread) as pool:
        yield functools.partial(pool.map, chunksize=2)


def _one_thread() -> None:
    threadpool_limits(1)


def unneeded(verdicts: Sequence[Verdict]) -> list[tuple[str, str, str, str]]:
    """Entries of `EQUIVALENT` that excuse nothing: no such mutant is made any more, or the audit notices it now."""
    ops = {verdict.mutant.op for verdict in verdicts}
    excused = {verdict.mutant.key for verdict in verdicts if verdict.verdict == "equivalent"}
    return [key for key in EQUIVALENT if key[0] in ops and key not in excused]


def report(verdicts: Sequence[Verdict]) -> str:
    """A line a kind, a line a method, what is equivalent and why, what survived, and the sum of it."""
    counts = {kind: Counter(v.verdict for v in verdicts if v.mutant.kind == kind) for kind in KINDS}
    lines = [f"{'':20} {'made':>8} {'caught':>8} {'equivalent':>11} {'survived':>9}"]
    for kind, count in counts.items():
        lines.append(
            f"{kind:20} {count.total():>8} {count['caught']:>8} {count['equivalent']:>11} {count['survived']:>9}"
        )
    methods = Counter(v.method for v in verdicts if v.verdict == "caught")
    lines += ["", "caught first by " + ", ".join(f"{method} {n}" for method, n in methods.most_common())]
    for title in ("equivalent", "survived"):
        lines += ["", *(f"{title}: {_in_words(v)}" for v in verdicts if v.verdict == title)]
    lines += [f"EQUIVALENT has an entry that excuses no mutant: {key}" for key in unneeded(verdicts)]
    total = sum(counts.values(), Counter())
    lines.append(
        f"{total['caught']} of {len(verdicts)} mutants caught, {total['equivalent']} equivalent (reasons above), "
        f"{total['survived']} survived"
    )
    return "\n".join(lines)


def _in_words(verdict: Verdict) -> str:
    mutant = verdict.mutant
    why = f" ({verdict.sentence})" if verdict.verdict == "equivalent" else ""
    return f"{mutant.op}, {mutant.argument}, {mutant.kind}: {mutant.before}  →  {mutant.after}{why}"


def as_json(verdicts: Sequence[Verdict], seconds: float) -> dict[str, Any]:
    """The result file: the numbers, then every mutant."""
    counts = {kind: Counter(v.verdict for v in verdicts if v.mutant.kind == kind) for kind in KINDS}
    total = Counter(v.verdict for v in verdicts)
    return {
        "seconds": round(seconds, 1),
        "mutants": len(verdicts),
        **{name: total[name] for name in ("caught", "equivalent", "survived")},
        "kinds": {kind: dict(count) for kind, count in counts.items()},
        "rows": [f"{v.verdict}{v.method and f' by {v.method}'}: {_in_words(v)}" for v in verdicts],
    }


def main(arguments: Sequence[str] | None = None, methods: Sequence[str] = METHODS) -> int:
    """The command; 1 if a mutant survives or an entry of `EQUIVALENT` excuses nothing, else 0."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("ops", nargs="*", metavar="OP", help="the ops to break; all if none is named")
    options.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    options.add_argument("--out", type=Path, help="folder of the result file; of a run of some ops, none if not given")
    chosen = options.parse_args(arguments)
    started = time.perf_counter()
    try:
        verdicts = examine(chosen.ops, chosen.jobs, methods)
    except ValueError as error:
        options.error(str(error))
    seconds = time.perf_counter() - started
    print(report(verdicts))
    if chosen.out or not chosen.ops:
        print(_common.save("mutants", as_json(verdicts, seconds), chosen.out or _common.RESULTS), f"{seconds:.0f} s")
    return int(any(v.verdict == "survived" for v in verdicts) or bool(unneeded(verdicts)))


if __name__ == "__main__":
    sys.exit(main())
