r"""The tutorial's equations, numbered in its order, each with the code that implements it.

Numbers 1 to 34 are the tutorial's own formulas, one number each; S1 and on are what it leaves out and a Vision
Transformer or its backward pass needs. docs/equations.md is made from this table, tests/test_equations.py holds every
entry of it, and docs/errata.md explains where a formula is corrected.

A correction is written as the tutorial writes (W · x for a column x), except in the attention, where its own formulas
need tokens as rows. The index b counts the images of a batch, n and m count tokens.
"""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from typing import Any

from tinyvit.engine.primitive import Primitive


@dataclass(frozen=True)
class Code:
    """A place in the code that implements an equation.

    Args:
        name: "module:object", for instance "tinyvit.engine.ops.nn:linear".
        rule: for an op, the argument whose backward rule is meant; left out, the forward is.
        lines: how the statements begin that are worth showing; left out, all of them.

    >>> Code("tinyvit.engine.ops.nn:linear", "bias").resolve()
    <primitive linear(x, weight, bias=None)>
    """

    name: str
    rule: str = ""
    lines: tuple[str, ...] = ()

    def resolve(self) -> Any:
        """Return the object itself.

        Raises:
            ImportError, AttributeError: there is no such thing (any more).
        """
        return pkgutil.resolve_name(self.name)

    @property
    def op(self) -> str:
        """The op's name as the tape knows it; "" where this is no op.

        >>> Code("tinyvit.engine.ops.linalg:_matmul").op
        'matmul'
        """
        found = self.resolve()
        return found.name if isinstance(found, Primitive) else ""

    @property
    def function(self) -> Any:
        """The Python function that is meant: the rule, the op's forward, or the method behind a property.

        Raises:
            KeyError: the op has no rule for this argument.
            TypeError: a rule is named for something that is no op.
        """
        found = self.resolve()
        if not isinstance(found, Primitive):
            if self.rule:
                raise TypeError(f"{self.name} is no op, so it has no rule for {self.rule!r}")
            return found.fget if isinstance(found, property) else found
        if not self.rule:
            return found.forward
        if found.joint and self.rule in found.__signature__.parameters:
            return found.joint[0]
        return found.rules[self.rule][0]


@dataclass(frozen=True)
class Equation:
    """One formula.

    Args:
        number: "1" to "34" in the tutorial's order, or "S1" and on for what it leaves out.
        section: the tutorial's heading above it, or above the place where it belongs.
        title: what it gives, in a few words.
        tutorial: LaTeX, letter by letter as the tutorial has it; None where it has nothing.
        corrected: LaTeX where the mathematics, or the model, differs; else None.
        errata: numbers in docs/errata.md.
        implemented_by: the layer, then the op and rule.
    """

    number: str
    section: str
    title: str
    tutorial: str | None
    corrected: str | None
    errata: tuple[int, ...]
    implemented_by: tuple[Code, ...]

    @property
    def formula(self) -> str:
        """LaTeX of what holds, and what the code computes.

        >>> equations_of("relu")[0].formula
        'FFN(X) = W_2 \\\\cdot \\\\text{ReLU}(W_1 \\\\cdot X + b_1) + b_2'
        """
        return self.corrected or self.tutorial or ""


def equations_of(op_name: str) -> tuple[Equation, ...]:
    """Return the equations that an op implements, forward or backward, by its name on the tape (`node.op.name`).

    >>> [(e.number, e.title) for e in equations_of("softmax")][:2]
    [('26', 'Class probabilities'), ('27', "Gradient of the head's input")]
    >>> equations_of("sin")
    ()
    """
    return tuple(e for e in EQUATIONS if op_name and op_name in (code.op for code in e.implemented_by))


# ------------------------------------------------------------------------------------------------- where the code is

