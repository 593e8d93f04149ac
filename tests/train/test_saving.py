"""What is saved is what the model does; what is loaded too, from any dialect."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch")

import loramerge as lm  # noqa: E402
from loramerge.errors import (  # noqa: E402
    AdapterError,
    FamilyError,
    NotExpressible,
    OutputExists,
    UnsupportedKind,
    UsageError,
)
from loramerge.train.lora.saving import lora_adapter  # noqa: E402
from tests.builders.models import images, small, stirred  # noqa: E402
from tests.builders.samples import read_safetensors  # noqa: E402

nn = torch.nn


def trained(**options: Any) -> Any:
    model = small()
    torch.manual_seed(2)
    lm.inject_trainable_lora(model, 3, **{"preset": "full", "alpha": 2.0, **options})
    stirred(model)
    return model


def differences(model: Any) -> dict[str, Any]:
    return {
        name: module.lora.product().detach().numpy()
        for name, module in model.named_modules()
        if hasattr(module, "lora")
    }


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"rslora": True},
    "patterns": {"rank_pattern": {"*.to_q": 5}, "alpha_pattern": {"*conv1": 7.0}},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tuned", [1.0, -0.5])
def test_a_model_of_no_family_is_saved_and_loaded(case: str, tuned: float, tmp_path: Path) -> None:
    model = trained(**CASES[case])
    lm.tune_lora_scale(model, tuned)
    path = tmp_path / "own.safetensors"
    size = lm.save_lora_weight(model, path)
    assert size == path.stat().st_size
    adapter = lm.load(path)
    found = {name: delta.dense() for name, delta in adapter.modules()}
    expected = differences(model)
    assert found.keys() == expected.keys() and not adapter.info.account.unknown
    assert all(np.allclose(found[n], expected[n], atol=1e-6) for n in expected)
    fresh = small()
    groups, names = lm.load_lora_weight(fresh, path)
    assert names == list(expected) and len(groups) == len(names)
    assert all(p.requires_grad for p in chain(*groups))
    assert torch.allclose(fresh(images()), model(images()), atol=1e-5)
    assert not torch.allclose(fresh(images()), small()(images()), atol=1e-3)


def test_the_header_states_every_rank_and_alpha(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    lm.save_lora_weight(trained(rank_pattern={"*.to_q": 5}), path, metadata={"ss_seed": "2"})
    tensors, metadata = read_safetensors(path)
    config = json.loads(metadata["lora_adapter_metadata"])
    ranks = {k: v for k, v in config.items() if k.endswith((".r", ".rank_pattern", "lora_alpha"))}
    assert ranks and metadata["ss_seed"] == "2" and metadata["modelspec.sai_model_spec"] == "1.0.0"
    assert len(tensors) == 18


def test_a_file_is_not_replaced_unasked_and_an_adapter_is_a_copy(tmp_path: Path) -> None:
    model, path = trained(), tmp_path / "own.safetensors"
    adapter = lora_adapter(model)
    before = next(iter(adapter.deltas.values())).dense()
    stirred(model, seed=9)
    assert np.array_equal(next(iter(adapter.deltas.values())).dense(), before)
    lm.save_lora_weight(model, path)
    with pytest.raises(OutputExists):
        lm.save_lora_weight(model, path)
    lm.save_lora_weight(model, path, force=True, dtype="float16")
    assert {t.dtype for t in read_safetensors(path)[0].values()} == {np.dtype("float16")}


def test_a_base_of_no_family_is_said_to_be_none_and_that_decides(tmp_path: Path) -> None:
    """Also for a file all of whose names are a family's."""
    from tests.builders.samples import make, write

    sample = make("sd15", "diffusers")
    assert lm.load(write(sample, tmp_path / "a.safetensors")).family is not None
    sample.metadata["loramerge.family"] = "none"
    assert lm.load(write(sample, tmp_path / "b.safetensors")).info.detection.naming is None
    own = tmp_path / "own.safetensors"
    lm.save_lora_weight(trained(), own)
    assert read_safetensors(own)[1]["loramerge.family"] == "none"


