"""What the documents show is there: code that runs or stands in a source file, commands that parse, links that lead on.

Blocks of Python with >>> are run by pytest as doctests, and pages made by docs/generate.py are held to the source by
its --check (tests/test_equations.py). The rest is looked at here. Each function below gives what is wrong with a
document, in sentences; the tests at the end show them every fault too.
"""

import argparse
import contextlib
import io
import itertools
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from tinyvit import cli
from tinyvit.training import ConfigError
from tinyvit.training.config import merge

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *(page for folder in ("docs", "demos", "benchmarks") for page in sorted((ROOT / folder).rglob("*.md"))),
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SOURCES = {
    path: path.read_text(encoding="utf-8")
    for path in (
        ROOT / "tinyvit_pytest.py",
        *(p for folder in ("tinyvit", "demos", "benchmarks", "docs", "tests") for p in (ROOT / folder).rglob("*.py")),
    )
    if path != Path(__file__)
}
RUN_ELSEWHERE = {"python test": "docs/write_an_op.md"}  # a block that tests/test_pytest_plugin.py runs as a file
TOOLS = {"ruff": "test", "mypy": "test", "lint-imports": "test", "sphinx": "docs"}  # program: the extra that brings it


def blocks(text):
    """(what stands behind the fence, the lines) of each fenced block."""
    return [(kind, body.splitlines()) for kind, body in re.findall(r"^```(.*)\n((?:.*\n)*?)```$", text, re.MULTILINE)]


def prose(text):
    """The text without its fenced blocks."""
    return re.sub(r"^```.*\n(?:.*\n)*?```$", "", text, flags=re.MULTILINE)


def spans(text):
    """Code inside the prose, each span on one line."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(text))]


def is_made(text):
    return "This page is made by `python docs/generate.py`" in text


def without_shown(text):
    """Without the code that docs/generate.py puts below its marks, and holds to the files."""
    return re.sub(r"^<!-- code: .* -->\n\[.*\n\n```python\n(?:.*\n)*?```$", "", text, flags=re.MULTILINE)


# -------------------------------------------------------------------------------------------------------------- Python


def wrong_python(path, text):
    for kind, lines in blocks(without_shown(text)):
        first = lines[0] if lines else ""
        if not kind.startswith("python") or RUN_ELSEWHERE.get(kind) == path.relative_to(ROOT).as_posix():
            continue
        if first.startswith(">>>"):
            if not is_run(path):
                yield f"no test runs the example that begins {first!r}: {path.name} is not in pytest's testpaths"
        elif not is_made(text) and not any(stands_in(lines, source) for source in SOURCES.values()):
            yield f"the block that begins {first!r} is neither a doctest nor an excerpt of a source file"


def is_run(path):
    """Whether `pytest` alone collects a document's examples."""
    return any(path.is_relative_to(ROOT / place) for place in PROJECT["tool"]["pytest"]["ini_options"]["testpaths"])


def stands_in(lines, source):
    """Whether these lines follow one another in a source file, wherever it is indented; empty lines apart."""
    wanted, present = ([line.strip() for line in some if line.strip()] for some in (lines, source.splitlines()))
    return any(present[i : i + len(wanted)] == wanted for i in range(len(present) - len(wanted) + 1))


# ------------------------------------------------------------------------------------------------------------- configs


def wrong_configs(path, text):
    for kind, lines in blocks(text):
        if kind == "toml":
            try:
                merge(tomllib.loads("\n".join(lines)))
            except (ConfigError, tomllib.TOMLDecodeError) as error:
                yield str(error)


# ------------------------------------------------------------------------------------------------------------ commands


def wrong_commands(path, text):
    for kind, lines in blocks(text):
        if kind in ("sh", "bash", "console"):
            for line in "\n".join(lines).replace("\\\n", " ").splitlines():
                yield from wrong_line(line)
        elif not kind and any(re.match(r"(\$ |tinyvit |python |pip |pytest )", line) for line in lines):
            yield f"a block of commands without its language: {lines[0]!r}"
    for line in prose(text).splitlines():
        if re.match(r"    +(\$ |tinyvit |python3? |pip |pytest |\.venv/)", line):
            yield f"a command outside of a fenced block: {line.strip()!r}"
    for span in spans(text):
        if name := re.fullmatch(r"tinyvit (\w+)", span):  # a command's name, which may need arguments
            if name[1] not in commands():
                yield f"there is no command {span!r}"
        elif re.match(r"(tinyvit|python3?|pip|pytest) \S", span):
            yield from wrong_line(span.replace("\\|", ",").replace("|", ","))
        elif span.startswith("--"):
            yield from wrong_flag(span.split()[0].split("=")[0], SOURCES.values())


