"""Augmentations: beside Pillow where it has them, by their definition elsewhere, and what a config's words make."""

import dataclasses
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import strict_cupy
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from tinyvit.data import (
    AUGMENTATIONS,
    CutMix,
    DataError,
    Loader,
    Mixing,
    Mixup,
    RandAugment,
    RandomCrop,
    RandomErasing,
    RandomFlip,
    RandomResizedCrop,
    Split,
    augmentation,
    augmentations,
)
from tinyvit.data.transforms import colour, randaugment
from tinyvit.engine import backend

MIXING = ("mixup", "cutmix")  # in a fixed order, for two processes collect the tests alike
SINGLE = [name for name in AUGMENTATIONS if name not in MIXING]


def generator(seed=0):
    return np.random.default_rng(seed)


def photographs(n=3, channels=3, size=(23, 17), seed=0):
    """Smooth 8-bit images of many levels, none of them using the whole range."""
    rng = generator(seed)
    small = rng.integers(20, 230, (n, 5, 4, channels), dtype=np.uint8)
    pictures = [Image.fromarray(s.squeeze(-1) if channels == 1 else s).resize(size[::-1]) for s in small]
    return np.stack([np.asarray(p).reshape(*size, channels).transpose(2, 0, 1) for p in pictures])


def unit(images):
    return images.astype(np.float32) / np.float32(255)


def pillow(change, images):
    """What a function of Pillow makes of each image."""
    made = [change(Image.fromarray(image.transpose(1, 2, 0).squeeze())) for image in images]
    return np.stack([np.asarray(m).reshape(*images.shape[2:], images.shape[1]).transpose(2, 0, 1) for m in made])


def levels(images):
    return np.rint(images * 255).astype(int)


# Beside Pillow

FACTORS = (0.1, 0.7, 1.6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (colour.brightness, ImageEnhance.Brightness),
        (colour.contrast, ImageEnhance.Contrast),
        (colour.saturation, ImageEnhance.Color),
        (colour.sharpness, ImageEnhance.Sharpness),
    ],
)
def test_enhancements_are_pillows_within_its_rounding(ours, theirs, channels):
    images = photographs(channels=channels)
    changed = levels(ours(unit(images), np.array(FACTORS)))
    for i, factor in enumerate(FACTORS):
        wanted = pillow(lambda picture, f=factor: theirs(picture).enhance(f), images[i : i + 1])
        assert abs(changed[i] - wanted[0]).max() <= 2
        assert abs(changed[i] - wanted[0]).mean() < 0.6


@pytest.mark.parametrize("channels", [1, 3])
def test_changes_of_levels_are_pillows_exactly(channels):
    images = photographs(4, channels, size=(40, 31))
    images[3] = 77  # a single level: nothing to equalize or to stretch
    assert np.array_equal(levels(colour.equalize(unit(images))), pillow(ImageOps.equalize, images))
    assert np.abs(levels(colour.autocontrast(unit(images))) - pillow(ImageOps.autocontrast, images)).max() <= 1
    for bits in (1, 4, 8):
        wanted = pillow(lambda picture, b=bits: ImageOps.posterize(picture, b), images)
        assert np.array_equal(levels(colour.posterize(unit(images), np.full(4, bits))), wanted)
    for threshold in (0, 100, 256):
        wanted = pillow(lambda picture, t=threshold: ImageOps.solarize(picture, t), images)
        assert np.array_equal(levels(colour.solarize(unit(images), np.full(4, threshold / 255))), wanted)


@given(st.integers(0, 2**32))
@settings(max_examples=30)
def test_equalize_is_pillows_for_noise_too(seed):
    rng = generator(seed)
    low, high = sorted(rng.integers(0, 256, 2).tolist())
    images = rng.integers(low, high + 1, (2, 1, 9, 30), dtype=np.uint8)
    assert np.array_equal(levels(colour.equalize(unit(images))), pillow(ImageOps.equalize, images))


def test_a_sharpened_image_smaller_than_the_window_stays():
    images = unit(photographs(size=(2, 9)))
    np.testing.assert_allclose(colour.sharpness(images, np.array(FACTORS)), images, atol=1e-7)


# What holds for all


