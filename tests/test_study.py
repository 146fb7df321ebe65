"""What the study room shows is what is there: maps are the model's attention, pictures are drawn."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

import tinyvit as tv
from tinyvit.data import preprocess
from tinyvit.engine import tape
from tinyvit.study import draw_attention, draw_curves
from tinyvit.study.pictures import attention_figure, attention_maps
from tinyvit.training import Config, DataConfig, TrainedModel

# -------------------------------------------------------------------------------------------------- attention maps


def trained_model(channels=1, height=8, width=12, seed=0, **changes):
    sizes = {"patch_size": 4, "num_classes": 3, "dim": 16, "depth": 2, "num_heads": 2}
    config = tv.ViTConfig(image_size=(height, width), channels=channels, **{**sizes, **changes})
    rng = np.random.default_rng(seed)
    model = tv.ViT(config, rng)
    model.load_state_dict({k: v + 0.5 * rng.standard_normal(v.shape) for k, v in model.state_dict().items()})
    data = DataConfig(mean=(0.4,) * channels, std=(0.3,) * channels)
    return TrainedModel(model.eval(), Config(config, data), ("a", "b", "c"), "nowhere")


def images_for(trained, n=3):
    c = trained.config.model
    return np.random.default_rng(1).integers(0, 256, (n, c.channels, c.height, c.width)).astype(np.uint8)


def attention_by_hand(trained, images):
    """softmax(Q · Kᵀ / √d_k) of the first layer in float64, from the weights alone: (n, h, T, T)."""
    model, h = trained.model, trained.config.model.num_heads
    p = {name: array.astype(np.float64) for name, array in model.state_dict().items()}
    x = model.embed(preprocess(images, trained.config.data.mean, trained.config.data.std)).numpy().astype(np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = x * p["blocks.0.norm1.weight"] + p["blocks.0.norm1.bias"]
    n, T, D = x.shape
    qkv = x @ p["blocks.0.attn.qkv.weight"].T + p["blocks.0.attn.qkv.bias"]
    q, k, _ = qkv.reshape(n, T, 3, h, D // h).transpose(2, 0, 3, 1, 4)
    weights = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(D // h))
    return weights / weights.sum(axis=-1, keepdims=True)


VARIANTS = [
    {},
    {"register_tokens": 2},
    {"pool": "mean"},
    {"pool": "mean", "class_token": False},
    {"pool": "mean", "class_token": False, "register_tokens": 1},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_the_maps_are_what_the_pooled_token_reads_of_each_patch(changes):
    trained = trained_model(**changes)
    images, config = images_for(trained), trained.config.model
    maps = attention_maps(trained, images)
    assert maps.shape == (3, 2, 2, 3)
    prefix = config.num_prefix_tokens
    attention = attention_by_hand(trained, images).mean(axis=1)
    reads = attention[:, 0] if config.pool == "cls" else attention[:, prefix:].mean(axis=1)
    np.testing.assert_allclose(maps[:, 0], reads[:, prefix:].reshape(3, 2, 3), rtol=1e-4)
    assert (maps > 0).all()
    shares = maps.sum(axis=(2, 3))
    if prefix:
        assert ((shares > 0) & (shares < 1)).all()  # the rest goes to the class token and the registers
    else:
        np.testing.assert_allclose(shares, 1, rtol=1e-5)


def test_the_maps_of_a_later_layer_follow_the_layers_before_it():
    trained = trained_model(depth=2)
    images = images_for(trained)
    before = attention_maps(trained, images)
    trained.model.blocks[0].mlp.fc2.weight.data[...] = 0
    after = attention_maps(trained, images)
    np.testing.assert_array_equal(before[:, 0], after[:, 0])
    assert (before[:, 1] != after[:, 1]).any()


def test_looking_records_nothing(monkeypatch):
    trained, recording = trained_model(), []
    embed = trained.model.embed
    monkeypatch.setattr(trained.model, "embed", lambda x: (recording.append(tape.mode.recording), embed(x))[1])
    attention_maps(trained, images_for(trained))
    assert recording == [False]


# -------------------------------------------------------------------------------------------------------- pictures


def picture(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("n", [1, 3])
def test_attention_is_drawn_as_a_row_an_image_and_a_column_a_layer(tmp_path, channels, n):
    trained = trained_model(channels)
    draw_attention(trained, images_for(trained, n), tmp_path / "a.png")
    pixels = picture(tmp_path / "a.png")
    assert pixels.shape == (round((1.4 * n + 0.3) * 120), round(1.3 * 3 * 120), 3)
    thirds = np.array_split((pixels.max(axis=2) - pixels.min(axis=2)) > 30, 3, axis=1)  # where there is colour
    assert all(third.any() for third in thirds[1:])
    assert thirds[0].any() == (channels >= 3)


def test_a_row_of_attention_is_titled_as_its_image_is_called_without_moving_the_columns():
    trained = trained_model()
    images = images_for(trained, 2)
    titles = ["cat", "a rather long $name, taken for one that is longer"]
    figure = attention_figure(trained, images, titles)
    assert [text.get_text() for axes in figure.axes for text in axes.texts] == titles
    figure.draw_without_rendering()
    first, second = (axes.get_position() for axes in (figure.axes[0], figure.axes[3]))
    assert (first.x0, first.width) == pytest.approx((second.x0, second.width))
    box = figure.axes[0].get_position()
    assert box.width > 0.25  # a third of the figure, less its margins


def test_attention_of_a_model_without_layers_is_drawn_as_the_images_alone(tmp_path):
    trained = trained_model(depth=0)
    assert attention_maps(trained, images_for(trained)).shape == (3, 0, 2, 3)
    draw_attention(trained, images_for(trained), tmp_path / "a.png")
    assert picture(tmp_path / "a.png").std() > 10


EPOCH = {"event": "epoch", "loss": 2.0, "train_accuracy": 0.5, "lr": 1e-3, "seconds": 1.0}
VALIDATION = {"validation_loss": 1.5, "validation_accuracy": 0.6}
FINAL = {"event": "final", "test_accuracy": 0.7, "seconds": 3.0}


def write_metrics(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_curves_are_drawn_of_all_that_the_metrics_hold(tmp_path):
    epochs = [{**EPOCH, "epoch": i, "loss": 2.0 / i} for i in (1, 2, 3)]
    validated = [{**epoch, **VALIDATION} for epoch in epochs]
    drawn = []
    for i, records in enumerate((epochs, validated, [*validated, FINAL], epochs[:1])):
        draw_curves(write_metrics(tmp_path / "metrics.jsonl", *records), tmp_path / f"{i}.png")
        drawn.append(picture(tmp_path / f"{i}.png"))
    assert all(pixels.shape == (384, 1200, 3) for pixels in drawn)
    assert (drawn[0] != drawn[1]).any()  # with the validation
    accuracy = slice(400, 800)
    assert (drawn[1][:, accuracy] != drawn[2][:, accuracy]).any()  # with the star of the test accuracy
    for other in (slice(0, 390), slice(810, 1200)):
        np.testing.assert_array_equal(drawn[1][:, other], drawn[2][:, other])


@pytest.mark.parametrize("records", [[], [FINAL]], ids=["empty", "no epoch"])
def test_metrics_without_an_epoch_are_refused_and_nothing_is_drawn(tmp_path, records):
    metrics = write_metrics(tmp_path / "metrics.jsonl", *records)
    with pytest.raises(ValueError, match=r"metrics\.jsonl holds no epoch to draw"):
        draw_curves(metrics, tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_pictures_need_matplotlib_and_the_rest_does_not(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    trained = trained_model()
    with pytest.raises(ImportError):
        draw_attention(trained, images_for(trained), tmp_path / "a.png")
    with pytest.raises(ImportError):
        draw_curves(write_metrics(tmp_path / "m.jsonl", {**EPOCH, "epoch": 1}), tmp_path / "a.png")
    assert attention_maps(trained, images_for(trained)).shape == (3, 2, 2, 3)
    assert not (tmp_path / "a.png").exists()
