"""What the audit found: rows, and the forms they are shown in."""

from __future__ import annotations

import html
import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

PASS, FAIL, KINK, SKIP = "pass", "fail", "not differentiable here", "not checked"
SEVERITY = {verdict: i for i, verdict in enumerate((SKIP, KINK, PASS, FAIL))}


@dataclass(frozen=True)
class Row:
    """One sample, looked at by one method: its worst element.

    Attributes:
        op: name of the op or of the layer.
        case: the sample, in words.
        shapes: of the inputs.
        dtype: computed in.
        method: how it was checked (`METHODS`); "jacobian" and "projections" are the two forms of "slopes".
        elements: how many numbers were compared.
        absolute, relative: the worst error, and its share of the measured value.
        where: which element that is.
        given, measured: what is given there, by the rule for instance, and what it was compared with.
        tolerance: the largest error allowed there.
        margin: how many times smaller than the tolerance the error is; infinite where there is none.
        verdict: "pass", "fail", "not differentiable here" or "not checked".
        note: why, where that is not plain.
    """

    op: str
    case: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    method: str
    verdict: str
    elements: int = 0
    absolute: float = 0.0
    relative: float = 0.0
    where: str = ""
    given: float = 0.0
    measured: float = 0.0
    tolerance: float = 0.0
    margin: float = math.inf
    note: str = ""

    def sentence(self) -> str:
        """The row as people read it."""
        head = f"{self.op} {self.case}, {self.method} in {self.dtype}: {self.verdict}"
        if not self.elements:
            return f"{head} ({self.note})" if self.note else head
        if self.verdict == KINK:
            return f"{head} at {self.where}: {self.note}; the rule chooses {self.given:.10g}"
        return (
            f"{head}; worst of {self.elements:,} at {self.where}: given {self.given:.10g}, expected "
            f"{self.measured:.10g}, error {self.absolute:.2g}, tolerance {self.tolerance:.2g}"
            + (f"; {self.note}" if self.note else "")
        )