@pytest.mark.parametrize("name", SINGLE)
@given(seed=st.integers(0, 2**32), channels=st.sampled_from([1, 2, 3, 4]), n=st.integers(1, 5))
@settings(max_examples=12)
def test_an_augmentation_keeps_form_range_and_its_input(name, seed, channels, n):
    images = generator(seed).random((n, channels, 9, 7), dtype=np.float32)
    before = images.copy()
    once, again = (AUGMENTATIONS[name](images, generator(seed)) for _ in range(2))
    assert (once.shape, once.dtype) == (images.shape, np.float32)
    assert np.array_equal(once, again)
    assert np.array_equal(images, before)
    assert once.min() >= 0
    assert once.max() <= 1


@pytest.mark.parametrize("name", [*SINGLE, *MIXING])
def test_a_gpu_makes_the_same_of_a_batch(name, monkeypatch):
    for module, stand_in in strict_cupy.MODULES.items():
        monkeypatch.setitem(sys.modules, module, stand_in)
    monkeypatch.setattr(backend, "_cupy", None)
    step, images = AUGMENTATIONS[name], unit(photographs(8))
    targets = np.eye(4, dtype=np.float32)[np.arange(8) % 4]
    given = (targets,) if name in MIXING else ()
    there = [strict_cupy.cupy.asarray(array) for array in (images, *given)]
    monkeypatch.setattr(strict_cupy, "refuse_synchronisations", True)
    made = step(*there, generator(3))
    monkeypatch.setattr(strict_cupy, "refuse_synchronisations", False)
    wanted = step(images, *given, generator(3))
    for a, b in zip(made if given else [made], wanted if given else [wanted], strict=True):
        assert isinstance(a, strict_cupy.cupy.ndarray)
        np.testing.assert_allclose(a.get(), b, atol=1e-6)


# One by one


def test_a_flip_mirrors_about_the_given_share():
    images = generator().random((2000, 1, 1, 3), dtype=np.float32)
    changed = RandomFlip(0.25)(images, generator())
    mirrored = (changed == images[..., ::-1]).all(axis=(1, 2, 3))
    assert np.all(mirrored | (changed == images).all(axis=(1, 2, 3)))
    assert 0.21 < mirrored.mean() < 0.29


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_a_crop_is_a_window_of_the_padded_image(mode):
    images = generator().random((60, 2, 5, 4), dtype=np.float32)
    changed = RandomCrop(2, mode)(images, generator(1))
    padded = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2)), mode=mode)
    places = set()
    for image, whole in zip(changed, padded, strict=True):
        windows = {(y, x): whole[:, y : y + 5, x : x + 4] for y in range(5) for x in range(5)}
        places |= {place for place, window in windows.items() if np.array_equal(window, image)}
    assert len(places) > 15  # each image has a place of its own, and they are spread


@given(st.integers(0, 2**32), st.integers(1, 500), st.integers(1, 500))
def test_a_resized_crop_lies_inside_and_has_its_area_and_proportions(seed, width, height):
    crop = RandomResizedCrop(0.2, 0.6, ratio=1.5)
    for box in crop.boxes(5, generator(seed)):
        left, top, right, bottom = box(width, height)
        assert 0 <= left < right <= width + 1e-9
        assert 0 <= top < bottom <= height + 1e-9
        share = (right - left) * (bottom - top) / (width * height)
        assert 1 / 1.5 - 1e-9 <= (right - left) / (bottom - top) <= 1.5 + 1e-9
        if max(width, height) < 1.5 * min(width, height):  # else there may be no such part
            assert 0.2 - 1e-9 <= share <= 0.6 + 1e-9


def test_a_resized_crop_of_a_batch_shows_its_box():
    ramp = np.linspace(0, 1, 64, dtype=np.float32)
    images = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None]))[None]  # its y in one channel, its x in the other
    crop = RandomResizedCrop(0.25, 0.25, ratio=1.0)
    changed = crop(images, generator(5))[0]
    left, top, right, bottom = (64 * side for side in crop.boxes(1, generator(5))[0](1, 1))
    centres = (np.arange(64) + 0.5) / 64
    np.testing.assert_allclose(changed[0, :, 0] * 63 + 0.5, top + centres * (bottom - top), atol=1e-3)
    np.testing.assert_allclose(changed[1, 0] * 63 + 0.5, left + centres * (right - left), atol=1e-3)


