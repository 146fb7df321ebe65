"""A pytest plugin for tests of ops: the fixtures `gradcheck`, `audit` and `backend`.

    def test_hypot(gradcheck, backend):  # once with NumPy, once with CuPy
        gradcheck(hypot, [[3.0, -1.0]], [[4.0], [0.5]])

It stands beside the package, not inside: pytest loads it in every session of an environment that has tinyvit, and
importing anything from the package would import the engine and NumPy too. They are imported when a fixture is used.
"""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import tinyvit as tv

BACKENDS = ("numpy", "cupy")
JUDGE = ("tinyvit.engine.gradcheck", "tinyvit.engine.findings", "tinyvit.engine.differences")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let people choose the backends."""
    parser.getgroup("tinyvit").addoption(
        "--tinyvit-backends",
        metavar="NAMES",
        type=_backend_names,
        help="backends that tests with the fixture `backend` run on, and that must then be there; "
        "without it: numpy,cupy, and cupy is skipped where it is missing",
    )


def _backend_names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if unknown := [name for name in names if name not in BACKENDS]:
        raise argparse.ArgumentTypeError(f"unknown backend {unknown[0]!r}: give numpy, cupy or numpy,cupy")
    return names


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker `gpu`, and the fixture `backend` with the backends that were chosen."""
    markers = {line.partition(":")[0].strip() for line in config.getini("markers")}
    if "gpu" not in markers:
        config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU and CuPy")
    chosen: tuple[str, ...] | None = config.getoption("--tinyvit-backends")
    marked = {"numpy": "numpy", "cupy": pytest.param("cupy", marks=pytest.mark.gpu)}

    class Backends:
        @pytest.fixture(params=[marked[name] for name in chosen or BACKENDS])
        def backend(self, request: pytest.FixtureRequest) -> Iterator[str]:
            """The name of the backend that new Tensors are made with: the test runs once with each."""
            import tinyvit as tv

            try:
                switch = tv.use_backend(request.param)
            except tv.BackendError as error:
                if chosen:
                    pytest.fail(f"asked for by --tinyvit-backends: {error}", pytrace=False)
                pytest.skip(str(error))
            with switch:
                yield request.param

    config.pluginmanager.register(Backends(), "tinyvit-backends")


@pytest.fixture
def gradcheck() -> Callable[..., None]:
    """gradcheck(f, *inputs, order=2, **settings): fail unless the gradients of f are right, to second order."""
    import tinyvit as tv

    def gradcheck(f: Callable[..., Any], *inputs: Any, order: int = 2, **settings: Any) -> None:
        __tracebackhide__ = True
        if order not in (1, 2):
            raise ValueError(f"gradcheck: order is 1 or 2, not {order!r}")
        tensors = _tensors("gradcheck", inputs)
        try:
            tv.gradcheck(f, tensors, **settings)
            settings.pop("complex_steps", None)  # a gradient is measured by differences alone
            if order == 2:
                tv.gradgradcheck(f, tensors, **settings)
        except Exception as error:
            if _from_the_judge(error):
                raise error.with_traceback(None) from None
            raise

    return gradcheck


def _from_the_judge(error: Exception) -> bool:
    """Whether it was raised by the judge itself, whose frames tell nothing, and not by the function under test."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__") in JUDGE


@pytest.fixture
def audit() -> Callable[..., None]:
    """audit(f, *inputs, kinks="raise"): fail unless every method of the gradient audit finds f's gradients right."""
    import tinyvit as tv
    from tinyvit.engine.backend import default_namespace
    from tinyvit.study.audit import Sample, run
    from tinyvit.study.audit.report import FAIL, KINK
    from tinyvit.study.audit.samples import given

    def audit(f: Callable[..., Any], *inputs: Any, kinks: str = "raise") -> None:
        __tracebackhide__ = True
        if kinks not in ("raise", "allow"):
            raise ValueError(f"audit: kinks is 'raise' or 'allow', not {kinks!r}")
        arrays = [x.numpy() for x in _tensors("audit", inputs)]
        sample = Sample(
            str(getattr(f, "name", getattr(f, "__name__", "f"))),
            " ".join(str(a.shape).replace(" ", "") for a in arrays),
            lambda F, *tensors: f(*tensors),
            tuple(given(a) for a in arrays),
        )
        report = run([sample], device=default_namespace().device, workers=1)
        bad = (FAIL, KINK) if kinks == "raise" else (FAIL,)
        if sentences := _sentences([row for row in report.rows if row.verdict in bad]):
            advice = "move the inputs off the kinks, or allow them with kinks='allow'"
            kinked = any(row.verdict == KINK for row in report.rows) and kinks == "raise"
            raise tv.GradcheckError("\n".join([*sentences, advice] if kinked else sentences))

    return audit


def _sentences(rows: list[Any]) -> list[str]:
    """One a row, but one for all methods that met the same error."""
    errors: dict[str, list[Any]] = {}
    for row in rows:
        if not row.elements:
            errors.setdefault(row.note, []).append(row)
    met = [f"{same[0].op}: {note} (in {', '.join(row.method for row in same)})" for note, same in errors.items()]
    return [*met, *(row.sentence() for row in rows if row.elements)]


def _tensors(name: str, inputs: tuple[Any, ...]) -> list[tv.Tensor]:
    """Floating-point values as float64 Tensors with a gradient, on the current backend; other ones as constants."""
    __tracebackhide__ = True
    import numpy as np

    import tinyvit as tv
    from tinyvit.engine.backend import default_namespace

    tensors = []
    for x in inputs:
        if not isinstance(x, tv.Tensor):
            array = x if hasattr(x, "dtype") else np.asarray(x)
            real = array.dtype.kind == "f"
            x = tv.tensor(array, np.float64 if real else None, default_namespace().device, requires_grad=real)
        tensors.append(x)
    if not any(x.requires_grad for x in tensors):
        raise TypeError(
            f"{name}: no input carries a gradient. Floating-point arrays and lists do ([1.0, 2.0]); integers, bools "
            "and Tensors without requires_grad are constants"
        )
    return tensors
