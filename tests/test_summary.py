"""The table says what is there: it is held against the parameters, the products and the tape of the real model."""

import json
import re
from collections import Counter
from contextlib import contextmanager
from itertools import pairwise
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import tinyvit as tv
from tinyvit import cli
from tinyvit.engine import kernels
from tinyvit.engine.backend import NUMPY
from tinyvit.engine.tape import Leaf
from tinyvit.layers import Module
from tinyvit.study.summary import HEADER, summary, to_markdown, to_text, totals


@st.composite
def configs(draw):
    patch, heads = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    class_token, position = draw(st.booleans()), draw(st.sampled_from(["learned", "sincos"]))
    pool = draw(st.sampled_from(["cls", "mean", "cls_mean"])) if class_token else "mean"
    return tv.ViTConfig(
        image_size=(patch * draw(st.integers(1, 3)), patch * draw(st.integers(1, 3))),
        patch_size=patch,
        channels=draw(st.integers(1, 4)),
        num_classes=draw(st.integers(0, 12)),
        dim=heads * 4 * draw(st.integers(1, 3)),
        depth=draw(st.integers(0, 3)),
        num_heads=heads,
        mlp_ratio=draw(st.floats(0.3, 4)),
        activation=draw(st.sampled_from(["relu", "gelu", "gelu_tanh", "gelu_quick", "swiglu"])),
        pool=pool,
        pool_norm=draw(st.booleans()) and pool != "cls_mean",
        pre_logits=draw(st.integers(0, 3)),
        class_token=class_token,
        class_position=draw(st.booleans()),
        distillation_token=draw(st.booleans()) and class_token,
        register_tokens=draw(st.integers(0, 3)),
        position=position,
        qkv_bias=draw(st.booleans()),
        dropout=draw(st.sampled_from([0.0, 0.3])),
        attention_dropout=draw(st.sampled_from([0.0, 0.3])),
        drop_path=draw(st.sampled_from([0.0, 0.3])),
        layer_scale=draw(st.sampled_from([0.0, 1e-4])),
        checkpoint=draw(st.booleans()),
    )


PARTS = {  # a row's name: the parameters that it counts, and the layers whose products and saved values it counts
    "Input Image": "never",
    "Patch Embedding": r"patch_embed\.",
    "Class Token": "cls_token",
    "Distillation Token": "dist_token",
    "Positional Encoding": "pos_embed",
    "Register Tokens": "reg_token",
    "Embedding Dropout": r"model\.",  # what the model itself does, outside its layers
    "MHSA": r"blocks\.\d+\.attn\.",
    "FFN": r"blocks\.\d+\.mlp\.",
    "norms": r"blocks\.\d+\.(norm1|norm2|ls1|ls2|drop_path)\.",
    "inputs": "checkpoint",  # of the layers that are computed again
    "Final LayerNorm": r"(fc_)?norm\.",
    "Pre-Logits": r"pre_logits\.",
    "Classifier Head": r"head\.",
    "Distillation Head": r"head_dist\.",
}


def part_of(sizes, row):
    """The sum over those names that belong to a row."""
    return sum(size for name, size in sizes.items() if re.match(PARTS[row.layer.rpartition(": ")[2]], name))


# ------------------------------------------------------------------------------------------------------ parameters


def evaluated(formula, config):
    """The value of a formula of the table, read as it is written."""
    values = {
        "P": config.patch_size, "C": config.channels, "D": config.dim, "L": config.depth, "N": config.num_patches,
        "K": config.num_classes, "M": config.mlp_hidden, "R": config.register_tokens,
        "W": config.pre_logits,
    }  # fmt: skip
    code = formula.replace(" LayerScale", "").replace("²", "**2").replace("·", "*")
    return eval(re.sub(r"(\d)([A-Z])", r"\1*\2", code) or "0", values)


