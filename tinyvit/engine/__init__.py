"""The calculus: arrays, the tape, the Tensor, the ops with their backward rules, and the judge of them all.

In reading order: `backend` (NumPy or CuPy), `tape` (nodes and the sweep), `tensor` (an array with a place on the
tape), `primitive` (what an op is), `ops/` (the ops, each beside its rule), `recompute` (memory for time), and the
judge: `differences`, `findings`, `gradcheck`. `kernels/` makes some ops fast; it may be left out.
"""

from tinyvit.engine.tensor import Tensor, grad, tensor, unfused  # isort: skip -- first: ops and Tensor need each other
from tinyvit.engine import ops
from tinyvit.engine.backend import BackendError, gpu_available, use_backend
from tinyvit.engine.findings import GradcheckError
from tinyvit.engine.gradcheck import gradcheck, gradgradcheck
from tinyvit.engine.mixed_precision import precision
from tinyvit.engine.primitive import Primitive, primitive
from tinyvit.engine.random import seed
from tinyvit.engine.recompute import checkpoint
from tinyvit.engine.tape import TapeError, enable_grad, no_grad

__all__ = [
    "BackendError",
    "GradcheckError",
    "Primitive",
    "TapeError",
    "Tensor",
    "checkpoint",
    "enable_grad",
    "gpu_available",
    "grad",
    "gradcheck",
    "gradgradcheck",
    "no_grad",
    "ops",
    "precision",
    "primitive",
    "seed",
    "tensor",
    "unfused",
    "use_backend",
]
