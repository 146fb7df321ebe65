"""The data room: splits and datasets, augmentation, and the loader's order. Sources have tests of their own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvit.data import (
    AUGMENTATIONS,
    DataError,
    Dataset,
    Loader,
    RandomAffine,
    Split,
    preprocess,
    warp,
)

PARTS = ("train", "validation", "test")


def a_split(n=10, channels=1, size=(4, 5), classes=3, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, channels, *size), dtype=np.uint8)
    return Split(images, rng.integers(0, classes, n))


# Split and Dataset


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 1, 4, 4), np.float32), np.zeros(2, np.int64), "images must be uint8 .* float32"),
        (
            np.zeros((2, 4, 4), np.uint8),
            np.zeros(2, np.int64),
            r"\(n, C, H, W\), but are uint8 .*\(2, 4, 4\)",
        ),
        (np.zeros((2, 0, 4, 4), np.uint8), np.zeros(2, np.int64), r"\(2, 0, 4, 4\)"),
        ([[0]], np.zeros(1, np.int64), "but are list"),
        (np.zeros((2, 1, 4, 4), np.uint8), np.zeros(3, np.int64), r"labels must be int64 of shape \(2,\)"),
        (np.zeros((2, 1, 4, 4), np.uint8), np.zeros(2, np.uint8), "labels must be int64"),
        (np.zeros((2, 1, 4, 4), np.uint8), [0, 1], "labels must be int64 .* list"),
    ],
)
def test_split_refuses_other_shapes_and_dtypes(images, labels, message):
    with pytest.raises(DataError, match=message):
        Split(images, labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": a_split(0)}, "training split has no images"),
        ({"validation": a_split(4, size=(5, 5))}, r"validation images are .*\(1, 5, 5\).*\(1, 4, 5\)"),
        ({"test": a_split(50, classes=4)}, "test labels reach from 0 to 3, but with 3 classes"),
        ({"test": Split(a_split(1).images, np.array([-1]))}, "test labels reach from -1"),
    ],
)
def test_dataset_refuses_splits_that_do_not_fit(changes, message):
    splits = {"train": a_split(), "validation": a_split(), "test": a_split(), **changes}
    with pytest.raises(DataError, match=message):
        Dataset("made up", classes=("a", "b", "c"), licence="", **splits)


@given(
    n=st.integers(1, 5),
    channels=st.integers(1, 4),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 99),
)
def test_statistics_are_those_of_numpy(n, channels, size, seed):
    split = a_split(n, channels, size, seed=seed)
    data = Dataset("made up", split, split, split, ("a", "b", "c"), "")
    assert (data.channels, data.image_size, data.num_classes) == (channels, size, 3)
    mean, std = data.statistics()
    unit = split.images / 255
    np.testing.assert_allclose(mean, unit.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, np.maximum(unit.std(axis=(0, 2, 3)), 1 / 255), rtol=1e-9)


def test_statistics_of_a_constant_channel_can_be_divided_by():
    split = Split(np.full((3, 1, 2, 2), 7, np.uint8), np.zeros(3, np.int64))
    assert Dataset("flat", split, split, split, ("a",), "").statistics() == ((7 / 255,), (1 / 255,))


# Augmentation

sizes = st.tuples(st.integers(0, 4), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))


def pictures(shape, seed=0):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def maps(n, *rows):
    return np.broadcast_to(np.array(rows, dtype=float), (n, 2, 3))


@given(sizes, st.floats(-2, 2))
def test_affine_without_ranges_changes_no_bit(shape, fill):
    images = pictures(shape)
    changed = RandomAffine(fill=fill)(images, np.random.default_rng(0))
    assert changed.dtype == np.float32
    assert np.array_equal(changed, images)


@given(sizes, st.integers(-10, 10), st.integers(-10, 10), st.floats(-2, 2, width=32))
def test_warp_by_whole_pixels_moves_them_and_fills(shape, right, down, fill):
    images = pictures(shape)
    B, C, H, W = shape
    wide = np.full((B, C, H + 40, W + 40), fill, np.float32)
    wide[:, :, 20 : 20 + H, 20 : 20 + W] = images
    expected = wide[:, :, 20 - down : 20 - down + H, 20 - right : 20 - right + W]
    warped = warp(images, maps(B, (1, 0, -right), (0, 1, -down)), fill)
    np.testing.assert_allclose(warped, expected, rtol=1e-6, atol=1e-6)


def test_warp_blends_neighbours_and_the_fill():
    row = np.array([[[[4, 8]]]], np.float32)
    assert warp(row, maps(1, (1, 0, -0.25), (0, 1, 0)), fill=2)[0, 0].tolist() == [[3.5, 7]]
    assert warp(row, maps(1, (1, 0, 0), (0, 1, 0.5)), fill=2)[0, 0].tolist() == [[3, 5]]


def test_each_image_has_its_own_map():
    images = pictures((3, 2, 6, 6))
    each = np.stack([maps(1, (1, 0, t), (0, 1, t / 2))[0] for t in (0.0, 1.3, -2.7)])
    alone = [warp(images[i : i + 1], each[i : i + 1]) for i in range(3)]
    assert np.array_equal(warp(images, each), np.concatenate(alone))


class Fixed:
    """A generator whose every draw is the same: turn, shear, size, right, down, each −1 to 1."""

    def __init__(self, **draws):
        self.draws = [draws.get(name, 0.0) for name in ("turn", "shear", "size", "right", "down")]

    def uniform(self, low, high, size):
        assert (low, high) == (-1, 1)
        return np.repeat(np.array(self.draws)[:, None], size[1], axis=1)


@pytest.mark.parametrize(("turn", "quarters"), [(1, 1), (-1, -1), (0, 0)])
def test_a_quarter_turn_is_rot90(turn, quarters):
    images = pictures((3, 2, 8, 8))
    turned = RandomAffine(degrees=90)(images, Fixed(turn=turn))
    np.testing.assert_allclose(turned, np.rot90(images, quarters, axes=(2, 3)), atol=1e-5)


def test_shift_scale_and_shear_have_the_stated_amounts():
    images = np.zeros((1, 1, 9, 9), np.float32)
    images[0, 0, 4, 6] = images[0, 0, 6, 4] = 1  # two pixels right of the centre, and two below it

    def lit(image):
        return {(int(y), int(x)) for y, x in zip(*np.nonzero(image[0, 0] > 0.99), strict=True)}

    shifted = RandomAffine(translate=2)(images, Fixed(right=1, down=-0.5))
    assert lit(shifted) == {(3, 8), (5, 6)}
    grown = RandomAffine(scale=1)(images, Fixed(size=1))
    assert lit(grown) == {(4, 8), (8, 4)}
    shrunk = RandomAffine(scale=1)(images, Fixed(size=-1))
    assert lit(shrunk) == {(4, 5), (5, 4)}
    sheared = RandomAffine(shear=45)(images, Fixed(shear=0.999999))
    assert lit(sheared) == {(4, 6), (6, 6)}


def test_shift_is_applied_after_turn_and_scale():
    images = np.zeros((1, 1, 9, 9), np.float32)
    images[0, 0, 4, 5] = 1
    changed = RandomAffine(degrees=90, scale=1, translate=1)(images, Fixed(turn=1, size=1, right=1))
    assert np.unravel_index(changed.argmax(), changed.shape) == (0, 0, 2, 5)


@given(sizes, st.integers(0, 2**32))
def test_affine_is_reproducible_bounded_and_float32(shape, seed):
    images, affine = pictures(shape), RandomAffine(degrees=180, translate=3, scale=1, shear=30, fill=0.5)
    before = images.copy()
    once, again = (affine(images, np.random.default_rng(seed)) for _ in range(2))
    assert once.dtype == np.float32
    assert once.shape == shape
    assert np.array_equal(once, again)
    assert np.array_equal(images, before)
    assert np.all((once >= 0) & (once <= 1))


def test_affine_draws_another_change_for_each_image():
    images = np.repeat(pictures((1, 1, 8, 8)), 16, axis=0)
    changed = AUGMENTATIONS["affine"](images, np.random.default_rng(0))
    assert len(np.unique(changed.reshape(16, -1), axis=0)) == 16


@pytest.mark.parametrize("name", ["degrees", "translate", "scale", "shear"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_affine_refuses_impossible_ranges(name, value):
    with pytest.raises(DataError, match=f"needs {name} from 0"):
        RandomAffine(**{name: value})


def test_affine_refuses_a_shear_to_infinity():
    with pytest.raises(DataError, match="needs shear from 0 to below 90, not 90"):
        RandomAffine(shear=90)


@pytest.mark.parametrize(
    ("images", "inverse", "message"),
    [
        (np.zeros((2, 1, 4, 4)), maps(2, (1, 0, 0), (0, 1, 0)), "images must be float32 .* float64"),
        (pictures((1, 4, 4)), maps(1, (1, 0, 0), (0, 1, 0)), r"\(B, C, H, W\), but are .*\(1, 4, 4\)"),
        (pictures((2, 1, 4, 4)), maps(3, (1, 0, 0), (0, 1, 0)), r"2 images need maps .*\(3, 2, 3\)"),
    ],
)
def test_warp_refuses_other_shapes_and_dtypes(images, inverse, message):
    with pytest.raises(DataError, match=message):
        warp(images, inverse)


# The loader


def a_loader(split, batch_size, **options):
    C = split.images.shape[1]
    return Loader(split, batch_size, mean=(0.4,) * C, std=(0.3,) * C, **options)


def numbered(n):
    """Return a split whose labels number its images."""
    return Split(np.random.default_rng(0).integers(0, 256, (n, 2, 5, 4), dtype=np.uint8), np.arange(n))


def same(batches, others):
    pairs = list(zip(batches, others, strict=True))
    return all(np.array_equal(a, b) for batch, other in pairs for a, b in zip(batch, other, strict=True))


@given(n=st.integers(1, 40), size=st.integers(1, 50), epoch=st.integers(0, 9), shuffle=st.booleans())
def test_every_image_comes_once_an_epoch_with_its_label(n, size, epoch, shuffle):
    split = numbered(n)
    loader = a_loader(split, size, shuffle=shuffle)
    batches = list(loader.epoch(epoch))
    assert len(batches) == len(loader)
    assert all(len(labels) == size for _, labels in batches[:-1])
    rows = np.concatenate([labels for _, labels in batches])
    assert sorted(rows) == list(range(n))
    assert shuffle or rows.tolist() == list(range(n))
    images = np.concatenate([images for images, _ in batches])
    assert images.dtype == np.float32
    assert rows.dtype == np.int64
    assert np.array_equal(images, preprocess(split.images[rows], loader.mean, loader.std))


@given(n=st.integers(1, 40), size=st.integers(1, 40))
def test_drop_last_leaves_only_whole_batches(n, size):
    if n < size:
        with pytest.raises(DataError, match=f"{n} images make no whole batch of {size}: lower batch_size"):
            a_loader(numbered(n), size, drop_last=True)
        return
    loader = a_loader(numbered(n), size, drop_last=True, shuffle=True)
    assert [len(labels) for _, labels in loader] == [size] * (n // size) == [size] * len(loader)


@settings(max_examples=30)
@given(n=st.integers(1, 40), size=st.integers(1, 15), epoch=st.integers(0, 3), data=st.data())
def test_a_resumed_epoch_is_the_tail_of_the_whole_one(n, size, epoch, data):
    affine = AUGMENTATIONS["affine"]
    options = {"shuffle": True, "augment": affine, "seed": data.draw(st.integers(0, 2**70))}
    loader = a_loader(numbered(n), size, **options)
    whole = list(loader.epoch(epoch))
    start = data.draw(st.integers(0, len(loader)))
    assert same(loader.epoch(epoch, start), whole[start:])  # the same loader, used before
    assert same(a_loader(numbered(n), size, **options).epoch(epoch, start), whole[start:])  # a new one


def test_seed_and_epoch_change_order_and_augmentation():
    split = numbered(64)
    orders = [
        tuple(label for _, labels in a_loader(split, 16, shuffle=True, seed=seed).epoch(epoch) for label in labels)
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert len(set(orders)) == 4
    same_images = Split(np.repeat(split.images[:1], 64, axis=0), np.arange(64))
    changed = [
        images.tobytes()
        for seed in (0, 1)
        for epoch in (0, 1)
        for images, _ in a_loader(same_images, 16, augment=AUGMENTATIONS["affine"], seed=seed).epoch(epoch)
    ]
    assert len(set(changed)) == 16  # no two of the batches, epochs and seeds are changed alike


def test_random_streams_are_all_different():
    loader = a_loader(numbered(3), 2)
    keys = [(e, 0) for e in range(20)] + [(e, 1, b) for e in range(20) for b in range(20)]
    draws = {tuple(loader._generator(*key).integers(2**63, size=2).tolist()) for key in keys}
    assert len(draws) == len(keys)
    assert tuple(np.random.default_rng(0).integers(2**63, size=2).tolist()) not in draws


def test_augmentation_sees_unit_images_before_they_are_normalised():
    seen = []

    def double(images, rng):
        seen.append(images)
        return images * np.float32(2)

    split = numbered(4)
    [(images, _)] = a_loader(split, 4, augment=double)
    assert np.array_equal(seen[0], split.images / np.float32(255))
    np.testing.assert_allclose(images, (split.images / 255 * 2 - 0.4) / 0.3, rtol=1e-5)


def test_preprocess_takes_each_channel_by_its_own_statistics():
    images = np.array([0, 255], np.uint8).reshape(1, 2, 1, 1)
    assert preprocess(images, [0.5, 0.25], [0.5, 0.125]).ravel().tolist() == [-1, 6]


@pytest.mark.parametrize(
    ("images", "mean", "std", "message"),
    [
        (np.zeros((1, 2, 3, 3), np.float32), [0, 0], [1, 1], "images must be uint8 .* float32"),
        (np.zeros((2, 3, 3), np.uint8), [0, 0], [1, 1], r"\(B, C, H, W\)"),
        (np.zeros((1, 2, 3, 3), np.uint8), [0], [1, 1], "2 channels need 2 means"),
        (np.zeros((1, 2, 3, 3), np.uint8), [0, 0], [1], "2 channels need 2 means"),
        (np.zeros((1, 2, 3, 3), np.uint8), [0, 0], [1, 0], "above 0"),
    ],
)
def test_preprocess_refuses_what_it_cannot_normalise(images, mean, std, message):
    with pytest.raises(DataError, match=message):
        preprocess(images, mean, std)


@pytest.mark.parametrize(
    ("n", "options", "message"),
    [
        (3, {"batch_size": 0}, "batch_size must be at least 1, not 0"),
        (3, {"batch_size": 1, "seed": -1}, "seed must be at least 0, not -1"),
        (0, {"batch_size": 1}, "the split has no images"),
        (3, {"batch_size": 1, "mean": (0.5,)}, "2 channels need 2 means"),
    ],
)
def test_loader_refuses_at_once(n, options, message):
    with pytest.raises(DataError, match=message):
        Loader(numbered(n), **{"mean": (0.4, 0.4), "std": (0.3, 0.3), **options})


@pytest.mark.parametrize(("epoch", "start"), [(-1, 0), (0, -1), (0, 3)])
def test_epoch_refuses_at_once(epoch, start):
    with pytest.raises(DataError, match="start from 0 to 2"):
        a_loader(numbered(3), 2).epoch(epoch, start)