@given(configs())
def test_each_row_counts_the_parameters_of_the_real_model_and_so_does_its_formula(config):
    model, rows = tv.ViT(config), summary(config)
    assert sum(row.parameters for row in rows) == model.num_parameters
    sizes = {name: p.size for name, p in model.named_parameters()}
    for row in rows:
        assert row.parameters == part_of(sizes, row), row
        assert row.parameters == evaluated(row.formula, config), row
    names = {row.layer for row in rows}
    assert names >= {"Input Image", "Patch Embedding", "Positional Encoding", "Final LayerNorm"}
    assert ("Classifier Head" in names) == bool(config.num_classes)


@given(configs())
def test_each_row_takes_what_the_row_before_gives_as_the_real_model_does(config):
    rows = summary(config)
    last = next(i for i, row in enumerate(rows) if row.layer == "Final LayerNorm")
    for row, following in pairwise(rows[1 : last + 1]):
        assert row.output == following.input, (row, following)
    model, images = tv.ViT(config), np.zeros((1, config.channels, config.height, config.width), np.float32)
    tokens = model.features(images)
    assert rows[last].input == f"{tokens.shape[1]} × {tokens.shape[2]}"
    pooled, given = str(model.pooled(tokens).shape[1]), [row for row in rows[last + 1 :] if "Dist" not in row.layer]
    assert [row.input for row in given] == [pooled, *(row.output for row in given)][: len(given)]
    assert [pooled, *(row.output for row in given)][-1] == str(model(images).shape[1])


@pytest.mark.parametrize(  # the numbers that timm reports
    ("name", "parameters"),
    [
        ("vit_tiny_patch16_224", 5_717_416),
        ("vit_small_patch16_224", 22_050_664),
        ("vit_base_patch16_224", 86_567_656),
        ("vit_large_patch16_224", 304_326_632),
        ("vit_huge_patch14_224", 632_045_800),
    ],
)
def test_the_named_models_have_the_sizes_of_the_literature(name, parameters):
    assert totals(summary(tv.ViTConfig.named(name)))["parameters"] == parameters


# ----------------------------------------------------------------------------------- multiply-adds and activations


class Watch:
    """What a model does while it is watched.

    Attributes:
        products: {layer: multiply-adds of its matrix products}; what no layer does is under "".
        spans: (first, last, layer): the numbers of the nodes that a layer recorded; inner layers come first.
    """

    def __init__(self):
        self.products, self.spans = Counter(), []

    def layer_of(self, node):
        if node.op.name == "checkpoint":
            return "checkpoint"
        return next((name for first, last, name in self.spans if first < node.number < last), "")


@contextmanager
def watched(model):
    watch, names, inside = Watch(), layer_names(model), [""]

    def call(layer, *arguments, **named):
        inside.append(names[layer])
        first = Leaf((), np.float32).number
        result = layer.forward(*arguments, **named)
        watch.spans.append((first, Leaf((), np.float32).number, inside.pop()))
        return result

    numpys = np.matmul

    def matmul(a, b, **named):
        product = numpys(a, b, **named)
        watch.products[inside[-1]] += product.size * a.shape[-1]
        return product

    with (
        patch.object(Module, "__call__", call),
        patch.object(NUMPY, "matmul", matmul),
        patch.object(np, "matmul", matmul),
    ):
        yield watch


def layer_names(model, prefix=""):
    """{layer: its name with a point behind}, as in the names of its parameters; "model." for the model itself."""
    names = {model: prefix or "model."}
    for name, child in model.children():
        names |= layer_names(child, f"{prefix}{name}.")
    return names


def owner(array):
    """The array whose memory this one looks at."""
    while array.base is not None:
        array = array.base
    return array


def kept_arrays(result, model):
    """(node, array) for each array in memory that the tape keeps for the way back, once; without the parameters."""
    seen = {id(owner(p.data)) for p in model.parameters()}
    nodes, stack = {result.node}, [result.node]
    while stack:
        node = stack.pop()
        for value in (*(node.saved or {}).values(), *(node.kernel[1] if node.kernel else ())):
            for array in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(array, np.ndarray) and id(owner(array)) not in seen:
                    seen.add(id(owner(array)))
                    yield node, owner(array)
        new = {parent for parent in node.parents if parent is not None} - nodes
        nodes |= new
        stack += new


