"""Features of a ViT after any layer, and probes of them, beside scikit-learn's and timm's."""

import dataclasses
import json
import re

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

import tinyvit as tv
from tinyvit.data import DataError, Reading, Split, digits, load_folder, preprocess
from tinyvit.pretrained import (
    FeatureError,
    extract_features,
    features,
    features_of_files,
    features_of_split,
    image_files,
    knn,
    linear_probe,
    nearest,
    prepare,
    probe_dataset,
    probes,
    write_features,
)
from tinyvit.pretrained.preprocessing import Preprocessing

DATA = digits()
SHAPE = {"image_size": (12, 8), "patch_size": 4, "channels": 1, "dim": 16, "depth": 4, "num_heads": 2, "num_classes": 5}


def vit(**changes):
    """A ViT whose tokens are all different, as a trained one's."""
    model = tv.ViT(tv.ViTConfig(**{**SHAPE, **changes}), np.random.default_rng(1))
    rng = np.random.default_rng(2)
    model.load_state_dict({k: v + rng.normal(size=v.shape, scale=0.1) for k, v in model.state_dict().items()})
    return model.eval()


def pixels(n=7, shape=(1, 12, 8)):
    return np.random.default_rng(3).normal(size=(n, *shape)).astype(np.float32)


# ------------------------------------------------------------------------------------------------------------- tokens


def after(model, images, count, norm):
    """The tokens after so many layers, in plain steps."""
    x = model.embed(images)
    for layer in model.blocks[:count]:
        x = layer(x)
    return (model.norm(x) if norm and model.norm else x).numpy()


@pytest.mark.parametrize("norm", [True, False])
def test_hidden_gives_the_tokens_after_the_layers_in_the_order_asked_for(norm):
    model, images = vit(register_tokens=2), pixels()
    found = model.hidden(images, [2, 0, -1, 2], norm=norm)
    for tokens, count in zip(found, (3, 1, 4, 3), strict=True):
        assert tokens.shape == (7, 1 + 2 + 6, 16)
        np.testing.assert_allclose(tokens.numpy(), after(model, images, count, norm), rtol=1e-5, atol=1e-5)
    assert model.hidden(images, []) == []


@pytest.mark.parametrize("changes", [{}, {"layer_scale": 0.1}, {"pool": "mean", "pool_norm": True}])
def test_the_last_of_the_hidden_tokens_are_the_models_features(changes):
    model, images = vit(**changes), pixels()
    [last] = model.hidden(images, [-1])
    assert np.array_equal(last.numpy(), model.features(images).numpy())


@pytest.mark.parametrize("layer", [4, -5])
def test_a_layer_that_is_not_there_is_an_error(layer):
    with pytest.raises(ValueError, match=rf"there is no layer {layer}; this model has 4, from 0 \(or −4\) to 3"):
        vit().hidden(pixels(), [0, layer])
    with pytest.raises(FeatureError, match=f"there is no layer {layer}: this model has 4"):
        extract_features(vit(), pixels(), layers=[layer])


def test_hidden_computes_no_layer_after_the_last_one_asked_for_and_keeps_a_tape(monkeypatch):
    model = vit()
    tv.ops.sum(model.hidden(pixels(), [1])[0] ** 2).backward()
    reached = [layer.attn.qkv.weight.grad is not None for layer in model.blocks]
    assert reached == [True, True, False, False]
    assert float(np.abs(model.patch_embed.proj.weight.grad.numpy()).max()) > 0