def test_several_models_need_names() -> None:
    with pytest.raises(UsageError, match="name of its component"):
        lora_adapter({"": trained(), "unet": trained()})
    adapter = lora_adapter({"unet": trained(), "text_encoder": trained(preset="attn")})
    assert adapter.components() == {"unet": 9, "text_encoder": 6}


def test_what_is_not_the_models_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    lm.save_lora_weight(trained(), path)
    other = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(AdapterError, match="9 of 9 modules are not in the model"):
        lm.load_lora_weight(other, path)
    with pytest.raises(AdapterError, match=r"to_k: the module has another shape(.|\n)*\[10, 10\]"):
        lm.load_lora_weight(small(width=10), path)
    with pytest.raises(AdapterError, match="no module of this adapter belongs"):
        lm.load_lora_weight({"unet": small()}, lora_adapter({"text_encoder": trained()}))
    assert not [m for m in other.modules() if hasattr(m, "lora")]
    with pytest.raises(AdapterError, match="has a LoRA already"):
        lm.load_lora_weight(trained(), path)
    with torch.device("meta"):
        empty = small()
    with pytest.raises(AdapterError, match="no values yet"):
        lm.load_lora_weight(empty, path)


def test_components_of_other_models_are_noted() -> None:
    notes: list[Any] = []
    both = lora_adapter({"unet": trained(), "text_encoder": trained()})
    fresh = small()
    _, names = lm.load_lora_weight({"unet": fresh}, both, notify=notes.append)
    assert len(names) == 9
    assert [n.text for n in notes] == [
        "9 modules of text_encoder belong to none of the models given"
    ]


def test_loading_draws_no_random_numbers() -> None:
    adapter = lora_adapter(trained())
    model = small()
    torch.manual_seed(4)
    lm.load_lora_weight(model, adapter)
    drawn = torch.rand(1)
    torch.manual_seed(4)
    assert torch.equal(drawn, torch.rand(1))


def test_tensors_of_unknown_meaning_are_not_lost(tmp_path: Path) -> None:
    from tests.builders.samples import safetensors_bytes

    lm.save_lora_weight(trained(), tmp_path / "own.safetensors")
    tensors, metadata = read_safetensors(tmp_path / "own.safetensors")
    path = tmp_path / "more.safetensors"
    path.write_bytes(safetensors_bytes({**tensors, "odd": np.ones(3, np.float32)}, metadata))
    with pytest.raises(AdapterError, match=r"1 tensors of the file belong(.|\n)*odd"):
        lm.load_lora_weight(small(), path)


def test_what_cannot_be_said_is_refused(tmp_path: Path) -> None:
    model = trained()
    with pytest.raises(NotExpressible):
        lm.save_lora_weight(model, tmp_path / "a.safetensors", dialect="kohya")
    with pytest.raises(FamilyError, match="sd15 has no such module"):  # stated, so not guessed
        lm.save_lora_weight(model, tmp_path / "a.safetensors", family="sd15")
    with pytest.raises(UsageError, match="prediction"):
        lm.save_lora_weight(model, tmp_path / "a.safetensors", prediction="v")
    lm.tune_lora_scale(model, 0.0)
    with pytest.raises(AdapterError, match="tuned to 0"):
        lm.save_lora_weight(model, tmp_path / "a.safetensors")
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_full_difference_is_no_lora(tmp_path: Path) -> None:
    from tests.builders.samples import safetensors_bytes

    path = tmp_path / "diff.safetensors"
    path.write_bytes(safetensors_bytes({"lora_unet_head.diff": np.ones((2, 12), np.float32)}))
    with pytest.raises(UnsupportedKind, match=r"unet\.head: a delta of kind full"):
        lm.load_lora_weight({"unet": small()}, path)