def wrong_line(line):
    """A line of a shell: each of its commands."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, "#"
    command = []
    for word in [*lexer, "&&"]:
        if set(word) <= set("&|;"):
            yield from (f"{complaint}, in {line!r}" for complaint in wrong_command(command))
            command = []
        else:
            command.append(word)


def wrong_command(words):
    while words and re.fullmatch(r"\w+=\S*", words[0]):
        name = words.pop(0).split("=")[0]
        if not any(f'"{name}"' in source for source in SOURCES.values()):
            yield f"no source reads the variable {name}"
    if not words:
        return
    program, arguments = Path(words[0]).name, words[1:]
    if program in ("python", "python3") and arguments[:1] == ["-m"]:
        program, arguments = arguments[1], arguments[2:]
    if program == "tinyvit":
        yield from wrong_tinyvit(arguments)
    elif program in ("python", "python3"):
        yield from wrong_script(arguments)
    elif program == "pip":
        yield from wrong_pip(arguments)
    elif program == "pytest":
        yield from wrong_pytest(arguments)
    elif program in TOOLS:
        package = program.replace("lint-imports", "import-linter")
        if not any(requirement.startswith(package) for requirement in extras()[TOOLS[program]]):
            yield f"{program} is not in the extra `{TOOLS[program]}`"
    elif program != "venv":
        yield f"nobody knows the program {program!r}"


def wrong_tinyvit(arguments):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            cli._parser().parse_args(arguments)
        except SystemExit as end:
            if end.code:
                yield said.getvalue().splitlines()[-1]


def commands():
    """{name: parser} of the commands of tinyvit."""
    return next(a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction)).choices


def wrong_script(arguments):
    script = ROOT / arguments[0] if arguments else None
    if script is None or not script.is_file():
        yield f"there is no {arguments[:1]}"
        return
    for argument in arguments[1:]:
        if argument.startswith("--"):
            yield from wrong_flag(argument.split("=")[0], [p.read_text("utf-8") for p in script.parent.glob("*.py")])


def wrong_pip(arguments):
    if arguments[:1] != ["install"]:
        yield f"pip {arguments[:1]} is not `pip install`"
    for argument in arguments:
        if match := re.fullmatch(r"(?:\.|tinyvit)(?:\[(.*)\])?", argument):
            for extra in filter(None, (match[1] or "").split(",")):
                if extra not in extras():
                    yield f"there is no extra {extra!r}"


def wrong_pytest(arguments):
    settings = PROJECT["tool"]["pytest"]["ini_options"]
    known = {marker.split(":")[0] for marker in settings["markers"]} | {"not", "and", "or"}
    for flag, value in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        if flag == "-m":
            yield from (f"there is no marker {word!r}" for word in re.findall(r"\w+", value) if word not in known)
        elif flag.startswith("--") and flag != "--dist":  # pytest-xdist's
            yield from wrong_flag(flag.split("=")[0], [(ROOT / "tinyvit_pytest.py").read_text("utf-8")])


def wrong_flag(flag, sources):
    if not any(f'"{flag}"' in source for source in sources):
        yield f"nothing takes the option {flag}"


def extras():
    return PROJECT["project"]["optional-dependencies"]


def wrong_table_of_commands(path, text):
    """The rows | `tinyvit …` | … |: each option, with the values that are listed, is one of that command's."""
    for name, row in re.findall(r"^\| `tinyvit (\w+)(.*)$", text, re.MULTILINE):
        options = commands()[name]._option_string_actions if name in commands() else {}
        for flag, value in re.findall(r"`(--[\w-]+)(?: ([^`]*))?`", row):
            if flag not in options:
                yield f"tinyvit {name} has no {flag}"
            elif value and options[flag].choices and set(value.split("\\|")) != set(options[flag].choices):
                yield f"tinyvit {name} {flag} takes {', '.join(options[flag].choices)}, not {value}"


