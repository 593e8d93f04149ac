"""What the module API promises: what is chosen, what changes, what stays."""

from __future__ import annotations

import copy
import io
import math
from itertools import chain
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")

import loramerge as lm  # noqa: E402
from loramerge.errors import AdapterError, NumericsError, UsageError  # noqa: E402
from loramerge.train.lora.branch import Branch  # noqa: E402
from loramerge.train.lora.targets import PRESETS  # noqa: E402
from tests.builders.models import images, small, stirred  # noqa: E402

nn = torch.nn
ATTENTION = [f"blocks.{i}.{leaf}" for i in (0, 1) for leaf in ("to_q", "to_k", "to_out.0")]


@torch.no_grad()
def output(model: Any) -> Any:
    return model(images())


def grads(model: Any) -> dict[str, Any]:
    model(images()).square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


# --- injecting ---------------------------------------------------------------------------------


def test_it_returns_the_parameters_of_each_layer_and_full_names() -> None:
    model = small()
    groups, names = lm.inject_trainable_lora(model, r=2)
    assert isinstance(names, list) and names == ATTENTION
    assert [len(group) for group in groups] == [2] * len(names)
    parameters = list(chain(*groups))
    assert list(chain(*groups)) == parameters, "groups can be gone through again"
    assert [tuple(p.shape) for p in parameters[:2]] == [(2, 12), (12, 2)]
    assert {id(p) for p in parameters} == {id(p) for p in model.parameters() if p.requires_grad}
    assert [id(half) for pair in lm.extract_lora_ups_down(model) for half in pair[::-1]] == [
        id(p) for p in parameters
    ]


def test_nothing_changes_at_first() -> None:
    plain, model = small(), small()
    lm.inject_trainable_lora(model, r=3, preset="full", exclude=["*.depthwise"])
    assert torch.equal(output(plain), output(model))


def test_the_base_is_frozen_and_keeps_names_and_objects() -> None:
    model = small().requires_grad_(True)
    before = dict(model.named_parameters())
    layers = dict(model.named_modules())
    lm.inject_trainable_lora(model, r=2, preset="full")
    after = dict(model.named_parameters())
    assert all(after[name] is value and not value.requires_grad for name, value in before.items())
    assert all(dict(model.named_modules())[name] is layer for name, layer in layers.items())
    added = after.keys() - before.keys()
    assert added and all(name.endswith((".lora.up", ".lora.down")) for name in added)
    assert isinstance(model.head, nn.Linear)


def test_only_up_gets_a_gradient_at_first_then_both() -> None:
    model = small()
    lm.inject_trainable_lora(model, r=2, preset="full")
    first = grads(model)
    assert all(bool(g.any()) == name.endswith("up") for name, g in first.items())
    stirred(model)
    assert all(g.any() for g in grads(model).values())


def test_injecting_twice_is_refused() -> None:
    model = small()
    lm.inject_trainable_lora(model)
    with pytest.raises(AdapterError, match="has a LoRA already, on 6 layers") as error:
        lm.inject_trainable_lora(model.blocks)
    assert "remove_lora" in str(error.value)


def test_a_rank_that_does_not_fit_is_clamped_with_a_note_and_keeps_its_scale() -> None:
    model, notes = small(), []
    _, names = lm.inject_trainable_lora(
        model, r=8, alpha=4.0, preset="full-lin", notify=notes.append
    )
    head = model.head.lora
    assert names[-1] == "head" and head.rank == 2 and head.scale == 0.5
    assert {model.get_submodule(n).lora.rank for n in names[:-1]} == {8}
    assert [note.text for note in notes] == ["the rank is more than 1 layer can hold: head 8 → 2"]


@pytest.mark.parametrize("rslora", [False, True])
def test_ranks_alphas_and_their_patterns(rslora: bool) -> None:
    model = small()
    lm.inject_trainable_lora(
        model, r=4, alpha=2.0, rslora=rslora, rank_pattern={"*": 6, "*.to_q": 9},
        alpha_pattern={"blocks.1.*": 3.0},
    )  # fmt: skip
    power = 0.5 if rslora else 1.0
    for name in ATTENTION:
        branch = model.get_submodule(name).lora
        rank = 9 if name.endswith("to_q") else 6
        alpha = 3.0 if name.startswith("blocks.1.") else 2.0
        assert branch.rank == rank == branch.up.shape[1]
        assert branch.scale == pytest.approx(alpha / rank**power)
    clamped = small()
    lm.inject_trainable_lora(clamped, r=50, alpha=5.0, rslora=rslora)
    assert clamped.blocks[0].to_q.lora.scale == pytest.approx(5 / 50**power)


