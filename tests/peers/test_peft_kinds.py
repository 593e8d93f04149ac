"""PEFT merges what it saved as we say it changes the weights: every type, variant and sort of layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.adapter import Site
from loramerge.adapter.load import load
from loramerge.adapter.save import save
from tests.builders.samples import data_section, relative
from tests.tail import first

pytestmark = pytest.mark.peers
torch: Any = pytest.importorskip("torch")
peft: Any = pytest.importorskip("peft")

LINEAR = ["linear", "square"]
WIDE = ["linear", "square", "narrow"]  # more outputs than inputs, and fewer
TARGETS = ["linear", "square", "conv1x1", "conv3x3"]


def model() -> Any:
    torch.manual_seed(0)
    return torch.nn.ModuleDict(
        {
            "linear": torch.nn.Linear(16, 24),
            "square": torch.nn.Linear(16, 16, bias=False),
            "narrow": torch.nn.Linear(16, 8, bias=False),
            "conv1x1": torch.nn.Conv2d(16, 16, 1),
            "conv3x3": torch.nn.Conv2d(16, 16, 3),
        }
    )


CONFIGS: dict[str, Any] = {
    "lora": lambda: peft.LoraConfig(r=4, lora_alpha=2),
    "rslora": lambda: peft.LoraConfig(r=4, lora_alpha=2, use_rslora=True),
    "patterns": lambda: peft.LoraConfig(
        r=4, lora_alpha=2, rank_pattern={"conv3x3": 3}, alpha_pattern={"square": 7, "conv.*": 5}
    ),
    "lora-bias": lambda: peft.LoraConfig(
        r=4, lora_alpha=2, lora_bias=True, target_modules=["linear", "conv1x1"]
    ),
    "dora": lambda: peft.LoraConfig(r=4, lora_alpha=2, use_dora=True),
    "dora-rs": lambda: peft.LoraConfig(r=4, lora_alpha=2, use_dora=True, use_rslora=True),
    "loha": lambda: peft.LoHaConfig(r=3, alpha=2),
    "loha-cores": lambda: peft.LoHaConfig(r=3, alpha=2, use_effective_conv2d=True),
    "lokr": lambda: peft.LoKrConfig(r=2, alpha=3),
    "lokr-both": lambda: peft.LoKrConfig(r=1, alpha=3, decompose_both=True),
    "lokr-full": lambda: peft.LoKrConfig(r=64, alpha=3),
    "lokr-cores": lambda: peft.LoKrConfig(r=1, alpha=3, use_effective_conv2d=True),
    "ia3": lambda: peft.IA3Config(feedforward_modules=["square", "conv3x3"]),
    "oft": lambda: peft.OFTConfig(r=0, oft_block_size=4),
    "oft-exact": lambda: peft.OFTConfig(r=0, oft_block_size=8, use_cayley_neumann=False),
    "oft-shared": lambda: peft.OFTConfig(r=0, oft_block_size=4, block_share=True),
    "oft-terms": lambda: peft.OFTConfig(r=0, oft_block_size=4, num_cayley_neumann_terms=3),
    "oft-constrained": lambda: peft.OFTConfig(r=0, oft_block_size=4, coft=True, eps=0.8),
    "oft-constrained-shared": lambda: peft.OFTConfig(
        r=0, oft_block_size=4, coft=True, eps=0.5, block_share=True, use_cayley_neumann=False
    ),
    "boft": lambda: peft.BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=1),
    "boft-2": lambda: peft.BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=2),
    "boft-3": lambda: peft.BOFTConfig(boft_block_size=2, boft_n_butterfly_factor=3),
    "adalora": lambda: peft.AdaLoraConfig(init_r=3, lora_alpha=5, total_step=10),
    "beft": lambda: peft.BeftConfig(target_modules=["linear"]),
    "c3a": lambda: peft.C3AConfig(block_size=4, target_modules=LINEAR),
    "deft": lambda: peft.DeftConfig(r=3, alpha=6, target_modules=LINEAR),
    "deft-qr": lambda: peft.DeftConfig(r=3, decomposition_method="qr", target_modules=LINEAR),
    "deft-para": lambda: peft.DeftConfig(r=3, para=True, target_modules=LINEAR),
    "delora": lambda: peft.DeloraConfig(r=3, target_modules=LINEAR),
    "fourierft": lambda: peft.FourierFTConfig(n_frequency=10, target_modules=LINEAR),
    "glora": lambda: peft.GloraConfig(
        r=3, config_C="none", config_D_E="vector", target_modules=LINEAR
    ),
    "glora-vector": lambda: peft.GloraConfig(
        config_A_B="vector", config_C="none", config_D_E="constant", target_modules=LINEAR
    ),
    "glora-constant": lambda: peft.GloraConfig(
        config_A_B="constant", config_C="none", config_D_E="none", target_modules=LINEAR
    ),
    "gralora": lambda: peft.GraloraConfig(r=4, gralora_k=2, target_modules=LINEAR),
    "gralora-hybrid": lambda: peft.GraloraConfig(
        r=4, gralora_k=4, hybrid_r=2, target_modules=LINEAR
    ),
    "hira": lambda: peft.HiraConfig(r=3),
    "hra": lambda: peft.HRAConfig(r=4),
    "hra-orthogonal": lambda: peft.HRAConfig(r=3, apply_GS=True),
    "ln-tuning": lambda: peft.LNTuningConfig(),
    "miss": lambda: peft.MissConfig(r=4, target_modules=LINEAR),
    "miss-uneven": lambda: peft.MissConfig(r=5, target_modules=LINEAR),
    "miss-bat": lambda: peft.MissConfig(r=4, init_weights="bat", target_modules=LINEAR),
    "miss-mini": lambda: peft.MissConfig(r=4, init_weights="mini", mini_r=8, target_modules=LINEAR),
    "osf": lambda: peft.OSFConfig(effective_rank=5, target_modules=LINEAR),
    "peanut": lambda: peft.PeanutConfig(r=4, act_fn="silu", scaling=0.5, target_modules=LINEAR),
    "pvera": lambda: peft.PveraConfig(r=4, target_modules=LINEAR),
    "randlora": lambda: peft.RandLoraConfig(r=3, randlora_alpha=5, target_modules=WIDE),
    "road-1": lambda: peft.RoadConfig(group_size=4, target_modules=LINEAR),
    "road-2": lambda: peft.RoadConfig(variant="road_2", group_size=8, target_modules=LINEAR),
    "road-4": lambda: peft.RoadConfig(variant="road_4", group_size=4, target_modules=LINEAR),
    "shira": lambda: peft.ShiraConfig(r=2, random_seed=1, target_modules=LINEAR),
    "supertuning": lambda: peft.SupertuningConfig(sparsity=0.9, target_modules=LINEAR),
    "supertuning-lora": lambda: peft.SupertuningConfig(
        sparsity=0.9, r=2, lora_alpha=3, target_modules=LINEAR
    ),
    "tinylora": lambda: peft.TinyLoraConfig(r=2, u=8, target_modules=WIDE),
    "tinylora-tied": lambda: peft.TinyLoraConfig(r=2, u=8, weight_tying=0.5, target_modules=WIDE),
    "tinylora-one": lambda: peft.TinyLoraConfig(r=2, u=3, weight_tying=1.0, target_modules=WIDE),
    "unilora": lambda: peft.UniLoraConfig(
        r=2, theta_d_length=8, save_indices=True, target_modules=LINEAR
    ),
    "vblora": lambda: peft.VBLoRAConfig(
        r=2, num_vectors=6, vector_length=4, topk=2, target_modules=LINEAR
    ),
    "vblora-topk": lambda: peft.VBLoRAConfig(
        r=2,
        num_vectors=6,
        vector_length=4,
        topk=3,
        save_only_topk_weights=True,
        target_modules=LINEAR,
    ),
    "vera": lambda: peft.VeraConfig(r=4, target_modules=LINEAR),
    "waveft": lambda: peft.WaveFTConfig(n_frequency=10, target_modules=LINEAR),
    "waveft-db3": lambda: peft.WaveFTConfig(
        n_frequency=30, wavelet_family="db3", target_modules=LINEAR
    ),
    "waveft-sparse": lambda: peft.WaveFTConfig(
        n_frequency=10, use_idwt=False, target_modules=LINEAR
    ),
}


KIN = 23  # the first of them; what the others mean is compared with formulas, too


class _BlockDiagonal:
    """Takes the place of PEFT's kernel for CUDA, without which it knows a single stage only."""

    @staticmethod
    def apply(blocks: Any) -> Any:
        return torch.stack([torch.block_diag(*stage) for stage in blocks])