def test_hidden_agrees_with_timm():
    torch = pytest.importorskip("torch")
    from peer_libraries import timm_module

    timm = timm_module()
    model, images = vit(), pixels()
    theirs = timm.models.VisionTransformer(
        img_size=(12, 8), patch_size=4, in_chans=1, num_classes=5, embed_dim=16, depth=4, num_heads=2
    ).eval()
    theirs.load_state_dict({name: torch.tensor(array) for name, array in model.state_dict().items()})
    for norm in (True, False):
        with torch.no_grad():
            asked = theirs.get_intermediate_layers(
                torch.tensor(images), n=[0, 2], reshape=True, return_prefix_tokens=True, norm=norm
            )
        for ours, (patches, prefix) in zip(model.hidden(images, [0, 2], norm=norm), asked, strict=True):
            np.testing.assert_allclose(ours.numpy()[:, :1], prefix.numpy(), rtol=1e-4, atol=1e-5)
            picture = ours.numpy()[:, 1:].reshape(7, 3, 2, 16).transpose(0, 3, 1, 2)
            np.testing.assert_allclose(picture, patches.numpy(), rtol=1e-4, atol=1e-5)


# ----------------------------------------------------------------------------------------------------------- features


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pool": "mean"},
        {"pool": "cls_mean", "register_tokens": 3},
        {"class_token": False, "pool": "mean"},
        {"pool": "mean", "pool_norm": True},
    ],
    ids=str,
)
def test_features_are_the_parts_of_the_tokens(changes):
    model, images = vit(**changes), pixels()
    tokens = model.features(images).numpy()
    prefix = model.config.num_prefix_tokens
    found = extract_features(model, images, ("patch_tokens", "pooled", "mean"))
    near = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(found["patch_tokens"], tokens[:, prefix:].reshape(7, 3, 2, 16), **near)
    np.testing.assert_allclose(found["mean"], tokens[:, prefix:].mean(axis=1), **near)
    np.testing.assert_allclose(
        found["pooled"] @ model.head.weight.numpy().T + model.head.bias.numpy(),
        model(images).numpy(),
        rtol=1e-4,
        atol=1e-5,
    )
    default = extract_features(model, images)
    if model.config.class_token:
        assert list(default) == ["class_token", "patch_tokens", "pooled"]
        np.testing.assert_allclose(default["class_token"], tokens[:, 0], **near)
    else:
        assert list(default) == ["patch_tokens", "pooled"]
    assert all(array.dtype == np.float32 for array in found.values())


