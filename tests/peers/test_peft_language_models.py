"""Every field of a LoRA configuration on language models: read, mixed, resized, baked, written, loaded.

What an adapter means is what a model says that PEFT has not merged; where no weights are shared,
`merge_and_unload` gives the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import loramerge as lm
from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.stream.bake import bake
from loramerge.stream.plan import plan_bake
from tests.builders.language import MODELS, adapter_folder, base_folder, loaded, logits, opened
from tests.tail import tail

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
torch: Any = pytest.importorskip("torch")
peft: Any = pytest.importorskip("peft")
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
    return found.shape == expected.shape and float((found - expected).abs().max()) < 2e-6


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
        assert close(logits(other), logits(same))
        small = lm.resize(adapter, rank=1)
        save(small, tmp_path / "small")
        other, missing = loaded(base, tmp_path / "small", one.prepare)
        assert missing == ([], [])
        assert close(logits(other), logits(baked(base, small, tmp_path / "resized")))
    if not one.tied:
        merged = dict(wrapped.merge_and_unload().named_parameters())
        found = dict(model.named_parameters())
        assert merged.keys() == found.keys()
        assert all(close(found[key], merged[key]) for key in merged)
