"""The book: every page is in it, its chapters follow the code, and its links are looked at."""

import importlib.util
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def load(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generate():
    return load("generate")


def test_every_page_is_in_the_table_of_contents():
    listed = {"index.md"}
    for page in PAGES:
        for block in re.findall(r"```{toctree}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL):
            for entry in block.splitlines():
                if entry and not entry.startswith(":"):
                    target = (DOCS / page).parent / (entry.partition("<")[2].rstrip(">") or entry)
                    listed.add(os.path.relpath(target, DOCS) + ".md")
    assert set(PAGES) <= listed


def test_a_chapter_follows_the_code(generate, tmp_path, monkeypatch):
    now = (DOCS / "engine" / "tape.md").read_text(encoding="utf-8")
    changed = now.replace("_numbers = itertools.count()", "_numbers = itertools.count(1)")
    assert changed != now
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "tape.md").write_text(changed, encoding="utf-8")
    monkeypatch.setattr(generate, "PAGES", {"engine/tape.md": generate.PAGES["engine/tape.md"]})
    [report] = generate.drifted(tmp_path)
    assert "the page has: _numbers = itertools.count(1)" in report


FILE = '''
"""A file."""

# Above it.
# Also above.
@decorated
class Thing:
    """What it is.

    >>> Thing()
    1
    """

    count: int = 0  # how many

    def method(self):
        """Say one."""
        return 1  # always


Thing.gradients(
    x=1,
)
'''


@pytest.mark.parametrize(
    ("name", "docstring", "shown"),
    [
        ("Thing.method", True, 'def method(self):\n    """Say one."""\n    return 1  # always'),
        ("Thing.method", False, "def method(self):\n    return 1  # always"),
        ("Thing.count", True, "count: int = 0  # how many"),
        ("Thing.gradients", True, "Thing.gradients(\n    x=1,\n)"),
    ],
)
def test_an_excerpt_is_what_the_file_has(generate, tmp_path, name, docstring, shown):
    (tmp_path / "file.py").write_text(FILE, encoding="utf-8")
    assert generate.excerpt(tmp_path / "file.py", name, docstring) == shown


def test_an_excerpt_leaves_out_examples_and_keeps_comments_above(generate, tmp_path):
    (tmp_path / "file.py").write_text(FILE, encoding="utf-8")
    shown = generate.excerpt(tmp_path / "file.py", "Thing")
    assert shown.startswith('# Above it.\n# Also above.\n@decorated\nclass Thing:\n    """What it is."""\n\n    count')


def test_an_excerpt_that_is_not_there_is_an_error(generate):
    with pytest.raises(ValueError, match=r"tape.py has no 'Nodes'"):
        generate.excerpt(ROOT / "tinyvit" / "engine" / "tape.py", "Nodes")


# What follows needs Sphinx, of the extra `docs`, as in CI.


@pytest.fixture(scope="module")
def book():
    pytest.importorskip("sphinx")
    return load("book")


def test_broken_links_are_found(book, tmp_path):
    (tmp_path / "a.html").write_text(
        '<h1 id="here">A</h1><a href="#here"></a><a href="#there"></a><a href="b.html#title"></a>'
        '<a href="b.html#no"></a><a href="c.html"></a><img src="d.png"><a href="https://elsewhere.org/x"></a>',
        encoding="utf-8",
    )
    (tmp_path / "b.html").write_text('<h1 id="title">B</h1><a href="a.html"></a>', encoding="utf-8")
    found = book.broken_links(tmp_path)
    assert found == ["a.html: #there", "a.html: b.html#no", "a.html: c.html", "a.html: d.png"]


@pytest.mark.parametrize(
    ("docstring", "shown"),
    [
        ("|x| and `a|b`", r"\|x\| and ``a|b``"),
        ("see ``x`` and W_Q, x_ and *inputs", r"see ``x`` and W_Q, x\_ and \*inputs"),
        ("a `long\nname` here", "a ``long\nname`` here"),
        (">>> a * b\n1\n\nx*", ">>> a * b\n1\n\nx\\*"),
    ],
)
def test_docstrings_are_plain_text_with_code_in_backticks(book, docstring, shown):
    assert "\n".join(book.restructured(docstring.split("\n"))) == shown
