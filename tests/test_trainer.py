"""The training loop: each step is the one of the formulas, and each part works in a loop of one's own too."""

import math

import numpy as np
import pytest

import tinyvit as tv
from tinyvit.data import Loader, RandomAffine, Split, augmentations, digits
from tinyvit.engine import tape
from tinyvit.training import (
    EMA,
    SGD,
    AdamW,
    Interrupted,
    NonFiniteLossError,
    Trainer,
    clip_grad_norm,
    constant,
    cosine,
    evaluate,
    load_checkpoint,
    parallel_backward,
    predict,
    save_checkpoint,
    top_k,
)

DIGITS = digits()
NORMALISED = {"mean": (0.3,), "std": (0.4,)}
CONFIG = {"image_size": 8, "patch_size": 4, "channels": 1, "num_classes": 10, "dim": 16, "depth": 2, "num_heads": 2}
AUGMENT = RandomAffine(degrees=10, translate=0.5)


def part(n, split=DIGITS.train):
    return Split(split.images[:n], split.labels[:n])


def model_of(seed=0, *, filled=False, dtype=np.float32, device="cpu", **changes):
    """A model; `filled` gives every parameter, the head too, numbers that are not zero."""
    rng = np.random.default_rng(seed)
    model = tv.ViT(tv.ViTConfig(**{**CONFIG, **changes}), rng)
    if filled:
        model.load_state_dict({k: v + 0.3 * rng.standard_normal(v.shape) for k, v in model.state_dict().items()})
    return model.to(device=device, dtype=dtype)


def trainer_of(model, split, *, batch_size=16, lr=3e-3, optimizer=AdamW, epochs=2, augment=None, ema=0.0, **settings):
    options = {"augment": augment, "classes": 10, "shuffle": True, "seed": settings.get("seed", 0)}
    loader = Loader(split, batch_size, **NORMALISED, **options)
    return Trainer(
        model,
        optimizer(model.named_parameters(), lr=lr),
        cosine(lr, epochs * len(loader), warmup=1) if lr else constant(0.0),
        loader,
        epochs=epochs,
        ema=EMA(model.named_parameters(), ema) if ema else None,
        **settings,
    )


def gradients(model):
    return {name: p.grad.numpy() for name, p in model.named_parameters()}


def snapshot(trainer):
    arrays, numbers = trainer.state()
    return {k: v.tobytes() for k, v in arrays.items()}, {**numbers, "seconds": None}


def smoothed_cross_entropy(logits, labels, smoothing):
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    targets = (1 - smoothing) * np.eye(logits.shape[1])[labels] + smoothing / logits.shape[1]
    return -(targets * log_p).sum(axis=1).mean()


# --------------------------------------------------------------------------------------------------------- a step


@pytest.mark.parametrize("shards", [1, 2, 3, 5, 12, 13, 100])
def test_a_batch_swept_in_shards_has_the_loss_accuracy_and_gradient_of_the_whole(shards):
    images, labels = next(Loader(part(13), 13, **NORMALISED).epoch())
    model = model_of(filled=True, dtype=np.float64)
    logits = model(images)
    tv.ops.cross_entropy(logits, labels, 0.2).backward()
    expected = gradients(model)
    trainer = trainer_of(
        model, part(13), batch_size=13, lr=0.0, optimizer=SGD, epochs=1, shards=shards, label_smoothing=0.2
    )
    record = next(trainer.run())
    for name, gradient in gradients(model).items():
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-10, atol=1e-14, err_msg=name)
    assert record["loss"] == pytest.approx(smoothed_cross_entropy(logits.numpy(), labels, 0.2), rel=1e-12)
    assert record["train_accuracy"] == (logits.numpy().argmax(axis=1) == labels).mean()


def test_an_epochs_loss_and_accuracy_are_means_over_images_not_over_batches():
    model, split = model_of(filled=True, dtype=np.float64), part(21)  # batches of 16 and 5
    record = next(trainer_of(model, split, lr=0.0, optimizer=SGD, epochs=1).run())
    scores = evaluate(model, Loader(split, 21, **NORMALISED))
    assert record["loss"] == pytest.approx(scores["loss"], rel=1e-6)  # the images are float32
    assert record["train_accuracy"] == scores["accuracy"]


