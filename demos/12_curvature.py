"""Second derivatives: a Newton step on a function of two numbers, and a Hessian-vector product of a whole ViT.

    python demos/12_curvature.py

With create_graph=True the sweep itself is recorded on the tape, and its result, a gradient, can be differentiated too.
A sweep from gᵢ gives the row ∂gᵢ/∂x of the Hessian H. A sweep from g·v gives H·v, and H itself, which has as many rows
as there are parameters, is never made.
"""

import numpy as np

import tinyvit as tv


def newton() -> None:
    """Rosenbrock's valley (1 − x)² + 100(y − x²)², whose minimum is at (1, 1): a Newton step solves H·d = −g.

    Newton's method seeks a flat place, and f may rise on the way, as it does in the third step.
    """
    place = np.array([-1.2, 1.0])
    for step in range(1, 7):
        x = tv.tensor(place, requires_grad=True)
        f = (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
        [g] = tv.grad(f, [x], create_graph=True)
        H = np.stack([tv.grad(g[i], [x], retain_graph=True)[0].numpy() for i in range(2)])
        by_hand = [[1200 * place[0] ** 2 - 400 * place[1] + 2, -400 * place[0]], [-400 * place[0], 200]]
        assert np.allclose(H, by_hand, rtol=1e-12)
        place = place - np.linalg.solve(H, g.numpy())
        print(f"step {step}: f was {f.item():.2e}, now at ({place[0]:.6f}, {place[1]:.6f})")
    assert np.allclose(place, 1)


def hessian_vector_product() -> None:
    """H·v of a ViT's loss by the tape, beside the difference of two gradients."""
    rng = np.random.default_rng(0)
    config = tv.ViTConfig(image_size=8, patch_size=4, channels=1, num_classes=10, dim=16, depth=2, num_heads=2)
    model = tv.ViT(config, rng)
    model.to(dtype=np.float64)
    parameters = list(model.parameters())
    for p in parameters:
        p.data += 0.1 * rng.standard_normal(p.shape)
    direction = [rng.standard_normal(p.shape) for p in parameters]
    images, labels = rng.standard_normal((4, 1, 8, 8)), rng.integers(0, 10, 4)

    def gradient(create_graph: bool = False) -> list[tv.Tensor]:
        return tv.grad(tv.ops.cross_entropy(model(images), labels), parameters, create_graph=create_graph)

    along = sum((g * v).sum() for g, v in zip(gradient(create_graph=True), direction, strict=True))
    product = tv.grad(along, parameters)

    eps, shifted = 1e-5, []
    for sign in (1, -2):
        for p, v in zip(parameters, direction, strict=True):
            p.data += sign * eps * v
        shifted.append([g.numpy() for g in gradient()])
    above, below = shifted
    largest = max(np.abs(h.numpy()).max() for h in product)
    error = max(np.abs(h.numpy() - (a - b) / (2 * eps)).max() for h, a, b in zip(product, above, below, strict=True))
    print(f"Hessian-vector product of {model.num_parameters:,} parameters: {error / largest:.1e} from differences")
    assert error < 1e-6 * largest


if __name__ == "__main__":
    newton()
    hessian_vector_product()
