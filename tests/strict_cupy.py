"""A stand-in for CuPy on a machine without a GPU: NumPy underneath, and stricter than CuPy about what may meet.

`MODULES` goes into `sys.modules`. What CuPy 14 refuses is refused (host arrays beside its own, implicit conversion,
functions and arguments that it lacks), and so is what it would let pass in silence: NumPy's functions on its arrays,
host arrays and lists in an index, an element that is written twice. Whatever waits for the GPU is counted.
"""

from __future__ import annotations

import contextlib
import functools
import types
import warnings

import numpy as np

from tinyvit.engine import special

launches = 0  # calls that compute or copy on the device; views are none
uploads = 0  # arrays that were sent to the device
synchronisations = 0  # what waited for the device
refuse_float64 = False  # narrow floats that become float64 raise AssertionError, unless a dtype is asked for
refuse_synchronisations = False  # what waits raises AssertionError, and so shows where it stands

NARROW = (np.float16, np.float32)
SCATTERED = ["int32", "int64", "uint32", "uint64", "float16", "float32", "float64"]  # the dtypes of cupy.add.at


recording = None  # while a stream captures: what to do again when its graph is launched


def perform(what):
    """Do what the device does in the order of its stream; while a stream captures, only when its graph is launched."""
    what() if recording is None else recording.append(what)


def _wait(what):
    global synchronisations
    if recording is not None:
        raise RuntimeError(f"cudaErrorStreamCaptureUnsupported: {what} while a stream captures")
    synchronisations += 1
    if refuse_synchronisations:
        raise AssertionError(f"{what} waits for the GPU")


def _launch():
    global launches
    launches += 1


def _upload():
    global uploads
    if recording is not None:
        raise RuntimeError("cudaErrorStreamCaptureUnsupported: an upload while a stream captures")
    uploads += 1


def _wrap(array, base=None):
    wrapped = ndarray.__new__(ndarray)
    wrapped._array = np.asarray(array)
    wrapped.base = base
    if recording is not None:
        recording.append(functools.partial(id, array))  # a graph keeps the memory of what was made for it
    return wrapped


def _view(source, array):
    """What looks at the memory of `source`: its base is the array that owns that memory."""
    return _wrap(array, source if source.base is None else source.base)


def _plain(value):
    """What NumPy computes with, of an argument that CuPy would take."""
    if isinstance(value, ndarray):
        return value._array
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    is_array = isinstance(value, np.ndarray) and value.ndim
    if is_array or (hasattr(value, "__array__") and not isinstance(value, (np.ndarray, np.generic, type))):
        raise TypeError(f"Unsupported type {type(value)}")
    return value


def _arrays(values):
    """The device arrays among arguments, and in lists among them."""
    for value in values:
        if isinstance(value, ndarray):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _arrays(value)


def _compute(name, function, arguments, named, out=None):
    """Call a function of NumPy on what lies in device arrays; its result is a device array."""
    _launch()
    plain = [_plain(value) for value in arguments]
    if out is not None:
        if not isinstance(out, ndarray):
            raise TypeError(f"{name}: out= must be a cupy.ndarray, not {type(out)}")
        named = {**named, "out": out._array}
    if out is not None:
        perform(lambda: _quietly(function, *plain, **named))
        return out
    sources = list(_arrays(arguments))
    result = np.asarray(_quietly(function, *plain, **named))
    alone = not any(np.may_share_memory(result, source._array) for source in sources)
    if recording is not None and alone and not name.startswith("empty"):
        recording.append(lambda: np.copyto(result, _quietly(function, *plain, **named)))
    if refuse_float64 and named.get("dtype") is None and result.dtype == np.float64:
        narrow = [a.dtype.name for a in sources if a.dtype in NARROW]
        assert not narrow, f"{name} of {' and '.join(narrow)} gives float64"
    return _settled(result, sources)


def _quietly(function, *arguments, **named):
    with np.errstate(all="ignore"):  # NaN and infinity never warn on a GPU
        return function(*arguments, **named)


def _settled(result, sources):
    for source in sources if result.base is not None else ():
        if np.may_share_memory(result, source._array):
            return _view(source, result)
    return _wrap(result)


# -------------------------------------------------------------------------------------------------------- the array


