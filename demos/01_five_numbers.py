"""Autograd on five numbers: what the tape does, beside the same derivatives by hand.

    python demos/01_five_numbers.py

A neuron with two inputs, y = tanh(w₁x₁ + w₂x₂ + b). By the chain rule, with s = 1 − y²:

    ∂y/∂w₁ = s·x₁    ∂y/∂w₂ = s·x₂    ∂y/∂b = s    ∂y/∂x₁ = s·w₁    ∂y/∂x₂ = s·w₂
"""

import math

import numpy as np

import tinyvit as tv


def main() -> None:
    numbers = {"x1": 2.0, "x2": 0.0, "w1": -3.0, "w2": 1.0, "b": 6.7}
    x1, x2, w1, w2, b = (tv.tensor(np.float64(v), requires_grad=True) for v in numbers.values())

    y = tv.ops.tanh(w1 * x1 + w2 * x2 + b)
    y.backward()

    slope = 1 - math.tanh(-3.0 * 2.0 + 1.0 * 0.0 + 6.7) ** 2
    by_hand = [slope * -3.0, slope * 1.0, slope * 2.0, slope * 0.0, slope]
    print(f"y = {y.item():.6f}, recorded as {y!r}")
    for name, leaf, expected in zip(numbers, (x1, x2, w1, w2, b), by_hand, strict=True):
        assert leaf.grad is not None
        print(f"∂y/∂{name:<2} tape {leaf.grad.item():9.6f}   by hand {expected:9.6f}")
        assert math.isclose(leaf.grad.item(), expected, abs_tol=1e-15)


if __name__ == "__main__":
    main()
