"""The `tinyvit` command: arguments in, exit code out. What it does is done in the rooms below."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import tinyvit
from tinyvit import pretrained, study
from tinyvit.data import DATASETS, DataError, Reading, Split, inspection, load_dataset, read_image, unknown_name
from tinyvit.data.datasets import ON_BAD_IMAGE
from tinyvit.engine import BackendError
from tinyvit.engine.backend import namespace_on
from tinyvit.engine.mixed_precision import PRECISIONS
from tinyvit.pretrained import WeightsError
from tinyvit.training import (
    CheckpointError,
    ConfigError,
    Initial,
    Interrupted,
    NonFiniteLossError,
    Run,
    TrainedModel,
    Trainer,
    evaluate,
    load_trained,
    predict,
    top_k,
)
from tinyvit.training.config import for_epochs, merge, open_dataset, parse_assignments, read_toml, resolve
from tinyvit.training.run import continue_config, evaluation_loader, read_model_config
from tinyvit.vit import ViTConfig

GOOD, CHECK_FAILED, WRONG_USAGE, BAD_DATA, NON_FINITE = 0, 1, 2, 3, 4
EXIT_CODES: dict[type[Exception], int] = {
    ConfigError: WRONG_USAGE,
    BackendError: WRONG_USAGE,
    DataError: BAD_DATA,
    WeightsError: BAD_DATA,
    CheckpointError: BAD_DATA,
    pretrained.FeatureError: WRONG_USAGE,
    pretrained.WeightsError: BAD_DATA,
    study.ExplainError: BAD_DATA,
    OSError: BAD_DATA,
    NonFiniteLossError: NON_FINITE,
}
RUNS = Path("runs")
TOKENS = {"cls": ("class_token", "pooled"), "patches": ("patch_tokens", "pooled"), "all": ()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code (the list is in the README)."""
    options = _parser().parse_args(arguments)
    try:
        with _on_signals(_interrupt):
            code = int(options.command(options))
            sys.stdout.flush()
        return code
    except BrokenPipeError:  # `tinyvit summary … | head`: whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except tuple(EXIT_CODES) as error:
        if options.debug:
            raise
        print(f"tinyvit: {error}", file=sys.stderr)
        return next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))
    except KeyboardInterrupt as stop:
        print("tinyvit: interrupted", file=sys.stderr)
        return 128 + (stop.args[0] if stop.args else signal.SIGINT)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tinyvit", description=tinyvit.__doc__)
    parser.add_argument("--version", action="version", version=f"tinyvit {tinyvit.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, function: Callable[[argparse.Namespace], int], help: str, among: Any = commands
    ) -> argparse.ArgumentParser:
        sub = among.add_parser(name, help=help, description=help)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(command=function)
        return sub

    train = command("train", _train, "train a ViT; without arguments, on the digits that come with tinyvit")
    train.add_argument("--data", metavar="NAME|PATH", help="what to train on: `tinyvit data list` says what there is")
    train.add_argument("--epochs", type=int, metavar="N", help="passes over the training images")
    train.add_argument("--seed", type=int, metavar="N", help="of weights, order, augmentation and dropout")
    train.add_argument("--out", type=Path, metavar="DIR", help="the run's folder (a new one in runs/ if left out)")
    train.add_argument("--resume", action="store_true", help="go on with the run in DIR (the newest one if left out)")
    train.add_argument("--init", metavar="WEIGHTS", help="start from trained weights: their file or folder, or a run")
    train.add_argument("--config", type=Path, metavar="FILE.toml", help="the config; the other options come on top")
    train.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="one value of the config: training.lr=1e-3"
    )
    train.add_argument("--print-config", action="store_true", help="print the config, with its gaps filled, and stop")
    train.add_argument("--on-bad-image", choices=ON_BAD_IMAGE, help="what becomes of unusable image files (raise)")
    _add_offline(train)
    train.add_argument("--precision", choices=PRECISIONS, help="what a GPU computes in (fp32)")
    train.add_argument("--graph", action="store_true", help="launch a step on a GPU as one CUDA graph: small models")
    _add_workers(train)
    _add_device(train)

    evaluation = command("eval", _eval, "measure a trained model on its dataset's test images")
    evaluation.add_argument("run", type=Path, metavar="RUN", help="a run's folder, a model file or a checkpoint")
    evaluation.add_argument("--data", metavar="NAME|PATH", help="another dataset than the one it was trained on")
    evaluation.add_argument(
        "--split",
        type=lambda name: {"training": "train", "val": "validation"}.get(name, name),
        choices=("train", "validation", "test"),
        default="test",
        help="the images to measure: train (or training), validation (or val), test (the default)",
    )
    _add_offline(evaluation)
    evaluation.add_argument("--report", type=Path, metavar="FILE.html", help="write a page about the run, too")
    evaluation.add_argument("--json", action="store_true", help="print one JSON object")
    _add_workers(evaluation)
    _add_device(evaluation)

    prediction = command("predict", _predict, "say what images show")
    prediction.add_argument(
        "run", type=Path, metavar="RUN", help="a run's folder, a model file or a checkpoint; or weights of others"
    )
    prediction.add_argument(
        "images",
        type=Path,
        nargs="+",
        metavar="IMAGE",
        help="image files, or .npy arrays; cropped and resized to the model's size",
    )
    prediction.add_argument("--top", type=int, default=3, metavar="K", help="classes to name for each image")
    prediction.add_argument(
        "--attention", type=Path, metavar="OUT.png", help="draw where the model looks; its folder is made"
    )
    prediction.add_argument("--json", action="store_true", help="print one JSON object")
    _add_workers(prediction)
    _add_device(prediction)

    finding = command("features", _features, "write what a model makes of images to an .npz file")
    _add_weights(finding)
    finding.add_argument(
        "images", type=Path, nargs="+", metavar="IMAGE", help="image files, folders of them, or .npy arrays"
    )
    finding.add_argument("--out", type=Path, required=True, metavar="FILE.npz", help="the file; its folder is made")
    finding.add_argument(
        "--layers",
        type=int,
        nargs="+",
        default=[],
        metavar="N",
        help="tokens after these encoder layers, too: from 0, or from -1, the last",
    )
    finding.add_argument(
        "--size", type=_at_least_one, nargs="+", metavar="PIXELS", help="H W of the images, or one number for both"
    )
    finding.add_argument(
        "--tokens", choices=TOKENS, default="all", help="those to keep beside what the head reads (all)"
    )
    _add_batch(finding)
    finding.add_argument("--json", action="store_true", help="print one JSON object")
    _add_workers(finding)
    _add_device(finding)

    probing = command("probe", _probe, "measure a model's features on a dataset, by neighbours and a linear probe")
    _add_weights(probing)
    probing.add_argument("--data", required=True, metavar="NAME|PATH", help="a dataset's name, or where one lies")
    probing.add_argument(
        "--k", type=_at_least_one, nargs="+", default=[10, 20], metavar="N", help="neighbours that vote (10 20)"
    )
    probing.add_argument(
        "--features",
        choices=("pooled", "class_token", "mean"),
        default="pooled",
        help="what the head reads (pooled), the class token, or the mean of the patch tokens",
    )
    probing.add_argument("--seed", type=_whole, default=0, metavar="N", help="of the draw of held-out images (0)")
    _add_batch(probing)
    probing.add_argument("--json", action="store_true", help="print one JSON object")
    _add_offline(probing)
    _add_workers(probing)
    _add_device(probing)

    export = command("export", _export, "write a model into a folder that timm or Hugging Face's transformers open")
    _add_weights(export)
    export.add_argument(
        "out", type=Path, metavar="FOLDER", help="made if need be; files of the same names are replaced"
    )
    export.add_argument("--layout", choices=pretrained.LAYOUTS, default="timm", help="whose files to write (timm)")

    table = command("summary", _summary, "print a model's layers: what each learns, computes and keeps for training")
    table.add_argument(
        "model",
        metavar="MODEL",
        help="a name like vit_base_patch16_224, a config.toml, a run, a model file, or weights",
    )
    table.add_argument("--batch", type=int, default=1, metavar="N", help="images a batch, for the totals (default 1)")
    form = table.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    form.add_argument("--json", action="store_true", help="print one JSON object")

    data = commands.add_parser("data", help="list, fetch, describe and check datasets", description="Datasets.")
    actions = data.add_subparsers(required=True, metavar="ACTION")
    listing = command("list", _data_list, "list the datasets that have a name", actions)
    getting = command("get", _data_get, "bring a dataset onto this machine, and say where it is", actions)
    getting.add_argument("name", metavar="NAME", help="one of those that `tinyvit data list` shows")
    getting.add_argument("--offline", action="store_true", help="never download: fail if it is not here")
    information = command("info", _data_info, "say what a dataset holds", actions)
    scanning = command("scan", _data_scan, "look at every image; exit code 1 if one cannot be used", actions)
    for sub in (information, scanning):
        sub.add_argument("data", metavar="NAME|PATH", help="a dataset's name, or a file or folder that holds one")
    form = scanning.add_mutually_exclusive_group()
    form.add_argument("--list", action="store_true", help="print the unusable files alone, one a line")
    for group in (listing, information, form):
        group.add_argument("--json", action="store_true", help="print one JSON object")

    judge = command("audit", _audit, "check every gradient by every method; exit code 1 if one is wrong")
    judge.add_argument("ops", nargs="*", metavar="OP", help="ops and layers, for instance softmax EncoderLayer (all)")
    judge.add_argument("--all", action="store_true", help="print every row, not the worst of each op")
    judge.add_argument("--json", action="store_true", help="print one JSON object with all rows")
    judge.add_argument("--html", type=Path, metavar="FILE", help="write one self-contained page with all rows")
    judge.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (all cores)")
    _add_device(judge, default="cpu")

    page = command("explain", _explain, "write a page that shows a tape and how its gradients are made, node by node")
    what = page.add_mutually_exclusive_group()
    what.add_argument(
        "--model", metavar="NAME|CONFIG.toml", help="a model with fresh weights, head included (the one for digits)"
    )
    what.add_argument("--run", type=Path, metavar="RUN", help="a run's folder, a model file or a checkpoint")
    what.add_argument(
        "--script",
        type=Path,
        metavar="FILE",
        help="a Python file, run without arguments: its global `loss`, or its last backward()",
    )
    page.add_argument(
        "--out", type=Path, default=Path("tape.html"), metavar="FILE", help="the page (tape.html); its folder is made"
    )
    page.add_argument("--images", type=int, metavar="N", help="images to show the model (4; 1 of many tokens)")
    page.add_argument("--image", type=Path, metavar="FILE", help="an image file to show it instead")
    page.add_argument("--seed", type=int, metavar="N", help="of fresh weights and random images (0)")
    page.add_argument("--step", type=int, metavar="N", help="of a script: its N-th backward(), and end it there")
    page.add_argument("--audit", action="store_true", help="audit the ops of this tape now, some seconds each")
    return parser