def test_features_of_layers_are_named_by_their_number_from_the_first():
    model, images = vit(), pixels()
    found = extract_features(model, images, ("class_token", "patch_tokens"), layers=[1, -1, 3, -3])
    kinds = "class_token", "patch_tokens"
    assert list(found) == [f"{name}{kind}" for name in ("", "layer_1/", "layer_3/") for kind in kinds]
    tokens = after(model, images, 2, norm=True)
    np.testing.assert_allclose(found["layer_1/class_token"], tokens[:, 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["layer_1/patch_tokens"].reshape(7, 6, 16), tokens[:, 1:], rtol=1e-5, atol=1e-5)
    assert np.array_equal(found["layer_3/class_token"], found["class_token"])


def test_features_come_in_batches_of_any_size_for_any_workers():
    model, images = vit(dim=64, num_heads=4), pixels(50)
    whole = extract_features(model, images, batch_size=50)
    for batch_size in (1, 7, 64):
        parts = extract_features(model, images, batch_size=batch_size)
        for name in whole:
            np.testing.assert_allclose(parts[name], whole[name], rtol=1e-4, atol=1e-5)
    for workers in (1, 3):
        again = extract_features(model, images, batch_size=50, workers=workers)
        assert all(np.array_equal(again[name], whole[name]) for name in whole)


def test_features_keep_no_other_tokens_in_memory():
    [part] = features._in_shards(vit(), pixels(), ("class_token", "patch_tokens"), (), None)
    assert all(array.base is None for array in part.values())


def test_features_are_without_dropout_and_the_models_mode_comes_back():
    model, images = vit(dropout=0.5, drop_path=0.5), pixels()
    quiet = extract_features(model, images)
    model.train()
    assert np.array_equal(extract_features(model, images)["pooled"], quiet["pooled"])
    assert model.training


def test_features_follow_the_size_of_the_images():
    found = extract_features(vit(), pixels(2, (1, 16, 20)))
    assert found["patch_tokens"].shape == (2, 4, 5, 16)


def test_what_a_model_does_not_have_is_an_error():
    with pytest.raises(FeatureError, match=r"unknown features 'cls': use some of class_token, patch_tokens, pooled"):
        extract_features(vit(), pixels(), ["cls"])
    with pytest.raises(FeatureError, match="this model has no class token"):
        extract_features(vit(class_token=False, pool="mean"), pixels(), ["class_token"])
    with pytest.raises(ValueError, match="there are no images"):
        extract_features(vit(), pixels(0))


# ------------------------------------------------------------------------------------------------------ images, files


RGB = Preprocessing((12, 8), "shortest", (16, 16), "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
GREY = Preprocessing((8, 8), "shortest", (10, 10), mean=(0.3,), std=(0.4,), channels=1)


def test_images_of_the_models_size_are_only_normalised():
    assert np.array_equal(prepare(GREY, DATA.test.images), preprocess(DATA.test.images, (0.3,), (0.4,)))


def test_other_arrays_are_resized_whole_and_grey_is_repeated():
    images = DATA.test.images[:5]
    found = prepare(RGB, images)
    assert found.shape == (5, 3, 12, 8)
    for image, levels in zip(images, found, strict=True):
        wanted = Image.fromarray(image[0]).convert("RGB").resize((8, 12), Image.Resampling.BICUBIC)
        unit = np.asarray(wanted, np.float32).transpose(2, 0, 1) / 255
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (RGB.mean, RGB.std))
        np.testing.assert_allclose(levels, (unit - mean) / std, atol=1e-5)
    colours = np.random.default_rng(0).integers(0, 256, (2, 3, 20, 30), np.uint8)
    assert prepare(GREY, colours).shape == (2, 1, 8, 8)
    with pytest.raises(DataError, match="uint8"):
        prepare(RGB, np.zeros((2, 2, 8, 8), np.uint8))


@pytest.fixture
def folder(tmp_path):
    """Two classes of three photographs, a damaged one, a note and a hidden folder."""
    rng = np.random.default_rng(0)
    for name, picture in zip(("china", "flower"), load_sample_images().images, strict=True):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(3):
            h, w = rng.integers(40, 90, 2)
            Image.fromarray(picture[i : i + h, i : i + w]).save(tmp_path / "set" / name / f"{i}.png")
    (tmp_path / "bad.png").write_text("no picture")
    (tmp_path / "note.txt").write_text("no picture either")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "a.png").write_bytes((tmp_path / "set" / "china" / "0.png").read_bytes())
    return tmp_path


def test_folders_stand_for_the_pictures_in_them(folder):
    china = [folder / "set" / "china" / f"{i}.png" for i in range(3)]
    assert image_files([folder / "set" / "china"]) == china
    names = [path.relative_to(folder).as_posix() for path in image_files([folder / "note.txt", folder])]
    assert names[0] == "note.txt"  # whoever names a file means it
    assert names[1:] == ["bad.png", *(f"set/{name}/{i}.png" for name in ("china", "flower") for i in range(3))]
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no pictures"):
        image_files([folder / "empty"])


def test_features_of_files_are_those_of_the_prepared_images(folder):
    model = vit(channels=3)
    files = image_files([folder / "set"])
    done = []
    found, bad = features_of_files(model, RGB, files, layers=[0], batch_size=4, on_images=done.append)
    assert (bad, done) == ([], [4, 2])
    assert found["paths"].tolist() == [str(path) for path in files]
    assert found["grid"].tolist() == [3, 2]
    wanted = extract_features(model, RGB(files), layers=[0])
    assert {*wanted, "paths", "grid"} == found.keys()
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5)


