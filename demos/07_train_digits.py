"""Train a Vision Transformer on the handwritten digits that come with tinyvit: the short way.

    python demos/07_train_digits.py

A loader makes the batches, AdamW the updates, `cosine` says the step size, and the Trainer is the loop. `tinyvit train`
does this with 100 epochs in the place of 20, and keeps what came of it. The next demo takes the Trainer apart.
"""

import numpy as np

import tinyvit as tv
from tinyvit.data import Loader, augmentation, digits
from tinyvit.training import AdamW, Trainer, cosine

EPOCHS = 20


def main() -> None:
    data = digits()  # uint8 images of 1×8×8 pixels, in three parts
    mean, std = data.statistics()
    train = Loader(data.train, 128, mean=mean, std=std, augment=augmentation("affine"), shuffle=True)
    validation, test = (Loader(part, 256, mean=mean, std=std) for part in (data.validation, data.test))
    print(f"{len(data.train)} images to train on, {len(data.validation)} to watch, {len(data.test)} to test at the end")

    config = tv.ViTConfig(
        image_size=8, patch_size=4, channels=1, num_classes=10, dim=64, depth=3, num_heads=4, mlp_ratio=2.0
    )
    model = tv.ViT(config, np.random.default_rng(0))
    optimizer = AdamW(model.named_parameters(), weight_decay=0.05)
    schedule = cosine(peak=4e-3, total=EPOCHS * len(train), warmup=2 * len(train))
    trainer = Trainer(
        model, optimizer, schedule, train, epochs=EPOCHS, validation=validation, label_smoothing=0.1, clip_norm=1.0
    )
    print(f"{model.num_parameters:,} parameters, {EPOCHS * len(train)} steps of {train.batch_size} images")

    for record in trainer.run():
        if record["epoch"] % 5 == 0:
            accuracy = record["validation_accuracy"]
            print(f"epoch {record['epoch']:2}  loss {record['loss']:.3f}  validation accuracy {accuracy:.1%}")
    accuracy = trainer.evaluate(test)["accuracy"]
    print(f"test accuracy {accuracy:.1%}")
    assert accuracy > 0.95, accuracy


if __name__ == "__main__":
    main()
