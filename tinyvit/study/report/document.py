"""The page: sections, each a few lines of HTML, in one file that needs nothing else."""

from __future__ import annotations

import os
import re
import shlex
import statistics
from base64 import b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from html import escape
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np

import tinyvit
from tinyvit.data import DataError, Dataset, ImageFiles, Split, digits
from tinyvit.study.explain.values import picture, png
from tinyvit.study.machine import machine
from tinyvit.study.pictures import CURVES, attention_figure, draw_curve
from tinyvit.study.records import best_epoch, describe_skipped, epochs_of, many, median_rate, read_metrics
from tinyvit.study.report.answers import (
    BINS,
    Answers,
    answers,
    calibration_error,
    check_fits,
    class_scores,
    confusion,
    most_confused,
)
from tinyvit.training import Config, Run, TrainedModel, load_trained
from tinyvit.training.checkpoint import write_atomically
from tinyvit.training.config import ConfigError, merge, open_dataset, resolve
from tinyvit.training.optim import OPTIMIZERS
from tinyvit.training.trainer import Record

STYLES = (Path(__file__).parents[1] / "palette.css", Path(__file__).with_name("report.css"))
SPLITS = {"test": "test", "validation": "validation", "train": "training"}  # the first that has images is looked at
FEW = 25  # classes whose confusion matrix is a table; more make a picture, up to
MANY = 1000
MISTAKES = 12
PAIRS = 20
SHOWN_ATTENTION = 3  # images answered right, and as many answered wrong
THUMBNAIL = 160  # pixels of an image's longer side in the page


@dataclass(frozen=True)
class Facts:
    """All that a page shows."""

    name: str
    trained: TrainedModel
    dataset: Dataset | None
    missing: str  # why there is no dataset
    answers: Answers | None
    split: Split | None
    folder: Path | None
    records: list[Record]
    here: bool  # trained on this machine, just now
    device: str
    given: bool  # the images are not those of the run's own dataset

    @property
    def config(self) -> Config:
        """The config of the run."""
        return self.trained.config

    def class_name(self, k: int) -> str:
        """A class as the page shows it."""
        return escape(self.trained.classes[k])

    def image_name(self, row: int) -> str:
        """What an image of the split is called: its file within the dataset's folder, or its number."""
        images = self.split.images if self.split else None
        return os.path.relpath(images.paths[row], self.root) if isinstance(images, ImageFiles) else f"image {row:,}"

    @cached_property
    def root(self) -> str:
        """The folder that all files of the dataset lie in."""
        assert self.dataset
        splits = (self.dataset.train, self.dataset.validation, self.dataset.test)
        ends = [end(split.images.paths) for split in splits if len(split) for end in (min, max)]
        return os.path.commonpath(ends)


def write_report(
    run: Run | TrainedModel | str | Path,
    out: str | Path | None = None,
    *,
    data: Dataset | str | Path | None = None,
    split: str | None = None,
    device: str = "cpu",
    workers: int | None = None,
) -> Path:
    """Write one self-contained HTML page about a run: figures, curves, mistakes, attention, times, config.

    Args:
        run: a `Run` that was trained in this process, a run's folder, a model file, a checkpoint, or what
            `load_trained` made of one of these.
        out: the file, written whole or not at all; `report.html` in the run's folder if None.
        data: other images than those of the run's own dataset: a `Dataset`, or its name or path. Nothing is downloaded.
        split: "test", "validation" or "train"; the first of these that has images if None. Of a split of more than
            10,000 images as many are looked at, evenly spread.
        device: "cpu", "gpu" or "auto", for what is not loaded yet.
        workers: threads, see `parallel_backward`.

    Returns:
        where it was written. Where the run's own dataset cannot be read any more, the page says so, and shows what the
        run's files hold.

    Raises:
        ImportError: matplotlib is not installed (the extra `vision`).
        CheckpointError: there is no model to report on.
        DataError: `data` cannot be read or does not fit the model, or the split that was asked for has no images.
        OSError: the page cannot be written.

    >>> import tempfile, tinyvit as tv
    >>> from tinyvit.training import Run
    >>> from tinyvit.training.config import merge
    >>> small = {"model": {"dim": 8, "depth": 1, "num_heads": 1}, "training": {"epochs": 1, "warmup_epochs": 0}}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = Run(merge(small), folder, "cpu")
    ...     final = run.train()
    ...     page = tv.study.write_report(run).read_text(encoding="utf-8")
    >>> f"{final['test_accuracy']:.2%} of 359 test images right" in page
    True
    """
    facts = _gathered(run, data, split, device, workers)
    if out is None:
        out = (facts.folder or facts.trained.path.parent) / "report.html"
    write_atomically(Path(out), [to_html(facts).encode()])
    return Path(out)


