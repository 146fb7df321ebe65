"""Write an op, give it a backward rule, and let the judge look at it; then break the rule and look again.

    python demos/10_your_own_op.py

The op is softplus, y = log(1 + eˣ), whose slope is the sigmoid: ∂L/∂x = ∂L/∂y · 1/(1 + e⁻ˣ). The rule is written for
a namespace F: NumPy or CuPy in an ordinary sweep, the ops of tinyvit in a recorded one. So the second derivative needs
no further code, and gradgradcheck holds it against differences too.

In a test file the fixture does both, `def test_softplus(gradcheck): gradcheck(softplus, [[0.5, -1.0]])`: it comes with
tinyvit, as a pytest plugin. docs/write_an_op.md goes on from here: several arguments, kinks, fused ops, a GPU.
"""

import numpy as np

import tinyvit as tv


@tv.primitive
def softplus(xp, x):  # type: ignore[no-untyped-def]
    """log(1 + eˣ), without overflow: max(x, 0) + log(1 + e⁻|ˣ|)."""
    return xp.maximum(x, 0) + xp.log1p(xp.exp(-xp.abs(x)))


softplus.gradients(x=lambda F, gy, x: gy / (1 + F.exp(-x)))


def main() -> None:
    x = tv.tensor(np.random.default_rng(0).standard_normal((2, 3)), requires_grad=True)
    tv.gradcheck(softplus, [x])
    tv.gradgradcheck(softplus, [x])
    print("softplus: the rule agrees with finite differences, to second order")

    large = softplus(tv.tensor([-1000.0, 1000.0]))
    print(f"softplus(±1000) = {large.tolist()}: no overflow")
    assert large.tolist() == [0.0, 1000.0]

    softplus.gradients(x=lambda F, gy, x: gy / (1 + F.exp(x)))  # a sign is wrong
    try:
        tv.gradcheck(softplus, [x])
    except tv.GradcheckError as error:
        print(f"with a wrong sign: {error}")
    else:
        raise SystemExit("the judge missed a wrong rule")


if __name__ == "__main__":
    main()
