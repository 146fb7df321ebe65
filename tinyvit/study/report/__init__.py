"""The report of a run: one page with what was trained, how it went, what the model gets wrong and where it looks."""

from tinyvit.study.report.answers import check_fits, read_rows
from tinyvit.study.report.document import write_report

__all__ = ["check_fits", "read_rows", "write_report"]