def test_files_that_are_no_pictures_are_passed_over_and_told(folder):
    model = vit(channels=3)
    good, gone = folder / "set" / "china" / "0.png", folder / "gone.png"
    found, bad = features_of_files(model, RGB, [folder / "bad.png", good, gone], batch_size=1)
    assert found["paths"].tolist() == [str(good)]
    assert found["pooled"].shape == (1, 16)
    assert [re.search(r"(\w+)\.png", str(error))[1] for error in bad] == ["bad", "gone"]
    with pytest.raises(DataError, match=r"bad\.png"):
        features_of_files(model, RGB, [folder / "bad.png", gone])


def test_an_npy_file_is_an_image_in_the_models_size(tmp_path):
    np.save(tmp_path / "a.npy", DATA.test.images[0])
    model = vit(image_size=8)
    found, bad = features_of_files(model, GREY, [tmp_path / "a.npy"])
    assert bad == []
    wanted = extract_features(model, prepare(GREY, DATA.test.images[:1]))
    assert np.array_equal(found["pooled"], wanted["pooled"])


def test_a_file_of_features_holds_no_pickle_and_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "new" / "features.npz"
    arrays = {"layer_1/class_token": np.ones((2, 3), np.float32), "paths": np.array(["a.png", "bild_ä.png"])}
    write_features(path, arrays)
    with np.load(path, allow_pickle=False) as file:
        assert set(file) == set(arrays)
        assert all(np.array_equal(file[name], arrays[name]) for name in arrays)
    before = path.read_bytes()

    def fail(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(TypeError, match="'paths' holds Python objects"):
        write_features(path, {"paths": np.array(["a", None])})
    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match=r"No space left on device: '.*features\.npz'"):
        write_features(path, arrays)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["features.npz"]


# --------------------------------------------------------------------------------------------------------------- k-NN


def flat(split):
    return split.images.reshape(len(split), -1).astype(np.float32)


TRAIN, VALIDATION, TEST = (flat(split) for split in (DATA.train, DATA.validation, DATA.test))


@pytest.mark.parametrize(("k", "rows"), [(1, (256, 2**15)), (20, (100, 64)), (200, (7, 150)), (len(TRAIN), (256, 999))])
def test_nearest_are_scikit_learns_neighbours(monkeypatch, k, rows):
    monkeypatch.setattr(probes, "TEST_ROWS", rows[0])
    monkeypatch.setattr(probes, "TRAIN_ROWS", rows[1])
    similarities, found = nearest(TRAIN, TEST, k)
    theirs = KNeighborsClassifier(k, metric="cosine").fit(TRAIN.astype(float), DATA.train.labels)
    distances, wanted = theirs.kneighbors(TEST.astype(float))
    np.testing.assert_allclose(similarities, 1 - distances, atol=1e-6)
    if k < len(TRAIN):
        assert [set(row) for row in found.tolist()] == [set(row) for row in wanted.tolist()]
    else:
        assert (np.sort(found) == np.arange(k)).all()


def test_of_equally_similar_images_the_first_are_taken(monkeypatch):
    monkeypatch.setattr(probes, "TRAIN_ROWS", 5)
    train = np.eye(3)[[0, 1, 1, 2, 1, 1, 0, 1]] * np.arange(1, 9)[:, None]
    similarities, rows = nearest(train, np.eye(3)[1:2] * 4, 3)
    assert (rows.tolist(), similarities.tolist()) == ([[1, 2, 4]], [[1, 1, 1]])
    assert nearest(train, np.eye(3)[1:2], 6)[1].tolist() == [[1, 2, 4, 5, 7, 0]]


def test_neighbours_do_not_depend_on_the_number_of_workers(monkeypatch):
    monkeypatch.setattr(probes, "TEST_ROWS", 50)
    one, three = (nearest(TRAIN, TEST, 10, workers) for workers in (1, 3))
    assert all(np.array_equal(a, b) for a, b in zip(one, three, strict=True))