def _add_device(parser: argparse.ArgumentParser, default: str = "auto") -> None:
    parser.add_argument(
        "--device", choices=("cpu", "gpu", "auto"), default=default, help=f"auto: a GPU if there is one ({default})"
    )


def _add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "weights", metavar="WEIGHTS", help="a file or a folder of weights, hf://owner/name, or a run's folder"
    )


def _add_batch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=_at_least_one, default=32, metavar="N", help="images at once (32)")


def _add_offline(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--offline", action="store_true", help="download nothing, not even data asked for by name")


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        type=_at_least_one,
        default=os.environ.get("TINYVIT_WORKERS"),
        metavar="N",
        help="threads (one a core); the result does not depend on it",
    )


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def _at_least_one(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


# ----------------------------------------------------------------------------------------------------------------------


def _train(options: argparse.Namespace) -> int:
    folder = options.out or (_newest_run() if options.resume else None)
    flags: dict[str, dict[str, Any]] = {"data": {}, "training": {}}
    for table, key, value in (
        ("data", "name", options.data),
        ("training", "seed", options.seed),
        ("training", "precision", options.precision),
        ("training", "init", options.init),
        ("data", "on_bad_image", options.on_bad_image),
    ):
        if value is not None:
            flags[table][key] = value
    tables = merge(
        continue_config(folder) if options.resume and folder else {},
        read_toml(options.config) if options.config else {},
        parse_assignments(options.set),
        flags,
    )
    if options.epochs is not None:
        tables = for_epochs(tables, options.epochs)
    init = tables["training"].get("init")
    initial = _open_initial(init) if init and not (options.resume and folder and Run.goes_on(folder)) else None
    if options.print_config:
        dataset = open_dataset(tables, offline=True, initial=initial)
        print(resolve(tables, dataset, initial).to_toml(), end="")
        return GOOD
    folder = folder or _new_folder(tables["data"].get("name", "digits"))
    run = Run(tables, folder, options.device, options.resume, options.workers, options.graph, options.offline, initial)
    _introduce(run)
    received: list[int] = []
    try:
        with _stop_on_signals(run.trainer, received), study.progress(run.trainer) as (on_step, on_record):
            final = run.train(on_step, on_record)
    except (Interrupted, KeyboardInterrupt) as stop:
        with _on_signals(signal.SIG_IGN):
            print(f"tinyvit: {_how_it_stopped(run, stop)}", file=sys.stderr)
        return 128 + received[-1]
    try:
        print(f"\n{study.results(run)}\n")
        if received:  # during the last look at the test images
            raise KeyboardInterrupt(received[0])
        pictures = _draw_pictures(run, options.workers)
    except KeyboardInterrupt:
        report = f"tinyvit eval {shlex.quote(str(folder))} --report {shlex.quote(str(folder / 'report.html'))}"
        print(f"tinyvit: the run is complete; write its report with: {report}", file=sys.stderr)
        raise
    accuracy = f"test accuracy {final['test_accuracy']:.2%}, " if "test_accuracy" in final else ""
    print(f"{accuracy}{final['seconds']:.1f} s of training, files in {folder}/{pictures}")
    return GOOD


def _open_initial(path: str) -> Initial:
    from tinyvit import pretrained

    return pretrained.initial(path)


def _newest_run() -> Path:
    runs = sorted(RUNS.glob("*/config.toml"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise ConfigError(f"there is no run in {RUNS}/ to resume: name its folder with --out")
    return runs[-1].parent


def _new_folder(data: str) -> Path:
    """runs/digits, or runs/digits-2, … where that is taken."""
    name = Path(data).stem
    taken = {path.name for path in RUNS.glob("*")}
    return RUNS / next(n for n in (name, *(f"{name}-{i}" for i in range(2, len(taken) + 3))) if n not in taken)


def _introduce(run: Run) -> None:
    c, trainer = run.config, run.trainer
    print(
        f"{run.dataset.name}: {len(run.dataset.train):,} training, {len(run.dataset.validation):,} validation, "
        f"{len(run.dataset.test):,} test images of {c.model.height}×{c.model.width}×{c.model.channels}, "
        f"{study.many(c.model.num_classes, 'class')}\n"
        f"ViT: patch {c.model.patch_size}, width {c.model.dim}, depth {c.model.depth}, "
        f"{study.many(c.model.num_heads, 'head')}, "
        f"{trainer.model.num_parameters:,} parameters, on the {trainer.model.device}; "
        f"{study.many(c.training.epochs, 'epoch')} of {study.many(len(trainer.loader), 'step')}, seed {c.training.seed}"
    )
    if run.config.training.init and not run.resumed_from:
        print(f"starts from {run.config.training.init}")
    if run.config.training.freeze:
        trained = sum(p.size for p in trainer.optimizer.parameters)
        print(f"frozen: all but {trained:,} parameters")
    for error in run.damaged:
        print(f"tinyvit: passed over: {error}", file=sys.stderr)
    if run.resumed_from and trainer.epoch < trainer.epochs:
        print(f"resumed from {run.resumed_from.name}: epoch {trainer.epoch + 1}, step {trainer.step}")
    elif run.resumed_from:
        print(f"{run.resumed_from.name} is the end of this run; nothing is left to train")


def _how_it_stopped(run: Run, stop: BaseException) -> str:
    again = f"tinyvit train --resume --out {shlex.quote(str(run.folder))}"
    if isinstance(stop, Interrupted):
        return f"stopped after step {run.trainer.step}; go on with: {again}"
    if run.has_checkpoint:
        return f"stopped at once; go on with: {again}"
    return f"stopped at once, before a checkpoint was kept; begin anew with: {again}"


@contextmanager
def _stop_on_signals(trainer: Trainer, received: list[int]) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the run after the current step; a second one ends it at once."""
    clear = b"\r\x1b[2K" if sys.stderr.isatty() else b""  # the bar's line

    def stop(number: int, frame: Any) -> None:
        received.append(number)
        if len(received) == 2:
            raise KeyboardInterrupt(number)
        if len(received) == 1:
            trainer.stop = True
            again = b"press Ctrl-C again" if number == signal.SIGINT else b"a second signal is needed"
            # Not print: the signal may have come in the middle of one.
            os.write(2, clear + b"tinyvit: finishing this step or evaluation; " + again + b" to stop at once\n")

    with _on_signals(stop):
        yield


@contextmanager
def _on_signals(handler: Callable[[int, Any], None] | signal.Handlers) -> Iterator[None]:
    """Let a function answer Ctrl-C and SIGTERM."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt(number)


def _draw_pictures(run: Run, workers: int | None) -> str:
    """Draw curves and attention and write the report where matplotlib is there; say what was written."""
    if importlib.util.find_spec("matplotlib") is None:
        return " (no pictures: pip install 'tinyvit[vision]')"
    some = run.dataset.validation if len(run.dataset.validation) else run.dataset.train
    files: dict[str, Callable[[Path], Any]] = {
        "curves.png": lambda path: study.draw_curves(run.metrics_path, path),
        "attention.png": lambda path: _draw_first(load_trained(run.folder), some, path),
        "report.html": lambda path: study.write_report(run, path, workers=workers),
    }
    written, problems = [], []
    for name, write in files.items():
        try:
            with study.busy(f"writing {name} …"):
                write(run.folder / name)
            written.append(name)
        except (OSError, ValueError) as error:  # the run itself is good
            problems.append(f"no {name}: {error}")
    return f" ({', '.join(written + problems)})"


def _draw_first(trained: TrainedModel, split: Split, path: Path, n: int = 6) -> None:
    images, rows = study.read_rows(split, np.arange(min(n, len(split))))
    said = predict(trained.model, images, trained.config.data.mean, trained.config.data.std).argmax(axis=1)
    names = [(trained.classes[label], trained.classes[k]) for label, k in zip(split.labels[rows], said, strict=True)]
    titles = [truth if truth == answer else f"{truth}, taken for {answer}" for truth, answer in names]
    study.draw_attention(trained, images, path, titles)


def _eval(options: argparse.Namespace) -> int:
    trained = load_trained(options.run, options.device)
    try:
        dataset = open_dataset(trained.config.to_dict(), options.data, options.offline)
        study.check_fits(trained, dataset)
    except (DataError, OSError):
        if options.report and not options.data:  # what the run's files hold is worth a page
            _report(trained, options)
        raise
    split = getattr(dataset, options.split)
    scores = evaluate(trained.model, evaluation_loader(trained.config, split), options.workers)
    bad = dataset.skipped()
    if options.report:
        _report(trained, options, dataset)
    if options.json:
        print(json.dumps({"data": dataset.name, "split": options.split, **scores, "skipped": bad}))
    else:
        right = round(scores["accuracy"] * scores["images"])
        print(
            f"{dataset.name} {options.split}: accuracy {scores['accuracy']:.2%} ({right} of {scores['images']}), "
            f"loss {scores['loss']:.4f}"
        )
        if bad:
            print(f"skipped {study.describe_skipped(bad)}")
        if options.report:
            print(f"{options.report}: open it in a browser")
    return GOOD


def _report(trained: Any, options: argparse.Namespace, dataset: Any = None) -> None:
    try:
        data = options.data or dataset
        study.write_report(trained, options.report, data=data, split=options.split, workers=options.workers)
    except ImportError as error:
        raise ConfigError("--report needs matplotlib: pip install 'tinyvit[vision]'") from error


def _predict(options: argparse.Namespace) -> int:
    if options.top < 1:
        raise ConfigError(f"--top is {options.top}; it must be at least 1")
    if options.attention:
        try:
            study.check_drawable(options.attention)
        except ImportError as error:
            raise ConfigError("--attention needs matplotlib: pip install 'tinyvit[vision]'") from error
        except ValueError as error:
            raise ConfigError(f"--attention {options.attention}: {error}") from error
    foreign = pretrained.is_foreign(options.run)
    model = pretrained.from_pretrained(options.run, device=options.device) if foreign else None
    trained = pretrained.as_trained(model) if model else load_trained(options.run, options.device)
    if model and not options.json:
        print(model.report)
    data = trained.config.data
    images, bad = _readable(options.images, trained)
    if bad and (options.debug or not images):
        raise bad[0]
    for problem in bad:
        print(f"tinyvit: {problem}", file=sys.stderr)
    pixels = np.stack([image for _, image in images])
    probabilities = predict(trained.model, pixels, data.mean, data.std, workers=options.workers)
    answers = top_k(probabilities, trained.classes, options.top)
    said = [(str(path), top) for (path, _), top in zip(images, answers, strict=True)]
    if options.json:
        print(json.dumps({"predictions": [{"image": path, "top": top} for path, top in said]}, ensure_ascii=False))
    else:
        for path, top in said:
            print(f"{path}: " + ", ".join(f"{answer['class']} {answer['probability']:.1%}" for answer in top))
    if options.attention:
        options.attention.parent.mkdir(parents=True, exist_ok=True)
        titles = [f"{Path(path).name}: {top[0]['class']} {top[0]['probability']:.0%}" for path, top in said]
        study.draw_attention(trained, pixels, options.attention, titles)
    return BAD_DATA if bad else GOOD


def _readable(paths: Sequence[Path], trained: TrainedModel) -> tuple[list[tuple[Path, np.ndarray]], list[DataError]]:
    """The images, as the model takes them, and what is wrong with the other files."""
    model, data = trained.config.model, trained.config.data
    images, bad = [], []
    for path in paths:
        try:
            if isinstance(trained.model, pretrained.PretrainedViT):
                images.append((path, np.rint(trained.model.preprocessing.levels(path)).astype(np.uint8)))
                continue
            size = (model.height, model.width)
            images.append((path, read_image(path, model.channels, size, data.crop_ratio, data.interpolation)))
        except DataError as error:
            bad.append(error)
    return images, bad


def _features(options: argparse.Namespace) -> int:
    if options.size and len(options.size) > 2:
        raise ConfigError(f"--size has {len(options.size)} numbers; give height and width, or one for both")
    if options.out.is_dir():
        raise ConfigError(
            f"--out {options.out} is a folder; name a file in it, for instance {options.out}/features.npz"
        )
    files = pretrained.image_files(options.images)
    size = (options.size[0], options.size[-1]) if options.size else None
    model = _open_weights(options, size)
    with tqdm(total=len(files), unit="image", leave=False, disable=not sys.stderr.isatty()) as bar:
        arrays, bad = pretrained.features_of_files(
            model,
            model.preprocessing,
            files,
            TOKENS[options.tokens],
            options.layers,
            options.batch,
            options.workers,
            bar.update,
        )
    for problem in bad:
        print(f"tinyvit: {problem}", file=sys.stderr)
    pretrained.write_features(options.out, arrays)
    found = {name: list(array.shape[1:]) for name, array in arrays.items() if name not in ("paths", "grid")}
    if options.json:
        answer = {
            "out": str(options.out),
            "images": len(arrays["paths"]),
            "features": found,
            "skipped": [str(error) for error in bad],
        }
        print(json.dumps({**answer, "grid": arrays["grid"].tolist(), "weights": str(model.report)}))
    else:
        shapes = ", ".join(f"{name} {'×'.join(map(str, shape))}" for name, shape in found.items())
        size = options.out.stat().st_size / 1e6
        print(f"{options.out}: {study.many(len(arrays['paths']), 'image')}, {shapes}, {size:,.2f} MB")
    return BAD_DATA if bad else GOOD


def _open_weights(options: argparse.Namespace, size: tuple[int, int] | None = None) -> pretrained.PretrainedViT:
    try:
        model = pretrained.from_pretrained(options.weights, image_size=size, device=options.device)
    except tuple(EXIT_CODES):
        raise
    except ValueError as error:  # sizes that make no ViT
        raise ConfigError(str(error)) from error
    if not options.json:
        print(model.report)
    return model


def _export(options: argparse.Namespace) -> int:
    model = pretrained.from_pretrained(options.weights)
    pretrained.save_pretrained(model, options.out, options.layout)
    print(model.report)
    print(f"{options.out}: {model.num_parameters:,} parameters in {options.layout}'s layout")
    return GOOD


def _probe(options: argparse.Namespace) -> int:
    dataset = load_dataset(options.data, Reading(split_seed=options.seed, offline=options.offline))
    model = _open_weights(options)
    images = sum(map(len, (dataset.train, dataset.validation, dataset.test)))
    with tqdm(total=images, unit="image", leave=False, disable=not sys.stderr.isatty()) as bar:
        report = pretrained.probe_dataset(
            model,
            model.preprocessing,
            dataset,
            options.k,
            options.features,
            options.batch,
            options.seed,
            options.workers,
            bar.update,
        )
    print(json.dumps(report.to_dict()) if options.json else report.to_text())
    return GOOD


def _summary(options: argparse.Namespace) -> int:
    if options.batch < 1:
        raise ConfigError(f"--batch is {options.batch}; it must be at least 1")
    rows = study.summary(_model_config(options.model))
    if options.json:
        table = [asdict(row) for row in rows]
        answer = {"batch": options.batch, "rows": table, **study.totals(rows, options.batch)}
        print(json.dumps(answer, ensure_ascii=False))
    else:
        print((study.to_markdown if options.markdown else study.to_text)(rows, options.batch))
    return GOOD


def _audit(options: argparse.Namespace) -> int:
    if options.workers < 1:
        raise ConfigError(f"--workers is {options.workers}; it must be at least 1")
    device = namespace_on(options.device).device
    try:
        samples = study.audit.registry(options.ops)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if options.html and not options.html.parent.is_dir():
        raise ConfigError(f"--html {options.html}: there is no folder {options.html.parent}")
    with tqdm(total=len(samples), unit="sample", leave=False, disable=not sys.stderr.isatty()) as bar:
        report = study.audit.run(samples, device=device, workers=options.workers, on_sample=bar.update)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(report.to_json() if options.json else report.to_text(options.all, width))
    if options.html:
        options.html.write_text(report.to_html(), encoding="utf-8")
    return CHECK_FAILED if report.failures else GOOD


def _explain(options: argparse.Namespace) -> int:
    if options.step is not None and not options.script:
        raise ConfigError("--step is for a script: name it with --script")
    if options.script and (options.images is not None or options.image):
        raise ConfigError("--images and --image are for a model or a run; a script has its own")
    if options.seed is not None and (options.script or options.run):
        raise ConfigError("--seed is for fresh weights; a run and a script have theirs")
    images = {"images": options.images, "image": options.image, "audit": options.audit}
    if options.script:
        page, title = study.explain_script(options.script, options.out, step=options.step, audit=options.audit)
    elif options.run:
        page, title = study.explain_run(options.run, options.out, **images)
    else:
        page, title = study.explain_fresh(options.model, options.out, seed=options.seed or 0, **images)
    print(title)
    print(f"{page.path}: {page.nodes:,} nodes, {page.size / 1e6:.2f} MB; open it in a browser")
    return GOOD


def _data_list(options: argparse.Namespace) -> int:
    listed = inspection.list_datasets()
    if options.json:
        print(json.dumps({"datasets": [asdict(one) for one in listed]}, default=str))
        return GOOD
    print(inspection.to_table(listed))
    return GOOD


def _data_get(options: argparse.Namespace) -> int:
    if options.name not in DATASETS:
        raise unknown_name("dataset", options.name, DATASETS)
    print(DATASETS[options.name].get(options.offline))
    return GOOD


def _data_info(options: argparse.Namespace) -> int:
    description = inspection.not_here(options.data) or inspection.describe(options.data)
    print(description.to_json() if options.json else description.to_text())
    return GOOD


def _data_scan(options: argparse.Namespace) -> int:
    with tqdm(unit="image", leave=False, disable=not sys.stderr.isatty()) as bar:

        def on_images(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)

        found = inspection.scan(options.data, on_images=on_images)
    if options.list:
        print("".join(f"{path}\n" for path in found.unreadable), end="")
    else:
        print(found.to_json() if options.json else found.to_text())
    return CHECK_FAILED if found.unreadable else GOOD


def _model_config(model: str) -> ViTConfig:
    path = Path(model)
    if pretrained.is_foreign(path):
        return pretrained.from_pretrained(model).config
    if path.is_dir():
        path = path / "config.toml"
    if path.suffix == ".toml":
        return read_model_config(path, _open_initial)
    if path.suffix == ".safetensors":
        return load_trained(path).config.model
    try:
        return ViTConfig.named(model)
    except ValueError as error:
        raise ConfigError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
