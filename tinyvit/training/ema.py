"""An exponential moving average of the weights: what is evaluated is often better than what is trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from tinyvit.engine import Tensor, kernels
from tinyvit.engine.backend import namespace_of
from tinyvit.training.flat import Flat, Layout, crew, merged, stretches, tiles
from tinyvit.training.optim import check_entries, named, overwrite, require, to_host
from tinyvit.training.parallel import in_workers


class EMA:
    """The exponential moving average of all parameters, one shadow array beside each.

        shadow ← d · shadow + (1 − d) · p,    d = min(decay, (1 + t) / (10 + t))

    where t = 0, 1, 2, ... counts the updates before this one. d rises from 0.1 to `decay`, so that the
    random weights of the start are forgotten soon, whatever the length of the training.

    Shadows are float32 at least: float16 could not hold steps of 1 − d = 0.001.

    Source: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992; the rising d
    is that of TensorFlow's `tf.train.ExponentialMovingAverage(decay, num_updates)`.

    Args:
        named_parameters: (name, Tensor) pairs, `model.named_parameters()`, on their final device.
        decay: in [0, 1): the share of the old average that an update keeps, late in the training.

    Raises:
        ValueError: the decay is outside [0, 1), there are no parameters, or one comes twice.

    >>> import tinyvit as tv
    >>> w = tv.tensor([1.0], requires_grad=True)
    >>> ema = EMA([("w", w)])
    >>> w.data[...] = 2.0                      # as an optimizer's step would
    >>> ema.update()                           # d = 0.1: 0.1 · 1 + 0.9 · 2
    >>> with ema.applied():
    ...     w.numpy()
    array([1.9], dtype=float32)
    >>> w.numpy()
    array([2.], dtype=float32)
    """

    def __init__(self, named_parameters: Iterable[tuple[str, Tensor]], decay: float = 0.999) -> None:
        require(0 <= decay < 1, "decay", decay, "in [0, 1)")
        self.decay = decay
        self.updates = 0
        self.names, self.parameters = named(named_parameters)
        layout = Layout(self.parameters)
        self._flats = layout.flats(lambda p: np.promote_types(p.dtype, np.float32))
        self._groups = [[self.parameters[i] for i in group] for group in layout.groups]
        self.shadows = layout.in_order(self._flats)
        for p, shadow in zip(self.parameters, self.shadows, strict=True):
            shadow[...] = p.data
        self._in_use = False

    def update(self) -> None:
        """Draw the averages towards the parameters; call it after each step of the optimizer.

        Raises:
            RuntimeError: called inside `applied()`, where the parameters are the averages themselves.
        """
        self._refuse_in_use("update()")
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        work = [
            part
            for flat, group in zip(self._flats, self._groups, strict=True)
            for pair in _beside(flat, [p.data for p in group])
            for part in stretches(*pair)
        ]
        in_workers(lambda pair: _draw(pair, 1 - decay), work, crew([shadow for shadow, _ in work]))
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages into the parameters for a `with` block; after it, or an error in it, put theirs back.

        The arrays change places and nothing is copied: the originals come back to the last bit. To keep
        averaged weights, take `model.state_dict()` inside.

        Raises:
            RuntimeError: used inside itself.
        """
        self._refuse_in_use("applied()")
        originals = [p.data for p in self.parameters]
        self._in_use = True
        try:
            for p, shadow in zip(self.parameters, self.shadows, strict=True):
                _place(p, shadow.astype(p.data.dtype, copy=False))
            yield
        finally:
            for p, original in zip(self.parameters, originals, strict=True):
                _place(p, original)
            self._in_use = False

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return host copies: "shadow.name" for each parameter, in its shape, and "updates", a 0-d int64."""
        return {
            "updates": np.array(self.updates, dtype=np.int64),
            **{key: to_host(array) for key, array in self._arrays().items()},
        }

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what `state_dict()` gave.

        Raises:
            ValueError: an entry is missing, unexpected or of the wrong shape. Nothing has changed then.
        """
        arrays = self._arrays()
        check_entries("EMA", {"updates": (), **{key: array.shape for key, array in arrays.items()}}, state)
        updates = int(state["updates"])
        overwrite(arrays, state)
        self.updates = updates

    def _arrays(self) -> dict[str, Any]:
        return {f"shadow.{name}": array for name, array in zip(self.names, self.shadows, strict=True)}

    def _refuse_in_use(self, call: str) -> None:
        if self._in_use:
            raise RuntimeError(f"EMA.{call} was called inside applied(); leave the with block first")


def _beside(flat: Flat, arrays: list[Any]) -> list[tuple[Any, Any]]:
    """Pairs (averages, parameters) of one axis: a single pair where the parameters lie in a flat buffer too."""
    joined = merged(arrays)
    if len(joined) == 1:
        return [(flat.whole, joined[0])]
    return [(part.reshape(-1), array.reshape(-1)) for part, array in zip(flat.parts, arrays, strict=True)]


def _draw(pair: tuple[Any, Any], share: float) -> None:
    """shadow ← shadow + share · (p − shadow)."""
    shadow, p = pair
    xp = namespace_of(shadow)
    fused = kernels.find("ema", xp.device)
    if fused and fused.forward(shadow, p, share):
        return
    for tile in tiles(xp, shadow.size):
        shadow[tile] += share * (p[tile] - shadow[tile])


def _place(p: Tensor, array: Any) -> None:
    p.data = array
    p.bump_version()  # a tape that saved the other array is stale now
