"""The loader over images in files: decoded ahead by threads, cropped on the photograph, skipped where they are bad."""

import threading

import numpy as np
import pytest
from PIL import Image

from tinyvit.data import DataError, ImageFiles, Loader, RandomFlip, RandomResizedCrop, Reading, Split, preprocess

SIZE = (12, 10)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Thirty photographs of several sizes."""
    folder, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    made = []
    for i in range(30):
        small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        made.append(folder / f"{i:02d}.png")
        small.resize((20 + i, 35 - i // 2)).save(made[-1])
    return made


def a_loader(paths, *augment, workers=None, on_bad_image="raise", batch_size=8, **options):
    files = ImageFiles(paths, Reading(image_size=SIZE, on_bad_image=on_bad_image))
    files.workers = workers or files.workers
    split = Split(files, np.arange(len(paths)))
    normal = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    return Loader(split, batch_size, **normal, augment=augment, shuffle=True, **options)


def test_files_give_the_batches_of_their_array(paths):
    loader = a_loader(paths, RandomFlip())
    whole = loader.split.images[:]
    as_array = Loader(
        Split(whole, loader.split.labels), 8, mean=loader.mean, std=loader.std, augment=RandomFlip(), shuffle=True
    )
    for (images, labels), (wanted, numbers) in zip(loader.epoch(2), as_array.epoch(2), strict=True):
        assert np.array_equal(images, wanted)
        assert np.array_equal(labels, numbers)


@pytest.mark.parametrize("crop", [(), (RandomResizedCrop(),)])
def test_batches_do_not_depend_on_the_number_of_threads_nor_on_where_an_epoch_begins(paths, crop):
    one, many = (list(a_loader(paths, *crop, RandomFlip(), workers=n).epoch(1)) for n in (1, 5))
    later = list(a_loader(paths, *crop, RandomFlip()).epoch(1, 2))
    for (images, labels), (others, numbers) in zip([*one, *one[2:]], [*many, *later], strict=True):
        assert np.array_equal(images, others)
        assert np.array_equal(labels, numbers)


def test_a_resized_crop_is_cut_out_of_the_photograph(paths):
    crop = RandomResizedCrop(0.1, 0.2)
    loader = a_loader(paths, crop)
    images, labels = next(loader.epoch(4))
    boxes = crop.boxes(8, loader._generator(4, 2, 0))
    for image, label, box in zip(images, labels, boxes, strict=True):
        picture = Image.open(paths[label])
        cut = picture.resize(SIZE[::-1], Image.Resampling.BILINEAR, box=box(*picture.size))
        wanted = preprocess(np.asarray(cut).transpose(2, 0, 1)[None], loader.mean, loader.std)
        assert abs(image - wanted[0]).max() < 0.02
    assert not np.array_equal(images, next(loader.epoch(5))[0])
    second = a_loader(paths, RandomFlip(0.0), crop)  # not the first: it is done on what evaluation sees
    assert not np.array_equal(next(second.epoch(4))[0], images)


def with_bad(paths, tmp_path, count):
    """The photographs, ten times over, `count` of them cut short."""
    bad = []
    for i in range(count):
        bad.append(tmp_path / f"bad-{i}.png")
        bad[-1].write_bytes(paths[0].read_bytes()[:-40])
    return [*paths * 10, *bad]


def test_bad_images_are_missing_in_their_batches_and_counted(paths, tmp_path):
    mixed = with_bad(paths, tmp_path, 3)
    loader = a_loader(mixed, RandomResizedCrop(), on_bad_image="skip")
    labels = np.concatenate([labels for _, labels in loader.epoch(0)])
    assert sorted(labels) == list(range(300))
    assert [path.name for path in sorted(loader.split.images.bad)] == ["bad-0.png", "bad-1.png", "bad-2.png"]
    assert all(len(images) == len(numbers) for images, numbers in loader.epoch(1))


def test_too_many_bad_images_end_the_epoch_and_one_does_where_none_is_to_be_skipped(paths, tmp_path):
    with pytest.raises(DataError, match="4 of 304 images cannot be used, which is more than 1%"):
        list(a_loader(with_bad(paths, tmp_path, 4), on_bad_image="skip").epoch(0))
    with pytest.raises(DataError, match=r"bad-0\.png is truncated or damaged.*--on-bad-image skip"):
        list(a_loader(with_bad(paths, tmp_path, 1)).epoch(0))
    with pytest.raises(DataError, match="none of the 1 images of a batch can be used"):
        list(a_loader(with_bad(paths, tmp_path, 1), on_bad_image="skip", batch_size=1).epoch(0))


def test_an_epoch_that_is_left_early_leaves_no_thread(paths):
    def loading():
        return [thread for thread in threading.enumerate() if thread.name.startswith("tinyvit-loader")]

    batches = a_loader(paths, batch_size=2).epoch(0)
    next(batches)
    assert loading()
    batches.close()
    raw = a_loader(paths, batch_size=2).raw(0)
    next(raw)
    del batches
    raw.close()
    assert not loading()