@pytest.mark.parametrize("clip_norm", [0.0, 0.1, 1e9])
def test_gradients_are_clipped_to_the_norm_and_zero_is_no_clipping(clip_norm):
    images, labels = next(Loader(part(16), 16, **NORMALISED).epoch())
    model = model_of(filled=True, dtype=np.float64)
    trainer_of(model, part(16), lr=0.0, optimizer=SGD).train_step(images, labels)
    whole = gradients(model)
    norm = math.sqrt(sum((g**2).sum() for g in whole.values()))
    assert norm > 0.1
    trainer_of(model, part(16), lr=0.0, optimizer=SGD, clip_norm=clip_norm).train_step(images, labels)
    for name, gradient in gradients(model).items():
        expected = whole[name] * (0.1 / norm if clip_norm == 0.1 else 1)
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-14, err_msg=name)


def test_the_step_size_of_each_step_is_the_schedules():
    seen = []
    trainer = trainer_of(model_of(), part(40), epochs=2)
    records = list(trainer.run(lambda t: seen.append((t.step, t.optimizer.lr, t.lr))))
    lr = cosine(3e-3, 6, warmup=1)
    assert seen == [(step + 1, lr(step), lr(step)) for step in range(6)]
    assert [record["lr"] for record in records] == [lr(2), lr(5)]


def test_records_count_epochs_from_one_and_steps_in_all():
    trainer = trainer_of(model_of(), part(40), epochs=3, validation=Loader(part(9, DIGITS.validation), 4, **NORMALISED))
    records = list(trainer.run())
    assert [(r["event"], r["epoch"], r["step"]) for r in records] == [("epoch", i, 3 * i) for i in (1, 2, 3)]
    assert 0 < records[0]["seconds"] < records[1]["seconds"] < records[2]["seconds"] == round(trainer.seconds, 3)
    last = evaluate(trainer.model, trainer.validation)
    assert (last["loss"], last["accuracy"]) == (records[2]["validation_loss"], records[2]["validation_accuracy"])


def test_dropout_is_drawn_from_the_seed_and_the_step_alone():
    images, labels = next(Loader(part(16), 16, **NORMALISED).epoch())

    def gradient(seed, step):
        tv.seed(np.random.default_rng().integers(2**31))  # the thread's own generator has no say
        model = model_of(filled=True, dropout=0.3, attention_dropout=0.2, drop_path=0.3)
        trainer = trainer_of(model, part(16), lr=0.0, optimizer=SGD, seed=seed)
        trainer.step = step
        trainer.train_step(images, labels)
        return b"".join(g.tobytes() for g in gradients(model).values())

    assert gradient(3, 5) == gradient(3, 5)
    assert len({gradient(3, 5), gradient(3, 6), gradient(4, 5)}) == 3


def test_a_step_leaves_the_threads_generator_as_it_was():
    trainer = trainer_of(model_of(dropout=0.3), part(16))
    tv.seed(1)
    list(trainer.run())
    drawn = tv.engine.random.generator().random()
    tv.seed(1)
    assert drawn == tv.engine.random.generator().random()


# ------------------------------------------------------------------------------------------------------- training


def test_the_loss_falls_and_the_digits_are_learnt(device):
    trainer = trainer_of(
        model_of(dim=32, device=device),
        DIGITS.train,
        batch_size=64,
        epochs=5,
        validation=Loader(DIGITS.validation, 256, **NORMALISED),
        clip_norm=1.0,
    )
    records = list(trainer.run())
    losses = [record["loss"] for record in records]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] < math.log(10)  # where a head of zeros starts
    assert losses[-1] < 0.7
    assert records[-1]["validation_accuracy"] > 0.85


def test_the_averaged_weights_are_evaluated_and_the_models_own_come_back():
    model, validation = model_of(), Loader(DIGITS.validation, 256, **NORMALISED)
    trainer = trainer_of(model, part(64), lr=1e-2, ema=0.9, validation=validation)
    *_, record = trainer.run()
    averaged = model_of()
    averaged.load_state_dict(dict(zip(trainer.ema.names, trainer.ema.shadows, strict=True)))
    scores = evaluate(averaged, validation)
    assert (record["validation_loss"], record["validation_accuracy"]) == (scores["loss"], scores["accuracy"])
    assert trainer.evaluate(validation) == scores
    assert evaluate(model, validation)["loss"] != scores["loss"]


