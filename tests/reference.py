"""What the ops are compared with: NumPy's names as NumPy has them; what it lacks by SciPy or by its definition."""

import numpy as np
import scipy.special


class Reference:
    """A namespace F for the samples of tinyvit.study.audit."""

    def __getattr__(self, name):
        return getattr(np, name)

    erf = staticmethod(scipy.special.erf)
    sigmoid = staticmethod(scipy.special.expit)
    logsumexp = staticmethod(scipy.special.logsumexp)

    def softmax(self, x, axis=-1):
        return scipy.special.softmax(x, axis=axis)

    def log_softmax(self, x, axis=-1):
        return scipy.special.log_softmax(x, axis=axis)

    def relu(self, x):
        return np.where(x > 0, x, 0.0)

    def gelu(self, x, approximate="none"):
        if approximate == "tanh":
            return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        return x * (scipy.special.expit(1.702 * x) if approximate == "quick" else scipy.special.ndtr(x))

    def layer_norm(self, x, weight, bias, eps=1e-6):
        deviation = np.sqrt(np.var(x, axis=-1, keepdims=True) + eps)
        return (x - np.mean(x, axis=-1, keepdims=True)) / deviation * weight + bias

    def add_layer_norm(self, x, branch, *norm, eps=1e-6):
        return x + branch, self.layer_norm(x + branch, *norm, eps)

    def linear(self, x, weight, bias=None):
        return np.einsum("...i,oi->...o", x, weight) + (0 if bias is None else bias)

    def scaled_dot_product_attention(self, q, k, v, scale=None):
        scores = np.einsum("...nd,...md->...nm", q, k) * (1 / np.sqrt(q.shape[-1]) if scale is None else scale)
        return np.einsum("...nm,...md->...nd", scipy.special.softmax(scores, axis=-1), v)

    def multi_head_attention(self, qkv, num_heads):
        """Head by head, each with its own columns of Q, K and V."""
        q, k, v = np.split(qkv, 3, axis=-1)
        cut = lambda x: np.split(x, num_heads, axis=-1)
        heads = zip(cut(q), cut(k), cut(v), strict=True)
        return np.concatenate([self.scaled_dot_product_attention(*head) for head in heads], axis=-1)

    def cross_entropy(self, logits, targets, label_smoothing=0.0, reduction="mean"):
        classes = logits.shape[-1]
        y = np.eye(classes)[targets] if targets.dtype.kind == "i" else targets
        y = (1 - label_smoothing) * y + label_smoothing / classes
        losses = -(y * scipy.special.log_softmax(logits, axis=-1)).sum(-1)
        return losses if reduction == "none" else losses.sum() / (losses.size if reduction == "mean" else 1)

    def dropout(self, x, p, rng):
        return np.where(rng.random(x.shape, dtype=np.float32) < p, 0, x / (1 - p))

    def drop_path(self, x, p, rng):
        dropped = rng.random(len(x), dtype=np.float32) < p
        rows = [0 * row if drop else row / (1 - p) for drop, row in zip(dropped, x, strict=True)]
        return np.reshape(rows, x.shape)

    def getitem(self, x, index):
        return x[index]

    def scatter_add(self, values, index, shape):
        total = np.zeros(shape, values.dtype)
        np.add.at(total, index, values)
        return total

    def astype(self, x, dtype):
        return x.astype(dtype)

    def to_device(self, x, device):
        return x


REFERENCE = Reference()
