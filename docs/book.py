"""What the book needs beside Sphinx and MyST: formulas as MathML, pages of source code, and the API from docstrings."""

from __future__ import annotations

import ast
import functools
import html
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from tinyvit import Primitive

ROOT = Path(__file__).resolve().parent.parent
SHOWN = ("tinyvit", "recipes", "tests", "benchmarks", "demos", "docs")  # the folders whose files get a page each
LANGUAGES = {
    ".py": "python",
    ".js": "js",
    ".cu": "c++",
    ".hpp": "c++",
    ".json": "text",
    ".txt": "text",
    ".toml": "toml",
    ".html": "html",
    ".css": "css",
}
LARGEST = 300_000  # bytes: what is larger nobody reads
logger = logging.getLogger(__name__)


# ------------------------------------------------------------------------------------------------------------ formulas


def _mathml(translator: Any, node: Any, block: bool) -> None:
    try:
        formula = latex2mathml.tex2mathml(node.astext(), as_block=block)
    except MathError as error:
        logger.warning("this formula cannot be set: %s", error, location=node)
        formula = f"<code>{html.escape(node.astext())}</code>"
    translator.body.append(f'<div class="formula">{formula}</div>' if block else formula)
    raise nodes.SkipNode


# --------------------------------------------------------------------------------------------------------- source code


def page_of(path: Path) -> str:
    """The name of the page that shows a file or a folder."""
    return f"source/{path.relative_to(ROOT).as_posix()}"


class SourceLinks(SphinxTransform):
    """A link to a file of code, or to a folder, becomes a link to its page in the book."""

    default_priority = 200

    def apply(self, **kwargs: Any) -> None:
        """Look at each link that MyST took for a download, or could not place."""
        kinds = (addnodes.download_reference, addnodes.pending_xref)
        for link in list(self.document.findall(lambda node: isinstance(node, kinds))):
            if link["reftype"] != "myst" or link.get("refdomain") or not link["reftarget"]:
                continue
            path = Path(self.env.relfn2path(link["reftarget"], self.env.docname)[1])
            if not path.exists() or not path.resolve().is_relative_to(ROOT):
                continue  # Sphinx has the sentence for it
            name = link.astext().partition(",")[0]
            page = self.app.builder.get_relative_uri(self.env.docname, page_of(path.resolve()))
            line = definitions(path).get(name.strip("_"))
            link.replace_self(_reference(page + (f"#L-{line}" if line else ""), *link.children))


class TrimmedCode(SphinxTransform):
    """Code without the empty line at its end, which a doctest needs before the fence."""

    default_priority = 210

    def apply(self, **kwargs: Any) -> None:
        """Trim each block."""
        for block in self.document.findall(nodes.literal_block):
            block.rawsource = block.astext().rstrip()
            block.children = []
            block += nodes.Text(block.rawsource)


def _reference(uri: str, *children: nodes.Node, **attributes: Any) -> nodes.reference:
    return nodes.reference("", "", *children, internal=True, refuri=uri, **attributes)


