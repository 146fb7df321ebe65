"""Everything that shows: what a model is made of, whether its gradients are right and how they are made, how a run
went, where it looks.
"""

from tinyvit.study import audit
from tinyvit.study.equations import EQUATIONS, Equation, equations_of
from tinyvit.study.explain import (
    ExplainError,
    Page,
    Recording,
    Tape,
    explain,
    explain_fresh,
    explain_run,
    explain_script,
    tape,
    watch,
)
from tinyvit.study.pictures import check_drawable, draw_attention, draw_curves
from tinyvit.study.records import describe_skipped, many
from tinyvit.study.report import check_fits, read_rows, write_report
from tinyvit.study.summary import Row, summary, to_markdown, to_text, totals
from tinyvit.study.terminal import busy, progress, results

__all__ = [
    "EQUATIONS",
    "Equation",
    "ExplainError",
    "Page",
    "Recording",
    "Row",
    "Tape",
    "audit",
    "busy",
    "check_drawable",
    "check_fits",
    "describe_skipped",
    "draw_attention",
    "draw_curves",
    "equations_of",
    "explain",
    "explain_fresh",
    "explain_run",
    "explain_script",
    "many",
    "progress",
    "read_rows",
    "results",
    "summary",
    "tape",
    "to_markdown",
    "to_text",
    "totals",
    "watch",
    "write_report",
]