def tokens_of(config):
    return config.num_patches + config.num_prefix_tokens


def images_for(config, batch):
    shape = batch, config.channels, config.height, config.width
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


@pytest.fixture(params=["kernels", "no kernels"])
def with_kernels(request):
    """Whether the CPU's kernels compute: each test runs with them, where Numba is installed, and without."""
    if request.param == "kernels" and not kernels.available():
        pytest.skip("the kernels need Numba")
    with kernels.switched(request.param == "kernels"):
        yield request.param == "kernels"


@given(config=configs(), batch=st.sampled_from([1, 3]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # it stays as it is for all examples
def test_each_row_counts_the_bytes_that_the_tape_of_a_real_forward_pass_keeps(with_kernels, config, batch):
    model, rows = tv.ViT(config), summary(config, with_kernels)
    with watched(model) as watch:
        logits = model(images_for(config, batch))
    kept = Counter()
    for node, array in kept_arrays(logits, model):
        kept[watch.layer_of(node)] += array.nbytes
    for row in rows:
        assert row.activation_numbers * 4 * batch == part_of(kept, row), row
    assert totals(rows, batch)["batch_activation_bytes"] == kept.total()


def test_kernels_are_what_a_summary_counts_unless_it_is_told_not_to():
    config = tv.ViTConfig.named("vit_tiny_patch16_224")
    assert summary(config) == summary(config, kernels=True) != summary(config, kernels=False)
    numbers = [totals(summary(config, on))["activation_numbers"] for on in (True, False)]
    tokens = 197
    means_and_scales = 2 * (23 * tokens + 2)  # of 25 norms; the last two are of the class token alone
    assert numbers[0] - numbers[1] == 12 * 3 * tokens**2 + means_and_scales  # beside A


@given(config=configs(), batch=st.sampled_from([1, 3]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_loss_keeps_two_numbers_a_class_beside_the_model(with_kernels, config, batch):
    assume(config.num_classes)
    model = tv.ViT(config)
    loss = tv.ops.cross_entropy(model(images_for(config, batch)), np.zeros(batch, int))
    kept = sum(array.nbytes for _, array in kept_arrays(loss, model))
    of_the_model = totals(summary(config, with_kernels), batch)["batch_activation_bytes"]
    assert kept == of_the_model + 4 * 2 * config.num_classes * batch


@given(config=configs(), batch=st.sampled_from([1, 3]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_each_row_counts_the_products_of_a_real_forward_pass_and_a_train_step_is_three_times_that(
    with_kernels, config, batch
):
    model, rows = tv.ViT(config), summary(config)
    with watched(model) as watch:
        logits = model(images_for(config, batch))
        forward = watch.products.copy()
        logits.sum().backward()
    for row in rows:
        assert (row.multiply_adds - row.skipped) * batch == part_of(forward, row), row
    found = totals(rows, batch)
    total = found["batch_multiply_adds"] - batch * found["skipped_multiply_adds"]
    assert total == forward.total() == sum(row.multiply_adds - row.skipped for row in rows) * batch
    again = 0
    if config.checkpoint and config.depth:  # all layers but the last
        blocks = sum(row.multiply_adds for row in rows if row.layer.startswith("Transformer Blocks"))
        again += blocks * (config.depth - 1) // config.depth
    if not with_kernels and not config.attention_dropout:
        again += config.depth * tokens_of(config) ** 2 * config.dim  # Q · Kᵀ
    step = 3 * total - rows[1].multiply_adds * batch  # the image needs no gradient
    assert watch.products.total() == step + again * batch


@given(config=configs())
def test_the_tokens_of_all_layers_take_the_products_that_a_call_of_the_model_skips_too(config):
    model, rows = tv.ViT(config), summary(config)
    with watched(model) as watch:
        model.pooled(model.features(images_for(config, 1)))
    named = ("Pre-Logits", "Classifier Head", "Distillation Head")
    assert watch.products.total() == sum(row.multiply_adds for row in rows if row.layer not in named)
    read = config.num_class_tokens if config.pool == "cls" else tokens_of(config)
    per_token = config.dim * (config.dim + (3 if config.activation == "swiglu" else 2) * config.mlp_hidden)
    skipped = (tokens_of(config) - read) * per_token if config.depth else 0
    assert totals(rows)["skipped_multiply_adds"] == skipped


@pytest.mark.parametrize(  # in units of 10⁹, from the metadata of torchvision's weights
    ("name", "published"),
    [
        ("vit_base_patch16_224", 17.564),
        ("vit_base_patch16_384", 55.484),
        ("vit_base_patch32_224", 4.409),
        ("vit_large_patch16_224", 61.555),
        ("vit_large_patch16_512", 361.986),
        ("vit_large_patch32_224", 15.378),
        ("vit_huge_patch14_224", 167.295),
        ("vit_huge_patch14_518", 1016.717),
    ],
)
def test_the_named_models_take_the_multiply_adds_of_the_literature(name, published):
    assert round(totals(summary(tv.ViTConfig.named(name)))["multiply_adds"] / 1e9, 3) == published


@pytest.mark.parametrize(("name", "published"), [("tiny", 1.26), ("small", 4.6)])  # rounded figures of DeiT's sizes
def test_the_small_models_take_about_the_multiply_adds_of_the_literature(name, published):
    total = totals(summary(tv.ViTConfig.named(f"vit_{name}_patch16_224")))["multiply_adds"]
    assert total / 1e9 == pytest.approx(published, rel=0.015)


def test_totals_grow_with_the_batch_where_they_are_of_the_batch():
    rows = summary(tv.ViTConfig.named("vit_tiny_patch16_224"))
    one, many = totals(rows), totals(rows, 64)
    assert {key: many[key] // one[key] for key in one} == {key: 64 if "batch" in key else 1 for key in one}
    assert one["parameter_bytes"] == 4 * one["parameters"]
    assert one["batch_activation_bytes"] == 4 * one["activation_numbers"]


# ---------------------------------------------------------------------------------------------------------- formats


def test_the_text_is_a_table_with_aligned_columns_and_the_totals_below():
    rows = summary(tv.ViTConfig.named("vit_base_patch16_224"))
    lines = to_text(rows, 64).splitlines()
    table, facts = lines[: len(rows) + 4], lines[len(rows) + 4 :]  # a header, a total and two rules
    assert len({len(line) for line in table}) == 1
    assert max(map(len, lines)) <= 160
    assert re.split(r"\s{2,}", table[0]) == [*HEADER[:5], "Parameters", *HEADER[6:]]
    assert set(table[1]) == set(table[-2]) == {"─"}
    assert table[-1].split() == ["Total", "86,567,656", "17,563,828,224", "33,142,650"]
    for row, line in zip(rows, table[2:], strict=False):
        assert line.startswith(row.layer)
        assert line.split()[-3:] == [f"{n:,}" for n in (row.parameters, row.multiply_adds, row.activation_numbers)]
    assert facts == [
        "",
        "Parameters     86,567,656, 330.2 MiB in float32",
        "Multiply-Adds  17.56 G an image, 1.124 T for a batch of 64 images, forward; "
        "a train step takes about three times that, four with checkpoint",
        "Skipped        1.04 G of these an image: after the last attention, of tokens that the head does not read",
        "Activations    33.14 M numbers an image, 8,091.5 MiB in float32 for a batch of 64 images: "
        "what the tape keeps from forward to backward",
    ]
    assert "for a batch of 1 image," in to_text(rows)


def test_the_markdown_is_the_same_table_with_the_columns_of_the_tutorial():
    rows = summary(tv.ViTConfig.named("vit_base_patch16_224"))
    table, _, facts = to_markdown(rows, 64).partition("\n\n")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert {len(line) for line in lines} == {len(HEADER)}
    assert lines[0][:6] == [
        "Layer Type", "Input Dimension", "Output Dimension", "Details", "Parameters Formula", "Number of Parameters",
    ]  # fmt: skip
    assert lines[1] == ["---"] * 5 + ["---:"] * 3
    text = to_text(rows, 64).splitlines()
    assert [line[0] for line in lines[2:]] == [*(row.layer for row in rows), "**Total**"]
    for mine, printed in zip(lines[2:-1], text[2:], strict=False):
        assert [cell for cell in mine if cell] == re.split(r"\s{2,}", printed)
    assert [cell.strip("*") for cell in lines[-1] if cell] == text[-6].split()
    assert [line.replace("- **", "").replace("**:", "").split() for line in facts.splitlines()] == [
        line.split() for line in text[-4:]
    ]


@given(configs(), st.integers(1, 10**6))
def test_every_config_can_be_printed(config, batch):
    rows = summary(config)
    lines = to_text(rows, batch).splitlines()
    table = lines[: lines.index("")]
    assert len({len(line) for line in table}) == 1
    assert {line.count("|") for line in to_markdown(rows, batch).partition("\n\n")[0].splitlines()} == {len(HEADER) + 1}


@pytest.mark.parametrize("write", [totals, to_text, to_markdown])
def test_a_batch_of_nothing_is_refused(write):
    with pytest.raises(ValueError, match=r"^batch is 0; it must be at least 1$"):
        write(summary(tv.ViTConfig.named("vit_tiny_patch16_224")), 0)


# ---------------------------------------------------------------------------------------------------------- command


@pytest.fixture
def command(capsys):
    """Run `tinyvit summary …` in this process: (exit code, standard output, standard error)."""

    def run(*arguments):
        try:
            code = cli.main(["summary", *arguments])
        except SystemExit as exit:  # argparse's
            code = exit.code
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("name", ["vit_base_patch16_224", "vit_huge_patch14_224"])
def test_the_command_prints_text_markdown_and_json(command, name):
    rows = summary(tv.ViTConfig.named(name))
    assert command(name) == (0, to_text(rows) + "\n", "")
    assert command(name, "--batch", "64") == (0, to_text(rows, 64) + "\n", "")
    assert command(name, "--batch", "64", "--markdown") == (0, to_markdown(rows, 64) + "\n", "")
    code, out, err = command(name, "--batch", "64", "--json")
    assert (code, err, out.count("\n")) == (0, "", 1)
    answer = json.loads(out)
    assert answer.pop("batch") == 64
    assert answer.pop("rows") == [vars(row) for row in rows]
    assert answer == totals(rows, 64)


def test_the_command_counts_what_the_dropout_of_a_config_keeps(command, tmp_path):
    config = tmp_path / "config.toml"
    kept = []
    for dropout in (0.0, 0.1):
        config.write_text(f"[model]\ndropout = {dropout}\n")
        kept.append(json.loads(command(str(config), "--json")[1])["activation_numbers"])
    assert kept[0] < kept[1]


@pytest.mark.parametrize("batch", ["0", "-3"])
def test_a_batch_below_one_is_wrong_usage(command, batch):
    code, out, err = command("vit_tiny_patch16_224", "--batch", batch)
    assert (code, out, err) == (2, "", f"tinyvit: --batch is {batch}; it must be at least 1\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--markdown", "--json"], "argument --json: not allowed with argument --markdown"),
        (["--batch", "many"], "argument --batch: invalid int value: 'many'"),
    ],
)
def test_what_makes_no_sense_together_is_wrong_usage(command, arguments, message):
    code, out, err = command("vit_tiny_patch16_224", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("usage: tinyvit summary ")
    assert message in err