@pytest.fixture(autouse=True)
def _stages(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "boft-" in request.node.name:
        layer = pytest.importorskip("peft.tuners.boft.layer")
        monkeypatch.setattr(layer, "get_fbd_cuda", lambda: True)
        monkeypatch.setattr(layer, "FastBlockDiag", _BlockDiagonal)


def wrapped_of(case: str) -> Any:
    config = CONFIGS[case]()
    config.target_modules = config.target_modules or TARGETS
    wrapped = peft.get_peft_model(model(), config)
    torch.manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            random = torch.randn_like(parameter) / 4
            whole = any(word in name for word in ("magnitude", "ia3_l", "boft_s"))
            parameter.data = (random.abs() + 0.5) if whole else random
    return wrapped


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", first(KIN, CONFIGS))
def test_peft_merges_what_we_say(case: str, tmp_path: Path) -> None:
    wrapped = wrapped_of(case)
    wrapped.save_pretrained(tmp_path / "a")
    adapter = load(tmp_path / "a").require_sound()
    assert not adapter.info.account.unknown
    before = {name: value.double().numpy() for name, value in model().state_dict().items()}
    merged = wrapped.merge_and_unload(safe_merge=False).state_dict()
    changed = 0
    for name, value in merged.items():
        path, _, parameter = name.rpartition(".")
        delta = adapter.deltas.get(Site((path,), parameter))  # type: ignore[arg-type]
        expected = value.double().numpy() - before[name]
        if delta is None:
            assert np.abs(expected).max() == 0, name
            continue
        changed += 1
        assert delta.fits(before[name].shape)
        found = delta.dense(before[name] if delta.needs_base else None)
        # differences of float32 weights: an ulp of the weight stays
        room = 1e-6 * (np.linalg.norm(before[name]) + np.linalg.norm(expected))
        assert np.linalg.norm(found.reshape(expected.shape) - expected) < room, name
        assert np.linalg.norm(expected) > 1e-3 * np.linalg.norm(before[name]), name
    assert changed >= len(wrapped.peft_config["default"].target_modules)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", first(KIN, CONFIGS))
def test_peft_loads_our_files_to_the_same_weights(case: str, tmp_path: Path) -> None:
    wrapped = wrapped_of(case)
    wrapped.save_pretrained(tmp_path / "a")
    save(load(tmp_path / "a"), tmp_path / "b", to="peft")
    weights = "adapter_model.safetensors"
    assert data_section(tmp_path / "b" / weights) == data_section(tmp_path / "a" / weights)
    config = json.loads((tmp_path / "b" / "adapter_config.json").read_text("utf-8"))
    assert config["peft_type"] == wrapped.peft_config["default"].peft_type.value
    again = peft.PeftModel.from_pretrained(model(), tmp_path / "b")
    expected = wrapped.merge_and_unload().state_dict()
    for name, value in again.merge_and_unload().state_dict().items():
        assert relative(value.double().numpy(), expected[name].double().numpy()) < 1e-6, name


@pytest.mark.filterwarnings("ignore")
def test_embeddings_and_modules_to_save_are_what_peft_makes_of_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = torch.nn.ModuleDict(
        {"table": torch.nn.Embedding(30, 12), "head": torch.nn.Linear(12, 5, bias=False)}
    )
    before = {name: layer.weight.detach().clone() for name, layer in whole.items()}
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["table"], modules_to_save=["head"])
    wrapped = peft.get_peft_model(whole, config)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter)
    wrapped.save_pretrained(tmp_path)
    found = {site.name: delta for site, delta in load(tmp_path).deltas.items()}
    merged = wrapped.merge_and_unload()
    assert {name: delta.kind for name, delta in found.items()} == {
        "table": "lora-embedding",
        "head": "set",
    }
    for name, delta in found.items():
        base = before[name].double().numpy()
        expected = merged[name].weight.detach().double().numpy() - base
        assert relative(delta.dense(base), expected) < 1e-6, name