# --------------------------------------------------------------------------------------------------------------- links


def wrong_links(path, text):
    for target in re.findall(r"\]\(([^()\s]+)\)", re.sub(r"`[^`]*`", "", prose(text))):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        file = path.parent / place
        if place and not file.exists():
            yield f"the link {target} leads nowhere"
        elif anchor and anchor not in anchors(file.read_text(encoding="utf-8") if place else text):
            yield f"the link {target} leads to no heading"


def anchors(text):
    """The headings of a page as GitHub makes anchors of them."""
    found = []
    for heading in re.findall(r"^#{1,6} (.*?)\s*$", prose(text), re.MULTILINE):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.append(slug if slug not in found else f"{slug}-{found.count(slug)}")
    return found


# --------------------------------------------------------------------------------------------------------------- tests

CHECKS = (wrong_python, wrong_configs, wrong_commands, wrong_table_of_commands, wrong_links)


def complaints(path, text):
    return [complaint for check in CHECKS for complaint in check(path, text)]


def test_there_are_documents():
    names = {path.relative_to(ROOT).as_posix() for path in DOCUMENTS}
    assert names >= {"README.md", "CONTRIBUTING.md", "docs/gpu.md", "demos/README.md", "benchmarks/README.md"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_document_shows_is_there(path):
    assert complaints(path, path.read_text(encoding="utf-8")) == []


FENCE = "```"
FAULTS = {
    "toml: [training]\nlearning_rate = 1e-3": "did you mean training.lr?",
    "toml: [training]\nlr = ": "Invalid value",
    "sh: tinyvit trian": "invalid choice: 'trian'",
    "sh: tinyvit train --epoch ten": "invalid int value: 'ten'",
    "sh: tinyvit audit --frobnicate": "unrecognized arguments: --frobnicate",
    "sh: tinyvit train --out a && tinyvit predict a": "the following arguments are required: IMAGE",
    "sh: python demos/99_nothing.py": "there is no ['demos/99_nothing.py']",
    "sh: python benchmarks/tape.py --fast": "nothing takes the option --fast",
    "sh: pip install 'tinyvit[cuda99]'": "there is no extra 'cuda99'",
    "sh: .venv/bin/python -m pytest -m 'not quick'": "there is no marker 'quick'",
    "sh: pytest --tinyvit-backend cupy": "nothing takes the option --tinyvit-backend",
    "sh: TINYVIT_SPEED=9 tinyvit train": "no source reads the variable TINYVIT_SPEED",
    "sh: cargo run": "nobody knows the program 'cargo'",
    "python: x = tv.tensor_of([1.0])": "is neither a doctest nor an excerpt",
    "python: >>> 1 + 1": "no test runs the example",
    "Say `tinyvit trian` and wait.": "there is no command 'tinyvit trian'",
    "Say `tinyvit train --epoch ten` and wait.": "invalid int value: 'ten'",
    "Give it `--frobnicate 3`.": "nothing takes the option --frobnicate",
    "    pip install tinyvit": "a command outside of a fenced block",
    "| `tinyvit eval RUN` | `--splat` |": "tinyvit eval has no --splat",
    "| `tinyvit train` | `--precision fp32\\|fp8` |": "takes fp32, tf32, bf16, fp16, not fp32\\|fp8",
    "[there](nowhere.md)": "the link nowhere.md leads nowhere",
    "[there](README.md#no-such-heading)": "leads to no heading",
    "[here](#no-such-heading)": "leads to no heading",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault):
    kind, _, body = fault.partition(": ")
    shown = f"{FENCE}{kind}\n{body}\n{FENCE}" if kind in ("sh", "python", "toml") else fault
    text = f"# A page\n\n{shown}\n"
    assert any(FAULTS[fault] in complaint for complaint in complaints(ROOT / "PAGE.md", text))


def test_anchors_are_those_of_github():
    text = f"# One `two` — three\n\n## 4. What's _here_?\n\n## One\n\n## One\n\n{FENCE}sh\n# no heading\n{FENCE}\n"
    assert anchors(text) == ["one-two--three", "4-whats-_here_", "one", "one-1"]