def _gathered(run: Any, data: Any, split: str | None, device: str, workers: int | None) -> Facts:
    live = isinstance(run, Run)
    trained = run if isinstance(run, TrainedModel) else load_trained(run.folder if live else run, _device(run, device))
    dataset, missing = (run.dataset, "") if live and data is None else _dataset(trained, data)
    some = asked = None
    if dataset:
        name, some = _split(dataset, split)
        asked = answers(trained, some, name, workers)
    folder = _folder(Path(trained.path))
    return Facts(
        name=(folder or Path(trained.path)).resolve().stem,
        trained=trained,
        dataset=dataset,
        missing=missing,
        answers=asked,
        split=some,
        folder=folder,
        records=read_metrics(folder / "metrics.jsonl") if folder else [],
        here=live,
        device=trained.model.device,
        given=data is not None and not _is_own(trained, data),
    )


def _device(run: Any, device: str) -> str:
    return run.trainer.model.device if isinstance(run, Run) else device


def _dataset(trained: TrainedModel, data: Any) -> tuple[Dataset | None, str]:
    """The dataset, or why there is none."""
    try:
        dataset = data if isinstance(data, Dataset) else open_dataset(trained.config.to_dict(), data, offline=True)
        check_fits(trained, dataset)
    except (DataError, ConfigError, OSError) as error:
        if data is not None:
            raise
        return None, str(error)
    return dataset, ""


def _is_own(trained: TrainedModel, data: Any) -> bool:
    """A Dataset does not know where it came from, but it has the name of its file."""
    own = Path(trained.config.data.name)
    return data.name in (own.stem, own.name) if isinstance(data, Dataset) else Path(data).resolve() == own.resolve()


def _split(dataset: Dataset, wanted: str | None) -> tuple[str, Split]:
    splits = {key: getattr(dataset, key) for key in SPLITS if wanted in (None, key)}
    found = next((key for key in splits if len(splits[key])), None)
    if found is None:
        raise DataError(f"{dataset.name} has no {wanted} images; the splits are {', '.join(SPLITS)}")
    return SPLITS[found], splits[found]


def _folder(path: Path) -> Path | None:
    """The folder of the run that a model file, or a checkpoint in `checkpoints/`, belongs to."""
    folder = path.parents[1] if path.parent.name == "checkpoints" else path.parent
    return folder if Run.holds_run(folder) else None


# ----------------------------------------------------------------------------------------------------------------- page


def to_html(f: Facts) -> str:
    """Return the page."""
    style = "\n".join(path.read_text(encoding="utf-8") for path in STYLES)
    sections = (_curves(f), _classes(f), _mistakes(f), _attention(f), _times(f), _config(f), _again(f))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(f.name)}: report of a training run</title>