@dataclass(frozen=True)
class Report:
    """All rows of an audit, and how long it took in seconds."""

    rows: tuple[Row, ...]
    seconds: float

    @property
    def failures(self) -> list[Row]:
        """The rows that failed."""
        return [row for row in self.rows if row.verdict == FAIL]

    def worst(self) -> list[Row]:
        """For each op the row that says most: a failure, else the one in float64 with the least margin."""
        return [max(rows, key=_weight) for rows in by_op(self.rows).values()]

    def summary(self) -> str:
        """How many rows have which verdict, in one line."""
        counts = Counter(row.verdict for row in self.rows)
        verdicts = ", ".join(f"{counts[v]:,} {v}" for v in (PASS, FAIL, KINK, SKIP))
        numbers = sum(row.elements for row in self.rows)
        ops = len({row.op for row in self.rows})
        what = "op or layer" if ops == 1 else "ops and layers"
        return f"{ops} {what}, {numbers:,} numbers compared in {self.seconds:.0f} s: {verdicts}"

    # ------------------------------------------------------------------------------------------------------- forms

    def to_text(self, every_row: bool = False, width: int | None = None) -> str:
        """A table for a terminal: the worst row of each op or every row; then each failure in a sentence.

        Args:
            every_row: all rows, not the worst of each op.
            width: cut the lines of the table after so many characters; None: do not.
        """
        rows = self.rows if every_row else self.worst()
        cells = [HEADER, *(_cells(row) for row in rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells]
        lines.insert(1, "─" * max(map(len, lines)))
        lines = [_short(line, width) if width else line for line in lines]
        return "\n".join([*lines, "", *(row.sentence() for row in self.failures), self.summary()])

    def to_json(self) -> str:
        """{"rows": […], "summary": {verdict: number}, "seconds": …}; null where there is no finite number."""
        rows = [{k: _finite(v, row) for k, v in asdict(row).items()} for row in self.rows]
        counts = Counter(row.verdict for row in self.rows)
        answer = {"rows": rows, "summary": {v: counts[v] for v in SEVERITY}, "seconds": round(self.seconds, 3)}
        return json.dumps(answer, ensure_ascii=False, allow_nan=False)

    def to_html(self) -> str:
        """One page that needs nothing else: the table of all rows, with a filter."""
        head = "".join(f"<th>{html.escape(name)}" for name in HEADER)
        order = lambda row: (row.verdict == FAIL, row.verdict == KINK, *_weight(row))
        body = "\n".join(_html_row(row) for row in sorted(self.rows, key=order, reverse=True))
        options = "".join(f"<option>{verdict}" for verdict in (FAIL, PASS, KINK, SKIP))
        return PAGE.format(summary=html.escape(self.summary()), head=head, body=body, options=options)


def _weight(row: Row) -> tuple[int, bool, float]:
    return SEVERITY[row.verdict], row.dtype == "float64", -row.margin  # narrow dtypes have tolerances of their own


def _finite(value: Any, row: Row) -> Any:
    return None if isinstance(value, float) and not (row.elements and math.isfinite(value)) else value


HEADER = (
    "op", "verdict", "method", "dtype", "elements", "error", "relative", "tolerance", "margin", "given",
    "expected", "case", "where",
)  # fmt: skip


def _cells(row: Row) -> tuple[str, ...]:
    """A row in the columns of `HEADER`."""
    facts = row.op, row.verdict, row.method, row.dtype
    if not row.elements:
        return (*facts, *[""] * 7, row.case, row.note)
    errors = (f"{x:.1e}" if x else "0" for x in (row.absolute, row.relative, row.tolerance))
    margin = "exact" if math.isinf(row.margin) else f"{row.margin:.2g}×"
    two = (f"{x:.7g}" for x in (row.given, row.measured))
    where = row.where + (f"; {row.note}" if row.note else "")
    return (*facts, f"{row.elements:,}", *errors, margin, *two, _short(row.case, 36), where)


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _html_row(row: Row) -> str:
    kind = row.verdict.split()[-1] if row.verdict != KINK else "kink"
    return f'<tr class="{kind}">' + "".join(f"<td>{html.escape(cell)}" for cell in _cells(row))


def by_op(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of each op, in their order."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.op, []).append(row)
    return found


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>tinyvit: gradient audit</title>
<style>
:root {{ color-scheme: light dark; font: 14px/1.4 system-ui, sans-serif }}
body {{ margin: 1.5rem }} h1 {{ font-size: 1.3rem }} form {{ display: flex; gap: 1rem; margin: 1rem 0 }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
th {{ position: sticky; top: 0; background: Canvas; text-align: left }} th, td {{ padding: .2rem .7rem .2rem 0 }}
td {{ border-top: 1px solid color-mix(in srgb, CanvasText 15%, Canvas); white-space: nowrap }}
.fail td {{ background: color-mix(in srgb, red 25%, Canvas) }}
.kink td {{ background: color-mix(in srgb, orange 18%, Canvas) }} .checked td {{ opacity: .6 }}
</style>
<h1>Gradient audit</h1>
<p>{summary}</p>
<p>Failures first, then what has no slope (ops of bools and integers, and kinks on purpose), then the least margin: how
many times smaller than the tolerance the error is. “Given” is what the rule, or the op, gives; “expected” is what was
measured, or what the same computation gives in another way.</p>
<form><label>Filter <input id="words" type="search" placeholder="op, case or method"></label>
<label>Verdict <select id="verdict"><option value="">all{options}</select></label> <output id="count"></output></form>
<table><thead><tr>{head}</thead><tbody>
{body}
</tbody></table>
<script>
const words = document.getElementById("words"), verdict = document.getElementById("verdict");
const rows = [...document.querySelectorAll("tbody tr")];
function show() {{
  const wanted = words.value.toLowerCase().split(/\\s+/);
  let shown = 0;
  for (const row of rows) {{
    const text = row.textContent.toLowerCase();
    const fits = wanted.every(w => text.includes(w)) && (!verdict.value || row.cells[1].textContent === verdict.value);
    row.hidden = !fits;
    shown += fits;
  }}
  document.getElementById("count").textContent = `${{shown}} of ${{rows.length}} rows`;
}}
words.oninput = verdict.onchange = show;
show();
</script>
"""
