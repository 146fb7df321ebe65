"""Break a backward rule on purpose, and let the audit name the op, the element and the two numbers.

    python demos/11_break_a_rule.py

softmax has the Jacobian diag(y) − y·yᵀ, so ∂L/∂x = y·(∂L/∂y − Σ ∂L/∂y·y). Whoever forgets that the outputs share a sum
drops the second term. The audit looks by several methods; `tinyvit audit` does so with every op and layer.
"""

import tinyvit as tv
from tinyvit.study import audit


def main() -> None:
    samples = audit.registry(["softmax"])
    whole = audit.run(samples)
    print("the rule as it is:", whole.summary())
    assert not whole.failures

    right = tv.ops.softmax.rules["x"]
    tv.ops.softmax.gradients(x=lambda F, gy, y, axis: gy * y)  # y · gy, without − y · Σ gy · y
    try:
        broken = audit.run(samples)
    finally:
        tv.ops.softmax.rules["x"] = right
    print("without its second term:", broken.summary())
    print(broken.failures[0].sentence())
    assert broken.failures
    print("methods that saw it:", ", ".join(dict.fromkeys(row.method for row in broken.failures)))


if __name__ == "__main__":
    main()