_PATCHES = Code("tinyvit.layers.embedding:patches", lines=("grid =", "return"))
_PROJECTION = Code("tinyvit.layers.embedding:_Projection.forward")
_LINEAR = Code("tinyvit.engine.ops.nn:linear", lines=("y =", "return"))
_LINEAR_X = Code("tinyvit.engine.ops.nn:linear", "x")
_LINEAR_WEIGHT = Code("tinyvit.engine.ops.nn:linear", "weight")
_LINEAR_BIAS = Code("tinyvit.engine.ops.nn:linear", "bias")
_SUMMED = Code("tinyvit.engine.tape:unbroadcast", lines=("return",))  # the sum over what was broadcast
_BIAS = (_LINEAR_BIAS, _SUMMED)
_RELU_X = Code("tinyvit.engine.ops.nn:relu", "x")
_SOFTMAX = Code("tinyvit.engine.backend:Namespace.softmax")
_SOFTMAX_X = Code("tinyvit.engine.ops.nn:softmax", "x")
_QKV = (
    Code("tinyvit.layers.encoder:MultiHeadSelfAttention.queries_keys_values"),
    Code("tinyvit.engine.ops.nn:heads_of"),
    _LINEAR,
)


def _attention(rule: str = "", *lines: str) -> Code:
    return Code("tinyvit.engine.ops.nn:scaled_dot_product_attention", rule, lines)


def _all_heads(rule: str = "", *lines: str) -> Code:
    return Code("tinyvit.engine.ops.nn:multi_head_attention", rule, lines)


def _norm(rule: str = "", *lines: str) -> Code:
    return Code("tinyvit.engine.ops.nn:layer_norm", rule, lines)


def _norm_of_sum(rule: str = "", *lines: str) -> Code:
    return Code("tinyvit.engine.ops.nn:add_layer_norm", rule, lines)


_PACKED = _all_heads("qkv", "return"), Code("tinyvit.engine.ops.indexing:_getitem", "x")  # Q, K and V were cut out
_OF_EACH_HEAD = _all_heads("qkv", "parts =")
_STANDARDIZED = Code("tinyvit.engine.ops.nn:_standardized")

# -------------------------------------------------------------------------------------------------------- the tutorial

_PATCHING, _EMBEDDING, _POSITION = "Input Layer - Patching", "Patch Embedding", "Positional Encoding"
_ENCODER, _MHSA = "Transformer Encoder Layers", "Multi-Head Self-Attention (MHSA)"
_FFN, _HEAD, _TABLE = "Feedforward Neural Network (FFN)", "Classification Head", "Architecture of ViT"