class ndarray:  # noqa: N801 -- CuPy's name
    __slots__ = ("__weakref__", "_array", "base")
    __array_ufunc__ = None  # CuPy's own would compute: np.f(array) is what we want to find
    __hash__ = None

    def __init__(self, shape, dtype=float):
        self._array, self.base = np.empty(shape, dtype), None

    shape = property(lambda self: self._array.shape)
    ndim = property(lambda self: self._array.ndim)
    size = property(lambda self: self._array.size)
    dtype = property(lambda self: self._array.dtype)
    strides = property(lambda self: self._array.strides)
    itemsize = property(lambda self: self._array.itemsize)
    nbytes = property(lambda self: self._array.nbytes)
    device = property(lambda self: "<CUDA Device 0>")
    data = property(lambda self: types.SimpleNamespace(ptr=self._array.ctypes.data))
    T = property(lambda self: self.transpose())

    @property
    def flags(self):
        flags = self._array.flags
        return types.SimpleNamespace(c_contiguous=flags.c_contiguous, f_contiguous=flags.f_contiguous)

    # ------------------------------------------------------------------------------------------------- to the host

    def __array__(self, dtype=None, copy=None):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __array_function__(self, function, kinds, arguments, named):
        raise TypeError(f"numpy.{function.__name__} of an array on the GPU: call the function of its own namespace")

    def get(self):
        _wait("get()")
        return self._array.copy()

    def item(self):
        _wait("item()")
        if self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return self._array.item()

    def tolist(self):
        _wait("tolist()")
        return self._array.tolist()

    def __float__(self):
        _wait("float()")
        return float(self._array)

    def __int__(self):
        _wait("int()")
        return int(self._array)

    def __bool__(self):
        _wait("bool()")
        return bool(self._array)

    def __repr__(self):
        _wait("repr()")
        return repr(self._array)

    def __format__(self, spec):
        _wait("format()")
        return format(self._array, spec)

    # -------------------------------------------------------------------------------------------- copies and views

    def set(self, host, stream=None):
        if not isinstance(host, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if (host.dtype, host.shape) != (self.dtype, self.shape):
            raise ValueError(f"set: {host.dtype} {host.shape} into {self.dtype} {self.shape}")
        _upload()
        self._array[...] = host

    def astype(self, dtype, order="K", copy=True):
        if not copy and self.dtype == dtype:
            return self
        _known(np.dtype(dtype))
        return _compute("astype", lambda a, dtype: a.astype(dtype, order=order), [self], {"dtype": dtype})

    def copy(self, order="C"):
        return _compute("copy", lambda a: a.copy(order), [self], {})

    __copy__ = copy
    __deepcopy__ = lambda self, memo: self.copy()

    def fill(self, value):
        _launch()
        if isinstance(value, ndarray):
            _wait("fill() with an array of the GPU")  # CuPy looks whether it is 0
        value = _plain(value)
        perform(lambda: self._array.fill(value))

    def view(self):
        return _view(self, self._array[...])

    def reshape(self, *shape):
        array = self._array.reshape(*shape)
        if np.may_share_memory(array, self._array) or not array.size:
            return _view(self, array)
        return _compute("reshape", lambda a: a.reshape(*shape), [self], {})

    def ravel(self):
        return self.reshape(-1)

    def flatten(self):
        return self.copy().reshape(-1)

    def transpose(self, *axes):
        return _view(self, self._array.transpose(*axes))

    def swapaxes(self, axis1, axis2):
        return _view(self, self._array.swapaxes(axis1, axis2))

    def squeeze(self, axis=None):
        array = self._array.squeeze(axis)
        return self if array.shape == self.shape else _view(self, array)  # CuPy gives the same object

    def repeat(self, repeats, axis=None):
        return _compute("repeat", np.repeat, [self], {"repeats": repeats, "axis": axis})

    # ---------------------------------------------------------------------------------------------------- elements

    def __len__(self):
        if not self.ndim:
            raise TypeError("len() of unsized object")
        return len(self._array)

    def __iter__(self):
        if not self.ndim:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index):
        parts, arrays = _index(index)
        found = self._array[parts]
        if not arrays:
            return _view(self, found)
        _launch()
        if any(array.dtype == bool for array in arrays):
            _wait("an index that is a mask")  # how many are chosen decides the shape
        return _compute("getitem", lambda a: a[parts].copy(), [self], {})

    def __setitem__(self, index, value):
        parts, arrays = _index(index)
        if isinstance(value, (list, tuple)):
            raise TypeError(f"Unsupported type {type(value)}")
        if isinstance(value, ndarray) and value.size > 1 and any(array.dtype != bool for array in arrays):
            places = np.arange(self.size).reshape(self.shape)[parts]
            assert np.unique(places).size == places.size, "an element is written twice: which value stays is undefined"
        _launch()
        value = _plain(value)
        perform(lambda: _quietly(self._array.__setitem__, parts, value))