def test_alpha_is_the_rank_by_default() -> None:
    model = small()
    lm.inject_trainable_lora(model, r=4, rank_pattern={"*to_k": 2})
    assert {(b.rank, b.alpha, b.scale) for b in branches(model)} == {(4, 4.0, 1.0), (2, 2.0, 1.0)}


def branches(model: Any) -> list[Branch]:
    return [m for m in model.modules() if isinstance(m, Branch)]


# --- choosing ----------------------------------------------------------------------------------


CHOICES = [
    ({"preset": "attn"}, ATTENTION),
    ({"preset": "attn-only"}, ATTENTION),
    ({"preset": "attn-resnet"}, ["stem.conv1", "stem.conv2", *ATTENTION]),
    ({"preset": "resnet"}, ["stem.conv1", "stem.conv2"]),
    ({"preset": "unet-convblock-only"}, ["stem.conv1", "stem.conv2"]),
    ({"preset": "full-linear"}, ["stem.conv2", *ATTENTION, "head"]),
    ({"preset": "full"}, ["stem.conv1", "stem.conv2", *ATTENTION, "head"]),
    ({"target_replace_module": {"Small"}}, [*ATTENTION, "head"]),
    ({"include": ["head", "*.conv1"]}, ["stem.conv1", "head"]),
    ({"include": ["*.to_q"], "preset": "attn"}, ["blocks.0.to_q", "blocks.1.to_q"]),
    ({"exclude": ["blocks.0.*"]}, ATTENTION[3:]),
]  # fmt: skip


@pytest.mark.parametrize(("how", "expected"), CHOICES, ids=lambda value: str(value)[:40])
def test_what_is_chosen(how: dict[str, Any], expected: list[str]) -> None:
    assert lm.inject_trainable_lora(small(), 2, **how)[1] == expected


def test_extended_takes_convolutions_and_a_grouped_one_is_left_out() -> None:
    model = small()
    _, names = lm.inject_trainable_lora_extended(model, 2)
    assert names == ["stem.conv1", "stem.conv2", *ATTENTION]
    assert not hasattr(model.stem.depthwise, "lora")


def test_aliases_are_names_of_their_own() -> None:
    aliases = [alias for p in PRESETS.values() for alias in p.aliases]
    assert len({*PRESETS, *aliases}) == len(PRESETS) + len(aliases)


def test_a_layer_alone_can_be_the_model() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    assert lm.inject_trainable_lora(model, 2, preset="full")[1] == ["0", "2"]
    assert lm.inject_trainable_lora(small().blocks[0], 2)[1] == ["to_q", "to_k", "to_out.0"]


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"r": 0}, UsageError, "rank r is not a positive whole number"),
    ({"r": {"CrossAttention"}}, UsageError, "target_replace_module="),
    ({"rank_pattern": {"*to_q": 1.5}}, UsageError, r"rank \*to_q"),
    ({"alpha": 0.0}, UsageError, "alpha is not a positive"),
    ({"alpha": math.nan}, UsageError, "alpha is not a positive"),
    ({"alpha_pattern": {"*to_q": -1.0}}, UsageError, r"\*to_q is not a positive"),
    ({"dropout_p": 1.0}, UsageError, "dropout_p"),
    ({"init": "ones"}, UsageError, "initialisation"),
    ({"preset": "atn"}, UsageError, "did you mean attn"),
    ({"preset": "attn", "target_replace_module": ["A"]}, UsageError, "not both"),
    ({"target_replace_module": "Attention"}, UsageError, "list or a set"),
    ({"include": ["*.to_w"]}, UsageError, r"no layer matches '\*.to_w'"),
    ({"exclude": ["blok.0"]}, UsageError, "nearest name"),
    ({"rank_pattern": {"*.to_w": 2}}, UsageError, "no layer matches"),
    ({"target_replace_module": ["GEGLU"]}, AdapterError, "no layer of this model is chosen"),
    ({"preset": "attn-ff"}, AdapterError, "BasicTransformerBlock"),
]


@pytest.mark.parametrize(("how", "sort", "says"), WRONG, ids=lambda value: str(value)[:40])
def test_what_cannot_be_meant_is_refused_and_changes_nothing(
    how: dict[str, Any], sort: type[Exception], says: str
) -> None:
    model = small()
    with pytest.raises(sort) as error:
        lm.inject_trainable_lora(model, **how)
    import re

    assert re.search(says, str(error.value)), str(error.value)
    assert not branches(model)


