"""Every field of a LoRA configuration on language models: read, mixed, resized, baked, written, loaded.

What an adapter means is what a model says that PEFT has not merged; where no weights are shared,
`merge_and_unload` gives the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loramerge as lm
from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.errors import LoramergeError
from loramerge.stream.bake import bake
from loramerge.stream.plan import plan_bake
from tests.builders.language import MODELS, adapter_folder, base_folder, loaded, logits, opened
from tests.builders.samples import relative
from tests.tail import tail

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
torch: Any = pytest.importorskip("torch")
peft: Any = pytest.importorskip("peft")
lora: Any = pytest.importorskip("peft.tuners.lora.config")
pytest.importorskip("transformers")


@dataclass
class Case:
    """A configuration, and what is not possible with it.

    Args:
        weighted: whether a mix can hold it at another weight than 1 without the base.
        tied: whether merging in PEFT adds to a weight that two layers share.
    """

    model: str
    config: dict[str, Any]
    prepare: Callable[[Any], Any] | None = None
    weighted: bool = True
    tied: bool = False
    kinds: set[str] = field(default_factory=lambda: {"lora"})


def case(model: str = "llama", /, *targets: str, **config: Any) -> Case:
    own = {k: config.pop(k) for k in ("prepare", "weighted", "tied", "kinds") if k in config}
    return Case(model, {"target_modules": list(targets or ("q_proj", "v_proj")), **config}, **own)


def larger(model: Any) -> None:
    torch.manual_seed(3)
    model.resize_token_embeddings(19, mean_resizing=False)


CASES: dict[str, Case] = {
    "r and lora_alpha": case(),
    "rank_pattern and alpha_pattern": case(
        rank_pattern={"q_proj": 3}, alpha_pattern={"1.self_attn.v_proj": 5}
    ),
    "use_rslora": case(use_rslora=True),
    "lora_bias": case(lora_bias=True, kinds={"lora", "bias"}),
    "use_dora": case(use_dora=True, weighted=False, kinds={"dora"}),
    "fan_in_fan_out": case("gpt2", "c_attn", "c_fc", fan_in_fan_out=True),
    "bias all": case(bias="all", weighted=False, kinds={"lora", "set"}),
    "bias lora_only": case(bias="lora_only", weighted=False, kinds={"lora", "set"}),
    "modules_to_save": case(modules_to_save=["norm"], weighted=False, kinds={"lora", "set"}),
    "modules_to_save head": case(
        modules_to_save=["lm_head"], weighted=False, kinds={"lora", "set"}
    ),
    "layers_to_transform": case(layers_to_transform=[1], layers_pattern="layers"),
    "exclude_modules": case(exclude_modules=["layers.0.self_attn.q_proj"]),
    "all-linear": Case("llama", {"target_modules": "all-linear"}),
    "an expression": Case("llama", {"target_modules": r".*\.1\..*(q|up)_proj"}),
    "gaussian": case(init_lora_weights="gaussian"),
    "what training alone reads": case(
        lora_dropout=0.4,
        qalora_group_size=8,
        megatron_core="another.core",
        runtime_config=lora.LoraRuntimeConfig(ephemeral_gpu_offload=True),
        velora_config=lora.VeloraConfig(num_groups=2),
    ),
    "what an initialisation would read": case(
        loftq_config={"loftq_bits": 2},
        eva_config=lora.EvaConfig(rho=1.0),
        corda_config=lora.CordaConfig(),
        lora_ga_config=lora.LoraGAConfig(),
    ),
    # several together
    "rslora, patterns and biases": case(
        use_rslora=True,
        lora_bias=True,
        rank_pattern={"q_proj": 3},
        alpha_pattern={"v_proj": 5},
        kinds={"lora", "bias"},
    ),
    "rslora of experts": case(
        "moe", "q_proj", target_parameters=["mlp.experts.down_proj"], use_rslora=True
    ),
    "dora, transposed": case(
        "gpt2", "c_attn", fan_in_fan_out=True, use_dora=True, weighted=False, kinds={"dora"}
    ),
    "tokens and a saved head": case(
        trainable_token_indices=[2, 5],
        modules_to_save=["lm_head"],
        weighted=False,
        kinds={"lora", "tokens", "set"},
    ),
    "patterns of an embedding": case(
        "llama",
        "embed_tokens",
        "v_proj",
        rank_pattern={"embed_tokens": 1},
        alpha_pattern={"embed_tokens": 7},
        use_rslora=True,
        kinds={"lora-embedding", "lora", "base"},
    ),
    "monteclora": case(monteclora_config=lora.MontecloraConfig(num_samples=2)),
    "orthogonal": case(init_lora_weights="orthogonal"),
    "embedding and head": case(
        "llama", "embed_tokens", "lm_head", kinds={"lora-embedding", "lora", "base"}
    ),
    "trainable_token_indices": case(
        trainable_token_indices=[2, 5], weighted=False, kinds={"lora", "tokens"}
    ),
    "tokens by name": case(
        trainable_token_indices={"embed_tokens": [1]}, weighted=False, kinds={"lora", "tokens"}
    ),
    "larger vocabulary": case(prepare=larger, weighted=False, kinds={"lora", "set"}),
    "larger vocabulary, adapted": case(
        "llama", "embed_tokens", "lm_head", prepare=larger, kinds={"lora-embedding", "lora", "base"}
    ),
    "target_parameters": case(
        "moe", "q_proj", target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    ),
    "target_parameters and patterns": case(
        "moe",
        "q_proj",
        target_parameters=["mlp.experts.down_proj"],
        rank_pattern={"experts.down_proj": 3},
        alpha_pattern={"experts.down_proj": 5},
    ),
    "target_parameters, stacked": case(
        "stacked", "q_proj", target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    ),
    "two encoders": case("clip", "q_proj", "fc1", "visual_projection"),
    "tied embedding": case(
        "tied", "embed_tokens", "q_proj", tied=True, kinds={"lora-embedding", "lora", "base"}
    ),
    "tied head": case("tied", "lm_head", "q_proj", tied=True, kinds={"lora", "base"}),
    "ensure_weight_tying": case(
        "tied",
        "embed_tokens",
        ensure_weight_tying=True,
        tied=True,
        kinds={"lora-embedding", "lora", "base"},
    ),
    "tied tokens": case(
        "tied",
        "q_proj",
        trainable_token_indices=[2, 5],
        weighted=False,
        tied=True,
        kinds={"lora", "tokens"},
    ),
    "tied, embedding saved": case(
        "tied",
        "q_proj",
        modules_to_save=["embed_tokens"],
        weighted=False,
        tied=True,
        kinds={"lora", "set"},
    ),
    "tied, larger vocabulary": case(
        "tied", "q_proj", prepare=larger, weighted=False, tied=True, kinds={"lora", "set"}
    ),
    "tied gpt2": case(
        "gpt2", "wte", "c_attn", fan_in_fan_out=True, tied=True, kinds={"lora-embedding", "lora"}
    ),
}


# a few ways in which something is stored; the others are of the long tail
CORE = ("target_parameters", "bias all", "embedding and head", "tied tokens")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {kind: base_folder(kind, root / kind) for kind in MODELS}


def baked(base: Path, adapter: Any, out: Path, weight: float = 1.0) -> Any:
    bake(plan_bake(open_checkpoint(base), [(adapter, Weight(weight))]), out)
    return opened(out)


def close(found: Any, expected: Any) -> bool:
    """Return whether two tensors or arrays agree to 1e-6 of the larger number, or of 1."""
    room = NEAR * max(1.0, float(abs(expected).max()))
    return found.shape == expected.shape and float(abs(found - expected).max()) < room


@pytest.mark.parametrize("name", [n if n in CORE else tail(n) for n in CASES])
def test_a_field_means_what_peft_means(name: str, bases: dict[str, Path], tmp_path: Path) -> None:
    one = CASES[name]
    base, source = bases[one.model], tmp_path / "a"
    wrapped = adapter_folder(base, source, one.prepare, **one.config)
    expected = logits(wrapped)
    adapter = load(source).require_sound()
    assert set(adapter.kinds()) == one.kinds
    assert not adapter.info.account.unknown
    model = baked(base, adapter, tmp_path / "baked")
    assert close(logits(model), expected)

    # written again, it loads with nothing missing and means the same
    save(lm.mix([(adapter, 1.0)]), tmp_path / "mixed")
    again, missing = loaded(base, tmp_path / "mixed", one.prepare)
    assert missing == ([], [])
    assert close(logits(again), expected)
    if one.weighted:
        half = lm.mix([(adapter, 0.5), (adapter, 0.25)])
        save(half, tmp_path / "half")
        other, missing = loaded(base, tmp_path / "half", one.prepare)
        assert missing == ([], [])
        same = baked(base, adapter, tmp_path / "three quarters", 0.75)
        weaker = logits_at(wrapped, 0.75)
        assert close(logits(other), weaker) and close(logits(same), weaker)
        small = lm.resize(adapter, rank=1)
        save(small, tmp_path / "small")
        other, missing = loaded(base, tmp_path / "small", one.prepare)
        assert missing == ([], [])
        assert close(logits(other), logits(baked(base, small, tmp_path / "resized")))
    else:
        with pytest.raises(LoramergeError):
            save(lm.mix([(adapter, 0.5)]), tmp_path / "half")
    if one.tied:
        return
    before = parameters(larger_of(base, one))
    merged = parameters(wrapped.merge_and_unload())
    found = parameters(model)
    assert merged.keys() == found.keys()
    assert all(close(found[key], merged[key]) for key in merged)
    assert _read_as_merged(adapter, before, merged, bool(one.config.get("fan_in_fan_out")))
    if one.weighted:
        cut = parameters(other.merge_and_unload())
        for key, whole in merged.items():
            assert relative(cut[key], before[key] + best(whole - before[key])) < NEAR, key


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"target_modules": ["embed_tokens"], "use_dora": True}, "DoRA of an embedding"),
        ({"target_modules": ["q_proj"], "bias": "all", "lora_bias": True}, "bias of the base"),
    ],
)
def test_what_is_not_computed_is_refused_with_the_reason(
    config: dict[str, Any], says: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    adapter_folder(bases["llama"], tmp_path / "a", **config)
    with pytest.raises(LoramergeError, match=says):
        load(tmp_path / "a").require_sound()


# --- PEFT's own numbers

NEAR = 1e-6


def logits_at(wrapped: Any, weight: float) -> Any:
    """Return what a model says whose adapter PEFT itself applies at a weight.

    `scale_layer` leaves embeddings as they are.
    """
    from peft.tuners.lora import LoraLayer

    layers = [layer for layer in wrapped.modules() if isinstance(layer, LoraLayer)]
    before = [dict(layer.scaling) for layer in layers]
    for layer in layers:
        layer.scaling.update({name: weight * value for name, value in layer.scaling.items()})
    found = logits(wrapped)
    for layer, scaling in zip(layers, before, strict=True):
        layer.scaling.update(scaling)
    return found


def larger_of(base: Path, one: Case) -> Any:
    """Return the base as the adapter found it."""
    model = opened(base)
    if one.prepare is not None:
        one.prepare(model)
    return model


def parameters(model: Any) -> dict[str, Any]:
    return {k: v.detach().double().numpy().copy() for k, v in model.named_parameters()}


def best(change: Any) -> Any:
    """Return the best approximation of rank 1 of each matrix of a change; vectors stay."""
    if change.ndim < 2:
        return change
    u, s, v = np.linalg.svd(change, full_matrices=False)
    return u[..., :, :1] * s[..., None, :1] @ v[..., :1, :]


def _read_as_merged(adapter: Any, before: Any, merged: Any, turned: bool) -> bool:
    """Return whether every delta is what PEFT's merge adds; stacked experts have no parameters."""
    for site, delta in adapter.deltas.items():
        key = f"{site.modules[0]}.{site.parameter}"
        if key not in merged:
            continue
        base = before[key].T if turned else before[key]
        whole = merged[key].T if turned else merged[key]
        if whole.shape != base.shape or not delta.fits(base.shape):
            return False
        found = base + delta.dense(base if delta.needs_base else None).reshape(base.shape)
        assert relative(found, whole) < NEAR, key
    return True