@given(st.integers(0, 2**32))
@settings(max_examples=25)
def test_erasing_fills_one_rectangle_with_one_colour(seed):
    images = np.full((6, 3, 20, 30), 2, np.float32)
    changed = RandomErasing(p=1, smallest=0.1, largest=0.2, ratio=2)(images, generator(seed))
    for image in changed:
        gone = image[0] != 2
        rows, columns = gone.any(axis=1), gone.any(axis=0)
        assert gone.sum() == rows.sum() * columns.sum()
        assert all(np.diff(np.flatnonzero(side)).max(initial=1) == 1 for side in (rows, columns))
        assert 0.07 < gone.mean() < 0.24  # rounded to whole pixels
        assert all(len(np.unique(channel[gone])) == 1 for channel in image)
    assert np.array_equal(RandomErasing(p=0)(images, generator(seed)), images)


@given(st.integers(0, 2**32), st.floats(0.05, 5))
@settings(max_examples=40)
def test_mixing_moves_targets_as_it_moves_pixels(seed, alpha):
    n = 6
    images = np.eye(n, dtype=np.float32).reshape(n, n, 1, 1) * np.ones((8, 10), np.float32)  # image i: channel i is lit
    targets = np.eye(n, dtype=np.float32)
    for step in (Mixup(alpha), CutMix(alpha)):
        mixed, shares = step(images, targets, generator(seed))
        np.testing.assert_allclose(mixed.mean(axis=(2, 3)), shares, atol=1e-6)
        np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)
        assert shares.dtype == np.float32
    pieced = CutMix(alpha)(images, targets, generator(seed))[0]
    assert set(np.unique(pieced)) <= {0, 1}  # pieces, not blends


def test_mixing_happens_to_the_given_share_of_the_batches():
    images, targets = generator().random((2, 1, 4, 4), dtype=np.float32), np.eye(2, dtype=np.float32)
    for step in (Mixup(1, p=0.3), CutMix(1, p=0.3)):
        same = [step(images, targets, generator(seed))[1] is targets for seed in range(400)]
        assert 0.63 < np.mean(same) < 0.77


def test_randaugment_draws_each_change_and_no_strength_is_no_change():
    images = unit(photographs(4))
    still = RandAugment(number=3, magnitude=0, deviation=0)
    for i, (name, change) in enumerate(randaugment.CHANGES.items()):
        if name not in ("autocontrast", "equalize"):  # which have no strength
            np.testing.assert_allclose(change(images, np.zeros(4)), images, atol=2e-6, err_msg=name)
            assert i == 0 or abs(change(images, np.full(4, 0.9)) - images).max() > 0.03, name
    many = np.repeat(images[:1], 600, axis=0)
    assert len(np.unique(RandAugment(number=1, deviation=0)(many, generator()).reshape(600, -1), axis=0)) >= 18
    assert still(images, generator()).shape == images.shape
    assert np.array_equal(RandAugment(number=0)(images, generator()), images)


def test_a_strength_has_both_signs():
    ramp = np.broadcast_to(np.linspace(0, 1, 21, dtype=np.float32), (1, 1, 21, 21))
    moved = [randaugment.CHANGES["translate_x"](ramp, np.array([s]))[0, 0, 10, 10] for s in (-0.2, 0, 0.2)]
    assert moved[0] < moved[1] < moved[2]


# Words


def test_every_word_stands_for_its_settings():
    for name, step in AUGMENTATIONS.items():
        settings = {f.name: getattr(step, f.name) for f in dataclasses.fields(step)}
        assert augmentation(name) == step
        assert augmentation(f"{name}()") == step
        assert augmentation(f"{name}({', '.join(f'{k}={v!r}' for k, v in settings.items())})") == step
        assert augmentation(f"{name}({', '.join(map(repr, settings.values()))})") == step
    assert augmentations([" crop( padding = 2 )", "mixup(1)"]) == (RandomCrop(2), Mixup(1.0))


