"""Files of weights for the tests: sound ones by other libraries' hands or by format, and the pieces of hostile ones."""

import json
import pickle
import struct
import zipfile

import numpy as np

RNG_SEED = 5


def arrays(seed=RNG_SEED):
    """A few arrays of the kinds that a ViT has, beside odd ones."""
    rng = np.random.default_rng(seed)
    return {
        "cls_token": rng.standard_normal((1, 1, 8)).astype(np.float32),
        "blocks.0.attn.qkv.weight": rng.standard_normal((24, 8)).astype(np.float32),
        "head.weight": rng.standard_normal((5, 8)).astype(np.float16),
        "steps": np.array(7),
        "mask": rng.random((3, 2)) < 0.5,
        "double": rng.standard_normal(3),
        "small": np.arange(-3, 3, dtype=np.int8),
        "empty": np.zeros((0, 4), np.float32),
    }


def upper_halves(numbers):
    """Float32 numbers as bfloat16 has them, cut off: uint16."""
    return (np.ascontiguousarray(numbers, np.float32).view(np.uint32) >> 16).astype(np.uint16)


WORDS = {"float32": "F32", "float16": "F16", "float64": "F64", "int64": "I64", "int8": "I8", "bool": "BOOL"}


def safetensors_parts(arrays, metadata=None):
    """The header, a dict, and the body of a safetensors file."""
    header, body = {} if metadata is None else {"__metadata__": metadata}, b""
    for name, array in arrays.items():
        end = len(body) + array.nbytes
        word = WORDS[array.dtype.name]
        header[name] = {"dtype": word, "shape": list(array.shape), "data_offsets": [len(body), end]}
        body += array.tobytes()
    return header, body


def safetensors_bytes(header, body):
    """A safetensors file of a header, a dict or text, and a body."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


STORAGES = {
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "float64": "DoubleStorage",
    "int64": "LongStorage",
    "int8": "CharStorage",
    "bool": "BoolStorage",
}


class Torch:
    """Writes a pickle as PyTorch does, without PyTorch: what is named `torch.…` is named, and not there."""

    def __init__(self):
        self.storages = []

    def text(self, text):
        raw = text.encode("utf-8", "surrogatepass")
        return b"X" + struct.pack("<I", len(raw)) + raw

    def number(self, number):
        if abs(number) < 2**31:
            return b"J" + struct.pack("<i", number)
        raw = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8b" + struct.pack("<I", len(raw)) + raw

    def tuple(self, numbers):
        return b"(" + b"".join(map(self.number, numbers)) + b"t"

    def storage(self, word, raw, count=None, key=None):
        """The persistent id of a storage of `raw` bytes."""
        self.storages.append(raw)
        key = str(len(self.storages) - 1) if key is None else key
        size = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8, "int64": 8, "int8": 1, "bool": 1}[word]
        kind = STORAGES.get(word, "BFloat16Storage").encode()
        count = len(raw) // size if count is None else count
        return (
            b"(" + self.text("storage") + b"ctorch\n" + kind + b"\n" + self.text(key) + self.text("cpu")
        ) + self.number(count) + b"tQ"  # fmt: skip

    def tensor(self, storage, offset, shape, strides):
        return (
            b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + self.number(offset) + self.tuple(shape)
        ) + self.tuple(strides) + b"\x89ccollections\nOrderedDict\n)RtR"  # fmt: skip

    def array(self, array):
        strides = [step // array.itemsize for step in np.zeros(array.shape, array.dtype).strides]
        return self.tensor(self.storage(array.dtype.name, array.tobytes()), 0, array.shape, strides)

    def dict(self, items):
        inner = b"".join(self.text(key) + value for key, value in items.items())
        return b"ccollections\nOrderedDict\n)R(" + inner + b"u"

    def save(self, path, content, order=b"little", extra=(), pack=zipfile.ZIP_STORED, root="archive"):
        with zipfile.ZipFile(path, "w", pack) as archive:
            archive.writestr(f"{root}/data.pkl", b"\x80\x02" + content + b".")
            archive.writestr(f"{root}/byteorder", order)
            for key, raw in enumerate(self.storages):
                archive.writestr(f"{root}/data/{key}", raw)
            archive.writestr(f"{root}/version", b"3\n")
            for name, raw in extra:
                archive.writestr(f"{root}/{name}", raw)
        return path


def save_torch(path, arrays, **options):
    """A file as `torch.save(state_dict)` makes it."""
    torch = Torch()
    return torch.save(path, torch.dict({name: torch.array(array) for name, array in arrays.items()}), **options)


def save_all(folder):
    """One sound file of each container, by suffix."""
    files = {kind: folder / f"sound.{kind}" for kind in ("safetensors", "npz", "packed.npz", "pth")}
    files["safetensors"].write_bytes(safetensors_bytes(*safetensors_parts(arrays(), {"format": "pt"})))
    np.savez(files["npz"], **arrays())
    np.savez_compressed(files["packed.npz"], **arrays())
    save_torch(files["pth"], arrays())
    return files


class Evil:
    """Its pickle asks for a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def evil(function, *args):
    """The part of a pickle that asks for a call."""
    return pickle.dumps(Evil(function, *args), 2)[2:-1]
