"""Every demo runs and says what its text says."""

import subprocess
import sys
from pathlib import Path

import pytest

DEMOS = sorted((Path(__file__).parent.parent / "demos").glob("*.py"))
SAYS = {
    "01_five_numbers": "∂y/∂w1 tape  1.269479   by hand  1.269479",
    "02_your_own_op": "softplus: the gradient of input 0 is wrong at element",
    "03_a_loop_of_your_own": "validation accuracy 9",
    "04_curvature": "end at (1.000000, 1.000000)",
    "05_break_a_rule": "softmax (2,3) axis=-1, jacobian in float64: fail; worst of 36 at input 0, element (1, 0)",
}


def test_every_demo_is_checked():
    assert [demo.stem for demo in DEMOS] == sorted(SAYS)


@pytest.mark.parametrize("demo", DEMOS, ids=lambda demo: demo.stem)
def test_a_demo_says_what_it_promises(demo, tmp_path):
    command = [sys.executable, "-X", "utf8", "-W", "error", demo]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert SAYS[demo.stem] in done.stdout
    assert not list(tmp_path.iterdir())