@pytest.mark.parametrize("temperature", [0.07, 1.0, 1e-3])
def test_votes_are_scikit_learns_with_weights_that_fall_exponentially(temperature):
    found = knn(TRAIN, DATA.train.labels, TEST, k=20, temperature=temperature)
    weights = lambda distances: np.exp((distances.min(axis=1, keepdims=True) - distances) / temperature)
    theirs = KNeighborsClassifier(20, metric="cosine", weights=weights).fit(TRAIN.astype(float), DATA.train.labels)
    np.testing.assert_allclose(found, theirs.predict_proba(TEST.astype(float)), atol=1e-6 / temperature)
    assert (found.argmax(axis=1) == DATA.test.labels).mean() > 0.95


def test_a_feature_of_zeros_is_similar_to_none():
    similarities, rows = nearest(np.array([[1.0, 0], [0, 0]]), np.array([[0.0, 0], [2, 0]]), 2)
    assert similarities.tolist() == [[0, 0], [1, 0]]
    assert rows.tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k is 0; it must be from 1 to the 4 training images"),
        ({"k": 5}, "k is 5; it must be from 1 to the 4 training images"),
        ({"temperature": 0}, "temperature is 0; it must be above 0"),
        ({"test": np.ones((3, 9))}, r"train is \(4, 2\) and test \(3, 9\); both must have the same number"),
        ({"test": np.ones(2)}, r"test is \(2,\); it must be features \(n, D\)"),
        ({"test": np.array([[np.nan, 1.0]])}, "test has features that are not finite"),
        ({"train_labels": np.zeros(3, int)}, r"train_labels is int64 \(3,\); .* one for each of 4 images"),
        ({"train_labels": np.zeros(4)}, r"train_labels is float64 \(4,\); it must be whole numbers"),
        ({"train_labels": -np.ones(4, int)}, "whole numbers of at least 0"),
    ],
    ids=str,
)
def test_what_makes_no_vote_is_an_error(change, message):
    given = {"train": np.ones((4, 2)), "train_labels": np.zeros(4, int), "test": np.ones((3, 2)), "k": 1}
    with pytest.raises(ValueError, match=message):
        knn(**{**given, **change})


# ------------------------------------------------------------------------------------------------------ linear probe


def standardised(features, of=TRAIN):
    of = of.astype(np.float64)
    std = of.std(axis=0)
    return (features - of.mean(axis=0)) / np.where(std, std, 1)


def loss_of(weight, bias, strength):
    """The training loss in float64."""
    logits = standardised(TRAIN) @ weight.T.astype(np.float64) + bias
    logits -= logits.max(axis=1, keepdims=True)
    chosen = logits[np.arange(len(logits)), DATA.train.labels]
    penalty = strength / 2 * (weight.astype(np.float64) ** 2).sum()
    return (np.log(np.exp(logits).sum(axis=1)) - chosen).mean() + penalty


@pytest.mark.parametrize(("strength", "tolerance"), [(1e-1, 1e-6), (1e-2, 1e-6), (1e-3, 1e-5), (1e-4, 1e-4)])
def test_the_linear_probe_reaches_scikit_learns_loss_at_the_same_strength(strength, tolerance):
    probe = linear_probe(TRAIN, DATA.train.labels, VALIDATION, DATA.validation.labels, [strength])
    theirs = LogisticRegression(C=1 / (strength * len(TRAIN)), tol=1e-9, max_iter=5000)
    theirs.fit(standardised(TRAIN), DATA.train.labels)
    best = loss_of(theirs.coef_, theirs.intercept_, strength)
    assert best - 1e-6 < loss_of(probe.weight, probe.bias, strength) < best + tolerance
    ours = (probe.predict(TEST) == DATA.test.labels).mean()
    assert ours == pytest.approx(theirs.score(standardised(TEST), DATA.test.labels), abs=2 / len(TEST))