<style>
{style}</style>
</head>
<body>
<header>
<p class="kind">tinyvit · report of a training run</p>
<h1>{_headline(f)}</h1>
<p class="lead">{_sentence(f)}</p>
{"".join(f'<p class="note">{note}</p>' for note in _notes(f))}
{_figures(f)}
</header>
<main>
{"".join(sections)}</main>
<footer>Written by tinyvit {escape(tinyvit.__version__)}. This page is one file and needs no network.</footer>
</body>
</html>
"""


def _section(title: str, *parts: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{''.join(parts)}\n</section>\n"


def _pairs(facts: Iterable[tuple[str, str]], kind: str) -> str:
    """Terms and what is said of them; the latter is HTML."""
    inner = "".join(f"<div><dt>{escape(term)}</dt><dd>{said}</dd></div>\n" for term, said in facts)
    return f'<dl class="{kind}">\n{inner}</dl>\n'


def _headline(f: Facts) -> str:
    a = f.answers
    if a is None:
        return escape(f.name)
    return f"{escape(f.name)}: {a.accuracy:.2%} of {len(a):,} {a.split} images right"


def _sentence(f: Facts) -> str:
    """What was trained."""
    m, t, data = f.config.model, f.config.training, f.dataset
    own = data is not None and not f.given
    images = f"{len(data.train):,} images" if data and own else "images"
    colour = {1: "grey", 3: "RGB"}.get(m.channels, f"{m.channels} channels")
    name = data.name if data and own else Path(f.config.data.name).stem
    return (
        f"A Vision Transformer of {f.trained.model.num_parameters:,} parameters (patches of {m.patch_size}×"
        f"{m.patch_size} pixels, width {m.dim}, depth {m.depth}, {many(m.num_heads, 'head')}), trained on {images} of "
        f"<b>{escape(name)}</b> ({m.height}×{m.width} pixels, {colour}, {many(m.num_classes, 'class')}) for "
        f"{many(t.epochs, 'epoch')} with {OPTIMIZERS[t.optimizer].__name__} at a peak learning rate of {t.lr:g}."
    )


def _notes(f: Facts) -> Iterator[str]:
    """What one must know to read the rest."""
    a, epochs, path = f.answers, epochs_of(f.records), Path(f.trained.path)
    if f.missing:
        yield f"The images could not be read, so nothing was measured: {escape(f.missing)}."
    if a and f.given and f.dataset:
        yield f"Measured on other images than the run's own: <b>{escape(f.dataset.name)}</b>."
    if a and a.split == "training":
        yield "There are no images for a test: these are the images it was trained on, and say nothing of others."
    elif a and a.split == "validation":
        yield "Measured on the validation images."
    if a and len(a) < a.of:
        how = "were looked at, evenly spread" if a.sampled else "could be read"
        yield f"Of {a.of:,} {a.split} images {len(a):,} {how}."
    if path.name != "model.safetensors" and epochs:
        done, of = epochs[-1]["epoch"], f.config.training.epochs
        yield f"The weights are those of {escape(path.name)}; the run has finished {done:,} of {many(of, 'epoch')}."
    bad = f.dataset.skipped() if f.dataset else {}
    if not f.given and f.records:
        bad = f.records[-1].get("skipped", {}) | bad
    if bad:
        yield f"Skipped {escape(describe_skipped(bad))}."


def _figures(f: Facts) -> str:
    """The headline figures."""
    a, epochs, shown = f.answers, epochs_of(f.records), []
    if a:
        f1 = class_scores(a).f1
        wrong = int((~a.right).sum())
        shown += [
            (f"{a.split} accuracy", f"{a.accuracy:.2%}"),
            ("mistakes", f"{wrong:,} <small>of {len(a):,}</small>"),
            ("mean F1 of the classes", f"{np.nanmean(f1):.3f}"),
            ("loss", f"{a.losses.mean():.3f} <small>nats</small>"),
        ]
    if best := best_epoch(epochs):
        shown.append((f"best validation, epoch {best['epoch']}", f"{best['validation_accuracy']:.2%}"))
    if epochs:
        shown.append(("training", _duration(epochs[-1]["seconds"])))
    if rate := median_rate(epochs):
        shown.append(("speed", f"{rate:,.0f} <small>images/s</small>"))
    shown.append(("parameters", f"{f.trained.model.num_parameters:,}"))
    return _pairs(shown, "figures")


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.1f} s" if minutes < 2 else f"{minutes:.1f} min" if hours < 2 else f"{hours:.1f} h"


def _short(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


# --------------------------------------------------------------------------------------------------------------- curves

INKS = {"#010101": "ink", "#020202": "muted", "#030303": "line", "#040404": "accent", "#050505": "grad"}


def _curves(f: Facts) -> str:
    if not epochs_of(f.records):
        return _section("How it went", "<p>There are no records of its epochs beside the weights.</p>")
    drawn = "".join(f"<figure>{_curve(title, f.records)}</figure>\n" for title in CURVES)
    note = "The test accuracy is that of the last weights; nothing was chosen on the test images."
    said = f'<p class="note">{note}</p>' if "test_accuracy" in f.records[-1] else ""
    return _section("How it went", f'<div class="curves">\n{drawn}</div>\n', said)


def _curve(title: str, records: list[Record]) -> str:
    """A curve as SVG in the page's colours: drawn in stand-ins, which are then named as the palette names them."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    ink, muted, line, accent, grad = INKS
    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": title,
        "axes.prop_cycle": f"cycler('color', ['{accent}', '{grad}'])",
        "axes.edgecolor": muted,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "figure.facecolor": "none",
        "grid.color": line,
        "grid.linewidth": 0.7,
        "legend.frameon": False,
        "lines.linewidth": 1.8,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), ink),
    }
    with rc_context(style):
        figure = Figure(figsize=(4.4, 3.1), layout="constrained")
        axes = figure.subplots()
        draw_curve(axes, title, records)
        file = StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    prefix = re.sub(r"\W+", "-", title)
    svg = re.sub(r' id="([^"]+)"', lambda found: f' id="{prefix}-{found[1]}"' if f"#{found[1]}" in svg else "", svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    for stand_in, name in INKS.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    named = escape(_spoken(title, records))
    return re.sub(r'<svg[^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1 role="img" aria-label="{named}">', svg, count=1)


def _spoken(title: str, records: list[Record]) -> str:
    """A curve in words: where each line begins and ends."""
    epochs, said = epochs_of(records), []
    for key, label in CURVES[title].items():
        values = [epoch[key] for epoch in epochs if key in epoch]
        if values:
            said.append(f"{label or 'it'} from {values[0]:.3g} to {values[-1]:.3g}")
    return f"{title} over {many(len(epochs), 'epoch')}: {'; '.join(said)}"


# -------------------------------------------------------------------------------------------------------------- answers


def _classes(f: Facts) -> str:
    a = f.answers
    if a is None:
        return ""
    more = _matrix(f, a) if a.num_classes <= FEW else _confused(f, a)
    tables = f'<div class="sides">\n<div>{_table_of_classes(f, a)}</div>\n<div>{more}</div>\n</div>\n'
    return _section("Class by class", _calibration(a), tables)


def _calibration(a: Answers) -> str:
    sure, error = float(a.confidence.mean()), calibration_error(a.confidence, a.right)
    how = "surer than it should be" if sure > a.accuracy else "less sure than it could be"
    verdict = f"on average it is {how}" if abs(sure - a.accuracy) > 0.005 else "on average it is as sure as it is right"
    return (
        f'<p class="calibration">It gives its answers a probability of {sure:.1%} and is right in {a.accuracy:.1%}: '
        f"{verdict}. Expected calibration error ({BINS} bins): <b>{error:.3f}</b>.</p>\n"
    )


def _table_of_classes(f: Facts, a: Answers) -> str:
    s = class_scores(a)
    order = range(a.num_classes) if a.num_classes <= FEW else np.argsort(np.nan_to_num(s.f1, nan=2), kind="stable")
    rows = [
        f'<tr><th scope="row">{f.class_name(k)}</th><td>{s.images[k]:,}</td>'
        + "".join(f'<td style="--share:{_percent(x[k])}">{_share(x[k])}</td>' for x in (s.precision, s.recall, s.f1))
        + "</tr>\n"
        for k in order
    ]
    head = "".join(f'<th scope="col">{name}</th>' for name in ("class", "images", "precision", "recall", "F1"))

    if len(rows) <= FEW:
        return _scores(head, "".join(rows))
    rest = f"<details><summary>All {len(rows):,} classes</summary>\n{_scores(head, ''.join(rows))}</details>\n"
    return f"<h3>The {PAIRS} classes of the lowest F1</h3>\n{_scores(head, ''.join(rows[:PAIRS]))}{rest}"


def _scores(head: str, rows: str) -> str:
    table = f'<table class="scores"><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table>'
    return f'<div class="scroll" tabindex="0">{table}</div>\n'


def _share(x: float) -> str:
    return "–" if np.isnan(x) else f"{x:.1%}"


def _percent(x: float) -> str:
    return f"{100 * np.nan_to_num(x):.0f}%"


def _matrix(f: Facts, a: Answers) -> str:
    """The confusion matrix as a table, shaded by the share of the row."""
    K, counts = a.num_classes, confusion(a)
    of = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    named = " named" if max(map(len, f.trained.classes)) > 3 else ""  # long names stand upright
    head = "".join(f'<th scope="col" title="{f.class_name(k)}"><span>{f.class_name(k)}</span></th>' for k in range(K))
    body = ""
    for i in range(K):
        cells = "".join(
            f'<td class="{"hit" if i == j else "miss" if n else "none"}" style="--share:{_percent(n / of[i, 0])}">'
            f"{n if n or i == j else ''}</td>"
            for j, n in enumerate(counts[i].tolist())
        )
        name = f.class_name(i)
        body += f'<tr><th scope="row" title="{name}">{name}</th>{cells}</tr>\n'
    return (
        f'<div class="scroll" tabindex="0"><table class="confusion{named}"><caption>Rows: the right class. '
        f"Columns: the answer.</caption>\n<thead><tr><td></td>{head}</tr></thead>\n"
        f"<tbody>\n{body}</tbody></table></div>\n"
    )


def _confused(f: Facts, a: Answers) -> str:
    """Many classes: the pairs that were confused most, and the matrix as a picture."""
    images = np.bincount(a.labels, minlength=a.num_classes)
    rows = "".join(
        f'<tr><th scope="row">{f.class_name(i)}</th><th scope="row">{f.class_name(j)}</th>'
        f'<td>{times:,}</td><td style="--share:{_percent(times / images[i])}">{times / images[i]:.1%}</td></tr>\n'
        for i, j, times in most_confused(a, PAIRS)
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("class", "was taken for", "times", "of its images"))
    shown = f"<h3>Confused most often</h3>\n{_scores(head, rows)}" if rows else ""
    if a.num_classes > MANY:
        return shown
    shares = confusion(a) / np.maximum(images, 1)[:, None]
    pixels = np.zeros((*shares.shape, 4), np.uint8)
    pixels[..., :3] = np.where(np.eye(a.num_classes, dtype=bool)[..., None], (43, 127, 196), (214, 108, 43))
    pixels[..., 3] = np.rint(255 * np.sqrt(shares))
    return (
        f'{shown}<h3>What was taken for what</h3>\n<figure class="matrix">'
        f'<img src="{png(pixels)}" alt="Confusion matrix of {a.num_classes:,} classes">'
        "<figcaption>A row a class, a column an answer, in the order of the classes; the more, the stronger. "
        "Right answers are the diagonal.</figcaption></figure>\n"
    )


# ------------------------------------------------------------------------------------------------- mistakes, attention


def _mistakes(f: Facts) -> str:
    a = f.answers
    if a is None:
        return ""
    if a.right.all():
        note = f"<p>None of the {len(a):,} answers is wrong. These are the right ones of the largest loss.</p>\n"
        return _section("No mistakes", note, _gallery(f, a, a.worst(MISTAKES // 2, right=True)))
    worst = a.worst(MISTAKES)
    wrong = int((~a.right).sum())
    note = f"<p>{many(wrong, 'answer')} of {len(a):,} {'is' if wrong == 1 else 'are'} wrong"
    note += f"; these {len(worst)} have the largest loss.</p>\n" if wrong > len(worst) else ".</p>\n"
    return _section("The worst mistakes", note, _gallery(f, a, worst))


def _gallery(f: Facts, a: Answers, some: np.ndarray) -> str:
    assert f.split is not None
    images = f.split.images[a.rows[some]]
    figures = "".join(
        f"<figure>{_image(image, f'{f.image_name(a.rows[i])} of the {a.split} images')}"
        f"<figcaption>{_caption(f, a, int(i))}<span>{escape(f.image_name(a.rows[i]))}, loss {a.losses[i]:.2f}</span>"
        "</figcaption></figure>\n"
        for i, image in zip(some, images, strict=True)
    )
    return f'<div class="gallery">\n{figures}</div>\n'


def _caption(f: Facts, a: Answers, i: int) -> str:
    truth, said = f.class_name(int(a.labels[i])), f.class_name(int(a.predicted[i]))
    if a.right[i]:
        return f"<b>{truth}</b><span>rightly, with {a.confidence[i]:.1%}</span>"
    return (
        f"<b>{truth}</b><span>taken for <em>{said}</em> with {a.confidence[i]:.1%}, against {a.of_truth[i]:.1%}</span>"
    )


def _image(image: np.ndarray, alt: str) -> str:
    """An image, uint8 (C, H, W), not larger than a thumbnail; a small one is enlarged pixel by pixel."""
    step = -(-max(image.shape[1:]) // THUMBNAIL)
    kind = ' class="pixels"' if max(image.shape[1:]) < THUMBNAIL // 2 else ""
    return f'<img{kind} src="{picture(_shrunk(image, step))}" alt="{escape(alt)}">'


def _shrunk(image: np.ndarray, step: int) -> np.ndarray:
    """Blocks of step × step pixels become their mean; what is over at the edges is cut off."""
    if step == 1:
        return image
    C, H, W = image.shape
    blocks = image[:, : H // step * step, : W // step * step].reshape(C, H // step, step, W // step, step)
    return np.rint(blocks.mean(axis=(2, 4))).astype(np.uint8)


def _attention(f: Facts) -> str:
    a, depth = f.answers, f.config.model.depth
    if a is None or not depth:
        return ""
    assert f.split is not None
    chosen = [*a.worst(SHOWN_ATTENTION).tolist(), *_right_ones(a, SHOWN_ATTENTION)]
    figures = ""
    for i in chosen:
        drawn = _attention_picture(f.trained, f.split.images[a.rows[[i]]])
        kind = "right" if a.right[i] else "wrong"
        alt = escape(f"{f.image_name(a.rows[i])} and the attention to its patches in {many(depth, 'layer')}")
        figures += f'<figure class="{kind}"><div class="scroll"><img src="{drawn}" alt="{alt}"></div>'
        figures += f"<figcaption>{_caption(f, a, i)}</figcaption></figure>\n"
    looks = "the mean over all tokens" if f.config.model.pool == "mean" else "the class token"
    note = f"<p>How much {looks} attends to each patch, layer by layer, the mean of its heads; bright is much.</p>\n"
    return _section("Where it looks", note, f'<div class="attention" style="--layers:{depth + 1}">\n{figures}</div>\n')


def _right_ones(a: Answers, n: int) -> list[int]:
    """The first right answer of each of n classes."""
    right = np.flatnonzero(a.right)
    _, first = np.unique(a.labels[right], return_index=True)
    return sorted(right[first].tolist())[:n]


def _attention_picture(trained: TrainedModel, image: np.ndarray) -> str:
    figure, file = attention_figure(trained, image), BytesIO()
    figure.set_facecolor("none")
    for axes in figure.axes:
        axes.title.set_color("#80868c")  # legible on light and on dark
    figure.savefig(file, format="png", dpi=100)
    return "data:image/png;base64," + b64encode(file.getvalue()).decode()


# ------------------------------------------------------------------------------------------------- times, config, again


def _times(f: Facts) -> str:
    epochs, facts = epochs_of(f.records), []
    if epochs:
        total = epochs[-1]["seconds"]
        took = np.diff([0.0, *(epoch["seconds"] for epoch in epochs)])
        steps = epochs[-1]["step"]
        facts.append(("training", f"{_duration(total)} for {many(len(epochs), 'epoch')}, {many(steps, 'step')}"))
        middle, least, most = map(_short, (statistics.median(took), took.min(), took.max()))
        facts.append(("an epoch", f"{middle} s (median; {least} to {most})"))
        facts.append(("a step", f"{_short(1000 * total / steps)} ms on average"))
    if rate := median_rate(epochs):
        facts.append(("speed", f"{rate:,.0f} images/s (median of the epochs, loading included)"))
    if f.config.training.precision != "fp32":
        facts.append(("precision", escape(f.config.training.precision)))
    where = "Trained, and this page written, on" if f.here else "This page, though not the run, was made on"
    known = [(name, escape(fact)) for name, fact in machine(f.device).items()]
    return _section("Time and machine", _pairs(facts, "facts"), f"<h3>{where}</h3>\n", _pairs(known, "facts"))


OF_THE_DATA = {"image_size", "channels", "num_classes", "mean", "std"}


def _config(f: Facts) -> str:
    defaults = resolve(merge(), digits()).to_dict()
    tables = ""
    for table, values in f.config.to_dict().items():
        rows = ""
        for key, value in values.items():
            default = defaults[table].get(key)
            changed = value != default and key not in OF_THE_DATA
            was = f" <small>default {escape(_shown(default))}</small>" if changed else ""
            said = f"<b>{escape(_shown(value))}</b>" if changed else escape(_shown(value))
            kind = ' class="changed"' if changed else ""
            rows += f'<tr{kind}><th scope="row">{escape(key)}</th><td>{said}{was}</td></tr>\n'
        tables += f'<table class="config"><caption>[{escape(table)}]</caption><tbody>\n{rows}</tbody></table>\n'
    note = '<p class="note">Bold: other than the default.</p>\n'
    return _section("Config", note, f'<div class="configs">\n{tables}</div>\n')


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return str(value) if value != "" else "“”"


def _again(f: Facts) -> str:
    path = "config.toml" if f.folder is None else str(f.folder / "config.toml")
    command = f"tinyvit train --config {shlex.quote(path)}"
    note = "<p>Without the run's folder, save this as config.toml; its bits repeat on the same versions and device.</p>"
    return _section(
        "The same again",
        f"<pre>{escape(command)}</pre>\n<details><summary>config.toml</summary>\n{note}\n"
        f"<pre>{escape(f.config.to_toml())}</pre></details>\n",
    )
