"""See the tape: what was recorded, and how the gradients are made of it, as a page, a table or a graph.

    with tv.study.watch():               note lines, layers, times and values while they are computed
        loss = …
    tv.study.explain(loss, "tape.html")  one page that needs nothing else
    print(tv.study.tape(loss))           a table in the terminal; .to_dot() for Graphviz

`recording` notes, `tape` keeps the books, `sweep` looks at the backward sweep, `attention` at a ViT; `sources` has the
code, the equations and the verdicts; `document` makes the page, `subjects` what the command explains.
"""

from tinyvit.study.explain.document import Page, explain
from tinyvit.study.explain.recording import Recording, watch
from tinyvit.study.explain.subjects import ExplainError, explain_fresh, explain_run, explain_script
from tinyvit.study.explain.tape import Tape, tape

__all__ = [
    "ExplainError",
    "Page",
    "Recording",
    "Tape",
    "explain",
    "explain_fresh",
    "explain_run",
    "explain_script",
    "tape",
    "watch",
]
