"""Fine-tune: forty images, learned from weights that know something, and from scratch.

    python demos/17_fine_tune.py            # weights that are made here
    python demos/17_fine_tune.py WEIGHTS    # yours: a file, a folder, a run, or hf://owner/name

A small ViT learns to name ten digits, and is saved as timm opens it. The new task has two classes, even and odd, and
forty images. `from_pretrained` gives the weights a new head, zero at first. The embeddings and the lower half of the
layers are frozen; above them each layer learns faster than the one below it (layer_decay). A ViT of the same shape
learns the same forty images from scratch, all of it at one pace. Large weights take their time on a CPU.

`tinyvit train --data PATH --init WEIGHTS --set training.layer_decay=0.75` does this for a dataset of yours.
"""

import sys
import tempfile

import numpy as np

import tinyvit as tv
from tinyvit.data import Loader, digits
from tinyvit.pretrained import Preprocessing, prepare, save_pretrained
from tinyvit.training import (
    AdamW,
    Trainer,
    clip_grad_norm,
    cosine,
    freeze,
    infer,
    layer_scales,
    parallel_backward,
)

EPOCHS, IMAGES, BATCH = 10, 40, 10


def save_weights(folder: str) -> None:
    """Of a ViT that names ten digits."""
    data = digits()
    mean, std = data.statistics()
    config = tv.ViTConfig(
        image_size=8, patch_size=4, channels=1, num_classes=10, dim=64, depth=3, num_heads=4, mlp_ratio=2.0
    )
    model = tv.ViT(config, np.random.default_rng(0))
    loader = Loader(data.train, 128, mean=mean, std=std, shuffle=True)
    optimizer = AdamW(model.named_parameters(), weight_decay=0.05)
    schedule = cosine(peak=4e-3, total=10 * len(loader), warmup=2 * len(loader))
    trainer = Trainer(model, optimizer, schedule, loader, epochs=10, label_smoothing=0.1, clip_norm=1.0)
    list(trainer.run())
    accuracy = trainer.evaluate(Loader(data.test, 256, mean=mean, std=std))["accuracy"]
    print(f"weights that name ten digits: test accuracy {accuracy:.1%}")
    save_pretrained(model, folder, preprocessing=Preprocessing((8, 8), mean=mean, std=std, channels=1))


def learn(model: tv.ViT, images: np.ndarray, labels: np.ndarray, lr: float, layer_decay: float = 1.0) -> None:
    learning = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    scales = layer_scales((name for name, _ in learning), model.config.depth, layer_decay)
    optimizer = AdamW(learning, weight_decay=0.05, lr_scales=scales)
    rows = np.random.default_rng(0).permuted(np.tile(np.arange(len(images)), (EPOCHS, 1)), axis=1).reshape(-1, BATCH)
    schedule = cosine(peak=lr, total=len(rows), warmup=len(rows) // 10)

    def loss_of(images: np.ndarray, labels: np.ndarray) -> tv.Tensor:
        return tv.ops.cross_entropy(model(images), labels, label_smoothing=0.1)

    model.train()
    for step, batch in enumerate(rows):
        optimizer.zero_grad()
        parallel_backward(loss_of, images[batch], labels[batch])
        clip_grad_norm(optimizer.parameters, 1.0)
        optimizer.lr = schedule(step)
        optimizer.step()
    model.eval()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        if not sys.argv[1:]:
            save_weights(folder)
        tuned = tv.from_pretrained(sys.argv[1] if sys.argv[1:] else folder, num_classes=2)
    print(tuned.report)
    scratch = tv.ViT(tuned.config, np.random.default_rng(1))

    data = digits()
    few = data.validation.images[:IMAGES]  # which the weights made here have not seen
    images, test = (prepare(tuned.preprocessing, some) for some in (few, data.test.images))
    labels, truth = data.validation.labels[:IMAGES] % 2, data.test.labels % 2

    freeze(tuned, tuned.config.depth // 2)
    pace = 0.64 / tuned.config.dim  # Adam moves each weight by about as much, and a logit adds D of them up
    learn(tuned, images, labels, lr=pace, layer_decay=0.01 ** (1 / (tuned.config.depth + 1)))
    learn(scratch, images, labels, lr=pace / 5)  # more is too much for all layers at once

    found = [float((infer(model, test).argmax(axis=1) == truth).mean()) for model in (scratch, tuned)]
    told = f"odd or even, learned from {IMAGES} images: test accuracy"
    print(f"{told} {found[0]:.1%} from scratch, {found[1]:.1%} from these weights")
    if not sys.argv[1:]:
        assert found[1] > found[0] + 0.05


if __name__ == "__main__":
    main()
