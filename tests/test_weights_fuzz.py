"""Thousands of damaged files of weights: each is read well or refused in one sentence, and in little memory.

python tests/test_weights_fuzz.py KIND BEGIN END   # those seeds; prints what went wrong, with a traceback
"""

import random
import struct
import subprocess
import sys
import tempfile
import traceback
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from weight_files import arrays, safetensors_bytes, save_all

from tinyvit.pretrained import WeightsError, nonfinite, open_weights

KINDS = ["safetensors", "npz", "packed.npz", "pth"]
INNER = ["safetensors header", "npz member", "pth pickle"]  # damaged first and then put into a sound file
NUMBERS = [0, 1, 2, 8, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**48, 2**63 - 1, 2**64 - 1]


def damaged(content, rng):
    """Flip bits, put in numbers at the edges of their ranges, cut, splice, and write pieces twice."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        if not content:
            break
        at, size = rng.randrange(len(content)), rng.choice([1, 2, 4, 8, 40])
        other = rng.randrange(len(content))
        match rng.randrange(7):
            case 0:
                content[at] ^= 1 << rng.randrange(8)
            case 1:
                content[at] = rng.randrange(256)
            case 2:
                width = rng.choice([1, 2, 4, 8])
                content[at : at + width] = struct.pack("<Q", rng.choice(NUMBERS))[:width]
            case 3:
                del content[at:]
            case 4:
                del content[at : at + size]
            case 5:
                content[at : at + size] = content[other : other + size]
            case 6:
                content[at:at] = content[other : other + size]
    return bytes(content)


def damaged_inside(kind, sound, rng):
    """A file whose frame is sound (lengths, checksums), and one part of it damaged."""
    if kind == "safetensors header":
        content = sound["safetensors"].read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        return safetensors_bytes(damaged(content[8:end], rng), content[end:])
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(sound["npz" if kind == "npz member" else "pth"]) as old, zipfile.ZipFile(file, "w") as new:
            which = rng.choice(old.namelist()) if kind == "npz member" else "archive/data.pkl"
            for name in old.namelist():
                new.writestr(name, damaged(old.read(name), rng) if name == which else old.read(name))
        file.seek(0)
        return file.read()


def peer_of(kind, path):
    """What another library reads there, or None where it refuses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if kind.startswith("safetensors"):
                return safetensors.numpy.load_file(path)
            with np.load(path, allow_pickle=False) as archive:
                return dict(archive)
    except Exception:
        return None


def examine(kind, path):
    """Open a file and read all of it. Anything but a WeightsError of one sentence goes to the caller."""
    try:
        weights = open_weights(path)
        read = dict(weights)
        nonfinite(weights)
    except WeightsError as error:
        if "\n" in str(error) or len(str(error)) > 2000:
            raise ValueError(f"a refusal of more than a sentence: {str(error)[:3000]}") from error
        return False
    for name, array in read.items():
        assert array.shape == weights.shape(name)
        assert array.flags.writeable
    if "pth" not in kind:
        peer = peer_of(kind, path)
        assert peer is not None or "npz" in kind, "the library refuses what is read here"
        for name, array in (peer or {}).items():
            expected = (
                (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32) if array.dtype == "V2" else array
            )
            assert np.array_equal(read[name], expected, equal_nan=expected.dtype.kind == "f")
    return True


def fuzz(kind, seeds):
    """Examine one damaged file for each seed; return what went wrong, and how many were read."""
    wrong, read = [], 0
    with tempfile.TemporaryDirectory() as folder:
        sound = save_all(Path(folder))
        for seed in seeds:
            rng = random.Random(f"{kind} {seed}")
            content = damaged_inside(kind, sound, rng) if kind in INNER else damaged(sound[kind].read_bytes(), rng)
            path = Path(folder) / "damaged.bin"
            path.unlink(missing_ok=True)  # a mapped file must not be written anew
            path.write_bytes(content)
            try:
                read += examine(kind, path)
            except Exception:
                wrong.append(f"{kind} {seed}: {traceback.format_exc()}")
    return wrong, read


@pytest.mark.parametrize("kind", KINDS + INNER)
def test_damaged_files_are_read_well_or_refused(kind):
    wrong, read = fuzz(kind, range(100))
    assert not wrong, wrong[0]
    assert read < 90  # most damage is found


@pytest.mark.parametrize("kind", KINDS)
def test_the_sound_files_are_read(tmp_path, kind):
    assert examine(kind, save_all(tmp_path)[kind])
    assert set(open_weights(save_all(tmp_path)[kind])) == set(arrays())


@pytest.mark.parametrize("kind", KINDS + INNER)
@pytest.mark.parametrize("seeds", [(100, 130), pytest.param((130, 3130), marks=pytest.mark.slow)], ids=["few", "many"])
def test_damaged_files_take_little_memory(kind, seeds):
    pytest.importorskip("resource")
    command = [sys.executable, "-W", "error", __file__, kind, *map(str, seeds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)


if __name__ == "__main__":
    import resource

    mapped = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        if sys.platform == "linux"
        else 2**33
    )
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 2**28,) * 2)  # 256 MiB more than Python and NumPy take
    print(*fuzz(sys.argv[1], range(int(sys.argv[2]), int(sys.argv[3])))[0], sep="\n", end="")
