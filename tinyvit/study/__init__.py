"""Everything that shows: what a model is made of, how a run went, where attention looks."""

from tinyvit.study.pictures import draw_attention, draw_curves
from tinyvit.study.summary import Row, summary, to_markdown, to_text, totals

__all__ = ["Row", "draw_attention", "draw_curves", "summary", "to_markdown", "to_text", "totals"]
