"""Train on the digits in a loop written by hand: every part of the Trainer works alone.

    python demos/08_a_loop_of_your_own.py

One step is five lines: clear the gradients, sweep, clip, look up the step size, update.
"""

import numpy as np

import tinyvit as tv
from tinyvit.data import Loader, augmentation, digits
from tinyvit.training import AdamW, clip_grad_norm, cosine, evaluate, parallel_backward, shards_for

EPOCHS = 10


def main() -> None:
    data = digits()
    mean, std = data.statistics()
    train = Loader(data.train, 64, mean=mean, std=std, augment=augmentation("affine"), shuffle=True)
    validation = Loader(data.validation, 256, mean=mean, std=std)

    config = tv.ViTConfig(image_size=8, patch_size=4, channels=1, num_classes=10, dim=64, depth=2, num_heads=4)
    model = tv.ViT(config, np.random.default_rng(0))
    optimizer = AdamW(model.named_parameters(), weight_decay=0.05)
    lr = cosine(peak=4e-3, total=EPOCHS * len(train), warmup=len(train))

    shards = shards_for(config, 64)  # what a batch is cut into for the threads: so small a model is fastest whole

    def loss_of(images: np.ndarray, labels: np.ndarray) -> tv.Tensor:
        return tv.ops.cross_entropy(model(images), labels, label_smoothing=0.1)

    step = 0
    for epoch in range(EPOCHS):
        for images, labels in train.epoch(epoch):
            optimizer.zero_grad()
            parallel_backward(loss_of, images, labels, shards=shards)  # or, in one piece: loss_of(…).backward()
            clip_grad_norm(model.parameters(), 1.0)
            optimizer.lr = lr(step)
            optimizer.step()
            step += 1
    accuracy = evaluate(model, validation)["accuracy"]
    print(f"after {EPOCHS} epochs: validation accuracy {accuracy:.1%}")
    assert accuracy > 0.93, accuracy


if __name__ == "__main__":
    main()
