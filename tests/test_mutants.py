"""The command that breaks rules on purpose: it makes the mistakes it names, and puts everything back."""

import ast
import importlib
import os
import pkgutil
import sys
from pathlib import Path

import pytest

from tinyvit import engine
from tinyvit.engine import ops, tape
from tinyvit.engine.primitive import Primitive

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))  # a folder of commands, not a package
import mutants
from mutants import AXIS, CALL, FACTOR, SIGN, STALE, TERM, TRANSPOSE, UNBROADCAST, ZERO


def primitives():
    """All ops that have a rule, wherever in the engine they are defined."""
    names = [
        m.name for package in (engine, ops) for m in pkgutil.iter_modules(package.__path__, package.__name__ + ".")
    ]
    values = [value for name in names for value in vars(importlib.import_module(name)).values()]
    return {id(op): op for op in values if isinstance(op, Primitive) and (op.rules or op.joint)}.values()


def rules():
    return {op.forward: (dict(op.rules), op.joint) for op in primitives()}


def test_every_mutant_of_some_ops_is_caught_and_the_right_rules_are_back():
    before, settle = rules(), tape.settle
    verdicts = mutants.examine(["softmax", "divide", "transpose"])
    assert [v.mutant for v in verdicts if v.verdict != "caught"] == []
    assert {SIGN, TERM, FACTOR, TRANSPOSE, AXIS, ZERO, UNBROADCAST, STALE} <= {v.mutant.kind for v in verdicts}
    assert all(v.method and v.sentence for v in verdicts)
    after = rules()
    assert after == before
    assert all(op.rules[name] is own for op in primitives() for name, own in before[op.forward][0].items())
    assert tape.settle is settle


@pytest.mark.parametrize("kind", [SIGN, STALE, UNBROADCAST])
def test_the_right_rule_is_back_after_an_error(kind):
    rule = mutants.Rule("elementwise", "divide", "b")
    own, settle = rule.get(), tape.settle
    mutant = next(m for m in mutants.mutants_of([rule], [(rule, "b")]) if m.kind == kind)
    with pytest.raises(KeyboardInterrupt), mutants.installed(mutant):  # noqa: PT012 -- what holds until the error
        assert (rule.get() is own) == (kind == UNBROADCAST)
        assert (tape.settle is settle) == (kind != UNBROADCAST)
        raise KeyboardInterrupt
    assert rule.get() is own
    assert tape.settle is settle


def test_an_audit_that_looks_at_nothing_lets_all_mutants_live(capsys):
    assert mutants.main(["negative", "--jobs", "1"], methods=()) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "0 of 3 mutants caught, 0 equivalent (reasons above), 3 survived"


def test_an_excuse_that_nobody_needs_is_an_error(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(mutants.EQUIVALENT, ("negative", "x", SIGN, "gy"), "a joke")
    assert mutants.main(["negative", "--jobs", "1", "--out", str(tmp_path)]) == 1
    assert "excuses no mutant: ('negative', 'x', 'sign flipped', 'gy')" in capsys.readouterr().out
    assert '"caught": 3' in (tmp_path / "mutants.json").read_text()


def test_an_op_without_a_rule_is_an_error():
    with pytest.raises(ValueError, match="'argmax' is no op with a backward rule"):
        mutants.examine(["argmax"])


def test_no_mutant_is_judged_while_the_audit_itself_fails(monkeypatch):
    rule = mutants.Rule("elementwise", "exp", "x")
    monkeypatch.setitem(rule.primitive().rules, "x", (lambda F, gy, y: -gy * y, ("y",)))
    with pytest.raises(RuntimeError, match="fails before anything is broken: exp"):
        mutants.examine(["exp"])


def test_every_op_and_every_rule_has_mutants():
    made = mutants.mutants_of(mutants.all_rules())
    broken = {(id(rule.primitive()), rule.argument) for m in made if m.kind == ZERO for rule in m.rules}
    assert broken >= {(id(op), name) for op in primitives() for name in (op.rules if not op.joint else [""])}
    assert len({(m.key, m.source) for m in made}) == len(made)


def test_every_mutated_rule_can_be_installed():
    for mutant in mutants.mutants_of(mutants.all_rules()):
        with mutants.installed(mutant):
            assert all(callable(rule.get()[0]) for rule in mutant.rules)


def test_the_mistakes_made_in_a_formula():
    formula = ast.parse("lambda F, gy, b, axis: gy / b - F.sum(F.swapaxes(b, -1, -2), axis=axis)", mode="eval").body
    assert isinstance(formula, ast.Lambda)
    made = {(kind, after) for kind, _, after, _ in mutants.mutated(formula, joint=False)}
    whole = "gy / b - F.sum(F.swapaxes(b, -1, -2), axis=axis)"
    assert made == {
        (SIGN, f"-({whole})"),
        (SIGN, whole.replace(" - ", " + ")),
        (ZERO, f"F.zeros_like({whole})"),
        (TERM, "gy / b"),
        (TERM, "-F.sum(F.swapaxes(b, -1, -2), axis=axis)"),
        (FACTOR, whole.replace("gy / b", "gy")),
        (TRANSPOSE, whole.replace("F.swapaxes(b, -1, -2)", "b")),
        *((AXIS, whole.replace("axis=axis", f"axis={other}")) for other in ("0", "-1")),
        *((AXIS, whole.replace("-1, -2", other)) for other in ("-2, -2", "0, -2", "-1, -1")),
        (CALL, whole.replace("F.sum(F.swapaxes(b, -1, -2), axis=axis)", "F.swapaxes(b, -1, -2)")),
    }


@pytest.mark.slow
def test_no_mutant_survives():
    verdicts = mutants.examine([], jobs=os.cpu_count() or 1)
    assert [v.mutant for v in verdicts if v.verdict == "survived"] == []
    assert mutants.unneeded(verdicts) == []
