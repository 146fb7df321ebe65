"""Why the order of the sweep matters: one tape, three orders, two of which give wrong sums.

    python demos/03_the_order_of_the_sweep.py

h = x² is used twice, once at once and once at the end of a longer path:

    x ──▶ h = x² ──▶ u = 5h ──▶ v = 3u ──▶ L = h + v        ∂L/∂h = 1 + 3·5 = 16
             ╰───────────────────────────────▲              ∂L/∂x = 16 · 2x = 96 at x = 3

A node may hand its gradient on only when all of it has arrived. Breadth first, h is passed when the short path has
brought its 1; the 15 come too late and are lost. Depth first, it depends on which term of the sum is written first. In
creation order, the newest node first, every use of a value is passed before the value itself.
"""

from collections.abc import Callable

import numpy as np

import tinyvit as tv
from tinyvit.engine.tape import Node

ORDERS: dict[str, Callable[[list[Node]], int]] = {  # which of the waiting nodes is passed next
    "breadth first": lambda waiting: 0,
    "depth first": lambda waiting: -1,
    "creation order": lambda waiting: max(range(len(waiting)), key=lambda i: waiting[i].number),
}


def sweep(root: Node, leaf: Node, order: str) -> float:
    """Walk tinyvit's own tape, with its own backward rules, and give what has arrived at a leaf."""
    gradients: dict[Node, np.ndarray] = {root: np.array(1.0)}
    waiting = [root]
    while waiting:
        node = waiting.pop(ORDERS[order](waiting))
        if node.op is None:
            continue  # the leaf x, where a gradient ends
        for parent, gradient in node.op.pull_back(node, gradients[node], node.parents, None):
            if parent not in gradients:
                waiting.append(parent)  # once each, as every sweep must: along each path would take exponential time
            gradients[parent] = gradients.get(parent, np.array(0.0)) + gradient
    return float(gradients[leaf])


def build(x: tv.Tensor, short_first: bool) -> tv.Tensor:
    h = x * x
    v = 3.0 * (5.0 * h)
    return h + v if short_first else v + h


def main() -> None:
    x = tv.tensor(np.array(3.0), requires_grad=True)
    print("∂L/∂x at x = 3 is 96      L = h + v   L = v + h")
    found = {}
    for order in ORDERS:
        roots = [build(x, short_first).node for short_first in (True, False)]
        found[order] = [sweep(root, x.node, order) for root in roots if root and x.node]
        print(f"{order:<22} {found[order][0]:>12g} {found[order][1]:>11g}")
    assert found == {"breadth first": [6, 6], "depth first": [96, 6], "creation order": [96, 96]}

    loss = build(x, True)
    loss.backward()
    assert x.grad is not None
    print(f"tinyvit: {x.grad.item():g}")
    try:
        loss.backward()  # the saved values are gone: an error, and no wrong sum
    except tv.TapeError as error:
        print(f"a second backward(): {error}")
    else:
        raise SystemExit("a swept tape was swept again")

    loss = build(x, True)  # on a fresh tape; x.grad holds 96 from the one before
    loss.backward(retain_graph=True)
    loss.backward()
    print(f"two more sweeps, with retain_graph=True: x.grad is {x.grad.item():g}, for backward() adds to it")
    assert x.grad.item() == 3 * 96  # so that a batch may come in parts; optimizer.zero_grad() begins anew


if __name__ == "__main__":
    main()