def test_evaluation_weighs_every_image_alike_and_puts_the_mode_back():
    model, split = model_of(filled=True, dropout=0.5), part(21)
    images, labels = next(Loader(split, 21, **NORMALISED).epoch())
    logits = model.eval()(images).numpy().astype(np.float64)
    for mode in (True, False):
        model.train(mode)
        scores = evaluate(model, Loader(split, 4, **NORMALISED))
        assert model.training is model.blocks[0].attn.training is mode
        assert scores["loss"] == pytest.approx(smoothed_cross_entropy(logits, labels, 0), rel=1e-5)
        assert scores["accuracy"] == (logits.argmax(axis=1) == labels).mean()


def test_evaluation_and_prediction_record_nothing(monkeypatch):
    model, recording = model_of(), []
    embed = model.embed
    monkeypatch.setattr(model, "embed", lambda x: (recording.append(tape.mode.recording), embed(x))[1])
    evaluate(model, Loader(part(5), 4, **NORMALISED))
    predict(model, part(5).images, **NORMALISED, batch_size=4)
    assert recording == [False] * 4


def test_predictions_are_probabilities_whatever_the_batch_and_the_mode():
    model, images = model_of(filled=True, dropout=0.5), part(5).images
    p = predict(model, images, **NORMALISED, batch_size=2)
    assert (p.shape, p.dtype) == ((5, 10), np.float32)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(p, predict(model, images, **NORMALISED), rtol=1e-5)
    scores = evaluate(model, Loader(part(5), 5, **NORMALISED))
    assert scores["loss"] == pytest.approx(-np.log(p[np.arange(5), part(5).labels]).mean(), rel=1e-5)


@pytest.mark.parametrize("k", [1, 2, 3, 9])
def test_the_likeliest_classes_come_first_and_equals_in_their_order(k):
    answers = top_k(np.array([[0.2, 0.6, 0.2], [0.0, 0.0, 1.0]]), ["a", "b", "c"], k)
    assert ["".join(answer["class"] for answer in row) for row in answers] == ["bac"[:k], "cab"[:k]]
    assert [answer["probability"] for answer in answers[0]] == [0.6, 0.2, 0.2][:k]


@pytest.mark.parametrize("reload", [False, True], ids=["in one go", "from a checkpoint after each epoch"])
def test_a_loop_of_ones_own_reaches_the_trainers_weights_bit_for_bit(tmp_path, reload):
    split, epochs, lr = part(40), 3, 1e-2
    trainer = trainer_of(
        model_of(5),
        split,
        lr=lr,
        epochs=epochs,
        augment=AUGMENT,
        ema=0.9,
        seed=5,
        label_smoothing=0.1,
        clip_norm=0.5,
        shards=3,
    )
    list(trainer.run())

    loader = Loader(split, 16, **NORMALISED, augment=AUGMENT, shuffle=True, seed=5)
    schedule, path, step = cosine(lr, epochs * len(loader), warmup=1), tmp_path / "mine.safetensors", 0
    for epoch in range(epochs):
        if epoch == 0 or reload:
            model = model_of(5)
            optimizer, ema = AdamW(model.named_parameters(), lr=lr), EMA(model.named_parameters(), 0.9)
        if epoch and reload:
            arrays, meta = load_checkpoint(path)
            step = meta["step"]
            for name, holder in (("model", model), ("optimizer", optimizer), ("ema", ema)):
                n = len(name) + 1
                holder.load_state_dict({k[n:]: v for k, v in arrays.items() if k.startswith(f"{name}.")})
        for images, labels in loader.epoch(epoch):
            optimizer.zero_grad()
            parallel_backward(lambda x, y, m=model: tv.ops.cross_entropy(m(x), y, 0.1), images, labels, shards=3)
            clip_grad_norm(model.parameters(), 0.5)
            optimizer.lr = schedule(step)
            optimizer.step()
            ema.update()
            step += 1
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.state_dict()}
        flat = {f"{name}.{k}": v for name, entries in state.items() for k, v in entries.items()}
        save_checkpoint(path, flat, {"step": step})

    assert {k: v.tobytes() for k, v in flat.items()} == snapshot(trainer)[0]


