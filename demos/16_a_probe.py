"""A probe: can the classes of images be read off features that nobody trained for them?

    python demos/16_a_probe.py            # weights that are made here
    python demos/16_a_probe.py WEIGHTS    # yours: a file, a folder, a run, or hf://owner/name

The model stays as it is. Two simple classifiers read its features: k-NN, whose neighbours vote, and a linear model. A
small ViT learns the digits 0 to 4, each of the eight ways in which a square can be turned and mirrored a class of its
own, and each digit somewhere on a black canvas. It is probed on canvases with the digits 5 to 9, of which it has not
seen one, and of which the probes learn from no more than 89. Random weights give away something, too: what training is
worth is the difference. Large weights take their time on a CPU.

`tinyvit probe WEIGHTS --data PATH` does this for a dataset of yours.
"""

import sys

import numpy as np

import tinyvit as tv
from tinyvit.data import Dataset, Loader, Split, digits
from tinyvit.pretrained import Preprocessing, probe_dataset
from tinyvit.training import AdamW, Trainer, cosine

SIDE, EPOCHS = 12, 6  # pixels of a canvas; a digit has 8


def scattered(split: Split, classes: range, rng: np.random.Generator, turned: bool = False) -> Split:
    """The digits of these classes, counted from 0, each at a random place; or each in its eight turns, twice."""
    mine = np.isin(split.labels, classes)
    images, labels = split.images[mine], split.labels[mine] - classes[0]
    if turned:
        both = images, images[..., ::-1]
        images = np.concatenate([np.rot90(some, turns, (2, 3)) for some in both for turns in range(4)] * 2)
        labels = np.concatenate([labels + turn * len(classes) for turn in range(8)] * 2)
    canvases = np.zeros((len(images), 1, SIDE, SIDE), np.uint8)
    for canvas, image, (y, x) in zip(canvases, images, rng.integers(0, SIDE - 7, (len(images), 2)), strict=True):
        canvas[:, y : y + 8, x : x + 8] = image
    return Split(canvases, labels)


def weights_made_here(split: Split, p: Preprocessing) -> tv.ViT:
    config = tv.ViTConfig(
        image_size=SIDE, patch_size=4, channels=1, num_classes=40, dim=64, depth=3, num_heads=4, mlp_ratio=2.0
    )
    model = tv.ViT(config, np.random.default_rng(0))
    loader = Loader(split, 128, mean=p.mean, std=p.std, shuffle=True)
    schedule = cosine(peak=3e-3, total=EPOCHS * len(loader), warmup=len(loader))
    *_, last = Trainer(model, AdamW(model.named_parameters()), schedule, loader, epochs=EPOCHS, clip_norm=1.0).run()
    print(f"trained on {len(split):,} canvases with 0 to 4: {last['train_accuracy']:.0%} right of 40 classes")
    return model


def main() -> None:
    rng, data = np.random.default_rng(0), digits()
    parts = data.validation, data.test, data.train  # few to learn from, many to test: all of them are unseen
    few, validation, many = (scattered(split, range(5, 10), rng) for split in parts)
    dataset = Dataset("the digits 5 to 9", few, validation, many, data.classes[5:], data.licence)
    model: tv.ViT
    if sys.argv[1:]:
        model = opened = tv.from_pretrained(sys.argv[1])
        p = opened.preprocessing
    else:
        mean, std = dataset.statistics()
        p = Preprocessing((SIDE, SIDE), mean=mean, std=std, channels=1)
        model = weights_made_here(scattered(data.train, range(5), rng, turned=True), p)
    fresh = tv.ViT(model.config, np.random.default_rng(1))

    print(f"{dataset.name}: {len(dataset.train)} images to learn from, {len(dataset.test)} to test")
    print(f"{'':<16}k-NN   linear")
    found = []
    for name, candidate in (("random weights", fresh), ("these weights", model)):
        report = probe_dataset(candidate, p, dataset, k=[10])
        found.append((report.knn[0]["test_accuracy"], report.linear["test_accuracy"]))
        print(f"{name:<16}{found[-1][0]:.1%}  {found[-1][1]:.1%}")
    if not sys.argv[1:]:
        assert all(trained > random + 0.1 for random, trained in zip(*found, strict=True))


if __name__ == "__main__":
    main()