def test_the_strength_is_the_best_on_the_validation_images():
    probe = linear_probe(TRAIN, DATA.train.labels, VALIDATION, DATA.validation.labels, [1e-3, 1e-2, 10.0])
    assert list(probe.accuracies) == [10.0, 1e-2, 1e-3]
    assert probe.validation_accuracy == max(probe.accuracies.values()) == probe.accuracies[probe.strength]
    assert probe.accuracies[10.0] < probe.validation_accuracy
    assert probe.validation_accuracy == (probe.predict(VALIDATION) == DATA.validation.labels).mean()
    worst = linear_probe(TRAIN, DATA.train.labels, VALIDATION, (DATA.validation.labels + 1) % 10, [1e-3, 10.0])
    assert worst.strength == 10.0  # where all are wrong, the one that is wrong with less conviction


def test_a_linear_probe_is_the_same_for_any_number_of_workers():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 3000)
    features = rng.normal(size=(3000, 3000)).astype(np.float32)  # enough for three shards
    features[:, :10] += 2 * np.eye(10)[labels]
    given = features[:2500], labels[:2500], features[2500:], labels[2500:], [0.1]
    one, two = (linear_probe(*given, evaluations=6, workers=workers) for workers in (1, 2))
    assert np.array_equal(one.weight, two.weight)
    assert np.abs(one.weight).max() > 0


def test_features_that_are_constant_are_no_trouble():
    def extra(features):
        """A thousand, but for the last bit of float32."""
        noise = np.random.default_rng(0).integers(0, 2, (len(features), 1))
        return np.concatenate([features, 1000 + noise * np.spacing(np.float32(1000))], axis=1).astype(np.float32)

    given = DATA.train.labels, VALIDATION, DATA.validation.labels, [1e-2]
    plain = linear_probe(TRAIN, *given)
    given = DATA.train.labels, extra(VALIDATION), DATA.validation.labels, [1e-2]
    probe = linear_probe(extra(TRAIN), *given)
    assert np.abs(probe.weight[:, -1]).max() < 1e-4
    assert (probe.predict(extra(TEST)) == plain.predict(TEST)).mean() > 0.995


@pytest.mark.parametrize("strengths", [[], [-1.0], [np.nan], [np.inf]])
def test_strengths_that_make_no_fit_are_an_error(strengths):
    with pytest.raises(ValueError, match=r"strengths are .*; give at least one, and none below 0"):
        linear_probe(TRAIN, DATA.train.labels, VALIDATION, DATA.validation.labels, strengths)


# ----------------------------------------------------------------------------------------------------------- a dataset


@pytest.fixture(scope="module")
def report():
    return probe_dataset(vit(image_size=8, dim=32), GREY, DATA, k=(1, 5))


def test_a_dataset_is_probed_by_the_features_of_its_splits(report):
    model = vit(image_size=8, dim=32)
    found = [extract_features(model, prepare(GREY, s.images), ["pooled"])["pooled"] for s in (DATA.train, DATA.test)]
    for row, k in zip(report.knn, (1, 5), strict=True):
        votes = knn(found[0], DATA.train.labels, found[1], k)
        assert row["k"] == k
        assert row["test_accuracy"] == pytest.approx((votes.argmax(axis=1) == DATA.test.labels).mean(), abs=1 / 359)
    assert report.images == {"train": 1259, "validation": 179, "test": 359}
    assert (report.data, report.features, report.dim) == ("digits", "pooled", 32)
    assert report.linear["test_accuracy"] > 0.5
    assert min(report.seconds.values()) > 0


def test_the_table_says_what_the_report_does(report):
    title, _, head, *rows, _, took = report.to_text().splitlines()
    assert title == "digits: 1,259 training, 179 validation, 359 test images, 32 features (pooled)"
    assert head.split() == ["probe", "validation", "test"]
    for row, (name, scores) in zip(
        rows,
        [(f"k-NN, k = {k}", s) for k, s in zip((1, 5), report.knn, strict=True)]
        + [(f"linear, L2 {report.linear['l2']:g}", report.linear)],
        strict=True,
    ):
        assert re.split("  +", row) == [name, f"{scores['validation_accuracy']:.2%}", f"{scores['test_accuracy']:.2%}"]
    assert re.fullmatch(r"features \d+\.\d s, k-NN \d+\.\d s, linear probe \d+\.\d s", took)
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()