def _index(index):
    """An index for NumPy that gives arrays, never numbers; and the device arrays in it."""
    parts = index if isinstance(index, tuple) else (index,)
    for part in parts:
        if isinstance(part, (list, tuple)) or (isinstance(part, np.ndarray) and part.ndim):
            raise TypeError(f"Unsupported type {type(part)} in an index")
    if not any(part is Ellipsis for part in parts):
        parts = (*parts, Ellipsis)
    arrays = [part for part in parts if isinstance(part, ndarray)]
    if sum(array.dtype == bool for array in arrays) > 1:
        raise IndexError("CuPy takes one mask in an index")
    return tuple(map(_plain, parts)), arrays


# ---------------------------------------------------------------------------------------------- elementwise functions


class _Ufunc:
    def __init__(self, name):
        self.name, self.function = name, getattr(np, name)

    def __call__(self, *arguments, out=None, dtype=None):
        if len(arguments) > self.function.nin:
            *arguments, out = arguments
        return _compute(self.name, self.function, arguments, {"dtype": dtype} if dtype else {}, out)


class _Add(_Ufunc):
    def at(self, array, index, values):
        if not isinstance(array, ndarray) or not (isinstance(values, ndarray) or np.isscalar(values)):
            raise TypeError(f"Unsupported type {type(values)}")
        if array.dtype.name not in SCATTERED:
            raise TypeError(f"cupy.add.at only supports {', '.join(SCATTERED)} as data type")
        _launch()
        parts, values = _index(index)[0], _plain(values)
        values = np.broadcast_to(values, array._array[parts].shape)  # add.at of NumPy 2.4 does it wrong
        perform(lambda: _quietly(np.add.at, array._array, parts, values))


ELEMENTWISE = """
    abs absolute arccos arcsin arctan arctan2 bitwise_and bitwise_or bitwise_xor cbrt ceil copysign cos cosh
    divide equal exp exp2 expm1 floor floor_divide fmax fmin greater greater_equal hypot invert isfinite isinf
    isnan less less_equal log log10 log1p log2 logaddexp logical_and logical_not logical_or logical_xor maximum minimum
    multiply negative not_equal positive power reciprocal remainder rint sign signbit sin sinh sqrt square subtract tan
    tanh true_divide trunc
"""
UFUNCS = {name: _Ufunc(name) for name in ELEMENTWISE.split()} | {"add": _Add("add")}


def _operators(name):
    """The methods of array ∘ other, and of other ∘ array; a class that says so (Tensor) comes first."""
    compute = UFUNCS.get(name) or matmul

    def comes_first(other):
        return not isinstance(other, ndarray) and getattr(other, "__array_ufunc__", 0) is None

    def forward(self, other):
        return NotImplemented if comes_first(other) else compute(self, other)

    def reflected(self, other):
        return NotImplemented if comes_first(other) else compute(other, self)

    def in_place(self, other):
        return compute(self, other, out=self)

    return forward, reflected, in_place


def matmul(a, b, out=None):
    return _compute("matmul", np.matmul, [a, b], {}, out)


for _method, _name in {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "floordiv": "floor_divide",
    "mod": "remainder", "pow": "power", "matmul": "matmul", "and": "bitwise_and", "or": "bitwise_or",
    "xor": "bitwise_xor",
}.items():  # fmt: skip
    for _prefix, _operator in zip(("", "r", "i"), _operators(_name), strict=True):
        setattr(ndarray, f"__{_prefix}{_method}__", _operator)
for _method, _name in {
    "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal", "ne": "not_equal"
}.items():  # fmt: skip
    setattr(ndarray, f"__{_method}__", _operators(_name)[0])
for _method, _name in {"neg": "negative", "pos": "positive", "abs": "absolute", "invert": "invert"}.items():
    setattr(ndarray, f"__{_method}__", lambda self, compute=UFUNCS[_name]: compute(self))


# ------------------------------------------------------------------------------------------------- other functions


