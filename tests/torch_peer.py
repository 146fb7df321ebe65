"""PyTorch under NumPy's names: the third F for an expression f(F, …), beside tv.ops and tests/reference.py.

A test module says `pytest.importorskip("torch")` before it imports this one.
"""

import math

import numpy as np
import pytest

import tinyvit as tv

torch = pytest.importorskip("torch")  # here too: pytest looks into every module for doctests

from torch.nn.attention import SDPBackend, sdpa_kernel


class Torch:
    """PyTorch under NumPy's names."""

    def __getattr__(self, name):
        return getattr(torch, name)

    equal = staticmethod(torch.eq)  # torch.equal asks whether all elements are
    invert = staticmethod(torch.bitwise_not)

    def astype(self, x, dtype):
        return x.to(getattr(torch, np.dtype(dtype).name))

    def maximum(self, a, b):
        return torch.maximum(*both(a, b))

    def minimum(self, a, b):
        return torch.minimum(*both(a, b))

    def power(self, a, b):
        return torch.pow(a, b)

    def clip(self, x, low, high):
        if torch.is_tensor(low) or torch.is_tensor(high):  # torch.clamp wants tensors on both sides
            low, high = (b if b is None else torch.as_tensor(b, dtype=x.dtype) for b in (low, high))
            low, high = (low, high) if low is None or high is None else torch.broadcast_tensors(low, high)
        return x if low is None and high is None else torch.clamp(x, low, high)

    def sum(self, x, axis=None, keepdims=False):
        return reduced(torch.sum, x, axis, keepdim=keepdims)

    def mean(self, x, axis=None, keepdims=False):
        return reduced(torch.mean, x, axis, keepdim=keepdims)

    def var(self, x, axis=None, ddof=0, keepdims=False):
        return torch.var(x, axis, correction=ddof, keepdim=keepdims)

    def max(self, x, axis=None, keepdims=False):
        return reduced(torch.amax, x, axis, keepdim=keepdims)

    def min(self, x, axis=None, keepdims=False):
        return reduced(torch.amin, x, axis, keepdim=keepdims)

    def logsumexp(self, x, axis=None, keepdims=False):
        return reduced(torch.logsumexp, x, axis, keepdim=keepdims)

    def softmax(self, x, axis=-1):
        return torch.softmax(x, axis)

    def log_softmax(self, x, axis=-1):
        return torch.log_softmax(x, axis)

    def gelu(self, x, approximate="none"):
        if approximate == "quick":
            return x * torch.sigmoid(1.702 * x)
        return torch.nn.functional.gelu(x, approximate=approximate)

    def swapaxes(self, x, axis1, axis2):
        return torch.swapaxes(x, axis1, axis2)

    def broadcast_to(self, x, shape):
        return torch.broadcast_to(x, shape)

    def reshape(self, x, shape):
        return torch.reshape(x, shape if isinstance(shape, tuple) else (shape,))

    def transpose(self, x, axes=None):
        return torch.permute(x, tuple(range(x.ndim))[::-1] if axes is None else axes)

    def expand_dims(self, x, axis):
        axes = axis if isinstance(axis, tuple) else (axis,)
        for a in sorted(a % (x.ndim + len(axes)) for a in axes):
            x = torch.unsqueeze(x, a)
        return x

    def squeeze(self, x, axis=None):
        return torch.squeeze(x) if axis is None else torch.squeeze(x, axis)

    def flip(self, x, axis=None):
        axes = range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
        return torch.flip(x, tuple(axes))

    def pad(self, x, pad_width, constant_values=0):
        pairs = np.broadcast_to(np.array(pad_width), (x.ndim, 2))
        return torch.nn.functional.pad(x, pairs[::-1].reshape(-1).tolist(), value=constant_values)

    def concatenate(self, arrays, axis=0):
        if axis is None:
            return torch.concatenate([a.reshape(-1) for a in arrays])
        return torch.concatenate(arrays, axis)

    def split(self, x, indices_or_sections, axis=0):
        return torch.tensor_split(x, indices_or_sections, axis)

    def getitem(self, x, index):
        parts = index if isinstance(index, tuple) else (index,)
        if read_alike(parts):
            return x[tuple(torch.tensor(p.copy()) if isinstance(p, np.ndarray) else p for p in parts)]
        return torch.take(x, places(x.shape, parts))

    def scatter_add(self, values, index, shape):
        """Index_put on the flattened zeros, because it takes no slices."""
        where = places(shape, index if isinstance(index, tuple) else (index,))
        zeros = torch.zeros(math.prod(shape), dtype=values.dtype)
        return zeros.index_put((where,), values.expand(where.shape), accumulate=True).reshape(shape)

    def take(self, x, indices, axis=None):
        indices = torch.as_tensor(indices)
        if axis is None:
            return torch.take(x, indices)
        axis %= x.ndim
        moved = torch.movedim(x, axis, 0)[indices]  # the axes of the indices, which belong in the axis's place
        return torch.movedim(moved, tuple(range(indices.ndim)), tuple(range(axis, axis + indices.ndim)))

    def matmul(self, a, b):
        return torch.matmul(a, b)

    def einsum(self, subscripts, *operands):
        return torch.einsum(subscripts.replace(" ", ""), *operands)

    def linear(self, x, weight, bias=None):
        return torch.nn.functional.linear(x, weight, bias)

    def layer_norm(self, x, weight, bias, eps=1e-6):
        return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, eps)

    def add_layer_norm(self, x, branch, *norm, eps=1e-6):
        return x + branch, self.layer_norm(x + branch, *norm, eps)

    def scaled_dot_product_attention(self, q, k, v, scale=None):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)

    def multi_head_attention(self, qkv, num_heads):
        heads = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)

    def cross_entropy(self, logits, targets, label_smoothing=0.0, reduction="mean"):
        soft = targets.is_floating_point()
        losses = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]),
            targets.reshape(-1, logits.shape[-1]) if soft else targets.reshape(-1),
            label_smoothing=label_smoothing,
            reduction=reduction,
        )
        return losses.reshape(logits.shape[:-1]) if reduction == "none" else losses


