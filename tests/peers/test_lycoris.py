"""LyCORIS' own modules change a layer as we say they do, for every algorithm on every sort of layer.

LyCORIS 4.1 multiplies the scale twice in `get_diff_weight` of LoHa and LoKr; its forward pass does
not, so what is compared is `get_weight`, and `apply_weight_decompose` for DoRA.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.adapter.load import load
from tests.builders.kinds import LAYERS, METADATA, STEMS
from tests.builders.samples import relative, safetensors_bytes
from tests.tail import first

pytestmark = pytest.mark.peers
torch: Any = pytest.importorskip("torch")
lycoris: Any = pytest.importorskip("lycoris.modules", reason="lycoris-lora is not installed")

Array = np.ndarray[Any, Any]
OUT, IN, R, ALPHA = 16, 8, 2, 1.0
NORM = "lora_unet_down_blocks_1_attentions_0_norm"
MADE = {module.name: module for module in lycoris.MODULE_LIST if hasattr(module, "name")}


def layer_of(layer: str, out: int = OUT, inside: int = IN) -> Any:
    torch.manual_seed(3)
    if layer == "linear":
        return torch.nn.Linear(inside, out, bias=False)
    size = 1 if layer == "conv1x1" else 3
    return torch.nn.Conv2d(inside, out, size, padding=size // 2, bias=False)


def filled(module: Any, scale: float = 0.5) -> Any:
    torch.manual_seed(5)
    for name, parameter in module.named_parameters():
        random = scale * torch.randn_like(parameter)
        parameter.data = random.abs() + 0.5 if name in ("dora_scale", "rescale") else random
    return module


def merged_plain(module: Any, base: Any) -> Any:
    return base + module.get_weight(base.shape)


def merged_dora(module: Any, base: Any) -> Any:
    if hasattr(module, "get_weight"):
        step = module.get_weight(base.shape)
    else:
        step = module.make_weight() * module.scale
    return module.apply_weight_decompose(base + step.reshape(base.shape), 1)


def merged_own(module: Any, base: Any) -> Any:
    return module.get_merged_weight()[0]


CASES: dict[str, tuple[str, dict[str, Any], Callable[[Any, Any], Any]]] = {
    "locon": ("locon", {}, merged_own),
    "locon-tucker": ("locon", {"use_tucker": True}, merged_own),
    "locon-rs": ("locon", {"rs_lora": True}, merged_own),
    "loha": ("loha", {}, merged_plain),
    "loha-tucker": ("loha", {"use_tucker": True}, merged_plain),
    "loha-rs": ("loha", {"rs_lora": True}, merged_plain),
    "lokr": ("kron", {"lora_dim": 1, "factor": 2}, merged_plain),
    "lokr-both": ("kron", {"lora_dim": 1, "factor": 4, "decompose_both": True}, merged_plain),
    "lokr-full": ("kron", {"full_matrix": True}, merged_plain),
    "lokr-huge": ("kron", {"lora_dim": 10000}, merged_plain),
    "lokr-tucker": ("kron", {"lora_dim": 1, "factor": 2, "use_tucker": True}, merged_plain),
    "dora": ("locon", {"weight_decompose": True}, merged_dora),
    "dora-in": ("locon", {"weight_decompose": True, "wd_on_out": False}, merged_dora),
    "doha": ("loha", {"weight_decompose": True}, merged_dora),
    "dokr-in": (
        "kron", {"lora_dim": 1, "factor": 2, "weight_decompose": True, "wd_on_out": False},
        merged_dora,
    ),
    "ia3": ("ia3", {}, merged_own),
    "ia3-in": ("ia3", {"train_on_input": True}, merged_own),
    "full": ("full", {}, merged_own),
    "diag-oft": ("diag-oft", {"lora_dim": 4}, merged_own),
    "diag-oft-constraint": ("diag-oft", {"lora_dim": 4, "constraint": 0.02}, merged_own),
    "diag-oft-rescaled": ("diag-oft", {"lora_dim": 4, "rescaled": True}, merged_own),
    "boft": ("boft", {"lora_dim": 4}, merged_own),
    "boft-constraint": ("boft", {"lora_dim": 4, "constraint": 0.02}, merged_own),
    "boft-rescaled": ("boft", {"lora_dim": 4, "rescaled": True}, merged_own),
    "glora": ("glora", {}, merged_own),
    "tlora": ("tlora", {}, merged_own),
}  # fmt: skip


@pytest.mark.parametrize("layer", first(1, LAYERS))
@pytest.mark.parametrize("case", CASES)
def test_a_module_changes_its_layer_as_we_say(case: str, layer: str, tmp_path: Path) -> None:
    name, options, merged = CASES[case]
    if case == "tlora" and layer == "conv3x3":
        pytest.skip("refused: LyCORIS merges it into one place of the kernel")
    square = case.startswith(("dora", "ia3"))  # so that no shape betrays an axis
    plain = layer_of(layer, OUT, OUT if square else IN)
    asked = {"lora_dim": R, "alpha": ALPHA, **options}
    module = filled(MADE[name]("x", plain, 1.0, **asked))
    base = plain.weight.detach().clone()
    with torch.no_grad():
        expected = merged(module, base).double().numpy() - base.double().numpy()
        if case == "full":
            module.apply_to()  # what it saves is a difference only from then on
        state = module.custom_state_dict()
        state = module.state_dict() if state is None else state
        tensors = {
            f"{STEMS[layer]}.{key}": np.asarray(value.numpy())
            for key, value in state.items()
            if not key.startswith(("org_", "scalar"))
        }
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors_bytes(tensors, METADATA))
    adapter = load(path).require_sound()
    assert not adapter.info.account.unknown
    (delta,) = adapter.deltas.values()
    found = delta.dense(base.double().numpy() if delta.needs_base else None)
    size = np.linalg.norm(expected) if not delta.needs_base else np.linalg.norm(base.numpy())
    assert relative(found, expected) < 1e-6 or np.linalg.norm(found - expected) < 1e-6 * size
    assert np.linalg.norm(expected) > 1e-3 * np.linalg.norm(base.numpy())


def test_norms_and_biases_change_as_we_say(tmp_path: Path) -> None:
    """`w_norm` and `b_norm` of a norm, and the `diff_b` that comes with a whole difference."""
    norm, linear = torch.nn.GroupNorm(4, 16), torch.nn.Linear(8, 16)
    weight_before, bias_before = linear.weight.detach().clone(), linear.bias.detach().clone()
    of_norm, of_linear = filled(MADE["norm"]("x", norm)), MADE["full"]("y", linear, 1.0)
    of_linear.apply_to()
    filled(of_linear)
    states = {NORM: of_norm.state_dict(), STEMS["linear"]: of_linear.custom_state_dict()}
    tensors = {
        f"{stem}.{key}": np.asarray(value.numpy())
        for stem, state in states.items()
        for key, value in state.items()
        if key in ("w_norm", "b_norm", "diff", "diff_b")
    }
    assert len(tensors) == 4
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors_bytes(tensors, METADATA))
    found = {(s.component, s.parameter, d.kind): d.dense() for s, d in load(path).deltas.items()}
    with torch.no_grad():
        weight, bias = of_norm.make_weight()
        expected = {
            ("unet", "weight", "norm"): weight - norm.weight,
            ("unet", "bias", "norm"): bias - norm.bias,
            ("unet", "weight", "full"): of_linear.make_weight()[0] - weight_before,
            ("unet", "bias", "bias"): of_linear.make_weight()[1] - bias_before,
        }
    assert found.keys() == expected.keys()
    for site, value in expected.items():
        assert relative(found[site], value.double().numpy()) < 1e-6, site


@pytest.mark.parametrize("layer", LAYERS)
def test_a_sparse_rest_is_what_the_extraction_left(layer: str, tmp_path: Path) -> None:
    """LyCORIS writes sparse rests and reads none: with all of the rest kept, nothing is lost."""
    utils = pytest.importorskip("lycoris.utils")
    torch.manual_seed(7)
    step = torch.randn_like(layer_of(layer).weight)
    extract = utils.extract_linear if layer == "linear" else utils.extract_conv
    (down, up, rest), mode = extract(step, "fixed", R, device="cpu")
    assert mode == "low rank"
    rest = utils.make_sparse(rest.reshape(up.size(0), -1), 0.0)
    kept = rest.to_sparse().coalesce()
    tensors = {
        "lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(float(R)),
        "bias_indices": kept.indices().to(torch.int16), "bias_values": kept.values(),
        "bias_size": torch.tensor(rest.shape).to(torch.int16),
    }  # fmt: skip
    path = tmp_path / "a.safetensors"
    arrays = {f"{STEMS[layer]}.{k}": np.ascontiguousarray(v.numpy()) for k, v in tensors.items()}
    path.write_bytes(safetensors_bytes(arrays, METADATA))
    (delta,) = load(path).deltas.values()
    assert delta.kind == "sparse-bias"
    assert relative(delta.dense(), step.double().numpy()) < 1e-6
