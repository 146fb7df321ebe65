"""The patch embedding is a matrix product: cut, flatten, multiply; which is also a convolution of stride P.

    python demos/06_patches_are_a_product.py

    E = W_e·flatten(I_patch) + b_e for all patches at once:  (N, C·P²) @ (C·P², D) + (D) → (N, D)
    ∂L/∂W_e = Σₙ ∂L/∂Eⁿ·flatten(I_patch)ⁿᵀ                   ∂L/∂I: W_eᵀ·∂L/∂Eⁿ, put back where patch n was cut out

The image is a digit of those that come with tinyvit. Patches do not overlap, so that nothing is added up in ∂L/∂I.
"""

import numpy as np

import tinyvit as tv
from tinyvit.data import digits
from tinyvit.layers import PatchEmbedding

P, D = 4, 6  # patch side, width of a token


def unfold(image: np.ndarray) -> np.ndarray:
    """The tutorial's I[:, i·P:(i+1)·P, j·P:(j+1)·P], each flattened, row by row: (C, H, W) → (N, C·P²)."""
    _, H, W = image.shape
    return np.stack(
        [image[:, i * P : (i + 1) * P, j * P : (j + 1) * P].flatten() for i in range(H // P) for j in range(W // P)]
    )


def convolve(image: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """A kernel (D, C, P, P) that steps by P, pixel by pixel, without any patch: (C, H, W) → (N, D)."""
    down, across = image.shape[1] // P, image.shape[2] // P
    out = np.zeros((len(weight), down, across))
    for d, i, j in np.ndindex(out.shape):
        for c, y, x in np.ndindex(weight.shape[1:]):
            out[d, i, j] += weight[d, c, y, x] * image[c, i * P + y, j * P + x]
    return out.reshape(len(weight), -1).T


def fold(flat: np.ndarray) -> np.ndarray:
    """Back to an image of one channel: (N, P²) → (1, H, W); a mere reshape would put pixels in the wrong patch."""
    side = round(len(flat) ** 0.5)
    return np.block([[flat[i * side + j].reshape(P, P) for j in range(side)] for i in range(side)])[None]


def show(image: np.ndarray) -> None:
    """The picture, each pixel two characters wide, with the cuts between its 2×2 patches."""
    lines = ["".join(" ░▒▓█"[round(4 * value)] * 2 for value in row) for row in image[0]]
    lines = [f"{line[: 2 * P]}│{line[2 * P :]}" for line in lines]
    print("\n".join([*lines[:P], f"{'──' * P}┼{'──' * P}", *lines[P:]]))


def main() -> None:
    image = digits().train.images[3] / 255  # (C, H, W) = (1, 8, 8)
    show(image)
    layer = PatchEmbedding(P, channels=1, dim=D, rng=np.random.default_rng(0))
    layer.to(dtype=np.float64)
    weight = layer.proj.weight.numpy()  # (D, C, P, P), in a convolution's shape
    W_e = weight.reshape(D, -1)  # (D, C·P²)

    x = tv.tensor(image[None], requires_grad=True)  # a batch of one
    tokens = layer(x)
    product = unfold(image) @ W_e.T
    print(f"{len(product)} patches of {W_e.shape[1]} numbers, times W_eᵀ: {product.shape}")
    assert np.abs(tokens.detach().numpy()[0] - product).max() < 1e-12  # the bias is zero at first
    assert np.abs(convolve(image, weight) - product).max() < 1e-12
    print("patch embedding = unfold and multiply = convolution of stride 4: equal to 12 digits")

    gy = np.random.default_rng(1).standard_normal(product.shape)  # ∂L/∂E
    tokens.backward(gy[None])
    for name, found, expected in (
        ("∂L/∂W_e", layer.proj.weight.grad, (gy.T @ unfold(image)).reshape(weight.shape)),
        ("∂L/∂b_e", layer.proj.bias.grad, gy.sum(axis=0)),
        ("∂L/∂I", x.grad, fold(gy @ W_e)[None]),
    ):
        assert found is not None
        assert np.abs(found.numpy() - expected).max() < 1e-12
        print(f"{name:<8} {expected.shape!s:<13} the tape's and the product's: equal to 12 digits")


if __name__ == "__main__":
    main()