def test_a_model_without_layers_says_so() -> None:
    with pytest.raises(AdapterError, match="no linear layer and no convolution"):
        lm.inject_trainable_lora(nn.ReLU(), preset="full")


def test_a_layer_whose_forward_was_replaced_is_refused() -> None:
    model = small()
    model.head.forward = lambda x: x
    with pytest.raises(AdapterError, match="head: the forward of these layers was replaced"):
        lm.inject_trainable_lora(model, preset="full")
    assert not branches(model)


# --- types and devices -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("late", [False, True])
def test_new_parameters_stay_float32_in_a_half_model(dtype: Any, late: bool) -> None:
    model = small()
    if not late:
        model.to(dtype)
    parameters = list(chain(*lm.inject_trainable_lora(model, 2)[0]))
    stirred(model)
    values = [p.detach().clone() for p in parameters]
    if late:
        model.to(dtype)
    assert {p.dtype for p in parameters} == {torch.float32}
    assert all(torch.equal(p, v) for p, v in zip(parameters, values, strict=True))
    assert all(p is q for p, q in zip(parameters, trainable(model), strict=True))
    out = model(images().to(dtype))
    assert out.dtype == dtype
    out.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in parameters)


def trainable(model: Any) -> list[Any]:
    return [p for _, m in model.named_modules() if isinstance(m, Branch) for p in (m.down, m.up)]


def test_a_double_model_trains_in_double() -> None:
    model = small().double()
    parameters = list(chain(*lm.inject_trainable_lora(model, 2)[0]))
    assert {p.dtype for p in parameters} == {torch.float32}
    model.double()
    assert {p.dtype for p in parameters} == {torch.float64}
    assert model(images().double()).dtype == torch.float64


def test_on_the_meta_device_before_and_after() -> None:
    with torch.device("meta"):
        model = small()
    parameters = list(chain(*lm.inject_trainable_lora(model, 2)[0]))
    assert all(p.is_meta for p in parameters)
    torch.manual_seed(7)
    model.to_empty(device="cpu")
    halves = trainable(model)
    assert all(p.device.type == "cpu" and p.dtype == torch.float32 for p in halves)
    assert all(p.any() for p in halves[::2]) and not any(p.any() for p in halves[1::2])
    late = small()
    torch.manual_seed(7)
    expected = list(chain(*lm.inject_trainable_lora(late, 2)[0]))
    assert all(torch.equal(p, q) for p, q in zip(halves, expected, strict=True))


def test_made_where_the_layer_is_whatever_the_default_device() -> None:
    model = small()
    with torch.device("meta"):
        parameters = list(chain(*lm.inject_trainable_lora(model, 2)[0]))
    assert {p.device.type for p in parameters} == {"cpu"} and parameters[0].any()


def test_autocast_and_half_inputs() -> None:
    model = small()
    lm.inject_trainable_lora(model, 2)
    stirred(model)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images())
    assert out.dtype == torch.bfloat16
    assert torch.allclose(out.float(), model(images()), atol=0.2)


def test_copies_and_pickles_are_whole() -> None:
    model = small()
    lm.inject_trainable_lora(model, 2, preset="full")
    stirred(model)
    twin = copy.deepcopy(model)
    stirred(model, seed=6)
    assert not torch.equal(twin(images()), model(images()))
    buffer = io.BytesIO()
    torch.save(twin, buffer)
    again = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    assert torch.equal(again(images()), twin(images()))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(images()), model(images()))


# --- tuning, collapsing, removing --------------------------------------------------------------


@pytest.mark.parametrize("how", [{"preset": "full"}, {"preset": "full", "rslora": True}])
@pytest.mark.parametrize("weight", [1.0, -0.5])
def test_a_collapsed_model_gives_what_the_live_one_gave(how: dict[str, Any], weight: float) -> None:
    model = small()
    lm.inject_trainable_lora(model, 2, alpha=3.0, **how)
    stirred(model)
    lm.tune_lora_scale(model, weight)
    expected = model(images())
    names = list(small().state_dict())
    lm.collapse_lora(model)
    assert torch.allclose(model(images()), expected, atol=1e-5)
    assert list(model.state_dict()) == names and type(model.head) is nn.Linear
    assert not torch.equal(model.head.weight, small().head.weight)