def _reduction(name, *more):
    """A reduction takes the arguments that CuPy's takes: neither where= nor initial=."""

    def reduce(a, axis=None, *, out=None, **named):
        if not isinstance(a, ndarray):
            raise TypeError(f"{name} of {type(a)}")
        if unknown := set(named) - set(more):
            raise TypeError(f"{name}() got an unexpected keyword argument {sorted(unknown)[0]!r}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing is NaN, and nobody says so
            return _compute(name, getattr(np, name), [a], {"axis": axis, **named}, out)

    return reduce


REDUCTIONS = {
    **{name: _reduction(name, "dtype", "keepdims") for name in ("sum", "prod", "mean")},
    **{name: _reduction(name, "dtype", "ddof", "keepdims") for name in ("var", "std")},
    **{name: _reduction(name, "keepdims") for name in ("max", "min", "amax", "amin", "all", "any", "count_nonzero")},
    **{name: _reduction(name, "dtype") for name in ("cumsum", "cumprod")},
    **{name: _reduction(name) for name in ("argmax", "argmin")},
}
for _name in REDUCTIONS.keys() - {"amax", "amin", "count_nonzero"}:
    setattr(ndarray, _name, REDUCTIONS[_name])


def _function(name, *keywords):
    """A function of NumPy with some of its keywords; an array must be among its arguments, as in CuPy."""

    def call(*arguments, out=None, **named):
        if not any(True for _ in _arrays(arguments)):
            raise TypeError(f"{name} of no cupy.ndarray: {[type(a) for a in arguments]}")
        if unknown := set(named) - set(keywords):
            raise TypeError(f"{name}() got an unexpected keyword argument {sorted(unknown)[0]!r}")
        return _compute(name, getattr(np, name), arguments, named, out)

    return call


FUNCTIONS = {
    **{name: _function(name, "axis") for name in ("concatenate", "stack", "roll", "repeat", "sort", "argsort", "take")},
    **{name: _function(name) for name in ("vstack", "hstack", "tile", "dot", "outer", "tril", "triu", "diag", "trace")},
    "einsum": _function("einsum", "dtype", "optimize"),
    "tensordot": _function("tensordot", "axes"),
    "pad": _function("pad", "mode", "constant_values"),
    "nan_to_num": _function("nan_to_num", "nan", "posinf", "neginf"),
    "isclose": _function("isclose", "rtol", "atol", "equal_nan"),
    "allclose": _function("allclose", "rtol", "atol", "equal_nan"),
    "array_equal": _function("array_equal"),
    "matmul": matmul,
}


def _viewing(name):
    return lambda a, *arguments, **named: _view(a, getattr(np, name)(a._array, *arguments, **named))


VIEWS = {name: _viewing(name) for name in ("expand_dims", "broadcast_to", "flip", "moveaxis")}
VIEWS |= {
    "reshape": lambda a, shape: a.reshape(shape),
    "ravel": lambda a: a.reshape(-1),
    "transpose": lambda a, axes=None: a.transpose(axes),
    "swapaxes": lambda a, axis1, axis2: a.swapaxes(axis1, axis2),
    "squeeze": lambda a, axis=None: a.squeeze(axis),
}


def split(a, indices_or_sections, axis=0):
    if a.ndim <= axis:
        raise IndexError("Axis exceeds ndim")
    parts = np.split(a._array, indices_or_sections, axis)
    return [a] if len(parts) == 1 else [_view(a, part) for part in parts]  # CuPy gives the same object


def where(condition, *choices):
    if not isinstance(condition, ndarray):
        raise AttributeError(f"{type(condition).__name__!r} object has no attribute 'astype'")
    if not choices:
        return nonzero(condition)
    return _compute("where", np.where, [condition, *choices], {})


def clip(a, a_min, a_max, out=None):
    if not isinstance(a, ndarray):
        raise TypeError(f"clip of {type(a)}")
    if a_min is None and a_max is None:
        return a.copy()
    return _compute("clip", np.clip, [a, a_min, a_max], {}, out)


def nonzero(a):
    _wait("nonzero()")
    return tuple(map(_wrap, a._array.nonzero()))


def may_share_memory(a, b):
    return np.may_share_memory(a._array, b._array)


def asnumpy(a):
    return a.get() if isinstance(a, ndarray) else np.asarray(a)


# -------------------------------------------------------------------------------------------------- making arrays


def _known(dtype):
    if dtype.name == "bfloat16":  # of ml_dtypes, which CuPy knows
        return dtype
    if dtype.kind not in "?biufc" or dtype.itemsize > (16 if dtype.kind == "c" else 8):
        raise ValueError(f"Unsupported dtype {dtype}")
    return dtype


def array(obj, dtype=None, copy=True):
    if isinstance(obj, ndarray):
        return obj.astype(obj.dtype if dtype is None else dtype, copy=copy)
    if hasattr(obj, "__array__") and not isinstance(obj, (np.ndarray, np.generic)):
        raise ValueError("Unsupported dtype object")
    host = np.array(obj, dtype=dtype)
    _known(host.dtype)
    if host.ndim:
        _upload()
    return _wrap(host)


def asarray(a, dtype=None):
    return array(a, dtype, copy=False)


def full(shape, fill_value, dtype=None):
    made = _wrap(np.empty(shape, dtype or _plain(np.asarray(_plain(fill_value))[()]).dtype))
    made.fill(fill_value)
    return made


def _made(name):
    def make(*arguments, **named):
        return _compute(name, lambda: getattr(np, name)(*arguments, **named), [], {})

    return make


def _made_like(name):
    def make(a, dtype=None):
        return _compute(name, lambda array: getattr(np, name)(array, dtype=dtype), [a], {})

    return make


MAKERS = {name: _made(name) for name in ("empty", "zeros", "ones", "arange", "eye", "identity", "linspace", "tri")}
MAKERS |= {name: _made_like(name) for name in ("empty_like", "zeros_like", "ones_like")}
MAKERS |= {"array": array, "asarray": asarray, "full": full}
MAKERS["ascontiguousarray"] = lambda a, dtype=None: _compute(
    "ascontiguousarray", np.ascontiguousarray, [asarray(a, dtype)], {}
)
MAKERS["full_like"] = lambda a, fill_value, dtype=None: full(a.shape, fill_value, dtype or a.dtype)


# ----------------------------------------------------------------------------------------------- streams and modules


class Stream:
    """The one order of all that is computed here: nothing is to be waited for, and waiting is counted."""

    def __init__(self, null=False, non_blocking=False):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def synchronize(self):
        _wait("a stream")

    def wait_event(self, event):
        pass

    def record(self, event=None):
        return event or Event()

    def begin_capture(self):
        global recording
        recording = []

    def end_capture(self):
        global recording
        done, recording = recording, None
        return Graph(done)

    def is_capturing(self):
        return recording is not None


class Graph:
    """What a stream captured: nothing of it was done then, and all of it is with each launch."""

    def __init__(self, work):
        self.work = work

    def launch(self, stream):
        _launch()
        for what in self.work:
            what()


class MemoryPool:
    """Memory is NumPy's here."""

    malloc = None

    def free_all_blocks(self):
        pass


class Event:
    def __init__(self, block=False, disable_timing=False):
        self.recorded = False

    def record(self, stream=None):
        self.recorded = True

    def synchronize(self):
        if self.recorded:
            _wait("an event")


def erf(x):
    wide = x.astype(np.float64) if x.dtype == np.float16 else x  # CuPy has no loop for float16
    y = _compute("erf", special.erf, [wide], {})
    assert not (refuse_float64 and wide is not x), "erf of float16 gives float64"
    return y


def _module(name, **contents):
    module = types.ModuleType(name)
    vars(module).update(contents)
    return module


NAMES = """
    bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128 inf
    nan pi e newaxis dtype finfo iinfo promote_types can_cast isscalar
"""

cuda = _module(
    "cupy.cuda",
    Device=lambda: types.SimpleNamespace(id=0),
    runtime=types.SimpleNamespace(getDeviceProperties=lambda device: {"name": b"no GPU, but a stand-in"}),
    Stream=Stream,
    Event=Event,
    MemoryPool=MemoryPool,
    get_current_stream=Stream,
    using_allocator=lambda malloc: contextlib.nullcontext(),
)
cupy = _module(
    "cupy",
    __version__="14.0.0",
    ndarray=ndarray,
    cuda=cuda,
    is_available=lambda: True,
    get_default_memory_pool=MemoryPool,
    **{f.__name__: f for f in (asnumpy, clip, may_share_memory, nonzero, split, where)},
    **{name: getattr(np, name) for name in NAMES.split()},
    **(UFUNCS | REDUCTIONS | FUNCTIONS | VIEWS | MAKERS),
)
_special = _module("cupyx.scipy.special", erf=erf)
_scipy = _module("cupyx.scipy", special=_special)
MODULES = {
    "cupy": cupy,
    "cupy.cuda": cuda,
    "cupyx": _module("cupyx", scipy=_scipy, empty_pinned=np.empty),
    "cupyx.scipy": _scipy,
    "cupyx.scipy.special": _special,
}