EQUATIONS: tuple[Equation, ...] = (
    Equation(
        "1",
        _PATCHING,
        "Number of patches",
        r"N = \frac{H \times W}{P^2}",
        None,
        (1, 8),
        (Code("tinyvit.vit:ViTConfig.num_patches"), Code("tinyvit.vit:ViTConfig.grid")),
    ),
    Equation(
        "2",
        _PATCHING,
        "Patches",
        r"I_{\text{patch}}^n = I[:, i*P:(i+1)*P, j*P:(j+1)*P]",
        None,
        (9,),
        (
            _PATCHES,
            Code("tinyvit.engine.ops.shapes:reshape"),
            Code("tinyvit.engine.ops.shapes:transpose"),
        ),
    ),
    Equation(
        "3",
        _EMBEDDING,
        "Patch embedding",
        r"E_{\text{patch}}^n = W_e \cdot \text{flatten}(I_{\text{patch}}^n) + b_e",
        None,
        (9,),
        (Code("tinyvit.layers.embedding:PatchEmbedding.forward"), _PROJECTION, _LINEAR),
    ),
    Equation(
        "4",
        _EMBEDDING,
        "Gradient of the flattened patch",
        r"\frac{\partial L}{\partial \text{flatten}(I_{\text{patch}}^n)} = "
        r"W_e^T \cdot \frac{\partial L}{\partial E_{\text{patch}}^n}",
        None,
        (10,),
        (_LINEAR_X,),
    ),
    Equation(
        "5",
        _EMBEDDING,
        "Gradient of the embedding's weights",
        r"\frac{\partial L}{\partial W_e} = \sum_n \frac{\partial L}{\partial E_{\text{patch}}^n} \cdot "
        r"\text{flatten}(I_{\text{patch}}^n)^T",
        None,
        (11,),
        (_LINEAR_WEIGHT,),
    ),
    Equation(
        "6",
        _EMBEDDING,
        "Gradient of the embedding's bias",
        r"\frac{\partial L}{\partial b_e} = \sum_n \frac{\partial L}{\partial E_{\text{patch}}^n}",
        None,
        (11,),
        _BIAS,
    ),
    Equation(
        "7",
        _POSITION,
        "Positions",
        r"E_{\text{pos}}^n = E_{\text{patch}}^n + P^n",
        None,
        (1,),
        (
            Code("tinyvit.layers.embedding:PositionalEncoding.forward", lines=("table =", "return")),
            Code("tinyvit.engine.ops.elementwise:add"),
        ),
    ),
    Equation(
        "8",
        _POSITION,
        "Gradient of the embedded patch",
        r"\frac{\partial L}{\partial E_{\text{patch}}^n} = \frac{\partial L}{\partial E_{\text{pos}}^n}",
        None,
        (),
        (Code("tinyvit.engine.ops.elementwise:add", "a"),),
    ),
    Equation(
        "9",
        _POSITION,
        "Gradient of a position",
        r"\frac{\partial L}{\partial P^n} = \frac{\partial L}{\partial E_{\text{pos}}^n}",
        r"\frac{\partial L}{\partial P^n} = \sum_b \frac{\partial L}{\partial E_{\text{pos}}^{b,n}}",
        (11,),
        (Code("tinyvit.engine.ops.elementwise:add", "b"), _SUMMED),
    ),
    *(
        Equation(
            number,
            _MHSA,
            title,
            rf"{letter} = W_{letter} \cdot X",
            rf"{letter} = X \cdot W_{letter}^T + b_{letter}",
            (2, 13, 19),
            _QKV,
        )
        for number, title, letter in (("10", "Queries", "Q"), ("11", "Keys", "K"), ("12", "Values", "V"))
    ),
    Equation(
        "13",
        _MHSA,
        "Attention",
        r"A = \text{softmax}\left(\frac{Q \cdot K^T}{\sqrt{d_k}}\right)",
        r"A_{nm} = \frac{\exp(Q_n \cdot K_m / \sqrt{d_k})}{\sum_{m'} \exp(Q_n \cdot K_{m'} / \sqrt{d_k})}, "
        r"\quad Q_n \text{ and } K_m \text{ rows of } Q \text{ and } K",
        (2, 12, 13),
        (
            Code("tinyvit.engine.ops.nn:attention_weights"),
            _SOFTMAX,
            _attention("", "return"),
            _all_heads("", "q, k, v =", "heads ="),
        ),
    ),
    Equation(
        "14",
        _MHSA,
        "Output of a head",
        r"O = A \cdot V",
        r"O_n = \sum_m A_{nm} V_m, \quad O_n \text{ and } V_m \text{ rows of } O \text{ and } V",
        (2,),
        (_attention("", "return"), _all_heads("", "q, k, v =", "heads =")),
    ),
    Equation(
        "15",
        _MHSA,
        "Concatenation and projection",
        r"O' = W_O \cdot \text{concat}(O_1, O_2, ..., O_h)",
        r"O' = \text{concat}(O_1, O_2, ..., O_h) \cdot W_O^T + b_O",
        (2, 19),
        (
            Code("tinyvit.layers.encoder:MultiHeadSelfAttention.forward", lines=("concatenated =", "return")),
            _all_heads("", "return"),
            Code("tinyvit.engine.ops.shapes:swapaxes"),
            _LINEAR,
        ),
    ),
    Equation(
        "16",
        _MHSA,
        "Gradient of the attention's input",
        r"\frac{\partial L}{\partial X} = W_Q^T \cdot \frac{\partial L}{\partial Q} + "
        r"W_K^T \cdot \frac{\partial L}{\partial K} + W_V^T \cdot \frac{\partial L}{\partial V}",
        r"\frac{\partial L}{\partial X} = \frac{\partial L}{\partial Q} \cdot W_Q + "
        r"\frac{\partial L}{\partial K} \cdot W_K + \frac{\partial L}{\partial V} \cdot W_V",
        (2, 13, 14),
        (_LINEAR_X, *_PACKED),
    ),
    *(
        Equation(
            number,
            _MHSA,
            f"Gradient of the {title} weights",
            rf"\frac{{\partial L}}{{\partial W_{letter}}} = \frac{{\partial L}}{{\partial {letter}}} \cdot X^T",
            rf"\frac{{\partial L}}{{\partial W_{letter}}} = "
            rf"\sum_b \left(\frac{{\partial L}}{{\partial {letter}^b}}\right)^T \cdot X^b",
            (2, 11),
            (_LINEAR_WEIGHT, *_PACKED),
        )
        for number, title, letter in (("17", "queries'", "Q"), ("18", "keys'", "K"), ("19", "values'", "V"))
    ),
    Equation(
        "20",
        _FFN,
        "Feedforward network",
        r"FFN(X) = W_2 \cdot \text{ReLU}(W_1 \cdot X + b_1) + b_2",
        None,
        (20,),
        (
            Code("tinyvit.layers.encoder:FeedForward.forward"),
            Code("tinyvit.engine.ops.nn:relu"),
            _LINEAR,
        ),
    ),
    Equation(
        "21",
        _FFN,
        "Gradient of the FFN's input",
        r"\frac{\partial L}{\partial X} = W_1^T \cdot \left(\frac{\partial L}{\partial H} \cdot "
        r"\text{ReLU}'(W_1 \cdot X + b_1)\right) + W_2^T \cdot \frac{\partial L}{\partial O}",
        r"\frac{\partial L}{\partial X} = W_1^T \cdot \left(\left(W_2^T \cdot \frac{\partial L}{\partial O}\right) "
        r"\odot \text{ReLU}'(W_1 \cdot X + b_1)\right)",
        (3, 4, 15, 16),
        (_LINEAR_X, _RELU_X),
    ),
    Equation(
        "22",
        _FFN,
        "Gradient of the first weights",
        r"\frac{\partial L}{\partial W_1} = \left(\frac{\partial L}{\partial H} \cdot "
        r"\text{ReLU}'(W_1 \cdot X + b_1)\right) \cdot X^T",
        r"\frac{\partial L}{\partial W_1} = \left(\frac{\partial L}{\partial H} \odot "
        r"\text{ReLU}'(W_1 \cdot X + b_1)\right) \cdot X^T, "
        r"\quad \frac{\partial L}{\partial H} = W_2^T \cdot \frac{\partial L}{\partial O}",
        (4, 11, 15, 16),
        (_LINEAR_WEIGHT, _RELU_X),
    ),
    Equation(
        "23",
        _FFN,
        "Gradient of the second weights",
        r"\frac{\partial L}{\partial W_2} = \frac{\partial L}{\partial O} \cdot H^T",
        None,
        (11, 15),
        (_LINEAR_WEIGHT,),
    ),
    Equation(
        "24",
        _FFN,
        "Gradient of the first bias",
        r"\frac{\partial L}{\partial b_1} = \sum \left(\frac{\partial L}{\partial H} \cdot "
        r"\text{ReLU}'(W_1 \cdot X + b_1)\right)",
        r"\frac{\partial L}{\partial b_1} = \sum_{b,n} \left(\frac{\partial L}{\partial H_n^b} \odot "
        r"\text{ReLU}'(W_1 \cdot X + b_1)\right)^{b,n}",
        (4, 11, 15, 16),
        (*_BIAS, _RELU_X),
    ),
    Equation(
        "25",
        _FFN,
        "Gradient of the second bias",
        r"\frac{\partial L}{\partial b_2} = \sum \frac{\partial L}{\partial O}",
        None,
        (11, 15),
        _BIAS,
    ),
    Equation(
        "26",
        _HEAD,
        "Class probabilities",
        r"O_{\text{class}} = \text{softmax}(W_{\text{class}} \cdot X_{\text{class}} + b_{\text{class}})",
        None,
        (21,),
        (
            Code("tinyvit.layers.encoder:ClassificationHead.probabilities"),
            _LINEAR,
            Code("tinyvit.engine.ops.nn:softmax"),
            _SOFTMAX,
        ),
    ),
    Equation(
        "27",
        _HEAD,
        "Gradient of the head's input",
        r"\frac{\partial L}{\partial X_{\text{class}}} = "
        r"W_{\text{class}}^T \cdot \frac{\partial L}{\partial O_{\text{class}}}",
        r"\frac{\partial L}{\partial X_{\text{class}}} = W_{\text{class}}^T \cdot \frac{\partial L}{\partial Z}, "
        r"\quad \frac{\partial L}{\partial Z} = O_{\text{class}} \odot \left(\frac{\partial L}"
        r"{\partial O_{\text{class}}} - O_{\text{class}}^T \cdot \frac{\partial L}{\partial O_{\text{class}}}\right)",
        (5,),
        (_LINEAR_X, _SOFTMAX_X),
    ),
    Equation(
        "28",
        _HEAD,
        "Gradient of the head's weights",
        r"\frac{\partial L}{\partial W_{\text{class}}} = "
        r"\frac{\partial L}{\partial O_{\text{class}}} \cdot X_{\text{class}}^T",
        r"\frac{\partial L}{\partial W_{\text{class}}} = "
        r"\sum_b \frac{\partial L}{\partial Z^b} \cdot (X_{\text{class}}^b)^T",
        (5, 11),
        (_LINEAR_WEIGHT, _SOFTMAX_X),
    ),
    Equation(
        "29",
        _HEAD,
        "Gradient of the head's bias",
        r"\frac{\partial L}{\partial b_{\text{class}}} = \frac{\partial L}{\partial O_{\text{class}}}",
        r"\frac{\partial L}{\partial b_{\text{class}}} = \sum_b \frac{\partial L}{\partial Z^b}",
        (5, 11),
        (*_BIAS, _SOFTMAX_X),
    ),
    Equation(
        "30",
        _TABLE,
        "Output of the Patch Embedding",
        r"N \times (P^2 \cdot C)",
        r"N \times D",
        (6,),
        (
            Code("tinyvit.layers.embedding:PatchEmbedding.forward"),
            Code("tinyvit.study.summary:_embedding_rows", lines=("image, patched, tokens =",)),
        ),
    ),
    Equation(
        "31",
        _TABLE,
        "Parameters of the Patch Embedding",
        r"(P^2 \cdot C) \times D",
        r"(P^2 \cdot C) \times D + D",
        (7,),
        (Code("tinyvit.layers.embedding:_Projection.__init__"),),
    ),
    Equation(
        "32",
        _TABLE,
        "Parameters of the Positional Encoding",
        r"N \times D",
        r"(N + 1) \times D",
        (1,),
        (
            Code("tinyvit.layers.embedding:PositionalEncoding.__init__", lines=("shape =", "self.table: Tensor =")),
            Code("tinyvit.study.summary:_position_row", lines=('return Row(layer, placed, placed, details, f"(N+',)),
        ),
    ),
    Equation(
        "33",
        _TABLE,
        "Parameters of a Transformer Block",
        r"Varies per block",
        r"\underbrace{4 D^2 + 4 D}_{\text{MHSA}} + \underbrace{2 D M + M + D}_{\text{FFN, hidden width } M} + "
        r"\underbrace{4 D}_{\text{two LayerNorms}}",
        (18,),
        (
            Code(
                "tinyvit.layers.encoder:EncoderLayer.__init__",
                lines=("self.norm1", "self.attn", "self.norm2", "self.mlp"),
            ),
            Code("tinyvit.layers.encoder:MultiHeadSelfAttention.__init__", lines=("self.qkv", "self.proj")),
            Code("tinyvit.layers.encoder:FeedForward.__init__", lines=("self.fc",)),
            Code("tinyvit.layers.basic:LayerNorm.__init__", lines=("self.weight", "self.bias")),
        ),
    ),
    Equation(
        "34",
        _TABLE,
        "Parameters of the Classifier Head",
        r"D \times \text{Number of classes}",
        r"D \times \text{Number of classes} + \text{Number of classes}",
        (7, 21),
        (Code("tinyvit.layers.encoder:ClassificationHead.__init__"),),
    ),
    # ------------------------------------------------------------------------------------ what the tutorial leaves out
    Equation(
        "S1",
        _EMBEDDING,
        "Gradient of the image",
        None,
        r"\frac{\partial L}{\partial I[:, i*P:(i+1)*P, j*P:(j+1)*P]} = "
        r"\text{flatten}^{-1}\left(\frac{\partial L}{\partial \text{flatten}(I_{\text{patch}}^n)}\right), "
        r"\quad n = i \cdot \frac{W}{P} + j",
        (10,),
        (Code("tinyvit.engine.ops.shapes:reshape", "x"), Code("tinyvit.engine.ops.shapes:transpose", "x")),
    ),
    Equation(
        "S2",
        _POSITION,
        "Class token",
        None,
        r"X = [x_{\text{class}}; E_{\text{patch}}^1; \ldots; E_{\text{patch}}^N] + [P^0; P^1; \ldots; P^N]",
        (1,),
        (
            Code(
                "tinyvit.vit:ViT.embed",
                lines=("x = self.patch_embed", "x = _before((self.cls_token, self.dist_token), x)"),
            ),
            Code("tinyvit.vit:_before"),
            Code("tinyvit.engine.ops.shapes:_concatenate"),
        ),
    ),
    Equation(
        "S3",
        _POSITION,
        "Gradient of the class token",
        None,
        r"\frac{\partial L}{\partial x_{\text{class}}} = \sum_b \frac{\partial L}{\partial X_0^b}",
        (1, 11),
        (
            Code("tinyvit.engine.ops.shapes:_concatenate", "arrays"),
            Code("tinyvit.engine.ops.shapes:broadcast_to", "x"),
            _SUMMED,
        ),
    ),
    Equation(
        "S4",
        _MHSA,
        "Gradient of the heads' outputs",
        None,
        r"\text{concat}\left(\frac{\partial L}{\partial O_1}, \ldots, \frac{\partial L}{\partial O_h}\right) = "
        r"\frac{\partial L}{\partial O'} \cdot W_O",
        (14,),
        (
            _LINEAR_X,
            _all_heads("qkv", "heads ="),
            Code("tinyvit.engine.ops.shapes:reshape", "x"),
            Code("tinyvit.engine.ops.shapes:swapaxes", "x"),
        ),
    ),
    Equation(
        "S5",
        _MHSA,
        "Gradient of the projection's weights",
        None,
        r"\frac{\partial L}{\partial W_O} = \sum_b \left(\frac{\partial L}{\partial {O'}^b}\right)^T \cdot "
        r"\text{concat}(O_1, \ldots, O_h)",
        (14,),
        (_LINEAR_WEIGHT,),
    ),
    Equation(
        "S6",
        _MHSA,
        "Gradient of the projection's bias",
        None,
        r"\frac{\partial L}{\partial b_O} = \sum_{b,n} \frac{\partial L}{\partial {O'}_n^b}",
        (14, 19),
        _BIAS,
    ),
    Equation(
        "S7",
        _MHSA,
        "Gradient of the values",
        None,
        r"\frac{\partial L}{\partial V} = A^T \cdot \frac{\partial L}{\partial O}",
        (14,),
        (_attention("v", "gv ="), _OF_EACH_HEAD, Code("tinyvit.engine.ops.linalg:_matmul", "b")),
    ),
    Equation(
        "S8",
        _MHSA,
        "Gradient of the attention",
        None,
        r"\frac{\partial L}{\partial A} = \frac{\partial L}{\partial O} \cdot V^T",
        (14,),
        (_attention("q", "ga ="), _OF_EACH_HEAD, Code("tinyvit.engine.ops.linalg:_matmul", "a")),
    ),
    Equation(
        "S9",
        _MHSA,
        "Gradient of the scores",
        None,
        r"\frac{\partial L}{\partial S_{nm}} = A_{nm} \left(\frac{\partial L}{\partial A_{nm}} - "
        r"\sum_{m'} \frac{\partial L}{\partial A_{nm'}} A_{nm'}\right), \quad S = \frac{Q \cdot K^T}{\sqrt{d_k}}",
        (14,),
        (_attention("q", "gs ="), _OF_EACH_HEAD, _SOFTMAX_X),
    ),
    Equation(
        "S10",
        _MHSA,
        "Gradient of the queries",
        None,
        r"\frac{\partial L}{\partial Q} = \frac{1}{\sqrt{d_k}} \frac{\partial L}{\partial S} \cdot K",
        (14,),
        (_attention("q", "gs =", "return"), _OF_EACH_HEAD),
    ),
    Equation(
        "S11",
        _MHSA,
        "Gradient of the keys",
        None,
        r"\frac{\partial L}{\partial K} = "
        r"\frac{1}{\sqrt{d_k}} \left(\frac{\partial L}{\partial S}\right)^T \cdot Q",
        (14,),
        (_attention("k", "gs =", "return"), _OF_EACH_HEAD),
    ),
    Equation(
        "S12",
        _MHSA,
        "Gradient of the queries' bias",
        None,
        r"\frac{\partial L}{\partial b_Q} = \sum_{b,n} \frac{\partial L}{\partial Q_n^b}",
        (19,),
        _BIAS,
    ),
    Equation(
        "S13",
        _MHSA,
        "Gradient of the keys' bias",
        None,
        r"\frac{\partial L}{\partial b_K} = \sum_{b,n} \frac{\partial L}{\partial K_n^b} = 0",
        (19,),
        _BIAS,
    ),
    Equation(
        "S14",
        _MHSA,
        "Gradient of the values' bias",
        None,
        r"\frac{\partial L}{\partial b_V} = \sum_{b,n} \frac{\partial L}{\partial V_n^b}",
        (19,),
        _BIAS,
    ),
    Equation(
        "S15",
        _ENCODER,
        "LayerNorm",
        None,
        r"y = \gamma \odot \hat{x} + \beta, \quad \hat{x} = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}}, "
        r"\quad \mu = \frac{1}{D} \sum_i x_i, \quad \sigma^2 = \frac{1}{D} \sum_i (x_i - \mu)^2",
        (17,),
        (
            Code("tinyvit.layers.basic:LayerNorm.forward"),
            _norm("", "normed", "return"),
            _STANDARDIZED,
            _norm_of_sum("", "s =", "return"),
        ),
    ),
    Equation(
        "S16",
        _ENCODER,
        "Gradient of LayerNorm's input",
        None,
        r"\frac{\partial L}{\partial x} = \frac{1}{\sqrt{\sigma^2 + \epsilon}} \left(g - \frac{1}{D} \sum_i g_i - "
        r"\hat{x} \, \frac{1}{D} \sum_i g_i \hat{x}_i\right), "
        r"\quad g = \gamma \odot \frac{\partial L}{\partial y}",
        (17,),
        (_norm("x", "n, scale =", "g =", "gx =", "return"), _STANDARDIZED, _norm_of_sum("x", "through_norm, ")),
    ),
    Equation(
        "S17",
        _ENCODER,
        "Gradient of LayerNorm's scale",
        None,
        r"\frac{\partial L}{\partial \gamma} = \sum_{b,n} \frac{\partial L}{\partial y_n^b} \odot \hat{x}_n^b",
        (17,),
        (_norm("weight", "n, scale =", "return"), _SUMMED, _norm_of_sum("weight", "through_norm, ")),
    ),
    Equation(
        "S18",
        _ENCODER,
        "Gradient of LayerNorm's shift",
        None,
        r"\frac{\partial L}{\partial \beta} = \sum_{b,n} \frac{\partial L}{\partial y_n^b}",
        (17,),
        (_norm("bias", "return"), _SUMMED, _norm_of_sum("bias", "through_norm, ")),
    ),
    Equation(
        "S19",
        _ENCODER,
        "Encoder layer with residuals",
        None,
        r"X' = X + \text{MHSA}(\text{LN}(X)), \quad Y = X' + \text{FFN}(\text{LN}(X'))",
        (17,),
        (
            Code("tinyvit.layers.encoder:EncoderLayer.forward"),
            _norm_of_sum("", "s =", "return"),
            Code("tinyvit.engine.ops.elementwise:add"),
        ),
    ),
    Equation(
        "S20",
        _ENCODER,
        "Gradient through a residual",
        None,
        r"\frac{\partial L}{\partial X} = \frac{\partial L}{\partial Y} + "
        r"\left(\frac{\partial F}{\partial X}\right)^T \cdot \frac{\partial L}{\partial Y}, \quad Y = X + F(X)",
        (17,),
        (
            Code("tinyvit.engine.ops.elementwise:add", "a"),
            Code("tinyvit.engine.ops.elementwise:add", "b"),
            Code("tinyvit.engine.tape:_add", lines=("present +=", "total = present")),
            _norm_of_sum("x", "gs = gs"),
            _norm_of_sum("branch", "gs = gs"),
        ),
    ),
    Equation(
        "S21",
        _FFN,
        "GELU",
        None,
        r"\text{GELU}(x) = x \, \Phi(x), \quad "
        r"\Phi(x) = \tfrac{1}{2}\left(1 + \text{erf}\left(x / \sqrt{2}\right)\right)",
        (20,),
        (
            Code("tinyvit.engine.ops.nn:gelu"),
            Code("tinyvit.engine.ops.nn:_gelu_gate", lines=("return 0.5 * (1 + F.erf",)),
        ),
    ),
    Equation(
        "S22",
        _FFN,
        "Gradient of GELU",
        None,
        r"\frac{\partial L}{\partial x} = \frac{\partial L}{\partial y} \left(\Phi(x) + x \, \Phi'(x)\right), "
        r"\quad \Phi'(x) = \frac{e^{-x^2 / 2}}{\sqrt{2 \pi}}",
        (20,),
        (
            Code("tinyvit.engine.ops.nn:gelu", "x"),
            Code("tinyvit.engine.ops.nn:_gelu_gate_slope", lines=("return F.exp",)),
        ),
    ),
    Equation(
        "S23",
        _HEAD,
        "Gradient through the head's softmax",
        None,
        r"\frac{\partial L}{\partial Z_k} = p_k \left(\frac{\partial L}{\partial p_k} - "
        r"\sum_j \frac{\partial L}{\partial p_j} p_j\right), \quad p = O_{\text{class}} = \text{softmax}(Z)",
        (5,),
        (_SOFTMAX_X,),
    ),
    Equation(
        "S24",
        _HEAD,
        "Cross-entropy, the loss",
        None,
        r"L = -\frac{1}{B} \sum_b \sum_k y_k^b \log p_k^b, \quad p = \text{softmax}(Z)",
        (5,),
        (
            Code("tinyvit.engine.ops.nn:_cross_entropy"),
            Code("tinyvit.engine.ops.nn:_log_softmax"),
            Code("tinyvit.engine.ops.reductions:mean"),
        ),
    ),
    Equation(
        "S25",
        _HEAD,
        "Gradient of the logits: p − y",
        None,
        r"\frac{\partial L}{\partial Z^b} = \frac{1}{B} (p^b - y^b)",
        (5,),
        (
            Code("tinyvit.engine.ops.nn:_cross_entropy", "logits"),
            Code("tinyvit.engine.ops.reductions:mean", "x"),
        ),
    ),
)
