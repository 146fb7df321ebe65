"""Recomputation: the same bits, the same second derivatives, the same errors, and less on the tape."""

from dataclasses import replace

import numpy as np
import pytest

import tinyvit as tv

CONFIG = tv.ViTConfig(image_size=8, patch_size=4, channels=1, num_classes=5, dim=16, depth=3, num_heads=2)
DROPPING = {"dropout": 0.2, "attention_dropout": 0.2, "drop_path": 0.3}
RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.standard_normal((6, 1, 8, 8)), RNG.integers(0, 5, 6)


def model_of(**changes):
    model = tv.ViT(replace(CONFIG, **changes), np.random.default_rng(1)).to(dtype=np.float64)
    for p in model.parameters():
        p.data[...] = np.random.default_rng(p.size).standard_normal(p.shape) / 5
    return model


def loss_of(model):
    return tv.ops.cross_entropy(model(IMAGES), LABELS)


def bytes_kept(loss):
    """What the tape holds of arrays that are no parameters, each once."""
    seen, stack, arrays = set(), [loss.node], {}
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        held = [*(node.saved or {}).values(), *(node.kernel[1] if node.kernel else ())]
        for value in held:
            if isinstance(value, np.ndarray):
                owner = value if value.base is None else value.base
                arrays[id(owner)] = owner.nbytes
        stack.extend(node.parents)
    return sum(arrays.values())


@pytest.mark.parametrize("settings", [{}, DROPPING, {"class_token": False, "pool": "mean"}], ids=str)
def test_a_checkpointed_model_has_the_same_loss_and_gradients_to_the_last_bit(settings):
    found = []
    for recompute in (False, True):
        model = model_of(checkpoint=recompute, **settings)
        tv.seed(3)
        loss = loss_of(model)
        loss.backward()
        found.append((loss.item(), {name: p.grad.numpy().tobytes() for name, p in model.named_parameters()}))
    assert found[0] == found[1]


def test_the_tape_keeps_a_layers_input_alone():
    kept = {recompute: bytes_kept(loss_of(model_of(checkpoint=recompute, depth=8))) for recompute in (False, True)}
    assert kept[True] < 0.35 * kept[False]


def test_second_derivatives_are_those_of_the_model_that_keeps_everything():
    def second(model):
        parameters = list(model.parameters())
        first = tv.grad(loss_of(model), parameters, create_graph=True)
        return [g.numpy() for g in tv.grad(sum((g * g).sum() for g in first), parameters)]

    for kept, recomputed in zip(second(model_of()), second(model_of(checkpoint=True)), strict=True):
        np.testing.assert_allclose(recomputed, kept, rtol=1e-9, atol=1e-12)


def test_the_gradient_check_holds_through_a_checkpoint():
    w = tv.tensor(RNG.standard_normal((3, 3)), requires_grad=True)
    x = tv.tensor(RNG.standard_normal((2, 3)), requires_grad=True)
    tv.gradcheck(lambda x, w: tv.checkpoint(lambda x: tv.ops.tanh(x @ w) * x, x, [w]), [x, w])
    tv.gradgradcheck(lambda x, w: tv.checkpoint(lambda x: tv.ops.tanh(x @ w) * x, x, [w]), [x, w])


def test_the_same_chances_are_drawn_again_and_the_stream_goes_on():
    x = tv.tensor(np.ones(1000), requires_grad=True)
    tv.seed(0)
    y = tv.checkpoint(lambda x: tv.ops.dropout(x, 0.5), x, [])
    after = tv.ops.dropout(tv.tensor(np.ones(1000)), 0.5)
    y.backward(np.ones(1000))
    np.testing.assert_array_equal(x.grad.numpy(), y.numpy())
    tv.seed(0)
    plain = tv.ops.dropout(tv.tensor(np.ones(1000)), 0.5)
    np.testing.assert_array_equal(y.numpy(), plain.numpy())
    np.testing.assert_array_equal(after.numpy(), tv.ops.dropout(tv.tensor(np.ones(1000)), 0.5).numpy())


def test_an_overwritten_input_or_parameter_is_noticed():
    for overwritten in ("x", "w"):
        leaves = {name: tv.tensor(np.ones(2), requires_grad=True) for name in "xw"}
        y = tv.checkpoint(lambda x, w=leaves["w"]: x * w, leaves["x"], [leaves["w"]])
        with tv.no_grad():
            leaves[overwritten][0] = 5.0
        with pytest.raises(tv.TapeError, match=f"`checkpoint` saved its argument '{overwritten}'"):
            y.backward(np.ones(2))
        assert all(leaf.grad is None for leaf in leaves.values())


def test_a_second_sweep_needs_the_graph_retained():
    x = tv.tensor(np.ones(2), requires_grad=True)
    y = tv.checkpoint(tv.ops.exp, x, []).sum()
    y.backward(retain_graph=True)
    y.backward()
    np.testing.assert_allclose(x.grad.numpy(), 2 * np.e)
    with pytest.raises(tv.TapeError, match="taken before"):
        y.backward()


def test_nothing_is_recorded_where_nothing_carries_a_gradient_or_under_no_grad():
    w = tv.tensor(np.ones(2), requires_grad=True)
    assert tv.checkpoint(tv.ops.exp, tv.tensor(np.ones(2)), []).node is None
    with tv.no_grad():
        assert tv.checkpoint(lambda x: x * w, tv.tensor(np.ones(2)), [w]).node is None


def test_a_frozen_parameter_and_an_input_without_gradient_get_none():
    frozen, free = tv.tensor(np.full(2, 3.0)), tv.tensor(np.ones(2), requires_grad=True)
    x = tv.tensor(np.full(2, 2.0))
    y = tv.checkpoint(lambda x: x * free * frozen, x, [frozen, free])
    y.backward(np.ones(2))
    np.testing.assert_array_equal(free.grad.numpy(), [6.0, 6.0])
    [g] = tv.grad(tv.checkpoint(lambda x: x * free * frozen, x, [frozen, free]).sum(), [free])
    np.testing.assert_array_equal(g.numpy(), [6.0, 6.0])
