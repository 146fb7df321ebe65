"""Matrix products."""

from __future__ import annotations

import math
from typing import Any

from tinyvit.engine.ops.shapes import reshape, squeeze
from tinyvit.engine.primitive import primitive


@primitive
def _matmul(xp, a, b):
    return xp.matmul(a, b)


_matmul.gradients(
    a=lambda F, gy, b: F.matmul(gy, F.swapaxes(b, -1, -2)),  # ∂L/∂A = ∂L/∂Y · Bᵀ
    b=lambda F, gy, a: F.matmul(F.swapaxes(a, -1, -2), gy),  # ∂L/∂B = Aᵀ · ∂L/∂Y
)


def matmul(a: Any, b: Any) -> Any:
    """Matrix product (…, n, k) @ (…, k, m) → (…, n, m); a vector is a row on the left, a column on the right.

    Raises:
        ValueError: the inner sizes differ, or an operand is a number.
    """
    left, right = getattr(a, "ndim", 0), getattr(b, "ndim", 0)
    if not left or not right:
        raise ValueError("matmul needs vectors or matrices; multiply by a number with *")
    if left == 1 or right == 1:
        y = matmul(a[None, :] if left == 1 else a, b[:, None] if right == 1 else b)
        return squeeze(y, (-2,) * (left == 1) + (-1,) * (right == 1))
    if left > 2 and right == 2:  # one tall product instead of many small ones, whose ∂L/∂B would pile up besides
        tall = reshape(a, (math.prod(a.shape[:-1]), a.shape[-1]))
        return reshape(_matmul(tall, b), (*a.shape[:-1], b.shape[-1]))
    return _matmul(a, b)


@primitive
def _einsum(xp, *operands, subscripts, optimize):
    return xp.einsum(subscripts, *operands, optimize=optimize)


@_einsum.gradient
def _einsum_rule(F, gy, inputs, subscripts, optimize):
    """Each operand's gradient is an einsum too: its own letters and the result's change places.

    A letter that only this operand has was summed over alone: its gradient is the same all along that axis.
    """
    terms, result = _parse(subscripts)
    gradients = []
    for k, (term, x) in enumerate(zip(terms, inputs, strict=True)):
        other_terms, others = terms[:k] + terms[k + 1 :], inputs[:k] + inputs[k + 1 :]
        known = "".join(letter for letter in term if letter in result + "".join(other_terms))
        g = F.einsum(f"{','.join([result, *other_terms])}->{known}", gy, *others, optimize=optimize)
        g = F.expand_dims(g, tuple(axis for axis, letter in enumerate(term) if letter not in known))
        full = tuple(n if m == 1 else m for n, m in zip(x.shape, g.shape, strict=True))
        gradients.append(g if full == g.shape else F.broadcast_to(g, full))
    return gradients


def _parse(subscripts: str) -> tuple[list[str], str]:
    terms, arrow, result = subscripts.replace(" ", "").partition("->")
    operands = terms.split(",")
    if not arrow or "." in subscripts or any(len(set(term)) < len(term) for term in operands):
        raise ValueError(
            f"einsum needs subscripts like 'bnd,bmd->bnm': an arrow, no ellipsis and no letter twice in one operand; "
            f"got {subscripts!r}"
        )
    return operands, result


def einsum(subscripts: str, *operands: Any, optimize: Any = True) -> Any:
    """Einstein's summation, for instance attention scores: einsum("bhnd,bhmd->bhnm", q, k).

    Raises:
        ValueError: subscripts without an arrow, with an ellipsis, or with a letter twice in one operand.
    """
    _parse(subscripts)
    return _einsum(*operands, subscripts=subscripts, optimize=optimize)