def test_collapsing_at_a_weight_is_that_much() -> None:
    model, half = small(), small()
    for one, weight in ((model, 1.0), (half, 0.5)):
        torch.manual_seed(3)
        lm.inject_trainable_lora(one, 2)
        stirred(one)
        lm.collapse_lora(one, weight)
    base, whole, part = (m.blocks[0].to_q.weight for m in (small(), model, half))
    assert torch.allclose((whole - base) * 0.5, part - base, atol=1e-6)


def test_a_half_base_is_rounded_once() -> None:
    model = small().half()
    lm.inject_trainable_lora(model, 2, include=["head"])
    stirred(model)
    expected = (model.head.weight.float() + model.head.lora.product()).half()
    lm.collapse_lora(model)
    assert model.head.weight.dtype == torch.float16 and torch.equal(model.head.weight, expected)


def test_a_sum_that_overflows_changes_no_layer() -> None:
    model = small().half()
    lm.inject_trainable_lora(model, 2, preset="full-lin")
    stirred(model)
    with torch.no_grad():
        model.head.lora.up.fill_(1e6)
    before = {n: p.clone() for n, p in model.named_parameters()}
    with pytest.raises(NumericsError, match="head: the sum of base and LoRA is not finite"):
        lm.collapse_lora(model)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_scale_nought_is_the_base_bit_for_bit() -> None:
    plain, model = small(), small()
    lm.inject_trainable_lora(model, 2, preset="full")
    stirred(model)
    assert not torch.equal(output(plain), output(model))
    lm.tune_lora_scale(model, 0.0)
    assert torch.equal(output(plain), output(model))
    with pytest.raises(UsageError, match="finite"):
        lm.tune_lora_scale(model, math.inf)


def test_removing_leaves_no_trace() -> None:
    plain, model = small(), small()
    lm.inject_trainable_lora(model, 2, preset="full")
    stirred(model)
    lm.remove_lora(model)
    assert torch.equal(output(plain), output(model))
    assert list(plain.state_dict()) == list(model.state_dict())
    assert [type(m) for m in plain.modules()] == [type(m) for m in model.modules()]
    lm.inject_trainable_lora(model, 3)


@pytest.mark.parametrize(
    "act", [lm.remove_lora, lm.collapse_lora, lm.tune_lora_scale, lm.extract_lora_ups_down]
)
def test_without_a_lora_it_says_so(act: Any) -> None:
    with pytest.raises(AdapterError, match="Small: the model has no LoRA"):
        act(small())


def test_dropout_acts_in_training_alone() -> None:
    model = small()
    lm.inject_trainable_lora(model, 2, dropout_p=0.5)
    stirred(model)
    assert not torch.equal(model(images()), model(images()))
    model.eval()
    assert torch.equal(model(images()), model(images()))


def test_hooks_ties_and_subclasses_survive() -> None:
    class Special(nn.Linear):
        def forward(self, x: Any) -> Any:
            return super().forward(x) + 1

    shared = Special(4, 4)
    model = nn.Sequential(shared, nn.Sequential(shared))
    calls: list[int] = []
    shared.register_forward_hook(lambda *_: calls.append(1))
    expected = model(torch.ones(1, 4))
    assert lm.inject_trainable_lora(model, 2, preset="full")[1] == ["0"]
    assert torch.equal(model(torch.ones(1, 4)), expected) and len(calls) == 4
    assert isinstance(model[0], Special)
    lm.remove_lora(model)
    assert type(model[0]) is Special


def test_under_autocast_layers_that_read_the_same_keep_no_copies_of_it() -> None:
    """Widened before autocast narrows it again, what they read would be kept once for each."""
    layers = nn.ModuleDict({"to_q": nn.Linear(16, 16), "to_k": nn.Linear(16, 16)}).to(
        torch.bfloat16
    )
    layers.requires_grad_(False)
    lm.inject_trainable_lora(layers, 2, preset="full")
    x = torch.randn(5, 16, dtype=torch.bfloat16)
    kept = set()

    def keep(value: Any) -> Any:
        if value.shape == x.shape:
            kept.add(value.data_ptr())
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        with torch.autocast("cpu", torch.bfloat16):
            narrow = sum(layer(x) for layer in layers.values())
        assert kept == {x.data_ptr()} and narrow.dtype == torch.bfloat16
    wide = sum(layer(x) for layer in layers.values())  # without autocast the branch is float32
    assert torch.allclose(narrow.float(), wide.float(), atol=2e-2)


def test_where_there_is_no_autocast_shapes_are_computed() -> None:
    """Asked whether it is on, torch refuses devices that have none, such as that of a dry run."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4))
        lm.inject_trainable_lora(model, 2, preset="full")
        assert model(torch.empty(3, 4)).shape == (3, 4)