@functools.cache
def definitions(path: Path) -> dict[str, int]:
    """{name: line} of the functions, classes and methods of a Python file, private ones without their underscore."""
    if path.suffix != ".py":
        return {}
    found = {}

    def look(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found[f"{prefix}{node.name}".strip("_")] = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            if isinstance(node, ast.ClassDef):
                look(node.body, f"{prefix}{node.name}.")

    look(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return found


def source_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """A page for each file of code, and one for each folder."""
    for folder in (ROOT / name for name in SHOWN):
        for path in (folder, *sorted(folder.rglob("*"))):
            inside = path.relative_to(ROOT)
            if any(part.startswith((".", "__pycache__")) for part in inside.parts):
                continue
            if path.is_dir():
                yield page_of(path), {"title": f"{inside}/", "body": _folder(app, path)}, "page.html"
            elif _has_page(path):
                yield page_of(path), {"title": str(inside), "body": _file(app, path)}, "page.html"
    for name in ("pyproject.toml", "LICENSE"):
        yield page_of(ROOT / name), {"title": name, "body": _file(app, ROOT / name)}, "page.html"


def _file(app: Sphinx, path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    language = LANGUAGES.get(path.suffix, "text")
    highlighter: Any = app.builder.highlighter
    code = highlighter.highlight_block(text, language, force=True, lineanchors="L")
    return f"<h1>{html.escape(path.relative_to(ROOT).as_posix())}</h1>\n{code}"


def _folder(app: Sphinx, folder: Path) -> str:
    rows = []
    for path in sorted(folder.iterdir(), key=lambda p: (p.is_dir(), p.name)):
        document = path.relative_to(ROOT).with_suffix("").as_posix()
        page = document if path.suffix == ".md" and document in app.env.all_docs else page_of(path)
        if path.name.startswith((".", "__pycache__")) or (path.is_file() and page != document and not _has_page(path)):
            continue
        uri = app.builder.get_relative_uri(page_of(folder), page)
        rows.append(f'<dt><a href="{uri}">{path.name}{"/" * path.is_dir()}</a></dt><dd>{_about(path)}</dd>')
    return f'<h1>{folder.relative_to(ROOT)}/</h1>\n<dl class="folder">{"".join(rows)}</dl>'


def _has_page(path: Path) -> bool:
    return path.suffix in LANGUAGES and path.stat().st_size < LARGEST


def _about(path: Path) -> str:
    """The first sentence of a Python file, or of the package in a folder."""
    file = path / "__init__.py" if path.is_dir() else path
    if file.suffix != ".py" or not file.exists():
        return ""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return re.sub("`([^`]+)`", r"<code>\1</code>", html.escape(" ".join(text.split("\n\n")[0].split())))


# ------------------------------------------------------------------------------------------------- API from docstrings


class Members(SphinxDirective):
    """`.. members:: module`: everything that the module's `__all__` names."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Let autodoc document each as what it is to a reader."""
        [module] = self.arguments
        holder = _find(module)
        lines = []
        for name in sorted(holder.__all__, key=lambda n: (n.lower(), n)):
            thing = getattr(holder, name)
            if inspect.ismodule(thing) or name.startswith("__"):
                continue
            if callable(thing):
                lines += [f".. auto{_kind(thing)}:: {module}.{name}", ""]
            else:
                lines += [f".. py:data:: {module}.{name}", "", f"   {_contents(thing)}", ""]
        return self.parse_text_to_nodes("\n".join(lines))


def _find(name: str) -> Any:
    """A module, also one that another offers under a shorter name, as `tinyvit.ops`."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        parent, _, last = name.rpartition(".")
        return getattr(_find(parent), last)


def _kind(thing: Any) -> str:
    if isinstance(thing, type):
        return "exception" if issubclass(thing, Exception) else "class"
    return "function"  # an op too, though it is an object with a signature and a docstring of its own


def _contents(table: Any) -> str:
    """What a table holds, for it has no docstring."""
    if isinstance(table, dict):
        return f"A table by name: {', '.join(f'``{key}``' for key in table)}."
    return f"A tuple of {len(table)} objects of the class ``{type(table[0]).__name__}``."


class Fixtures(SphinxDirective):
    """`.. fixtures:: file`: the pytest fixtures of a file, from its text: pytest itself need not be there."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Each fixture with its docstring."""
        lines = []
        for node in ast.walk(ast.parse((ROOT / self.arguments[0]).read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and any("fixture" in ast.unparse(d) for d in node.decorator_list):
                call, _, meaning = (ast.get_docstring(node) or "").partition(": ")
                kind = "function"
                if not call.startswith(f"{node.name}("):
                    kind, call, meaning = "data", node.name, f"{call}: {meaning}"
                lines += [f".. py:{kind}:: {call}", "   :no-index:", ""]
                meaning = meaning[:1].upper() + meaning[1:]
                lines += [f"   {line}" for line in restructured(meaning.splitlines())] + [""]
        return self.parse_text_to_nodes("\n".join(lines))


def restructured(lines: Iterable[str]) -> list[str]:
    """A docstring, plain text with `code` in backticks, as reStructuredText, which gives other marks a meaning."""
    paragraphs = re.split(r"(\n\s*\n)", "\n".join(lines))
    return "".join(p if p.lstrip().startswith(">>>") else _paragraph(p) for p in paragraphs).split("\n")


def _paragraph(text: str) -> str:
    parts = re.split(r"`?(`[^`]+`)`?", text)
    plain = (re.sub(r"(?<=\w)_(?!\w)", r"\\_", re.sub(r"([\\*|])", r"\\\1", part)) for part in parts[::2])
    code = (f"`{part}`" for part in parts[1::2])
    return "".join(piece for pair in zip(plain, [*code, ""], strict=True) for piece in pair)


def _docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    # as fields at once: napoleon takes what stands before a colon in them for a type
    fields = {"Returns:": ":returns:", "Yields:": ":yields:"}
    lines[:] = [fields.get(line, line) for line in restructured(lines)]


def link_sources(app: Sphinx, doctree: nodes.document) -> None:
    """Put a link to the source behind each documented name."""
    for signature in doctree.findall(addnodes.desc_signature):
        if not (place := _place(signature)):
            continue
        path, line = place
        page = app.builder.get_relative_uri(app.env.docname, page_of(path))
        words = nodes.inline("", "[source]", classes=["viewcode-link"])
        signature += _reference(f"{page}#L-{line}", words, classes=["source-link"])


def _place(signature: Any) -> tuple[Path, int] | None:
    """The file and the line where a documented name is defined; None for what is no function and no class."""
    if not signature.get("module"):
        return None
    try:
        thing: Any = _find(signature["module"])
        for name in signature["fullname"].split("."):
            thing = getattr(thing, name)
    except (AttributeError, ImportError):
        return None
    if isinstance(thing, Primitive):
        thing = thing.forward
    elif isinstance(thing, property):
        thing = thing.fget
    try:
        thing = inspect.unwrap(thing)
        path = Path(inspect.getsourcefile(thing) or "").resolve()
        return (path, inspect.getsourcelines(thing)[1]) if path.is_relative_to(ROOT) else None
    except (TypeError, OSError):
        return None


# ------------------------------------------------------------------------------------------------------ the built site


_TAG = re.compile(r"<[a-zA-Z][^>]*>")
_ATTRIBUTE = re.compile(r'\s(id|href|src)="([^"]+)"')


def links_and_names(page: Path) -> tuple[list[str], set[str]]:
    """The links of a page, and the names in it that a link can point to."""
    tags = " ".join(_TAG.findall(page.read_text(encoding="utf-8")))
    found = [(key, html.unescape(value)) for key, value in _ATTRIBUTE.findall(tags)]
    targets = dict.fromkeys(value for key, value in found if key != "id")
    return list(targets), {value for key, value in found if key == "id"}


def broken_links(site: Path) -> list[str]:
    """Each link inside a built site that leads nowhere."""
    pages = {page: links_and_names(page) for page in sorted(site.rglob("*.html"))}
    found = []
    for page, (targets, _) in pages.items():
        for target in targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            file = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            named = not parts.fragment or file not in pages or unquote(parts.fragment) in pages[file][1]
            if not file.exists() or not named:
                found.append(f"{page.relative_to(site)}: {target}")
    return found


def finish(app: Sphinx, exception: Exception | None) -> None:
    """Begin at the root of the site, and look at all its links."""
    if exception or app.builder.format != "html":
        return
    site = Path(app.outdir)
    front = f"{app.config.root_doc}.html"
    site.joinpath("index.html").write_text(
        f'<!doctype html><title>tinyvit</title><meta http-equiv="refresh" content="0; url={front}">'
        f'<a href="{front}">tinyvit</a>\n',
        encoding="utf-8",
    )
    for link in broken_links(site):
        logger.warning("a broken link: %s", link)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register all of it with Sphinx."""
    app.add_html_math_renderer(
        "mathml",
        (lambda self, node: _mathml(self, node, block=False), None),
        (lambda self, node: _mathml(self, node, block=True), None),
    )
    app.add_transform(SourceLinks)
    app.add_transform(TrimmedCode)
    app.add_directive("members", Members)
    app.add_directive("fixtures", Fixtures)
    app.connect("autodoc-process-docstring", _docstring, priority=400)  # before napoleon reads Args: and Raises:
    app.connect("doctree-read", link_sources)
    app.connect("html-collect-pages", source_pages)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