class TorchTwice(Torch):
    """Where PyTorch must be asked differently, for what can be differentiated twice and may be empty."""

    def scaled_dot_product_attention(self, q, k, v, scale=None):
        batch = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
        q = q.expand(batch + q.shape[-2:])  # an empty result gets q's batch alone
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            return super().scaled_dot_product_attention(q, k, v, scale)


PEER, PEER_TWICE = Torch(), TorchTwice()


def both(a, b):
    """Two operands as tensors; PyTorch's maximum and minimum take no numbers."""
    dtype = next(x.dtype for x in (a, b) if torch.is_tensor(x))
    return tuple(x if torch.is_tensor(x) else torch.tensor(x, dtype=dtype) for x in (a, b))


def reduced(function, x, axis, **keywords):
    """Over all axes for None, and over none for (): to PyTorch () means all."""
    return x if axis == () else function(x, tuple(range(x.ndim)) if axis is None else axis, **keywords)


def read_alike(parts):
    """Whether an index means in PyTorch what it means in NumPy.

    PyTorch's slices only run forwards. And where slices or None stand between arrays, or between an array and a number,
    it may put the arrays' axes in another place of the result.
    """
    if any(isinstance(p, slice) and (p.step or 1) < 0 for p in parts):
        return False
    if not any(hasattr(p, "ndim") or isinstance(p, (list, tuple)) for p in parts):
        return True
    advanced = [i for i, p in enumerate(parts) if not (p is None or p is ... or isinstance(p, slice))]
    apart = advanced[-1] - advanced[0] >= len(advanced)
    return not (apart and any(p is None or isinstance(p, (int, np.integer)) for p in parts))


def places(shape, parts):
    """The flat positions that an index reads, as NumPy understands it."""
    parts = tuple(p.numpy() if torch.is_tensor(p) else p for p in parts)
    return torch.tensor(np.arange(math.prod(shape)).reshape(shape)[parts].copy())


# ------------------------------------------------------------------------------------ two derivatives of both


def ours(array):
    """The array itself, not a copy, so that its layout is what the op meets."""
    x = tv.Tensor(array)
    x.requires_grad = array.dtype.kind == "f"
    return x


def theirs(array):
    """A contiguous copy: PyTorch has no negative strides."""
    return torch.tensor(np.array(array, order="C"), requires_grad=array.dtype.kind == "f")


def listed(results):
    return list(results) if isinstance(results, (list, tuple)) else [results]


def our_slopes(ys, xs, vs, **settings):
    gradients = tv.grad(ys, xs, vs, allow_unused=True, **settings)
    return [tv.Tensor(np.zeros(x.shape, x.dtype)) if g is None else g for x, g in zip(xs, gradients, strict=True)]


def their_slopes(ys, xs, vs, **settings):
    """As ours; PyTorch refuses results without a gradient, which count as constant here."""
    ys, vs = zip(*[(y, v) for y, v in zip(ys, vs, strict=True) if y.requires_grad] or [((), ())], strict=True)
    if ys == ((),):
        return [torch.zeros_like(x) for x in xs]
    gradients = torch.autograd.grad(ys, xs, vs, allow_unused=True, **settings)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(xs, gradients, strict=True)]


def agree(actual, expected, tolerance):
    """Shapes, dtypes and values."""
    for y, z in zip(actual, expected, strict=True):
        np.testing.assert_allclose(y.numpy(), z.numpy(force=True), **tolerance, strict=True)


def compare_twice(f, arrays, cotangent):
    """Values of f(F, *arrays), gradients along v, and gradients of ⟨gradients, u⟩ with respect to the arrays and v.

    The cotangents v and u are arrays made by cotangent(shape, dtype).
    """
    xs, zs = list(map(ours, arrays)), list(map(theirs, arrays))
    ys, peers = listed(f(tv.ops, *xs)), listed(f(PEER_TWICE, *zs))
    single = any(a.dtype == np.float32 for a in [*arrays, *ys])
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if single else {"rtol": 1e-9, "atol": 1e-10}
    agree(ys, peers, tolerance)
    xs, zs = [x for x in xs if x.requires_grad], [z for z in zs if z.requires_grad]
    if not xs or ys[0].dtype.kind != "f":
        return
    v = [cotangent(y.shape, y.dtype) for y in ys]
    vs, ws = list(map(ours, v)), list(map(theirs, v))
    gradients = our_slopes(ys, xs, vs, create_graph=True)
    expected = their_slopes(peers, zs, ws, create_graph=True)
    agree(gradients, expected, tolerance)
    agree(our_slopes(ys, xs, vs, retain_graph=True), expected, tolerance)  # fused rules run only unrecorded
    u = [cotangent(g.shape, g.dtype) for g in gradients]
    second = our_slopes(gradients, xs + vs, list(map(tv.Tensor, u)))
    agree(second, their_slopes(expected, zs + ws, [theirs(a).detach() for a in u]), tolerance)