def test_batches_are_augmented_and_mixed_where_the_model_is(device):
    augment = augmentations(["crop(1)", "randaugment", "jitter", "erasing", "mixup(0.5)", "cutmix"])
    seen, records = [], []
    for where in ("cpu", device):
        trainer = trainer_of(model_of(device=where), part(40), augment=augment, epochs=1)
        step = trainer.train_step

        def looked_at(images, labels, step=step):
            seen.append((tv.tensor(images).device, tv.tensor(images).numpy(), tv.tensor(labels).numpy()))
            step(images, labels)

        trainer.train_step = looked_at
        records += trainer.run()
    here, there = seen[:3], seen[3:]
    assert {place for place, _, _ in there} == {device}
    for (_, images, targets), (_, others, wanted) in zip(there, here, strict=True):
        assert targets.shape == (len(images), 10)
        np.testing.assert_allclose(images, others, atol=1e-4)
        np.testing.assert_allclose(targets, wanted, atol=1e-6)
    assert records[1]["loss"] == pytest.approx(records[0]["loss"], rel=1e-5)
    assert 0 <= records[1]["train_accuracy"] == records[0]["train_accuracy"] <= 1


# ------------------------------------------------------------------------------------------------- stopping, resuming


def test_stop_ends_the_run_after_the_current_step_and_the_run_can_go_on():
    trainer, whole = trainer_of(model_of(), part(40)), trainer_of(model_of(), part(40))
    list(whole.run())

    def stop(t):
        t.stop = t.step == 2

    with pytest.raises(Interrupted):
        list(trainer.run(stop))
    assert (trainer.step, trainer.epoch, trainer.batch) == (2, 0, 2)
    trainer.stop = False
    assert [record["epoch"] for record in trainer.run()] == [1, 2]
    assert snapshot(trainer) == snapshot(whole)


def test_the_state_of_another_seed_or_model_is_refused():
    arrays, numbers = trainer_of(model_of(), part(16), seed=1).state()
    with pytest.raises(ValueError, match="started with seed 1 and cannot go on with 2"):
        trainer_of(model_of(), part(16), seed=2).load_state(arrays, numbers)
    with pytest.raises(ValueError, match="do not fit ViT"):
        trainer_of(model_of(depth=1), part(16), seed=1).load_state(arrays, numbers)


# ------------------------------------------------------------------------------------------------------- no number


def test_a_loss_that_is_no_number_ends_the_run_before_the_weights_are_touched():
    loader = Loader(part(16), 16, **NORMALISED)
    trainer = trainer_of(model_of(), part(16), ema=0.9, clip_norm=1.0, shards=2)
    images, labels = next(loader.epoch())
    trainer.train_step(images, labels)
    before = snapshot(trainer)
    images[3, 0, 2, 2] = np.nan
    with pytest.raises(NonFiniteLossError, match=r"not finite at step 1 \(epoch 1\): lower training\.lr"):
        trainer.train_step(images, labels)
    assert snapshot(trainer) == before


class Kinked(tv.ViT):
    """Adds |bias| as √(bias²): at zero the value is finite, and the gradient 0 · ∞."""

    def forward(self, images):
        return super().forward(images) + tv.ops.sqrt(self.head.bias * self.head.bias)


def test_a_gradient_that_is_no_number_ends_a_clipped_run_before_the_weights_are_touched():
    trainer = trainer_of(Kinked(tv.ViTConfig(**CONFIG)), part(16), clip_norm=1.0)
    before = snapshot(trainer)
    with np.errstate(all="ignore"), pytest.raises(NonFiniteLossError, match="step 0"):
        list(trainer.run())
    assert snapshot(trainer) == before


@pytest.mark.parametrize(("lr", "step"), [(1e38, 1), (1e30, 2)])
def test_a_run_that_diverges_ends_with_the_weights_before_the_step_that_told(lr, step):
    trainer, seen = trainer_of(model_of(), part(64), optimizer=SGD, lr=lr), []
    with pytest.raises(NonFiniteLossError, match=f"not finite at step {step} "):
        list(trainer.run(lambda t: seen.append(snapshot(t))))
    assert len(seen) == step
    assert snapshot(trainer) == seen[-1]


def test_a_poisoned_image_ends_the_epoch_on_every_device(device):
    def poison(images, rng):
        return images * float("nan")  # on the device of the images

    trainer = trainer_of(model_of(device=device), part(40), augment=poison)
    with pytest.raises(NonFiniteLossError):
        list(trainer.run())
    assert trainer.epoch == 0
