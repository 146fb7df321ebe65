"""Features as colours: what a ViT makes of each patch, in three numbers that are red, green and blue.

    python demos/15_features_as_colours.py                                           # six digits, as text
    python demos/15_features_as_colours.py --out colours.png                         # as a picture (extra `vision`)
    python demos/15_features_as_colours.py WEIGHTS cat.jpg dog.jpg --out colours.png # your weights, your photographs

After the last layer a patch is D numbers. Of all patches of all images, X = U·diag(s)·Vᵀ about their mean, and X·v₁,
X·v₂, X·v₃ are the three numbers that keep most of them: patches of like features have like colours. WEIGHTS is what
`tv.from_pretrained` opens: a file, a folder, a run, or hf://owner/name. With --size 448 (or another number of pixels)
the images have more patches, and the positions are resampled.

Without WEIGHTS a small ViT is trained here on digits. Patches without ink are all alike, but their colours are not: a
colour tells in which digit its patch lies, which is nowhere in its pixels.
"""

import argparse
import tempfile
from typing import Any

import numpy as np

import tinyvit as tv
from tinyvit.data import digits
from tinyvit.pretrained import PretrainedViT, extract_features, knn, prepare
from tinyvit.training import Run

RECIPE: dict[str, dict[str, Any]] = {
    "model": {"patch_size": 2, "dim": 32, "depth": 2, "pool": "mean"},
    "data": {"batch_size": 64, "augment": "none"},
    "training": {"epochs": 15, "lr": 8e-3},
}


def weights_made_here() -> PretrainedViT:
    """Those of a run, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        print(f"trained to a test accuracy of {Run(RECIPE, folder).train()['test_accuracy']:.1%}")
        return tv.from_pretrained(folder)


def colours(model: tv.ViT, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Three principal components of the patches, each from 0 to 1, (n, h, w, 3), and their shares of the variance."""
    tokens = extract_features(model, images, ["patch_tokens"])["patch_tokens"]  # (n, h, w, D)
    X = tokens.reshape(-1, tokens.shape[-1])
    X = X - X.mean(axis=0)
    _, s, Vt = np.linalg.svd(X, full_matrices=False)
    low, high = np.percentile(found := X @ Vt[:3].T, (2, 98), axis=0)  # a few patches are often far away
    return ((found - low) / (high - low)).clip(0, 1).reshape(*tokens.shape[:3], 3), (s**2 / (s**2).sum())[:3]


def digit_from_empty_patch(coloured: np.ndarray) -> float:
    """How often k-NN names the digit by the colour of one patch without ink; half of the images vote on the others."""
    test = digits().test
    empty = test.images.reshape(-1, 4, 2, 4, 2).max(axis=(2, 4)) == 0  # (n, 4, 4)
    first = np.arange(len(test)) < len(test) // 2
    voters, voted = (empty & half[:, None, None] for half in (first, ~first))
    owner = np.broadcast_to(test.labels[:, None, None], empty.shape)
    said = knn(coloured[voters] - 0.5, owner[voters], coloured[voted] - 0.5).argmax(axis=1)
    return float((said == owner[voted]).mean())


def draw(images: np.ndarray, coloured: np.ndarray, out: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 2 * len(images)), layout="constrained")
    for axes, image, colour in zip(figure.subplots(len(images), 2, squeeze=False), images, coloured, strict=True):
        axes[0].imshow(np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0).clip(0, 1))
        axes[1].imshow(colour, interpolation="nearest")
        for a in axes:
            a.set_axis_off()
    figure.savefig(out, dpi=120)


def shades(values: np.ndarray, size: int) -> list[str]:
    """Numbers from 0 to 1 as grey squares, each `size` lines high and twice as many characters wide."""
    rows = ["".join(" ░▒▓█"[min(4, int(5 * value))] * (2 * size) for value in row) for row in values]
    return [row for row in rows for _ in range(size)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("weights", nargs="?", metavar="WEIGHTS")
    parser.add_argument("images", nargs="*", metavar="IMAGE")
    parser.add_argument("--out", metavar="FILE.png")
    parser.add_argument("--size", type=int)
    asked = parser.parse_args()
    if asked.size and not asked.weights:
        parser.error("--size needs WEIGHTS")

    model = tv.from_pretrained(asked.weights, image_size=asked.size) if asked.weights else weights_made_here()
    p = model.preprocessing
    images = p(asked.images) if asked.images else prepare(p, digits().test.images[: 6 if asked.weights else None])
    coloured, shares = colours(model, images)
    n, rows, columns, _ = coloured.shape
    told = " + ".join(f"{share:.0%}" for share in shares)
    print(f"{n} images of {rows}×{columns} patches: three of {model.config.dim} numbers keep {told} of the variance")

    shown = images[:6] * np.array(p.std)[:, None, None] + np.array(p.mean)[:, None, None]  # white is 1
    if not asked.weights:
        print(f"{'the image':<18}{'red':<18}{'green':<18}blue")
        pictures = [shades(shown[0, 0], 1), *(shades(coloured[0, :, :, i], 2) for i in range(3))]
        print("\n".join("  ".join(line).rstrip() for line in zip(*pictures, strict=True)))
        fresh, _ = colours(tv.ViT(model.config, np.random.default_rng(1)), images)
        trained, random = digit_from_empty_patch(coloured), digit_from_empty_patch(fresh)
        print(f"the colour of one empty patch names its digit in {trained:.0%}, of random weights in {random:.0%}")
        assert trained > random + 0.2
    if asked.out:
        draw(shown, coloured[:6], asked.out)
        print(f"images and colours: {asked.out}")


if __name__ == "__main__":
    main()
