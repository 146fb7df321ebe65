"""Pickles as data: what Python's own pickle reads of data, this reads alike; whatever else one does is refused."""

import collections
import contextlib
import io
import pickle
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyvit.data.pickles import ForbiddenNameError, Global, PickleError, noted, read_pickle

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
KEYS = st.text() | st.integers() | st.binary()
DATA = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(KEYS, inner),
    max_leaves=20,
)


def encode(text, encoding):
    return text.encode(encoding)


@given(DATA, st.sampled_from(range(pickle.HIGHEST_PROTOCOL + 1)))
def test_data_comes_back_from_any_protocol(data, protocol):
    known = {"_codecs.encode": encode, "__builtin__.bytes": bytes}  # bytes, in the protocols that know none
    assert read_pickle(pickle.dumps(data, protocol), known) == data


def test_what_is_shared_stays_shared():
    inner = [1, 2]
    first, second = read_pickle(pickle.dumps([inner, inner]), {})
    assert first is second


def test_byte_strings_of_python_2_stay_bytes():
    assert read_pickle(b"\x80\x02U\x02\xff\x00.", {}) == b"\xff\x00"
    assert read_pickle(b"S'a\\n'\n.", {}) == b"a\n"


def test_calls_are_noted_and_never_made():
    call = read_pickle(pickle.dumps(np.dtype("float32"), 2), {"numpy.dtype": noted("a dtype")})
    assert (call.name, call.args[0], call.state[1]) == ("a dtype", "f4", "<")


def test_persistent_ids_go_to_whoever_knows_them():
    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", "0") if isinstance(value, complex) else None

    file = io.BytesIO()
    Pickler(file, 2).dump([1j, 2])
    assert read_pickle(file.getvalue(), {}, "/".join) == ["storage/0", 2]
    with pytest.raises(PickleError, match="persistent id"):
        read_pickle(file.getvalue(), {})


def test_a_name_alone_is_a_global():
    assert read_pickle(b"cos\nsystem\n.", {"os.system": noted("system")}) == Global("os.system")


HOSTILE = [
    ("names builtins.eval", pickle.dumps(eval)),
    ("names os.system", b"cos\nsystem\n(S'true'\ntR."),
    ("names posix.system", b"(S'true'\niposix\nsystem\n."),
    ("by something else than text", b"\x80\x04]]\x93."),
    ("tuple as a key", b"\x80\x02})" + b"\x85" * 300_000 + b"Ns."),  # its hash would end the process
    ("more than 1,000,000 instructions", b"\x80\x02](" + b"N" * 1_000_001 + b"e."),
    ("calls a str", b"\x80\x02X\x01\0\0\0a)R."),
    ("calls a Call", b"\x80\x02ca\nb\n)R)R."),
    ("changes a.b", b"\x80\x02ca\nb\n}b."),
    ("changes list", b"\x80\x02]}b."),
    ("instruction NEWOBJ", b"\x80\x02ca\nb\n)\x81."),
    ("instruction EXT1", b"\x80\x02\x82\x01."),
    ("instruction OBJ", b"(ca\nb\no."),
    ("instruction DUP", b"]2a."),
    ("fills a dict", b"\x80\x02}Na."),
    ("fills a list", b"\x80\x02]NNs."),
    ("more from its stack", b"(."),
    ("more from its stack", b"\x80\x02N\x85(\x86."),
    ("damaged one", b""),
    ("damaged one", b"\x80\x02]"),
    ("damaged one", b"\x80\x02h\x07."),  # nothing in the memo there
    ("damaged one", b"\x80\x02X\xff\xff\xff\x7fa."),  # two gigabytes of text, and one letter
    ("damaged one", b"\x80\x02\x8e\xff\xff\xff\xff\xff\xff\xff\x7f."),
    ("damaged one", b"\x80\x02(}Nu."),
]


@pytest.mark.parametrize("which", range(len(HOSTILE)))
def test_all_else_is_refused(which):
    reason, data = HOSTILE[which]
    with pytest.raises(PickleError, match=reason) as caught:
        read_pickle(data, {"a.b": noted("b")})
    assert len(str(caught.value)) < 300


def test_a_forbidden_name_is_said():
    with pytest.raises(ForbiddenNameError) as caught:
        read_pickle(b"cargparse\nNamespace\n.", {})
    assert caught.value.name == "argparse.Namespace"


def test_memo_indices_cost_no_memory():
    assert read_pickle(b"\x80\x02]r\xff\xff\xff\x7f.", {}) == []  # 16 GB to Python's own


@pytest.mark.parametrize("seed", range(300))
def test_damaged_pickles_are_read_or_refused(seed):
    rng = random.Random(seed)
    data = bytearray(pickle.dumps({"a": [1, 2.5, ("b", b"c")], "d": collections.OrderedDict(e=None)}, rng.randrange(5)))
    for _ in range(rng.randrange(1, 4)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    with contextlib.suppress(PickleError):
        read_pickle(bytes(data), {"collections.OrderedDict": noted("dict"), "_codecs.encode": encode})
