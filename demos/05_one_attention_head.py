"""One attention head, forward and backward by hand, beside the tape; and two places where the tutorial cannot be right.

    python demos/05_one_attention_head.py

Tokens are rows here, as in tinyvit: X is (N, D), a weight is (out, in), and the tutorial's W·X is X·Wᵀ.

    Q = X·W_Qᵀ    K = X·W_Kᵀ    V = X·W_Vᵀ    S = Q·Kᵀ/√d_k    A = softmax(S)    O = A·V    O′ = O·W_Oᵀ

The tutorial's backward pass starts from ∂L/∂Q, ∂L/∂K and ∂L/∂V and does not say how these come from ∂L/∂O′: that is the
longer part (docs/errata.md, 14). And its formulas take tokens for columns in Q = W_Q·X, but for rows in A (2).
"""

import numpy as np

import tinyvit as tv

N, D, d_k = 5, 6, 4  # tokens, width, width of the head
rng = np.random.default_rng(0)
X = rng.standard_normal((N, D))
W_Q, W_K, W_V = rng.standard_normal((3, d_k, D))
W_O, gy = rng.standard_normal((D, d_k)), rng.standard_normal((N, D))  # gy = ∂L/∂O′, from what follows in the model


def softmax(s: np.ndarray) -> np.ndarray:
    e = np.exp(s - s.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def by_hand() -> dict[str, np.ndarray]:
    """Every gradient of the head, in the order in which the sweep finds them."""
    Q, K, V = X @ W_Q.T, X @ W_K.T, X @ W_V.T  # (N, d_k)
    A = softmax(Q @ K.T / np.sqrt(d_k))  # (N, N), over the keys: each row sums to 1
    O = A @ V  # noqa: E741 -- (N, d_k), as the tutorial calls it
    g = {"W_O": gy.T @ O, "O": gy @ W_O}  # ∂L/∂W_O = ∂L/∂O′ᵀ·O             ∂L/∂O = ∂L/∂O′·W_O
    g["V"], g["A"] = A.T @ g["O"], g["O"] @ V.T  # ∂L/∂V = Aᵀ·∂L/∂O          ∂L/∂A = ∂L/∂O·Vᵀ
    g["S"] = A * (g["A"] - (g["A"] * A).sum(axis=-1, keepdims=True))  # row by row: (diag(a) − a·aᵀ)·∂L/∂a
    g["Q"], g["K"] = g["S"] @ K / np.sqrt(d_k), g["S"].T @ Q / np.sqrt(d_k)  # S is a product of both
    g["W_Q"], g["W_K"], g["W_V"] = g["Q"].T @ X, g["K"].T @ X, g["V"].T @ X  # the tutorial's 17 to 19
    g["X"] = g["Q"] @ W_Q + g["K"] @ W_K + g["V"] @ W_V  # its 16: X is used three times
    return g


def by_the_tape() -> tuple[dict[str, np.ndarray], tv.Tensor]:
    """The forward formulas alone; the gradients of all that was computed on the way, and a loss whose ∂L/∂O′ is gy."""
    x, w_q, w_k, w_v, w_o = (tv.tensor(a, requires_grad=True) for a in (X, W_Q, W_K, W_V, W_O))
    q, k, v = x @ w_q.T, x @ w_k.T, x @ w_v.T
    s = q @ k.T / np.sqrt(d_k)
    a = tv.ops.softmax(s)
    o = a @ v
    wanted = {"W_O": w_o, "O": o, "V": v, "A": a, "S": s, "Q": q, "K": k, "W_Q": w_q, "W_K": w_k, "W_V": w_v, "X": x}
    loss = (o @ w_o.T * gy).sum()
    found = tv.grad(loss, list(wanted.values()), retain_graph=True)
    return {name: g.numpy() for name, g in zip(wanted, found, strict=True)}, loss


def main() -> tv.Tensor:
    hand, (tape, loss) = by_hand(), by_the_tape()
    for name, expected in hand.items():
        assert np.abs(tape[name] - expected).max() < 1e-12 * np.abs(expected).max()
        print(f"∂L/∂{name:<3} {expected.shape!s:<7} by hand and by the tape: equal to 12 digits")

    columns = X.T  # (D, N), the tutorial's X
    as_written = softmax((W_Q @ columns) @ (W_K @ columns).T / np.sqrt(d_k))  # Q·Kᵀ, of columns
    print(f"erratum 2: softmax(Q·Kᵀ/√d_k) of columns is {as_written.shape}, features by features, not {(N, N)}, tokens")
    assert as_written.shape == (d_k, d_k)

    through_v = hand["V"] @ W_V
    share = np.linalg.norm(through_v - hand["X"]) / np.linalg.norm(hand["X"])
    print(f"erratum 14: with A taken for a constant, ∂L/∂X = ∂L/∂V·W_V, off by {share:.0%} of its length here")
    assert share > 0.1
    return loss


if __name__ == "__main__":
    loss = main()  # `tinyvit explain --script` shows it