def test_nothing_is_chosen_on_the_test_images(report):
    other = dataclasses.replace(DATA, test=Split(DATA.test.images, (DATA.test.labels + 1) % 10))
    wrong = probe_dataset(vit(image_size=8, dim=32), GREY, other, k=(1,))
    assert wrong.linear["test_accuracy"] < 0.2
    assert (wrong.linear["l2"], wrong.linear["validation_accuracy"]) == (
        report.linear["l2"],
        report.linear["validation_accuracy"],
    )


def test_without_validation_images_a_tenth_of_the_training_images_stand_in():
    none = Split(DATA.test.images[:0], DATA.test.labels[:0])
    some = Split(DATA.train.images[:400], DATA.train.labels[:400])
    bare = dataclasses.replace(DATA, train=some, validation=none, test=none)
    model = vit(image_size=8)
    found = [probe_dataset(model, GREY, bare, k=(1,), seed=seed) for seed in (0, 0, 1)]
    sizes = found[0].images
    assert (sizes["train"] + sizes["validation"], sizes["test"]) == (400, 0)
    assert 38 <= sizes["validation"] <= 42
    assert found[0].linear == found[1].linear
    assert found[0].knn[0]["validation_accuracy"] != found[2].knn[0]["validation_accuracy"]
    assert found[0].linear["test_accuracy"] is None
    assert re.search(r"linear, L2 \S+ +\d+\.\d\d% +–$", found[0].to_text(), re.MULTILINE)
    tiny = dataclasses.replace(bare, train=Split(DATA.train.images[:3], np.arange(3)))
    with pytest.raises(DataError, match="too few training images a class to hold some out"):
        probe_dataset(model, GREY, tiny, k=(1,))


def test_pictures_in_files_are_prepared_as_the_family_does(folder):
    data = load_folder(folder / "set", Reading(validation=0.34, test=0.34))
    model = vit(channels=3)
    found = features_of_split(model, RGB, data.train)
    wanted = extract_features(model, RGB(data.train.images.paths), ["pooled"])["pooled"]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert probe_dataset(model, RGB, data, k=(1, 2)).images == {"train": 2, "validation": 2, "test": 2}
    with pytest.raises(FeatureError, match="k is 3; it must be from 1 to the 2 training images"):
        probe_dataset(model, RGB, data, k=(1, 3))


def test_pictures_in_files_that_are_held_out_are_not_decoded_for_it(folder, monkeypatch):
    data = load_folder(folder / "set", Reading(validation=0, test=0))
    monkeypatch.setattr(type(data.train.images), "read", None)
    for i in range(3, 6):
        for name in ("china", "flower"):
            (folder / "set" / name / f"{i}.png").write_bytes((folder / "set" / name / "0.png").read_bytes())
    data = load_folder(folder / "set", Reading(validation=0, test=0))
    assert probe_dataset(vit(channels=3), RGB, data, k=(1,)).images == {"train": 10, "validation": 2, "test": 0}


def test_features_that_are_not_finite_are_the_datas_fault_in_one_sentence():
    model = vit(image_size=8)
    model.cls_token.data[...] = np.nan
    with np.errstate(all="ignore"), pytest.raises(DataError, match="features that are not finite; look at the images"):
        probe_dataset(model, GREY, DATA, k=(1,))


def test_features_and_fits_are_the_same_on_every_device(device):
    model, images = vit(), pixels(20)
    here = extract_features(model, images, layers=[1])
    there = extract_features(model.to(device=device), images, layers=[1])
    for name, array in there.items():
        assert isinstance(array, np.ndarray)
        np.testing.assert_allclose(array, here[name], rtol=1e-3, atol=1e-4)
    given = TRAIN[:300], DATA.train.labels[:300], VALIDATION, DATA.validation.labels, [1e-2]
    ours, theirs = linear_probe(*given), linear_probe(*given, device=device)
    assert (ours.predict(TEST) == theirs.predict(TEST)).mean() > 0.99
