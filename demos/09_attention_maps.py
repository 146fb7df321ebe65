"""Look inside: train a small ViT, see which patches the class token reads, and hide them.

    python demos/09_attention_maps.py                  # maps as text
    python demos/09_attention_maps.py attention.png    # and of six digits as a picture (needs the extra `vision`)

In each layer and head, A = softmax(Q·Kᵀ/√d_k) is (tokens, tokens); its first row says how much the class token takes of
every token. Its numbers for the 4×4 patches, the mean of all heads, are laid beside the digit.
"""

import sys
import tempfile
from typing import Any

import numpy as np

from tinyvit.data import digits
from tinyvit.study import draw_attention
from tinyvit.study.pictures import attention_maps
from tinyvit.training import Run, TrainedModel, load_trained, predict

RECIPE: dict[str, dict[str, Any]] = {
    "model": {"patch_size": 2, "dim": 32, "depth": 2},
    "data": {"batch_size": 64, "augment": "none"},
    "training": {"epochs": 15, "lr": 8e-3},
}


def train() -> TrainedModel:
    """As `tinyvit train --config` does, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        accuracy = Run(RECIPE, folder).train()["test_accuracy"]
        print(f"trained to a test accuracy of {accuracy:.1%}")
        assert accuracy > 0.9, accuracy
        return load_trained(folder)


def shades(values: np.ndarray, size: int) -> list[str]:
    """Numbers from 0 to 1 as grey squares, each `size` lines high and twice as many characters wide."""
    rows = ["".join(" ░▒▓█"[min(4, int(5 * value))] * (2 * size) for value in row) for row in values]
    return [row for row in rows for _ in range(size)]


def cost_of_hiding(trained: TrainedModel, images: np.ndarray, scores: np.ndarray) -> float:
    """By how much the answer gets less likely when each image's patch of the highest score is black."""

    def probabilities(images: np.ndarray) -> np.ndarray:  # (n, 10)
        return predict(trained.model, images, trained.config.data.mean, trained.config.data.std)

    covered = images.copy()
    for image, score in zip(covered, scores, strict=True):
        row, column = divmod(int(score.argmax()), 4)
        image[0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = 0
    before = probabilities(images)
    lost = before - probabilities(covered)
    return float(lost[np.arange(len(lost)), before.argmax(axis=1)].mean())


def main() -> None:
    trained, images = train(), digits().test.images[:]  # (n, 1, 8, 8)
    maps = attention_maps(trained, images)  # (n, layers, 4, 4)
    print(f"{'the image':<18}{'layer 1':<18}layer 2")
    columns = [shades(images[0, 0] / 255, 1), *(shades(layer / layer.max(), 2) for layer in maps[0])]
    print("\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True)))

    pixels = images.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4))  # brightness of each patch, (n, 4, 4)
    looks = maps.mean(axis=1)  # of both layers, (n, 4, 4)
    ink, empty = looks[pixels > 0].mean(), looks[pixels == 0].mean()
    print(f"a patch with ink gets {ink:.3f} of the attention, an empty one {empty:.3f}")
    assert ink > 1.2 * empty

    scores = {"read most": looks, "read least": -looks, "brightest": pixels}
    costs = {name: cost_of_hiding(trained, images, score) for name, score in scores.items()}
    told = ", ".join(f"the {name} {cost:.3f}" for name, cost in costs.items())
    print(f"what hiding one patch costs of the answer's probability: {told}")
    assert costs["read most"] > 3 * costs["read least"]
    if sys.argv[1:]:
        draw_attention(trained, images[:6], sys.argv[1])
        print(f"six digits and their maps: {sys.argv[1]}")


if __name__ == "__main__":
    main()