def test_the_documented_settings_are_the_defaults():
    text = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| .* \| `([^`]*)`[^|]*\|$", text, re.MULTILINE)
    documented = {name: augmentation(f"{name}({settings})") for name, settings in rows if name in AUGMENTATIONS}
    assert documented == AUGMENTATIONS
    assert all(set(re.findall(r"(\w+)=", settings)) == set(vars(AUGMENTATIONS[name])) for name, settings in rows[-9:])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("afine", "unknown augmentation 'afine': did you mean 'affine'"),
        ("crop(pading=2)", "unknown setting of crop 'pading': did you mean 'padding'"),
        ("crop(1, 'edge', 3)", r"has 3 settings, and crop takes 2: padding, mode"),
        ("crop(2.5)", "crop's padding must be of type int, like 4, not 2.5"),
        ("flip(True)", "flip's p must be of type float"),
        ("flip(2)", "^flip needs p from 0 to 1, not 2"),
        ("flip(nan)", "a name with settings"),
        ("crop(mode=reflect)", "text stands in quotes, like 'reflect'"),
        ("crop(-1)", "^crop needs padding at least 0, not -1"),
        ("crop(2, 'wrap')", "^crop pads by 'constant', 'reflect' or 'edge', not 'wrap'"),
        ("resized_crop(0.5, 0.2)", "^resized_crop needs 0 < smallest ≤ largest"),
        ("resized_crop(ratio=0.5)", "ratio at least 1"),
        ("erasing(0.5, 0.4)", "needs largest from 0.4 to 1"),
        ("mixup(0)", "needs alpha at least"),
        ("cutmix(p=1.5)", "needs p from 0 to 1"),
        ("randaugment(magnitude=30)", "needs magnitude from 0 to 10, not 30"),
        ("jitter(2)", "needs brightness from 0 to 1"),
        ("", "a name with settings"),
        ("crop(", "a name with settings"),
        ("__import__('os').system('true')", "a name with settings"),
        ("crop(padding=open('x'))", "a name with settings"),
        ("crop(*[1])", "a name with settings"),
        ("crop(**{})", "a name with settings"),
    ],
)
def test_words_that_stand_for_nothing(call, message):
    with pytest.raises(DataError, match=message):
        augmentation(call)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_a_padding_as_wide_as_the_image_is_refused(mode):
    with pytest.raises(DataError, match="a crop of images of 4 × 9 needs a padding below 4, not 4"):
        RandomCrop(4, mode)(np.zeros((1, 1, 4, 9), np.float32), generator())


# In the loader


def a_loader(*calls, n=40, **options):
    split = Split(generator().integers(0, 256, (n, 1, 6, 6), dtype=np.uint8), np.arange(n) % 5)
    return Loader(split, 8, mean=(0.5,), std=(0.5,), augment=augmentations(calls), shuffle=True, **options)


def test_a_batch_is_mixed_last_and_its_targets_are_shares():
    for images, targets in a_loader("mixup(1.0)", "flip", classes=7):
        assert images.dtype == targets.dtype == np.float32
        assert targets.shape == (8, 7)
        np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
        assert not targets[:, 5:].any()
    with pytest.raises(DataError, match="give classes"):
        a_loader("cutmix")


def test_of_several_mixings_each_batch_has_one():
    def blended(loader):
        loader.split.images[:] = 255 * (np.arange(40) % 2).reshape(-1, 1, 1, 1)
        return [bool(((images > -0.99) & (images < 0.99)).any()) for images, _ in loader.epoch(0)]

    kinds = [kind for seed in range(10) for kind in blended(a_loader("mixup(1.0)", "cutmix", classes=5, seed=seed))]
    assert 0.3 < np.mean(kinds) < 0.7


def test_a_mixing_of_ones_own_gets_the_targets():
    class Reversed(Mixing):
        def __call__(self, images, targets, rng):
            return images[::-1], targets[::-1]

    loader = a_loader(classes=5)
    [(plain, labels), *_] = loader.epoch(0)
    loader.augment = (Reversed(),)
    [(images, targets), *_] = loader.epoch(0)
    assert np.array_equal(images, plain[::-1])
    assert np.array_equal(targets, np.eye(5, dtype=np.float32)[labels[::-1]])


def test_both_halves_of_an_epoch_make_the_whole():
    loader = a_loader("crop(1)", "jitter", "cutmix", classes=5)
    halves = [loader.finish(*raw, 3, i) for i, raw in enumerate(loader.raw(3, 2), 2)]
    for (a, b), (c, d) in zip(halves, loader.epoch(3, 2), strict=True):
        assert np.array_equal(a, c)
        assert np.array_equal(b, d)
